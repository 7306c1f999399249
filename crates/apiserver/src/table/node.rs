//! Nodes and Namespaces.

use serde_json::Value;

use super::{AGE, Column, NAME, age, name};
use crate::object::{at, list, text};

pub(super) const COLUMNS: [Column; 10] = [
    NAME,
    ("Status", "string", false),
    ("Roles", "string", false),
    AGE,
    ("Version", "string", false),
    ("Internal-IP", "string", true),
    ("External-IP", "string", true),
    ("OS-Image", "string", true),
    ("Kernel-Version", "string", true),
    ("Container-Runtime", "string", true),
];

pub(super) fn cells(object: &Value) -> Vec<Value> {
    let address = |wanted: &str| {
        let found = list(object, &["status", "addresses"]).iter().find(|a| text(a, &["type"]) == wanted);
        or(found.map(|a| text(a, &["address"])).unwrap_or_default(), "<none>")
    };
    let info = |field: &str| or(text(object, &["status", "nodeInfo", field]), "<unknown>");
    vec![
        name(object),
        status(object).into(),
        roles(object).into(),
        age(object),
        text(object, &["status", "nodeInfo", "kubeletVersion"]).into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn or(text: &str, otherwise: &str) -> Value {
    if text.is_empty() { otherwise.into() } else { text.into() }
}

fn status(object: &Value) -> String {
    let ready = list(object, &["status", "conditions"]).iter().find(|c| text(c, &["type"]) == "Ready");
    let mut words = vec![match ready.map(|c| text(c, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if at(object, &["spec", "unschedulable"]).and_then(Value::as_bool) == Some(true) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(object: &Value) -> String {
    let labels = at(object, &["metadata", "labels"]).and_then(Value::as_object);
    let mut roles: Vec<_> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

pub(super) const NAMESPACE_COLUMNS: [Column; 3] = [NAME, ("Status", "string", false), AGE];

pub(super) fn namespace_cells(object: &Value) -> Vec<Value> {
    vec![name(object), text(object, &["status", "phase"]).into(), age(object)]
}
