//! Deployments, ReplicaSets, ConfigMaps, ServiceAccounts and Leases.

use serde_json::Value;

use super::{AGE, Column, NAME, age, name, selector_text};
use crate::object::{at, integer, list, text};

pub(super) const DEPLOYMENT_COLUMNS: [Column; 8] = [
    NAME,
    ("Ready", "string", false),
    ("Up-to-date", "integer", false),
    ("Available", "integer", false),
    AGE,
    ("Containers", "string", true),
    ("Images", "string", true),
    ("Selector", "string", true),
];

pub(super) fn deployment_cells(object: &Value) -> Vec<Value> {
    let (ready, wanted) =
        (integer(object, &["status", "readyReplicas"]), integer(object, &["spec", "replicas"]));
    let mut cells = vec![
        name(object),
        format!("{ready}/{wanted}").into(),
        integer(object, &["status", "updatedReplicas"]).into(),
        integer(object, &["status", "availableReplicas"]).into(),
        age(object),
    ];
    cells.extend(template_cells(object));
    cells
}

pub(super) const REPLICA_SET_COLUMNS: [Column; 8] = [
    NAME,
    ("Desired", "integer", false),
    ("Current", "integer", false),
    ("Ready", "integer", false),
    AGE,
    ("Containers", "string", true),
    ("Images", "string", true),
    ("Selector", "string", true),
];

pub(super) fn replica_set_cells(object: &Value) -> Vec<Value> {
    let mut cells = vec![
        name(object),
        integer(object, &["spec", "replicas"]).into(),
        integer(object, &["status", "replicas"]).into(),
        integer(object, &["status", "readyReplicas"]).into(),
        age(object),
    ];
    cells.extend(template_cells(object));
    cells
}

/// Containers, images, selector.
fn template_cells(object: &Value) -> [Value; 3] {
    let containers = list(object, &["spec", "template", "spec", "containers"]);
    let join = |field: &str| containers.iter().map(|c| text(c, &[field])).collect::<Vec<_>>().join(",");
    [join("name").into(), join("image").into(), selector_text(at(object, &["spec", "selector"])).into()]
}

pub(super) const CONFIG_MAP_COLUMNS: [Column; 3] = [NAME, ("Data", "integer", false), AGE];

pub(super) fn config_map_cells(object: &Value) -> Vec<Value> {
    let count = |field| at(object, &[field]).and_then(Value::as_object).map_or(0, serde_json::Map::len);
    vec![name(object), (count("data") + count("binaryData")).into(), age(object)]
}

pub(super) const ACCOUNT_COLUMNS: [Column; 3] = [NAME, ("Secrets", "string", false), AGE];

pub(super) fn account_cells(object: &Value) -> Vec<Value> {
    vec![name(object), list(object, &["secrets"]).len().into(), age(object)]
}

pub(super) const LEASE_COLUMNS: [Column; 3] = [NAME, ("Holder", "string", false), AGE];

pub(super) fn lease_cells(object: &Value) -> Vec<Value> {
    vec![name(object), text(object, &["spec", "holderIdentity"]).into(), age(object)]
}
