//! Events have two faces: core/v1, which kubectl reads and which is stored, and events.k8s.io/v1, which
//! recorders write (conversion: kubernetes, pkg/apis/core/v1 and events/v1).

use serde_json::{Map, Value};

/// Stored name, name in events.k8s.io/v1.
const NAMES: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
];

pub(crate) fn to_new(object: Value) -> Value {
    let mut new = rename(object, |name| NAMES.iter().find(|(old, _)| *old == name).map(|(_, new)| *new));
    if let Value::Object(map) = &mut new {
        if let Some(count) = map.remove("count") {
            map.insert("deprecatedCount".to_owned(), count);
        }
        map.insert("apiVersion".to_owned(), "events.k8s.io/v1".into());
    }
    new
}

pub(crate) fn to_stored(object: Value) -> Value {
    let mut old = rename(object, |name| match name {
        "deprecatedCount" => Some("count"),
        _ => NAMES.iter().find(|(_, new)| *new == name).map(|(old, _)| *old),
    });
    if let Value::Object(map) = &mut old {
        map.insert("apiVersion".to_owned(), "v1".into());
    }
    old
}

fn rename(object: Value, new_name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Value::Object(map) = object else { return object };
    let renamed: Map<_, _> =
        map.into_iter().map(|(name, value)| (new_name(&name).map_or(name, str::to_owned), value)).collect();
    Value::Object(renamed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_faces_hold_the_same() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"name": "web"}, "note": "Started", "reportingController": "kubelet", "deprecatedCount": 2});
        let old = to_stored(new.clone());
        assert_eq!(old["involvedObject"]["name"], "web");
        assert_eq!((&old["message"], &old["count"]), (&json!("Started"), &json!(2)));
        assert_eq!(to_new(old), new);
    }
}
