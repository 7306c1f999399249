//! Events.

use serde_json::Value;

use super::{Column, since};
use crate::object::{at, integer, text};

pub(super) const COLUMNS: [Column; 10] = [
    ("Last Seen", "string", false),
    ("Type", "string", false),
    ("Reason", "string", false),
    ("Object", "string", false),
    ("Subobject", "string", true),
    ("Source", "string", true),
    ("Message", "string", false),
    ("First Seen", "string", true),
    ("Count", "string", true),
    ("Name", "string", true),
];

pub(super) fn cells(object: &Value) -> Vec<Value> {
    let time = |field: &str| text(object, &[field]);
    let either = |first: &'static str| if time(first).is_empty() { time("eventTime") } else { time(first) };
    let (mut last, mut count) = (since(either("lastTimestamp")), integer(object, &["count"]));
    if let Some(series) = at(object, &["series"]) {
        last = since(text(series, &["lastObservedTime"]));
        count = integer(series, &["count"]);
    } else if count == 0 {
        // One that came from events.k8s.io and happened once.
        count = 1;
    }
    let about = format!(
        "{}/{}",
        text(object, &["involvedObject", "kind"]).to_lowercase(),
        text(object, &["involvedObject", "name"])
    );
    vec![
        last.into(),
        text(object, &["type"]).into(),
        text(object, &["reason"]).into(),
        about.into(),
        text(object, &["involvedObject", "fieldPath"]).into(),
        source(object).into(),
        text(object, &["message"]).trim().into(),
        since(either("firstTimestamp")).into(),
        count.into(),
        super::name(object),
    ]
}

fn source(object: &Value) -> String {
    let (component, host) = (text(object, &["source", "component"]), text(object, &["source", "host"]));
    let (component, host) = if component.is_empty() {
        (text(object, &["reportingComponent"]), text(object, &["reportingInstance"]))
    } else {
        (component, host)
    };
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}
