//! `kubectl apply` on the client's side: what it writes down of a manifest, and the strategic merge patch that makes an
//! object what its manifest says (kubectl, pkg/util/apply.go; apimachinery, CreateThreeWayMergePatch).
//!
//! ```text
//!   said last (annotation) ──┐ what is in it and not in the manifest goes
//!   the manifest ────────────┼─> patch
//!   the object as it is ─────┘ what is in it alone stays: defaults, and what others wrote
//! ```

use serde_json::{Map, Value, json};

use super::strategic::{FROM_LIST, ORDER, merge_of, struct_of};
use crate::kind::Kind;
use crate::object::{map_in, metadata, root, text};
use crate::schema::{Merge, named, type_name};

/// What the last manifest was, on the object itself.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Of all annotations together (TotalAnnotationSizeLimitB, apimachinery, pkg/api/validation).
const LONGEST: usize = 256 << 10;

/// The manifest as it is sent, with itself in the annotation. One that is too long for that is applied without.
pub fn annotated(kind: &Kind, manifest: &Value) -> Value {
    let mut object = manifest.clone();
    let meta = metadata(&mut object);
    if kind.namespaced && !meta.contains_key("namespace") {
        meta.insert("namespace".to_owned(), "default".into());
    }
    map_in(meta, "annotations").remove(LAST_APPLIED);
    let said = as_go_writes(&object);
    let annotations = map_in(metadata(&mut object), "annotations");
    let others: usize = annotations.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
    if LAST_APPLIED.len() + said.len() + others <= LONGEST {
        annotations.insert(LAST_APPLIED.to_owned(), said.into());
    }
    object
}

/// Byte for byte, or the next `kubectl apply` of the same file would say that it changed something. The keys are sorted.
fn as_go_writes(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            // For browsers (encoding/json, HTMLEscape).
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('\n');
    text
}

/// What is to be changed of `there` for the manifest of [`annotated`]; `None`: nothing.
pub fn changes(kind: &Kind, annotated: &Value, there: &Value) -> Option<Value> {
    let last = text(there, &["metadata", "annotations", LAST_APPLIED]);
    let mut last: Value = serde_json::from_str(last).unwrap_or_default();
    let patch = map(
        Some(type_name(kind)),
        there.as_object()?,
        annotated.as_object()?,
        &Maybe(Some(&*root(&mut last))),
    );
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// What was said last of a map, if anything was.
struct Maybe<'a>(Option<&'a Map<String, Value>>);

impl<'a> Maybe<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0?.get(name)
    }

    fn map(&self, name: &str) -> Self {
        Self(self.get(name).and_then(Value::as_object))
    }

    fn list(&self, name: &str) -> &'a [Value] {
        self.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

fn map(
    shape: Option<&'static str>,
    there: &Map<String, Value>,
    said: &Map<String, Value>,
    last: &Maybe<'_>,
) -> Map<String, Value> {
    let mut patch = Map::new();
    for (name, value) in said.iter().filter(|(_, value)| !value.is_null()) {
        let known = shape.and_then(named).and_then(|shape| shape.field(name));
        let inner = known.and_then(|field| struct_of(&field.ty));
        let merge = merge_of(shape, name);
        match (value, there.get(name)) {
            (value, Some(same)) if value == same => {}
            (Value::Object(said), Some(Value::Object(there))) => {
                let mut changed = map(inner, there, said, &last.map(name));
                if !changed.is_empty() {
                    if merge == Merge::RetainKeys {
                        changed.insert("$retainKeys".to_owned(), said.keys().cloned().collect());
                    }
                    patch.insert(name.clone(), Value::Object(changed));
                }
            }
            (Value::Array(said), Some(Value::Array(there))) => {
                let lists = Lists { there, said, last: last.list(name) };
                match merge {
                    Merge::ByKey(key) => lists.keyed(name, key, inner, &mut patch),
                    Merge::Set => lists.set(name, &mut patch),
                    Merge::Replace | Merge::RetainKeys => _ = patch.insert(name.clone(), value.clone()),
                }
            }
            (value, _) => _ = patch.insert(name.clone(), value.clone()),
        }
    }
    let gone = last.0.into_iter().flatten().map(|(name, _)| name);
    let gone = gone.chain(said.iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name));
    for name in gone.filter(|name| said.get(*name).is_none_or(Value::is_null) && there.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    patch
}

/// A list, as it is, as the manifest has it, and as the last one had it.
struct Lists<'a> {
    there: &'a [Value],
    said: &'a [Value],
    last: &'a [Value],
}

impl Lists<'_> {
    /// Elements that are told apart by `key`.
    fn keyed(
        &self,
        name: &str,
        key: &'static str,
        shape: Option<&'static str>,
        patch: &mut Map<String, Value>,
    ) {
        let Self { there, said, last } = self;
        // Two ports of one number, of TCP and UDP, are not told apart by it: such a list is what its manifest says.
        if doubled(said, key) || doubled(there, key) {
            let within = |(one, other): (&Value, &Value)| says_nothing_new(shape, one, other);
            if said.len() != there.len() || !there.iter().zip(said.iter()).all(within) {
                let whole = std::iter::once(json!({"$patch": "replace"})).chain(said.iter().cloned());
                patch.insert(name.to_owned(), whole.collect());
            }
            return;
        }
        let mut elements = Vec::new();
        for element in said.iter() {
            let found = element.get(key).and_then(|wanted| of_key(there, key, wanted));
            match (element, found) {
                (Value::Object(said), Some(Value::Object(there))) => {
                    let before = element.get(key).and_then(|wanted| of_key(last, key, wanted));
                    let mut changed = map(shape, there, said, &Maybe(before.and_then(Value::as_object)));
                    if let (false, Some(wanted)) = (changed.is_empty(), element.get(key)) {
                        changed.insert(key.to_owned(), wanted.clone());
                        elements.push(Value::Object(changed));
                    }
                }
                _ => elements.push(element.clone()),
            }
        }
        for gone in last.iter().filter_map(|element| element.get(key)) {
            if of_key(said, key, gone).is_none() && of_key(there, key, gone).is_some() {
                elements.push(json!({"$patch": "delete", key: gone}));
            }
        }
        if !elements.is_empty() {
            let order = said.iter().filter_map(|element| Some(json!({ key: element.get(key)? })));
            patch.insert(format!("{ORDER}{name}"), order.collect());
            patch.insert(name.to_owned(), elements.into());
        }
    }

    /// Values of which each is there once.
    fn set(&self, name: &str, patch: &mut Map<String, Value>) {
        let Self { there, said, last } = self;
        let new: Vec<_> = said.iter().filter(|value| !there.contains(value)).cloned().collect();
        let gone = last.iter().filter(|value| there.contains(value) && !said.contains(value));
        let gone: Vec<_> = gone.cloned().collect();
        if !gone.is_empty() {
            patch.insert(format!("{FROM_LIST}{name}"), gone.into());
        }
        if !new.is_empty() {
            patch.insert(name.to_owned(), new.into());
        }
    }
}

fn of_key<'a>(list: &'a [Value], key: &str, wanted: &Value) -> Option<&'a Value> {
    list.iter().find(|element| element.get(key) == Some(wanted))
}

fn doubled(list: &[Value], key: &str) -> bool {
    let keys: Vec<_> = list.iter().map(|element| element.get(key)).collect();
    keys.iter().enumerate().any(|(at, one)| keys.iter().skip(at + 1).any(|other| one == other))
}

fn says_nothing_new(shape: Option<&'static str>, there: &Value, said: &Value) -> bool {
    match (there, said) {
        (Value::Object(there), Value::Object(said)) => map(shape, there, said, &Maybe(None)).is_empty(),
        (there, said) => there == said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{DEPLOYMENT, KINDS, POD, SERVICE};
    use crate::patch::Format;

    /// `there` after the manifest was applied to it.
    fn applied(kind: &Kind, there: &Value, manifest: &Value) -> Value {
        match changes(kind, &annotated(kind, manifest), there) {
            Some(patch) => Format::Strategic.apply(kind, there.clone(), &patch).expect("a patch"),
            None => there.clone(),
        }
    }

    fn spec(object: &Value) -> &Value {
        &object["spec"]
    }

    #[test]
    fn the_annotation_is_what_kubectl_writes() {
        let manifest =
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"x": "<&>"}});
        let config_map = KINDS.into_iter().find(|kind| kind.kind == "ConfigMap").expect("a kind");
        let object = annotated(config_map, &manifest);
        // As kubectl 1.37 has it for this manifest.
        let said = "{\"apiVersion\":\"v1\",\"data\":{\"x\":\"\\u003c\\u0026\\u003e\"},\"kind\":\"ConfigMap\",\"metadata\":{\"annotations\":{},\"name\":\"a\",\"namespace\":\"default\"}}\n";
        assert_eq!(object["metadata"]["annotations"], json!({ LAST_APPLIED: said }));
        // Of an object that was read from an API, what it had said before does not count.
        assert_eq!(annotated(config_map, &object), object);
        let long = json!({"metadata": {"name": "a"}, "data": {"x": "x".repeat(LONGEST)}});
        assert_eq!(annotated(config_map, &long)["metadata"]["annotations"], json!({}));
    }

    #[test]
    fn what_a_manifest_no_longer_says_goes_and_what_others_wrote_stays() {
        let first = json!({"metadata": {"name": "a", "labels": {"ours": "1", "old": "1"}},
            "spec": {"nodeName": "node1", "containers": [
                {"name": "main", "image": "host", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                {"name": "side", "image": "host"}]}});
        let mut there = annotated(&POD, &first);
        assert_eq!(changes(&POD, &annotated(&POD, &first), &there), None);
        // Defaults, and what somebody else has added since.
        there["metadata"]["labels"]["theirs"] = "1".into();
        there["spec"]["dnsPolicy"] = "ClusterFirst".into();
        there["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
        there["spec"]["containers"][0]["env"].as_array_mut().expect("a list").push(json!({"name": "C"}));
        assert_eq!(changes(&POD, &annotated(&POD, &first), &there), None);
        let second = json!({"metadata": {"name": "a", "labels": {"ours": "2"}},
            "spec": {"containers": [{"name": "main", "image": "host", "env": [{"name": "B", "value": "3"}]}]}});
        let now = applied(&POD, &there, &second);
        assert_eq!(now["metadata"]["labels"], json!({"ours": "2", "theirs": "1"}));
        assert_eq!(
            *spec(&now),
            json!({"dnsPolicy": "ClusterFirst", "containers": [{"name": "main", "image": "host",
                "imagePullPolicy": "Always", "env": [{"name": "B", "value": "3"}, {"name": "C"}]}]})
        );
        assert_eq!(changes(&POD, &annotated(&POD, &second), &now), None);
    }

    #[test]
    fn ports_of_one_number_are_kept_apart() {
        let ports = |numbers: [u16; 2]| {
            json!({"metadata": {"name": "dns"}, "spec": {"ports": [
                {"name": "udp", "port": numbers[0], "protocol": "UDP"}, {"name": "tcp", "port": numbers[1], "protocol": "TCP"}]}})
        };
        let mut there = annotated(&SERVICE, &ports([53, 53]));
        there["spec"]["ports"][0]["nodePort"] = 30053.into();
        assert_eq!(changes(&SERVICE, &annotated(&SERVICE, &ports([53, 53])), &there), None);
        let mut moved = ports([53, 53]);
        moved["spec"]["ports"][1]["name"] = "other".into();
        assert_eq!(spec(&applied(&SERVICE, &there, &moved)), spec(&moved));
        assert_eq!(spec(&applied(&SERVICE, &there, &ports([53, 54]))), spec(&ports([53, 54])));
    }

    #[test]
    fn another_strategy_takes_the_parameters_of_the_former_with_it() {
        let of = |strategy: Value| json!({"metadata": {"name": "a"}, "spec": {"strategy": strategy}});
        let there = annotated(&DEPLOYMENT, &of(json!({"type": "RollingUpdate"})));
        let mut there = there;
        there["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": "25%"});
        let now = applied(&DEPLOYMENT, &there, &of(json!({"type": "Recreate"})));
        assert_eq!(spec(&now)["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn sets_lose_what_was_said_and_null_is_nothing() {
        let of = |finalizers: Value| json!({"metadata": {"name": "a", "finalizers": finalizers}});
        let mut there = annotated(&POD, &of(json!(["x/a", "x/b"])));
        there["metadata"]["finalizers"] = json!(["x/theirs", "x/a", "x/b"]);
        let now = applied(&POD, &there, &of(json!(["x/b", "x/c"])));
        assert_eq!(now["metadata"]["finalizers"], json!(["x/theirs", "x/b", "x/c"]));
        let now = applied(&POD, &there, &of(Value::Null));
        assert_eq!(now["metadata"].get("finalizers"), None);
    }
}
