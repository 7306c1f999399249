//! Tables: what `kubectl get` prints, column by column as kube-apiserver does (pkg/printers/internalversion).

mod event;
mod network;
mod node;
mod pod;
mod workload;

use serde_json::{Value, json};

use crate::form::partial;
use crate::kind::Kind;
use crate::moment;
use crate::object::text;

/// A column: its name, its type, and whether only `-o wide` shows it.
pub(crate) type Column = (&'static str, &'static str, bool);

pub(crate) const NAME: Column = ("Name", "string", false);
pub(crate) const AGE: Column = ("Age", "string", false);

/// The columns of a kind, and the function that fills them.
struct Layout {
    columns: &'static [Column],
    cells: fn(&Value) -> Vec<Value>,
}

fn layout(kind: &Kind) -> Layout {
    match kind.kind {
        "Pod" => Layout { columns: &pod::COLUMNS, cells: pod::cells },
        "Node" => Layout { columns: &node::COLUMNS, cells: node::cells },
        "Namespace" => Layout { columns: &node::NAMESPACE_COLUMNS, cells: node::namespace_cells },
        "Service" => Layout { columns: &network::SERVICE_COLUMNS, cells: network::service_cells },
        "EndpointSlice" => Layout { columns: &network::SLICE_COLUMNS, cells: network::slice_cells },
        "NetworkPolicy" => Layout { columns: &network::POLICY_COLUMNS, cells: network::policy_cells },
        "Deployment" => Layout { columns: &workload::DEPLOYMENT_COLUMNS, cells: workload::deployment_cells },
        "ReplicaSet" => {
            Layout { columns: &workload::REPLICA_SET_COLUMNS, cells: workload::replica_set_cells }
        }
        "ConfigMap" => Layout { columns: &workload::CONFIG_MAP_COLUMNS, cells: workload::config_map_cells },
        "ServiceAccount" => Layout { columns: &workload::ACCOUNT_COLUMNS, cells: workload::account_cells },
        "Lease" => Layout { columns: &workload::LEASE_COLUMNS, cells: workload::lease_cells },
        "Event" => Layout { columns: &event::COLUMNS, cells: event::cells },
        _ => Layout { columns: &[NAME, AGE], cells: |object| vec![name(object), age(object)] },
    }
}

/// A table with its columns.
pub(crate) fn whole(kind: &Kind, metadata: &Value, rows: Vec<Value>) -> Value {
    let columns: Vec<_> = layout(kind)
        .columns
        .iter()
        .map(|(name, ty, wide)| {
            json!({"name": name, "type": ty, "format": if *name == "Name" { "name" } else { "" },
                "description": "", "priority": i32::from(*wide)})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns,
        "rows": rows})
}

/// One object's row.
pub(crate) fn row(kind: &Kind, object: Value, whole_object: bool) -> Value {
    // Events are printed from their stored shape.
    let stored =
        if kind.group == "events.k8s.io" { Some(crate::events::to_stored(object.clone())) } else { None };
    let cells = (layout(kind).cells)(stored.as_ref().unwrap_or(&object));
    json!({"cells": cells, "object": if whole_object { object } else { partial(&object) }})
}

pub(crate) fn name(object: &Value) -> Value {
    text(object, &["metadata", "name"]).into()
}

pub(crate) fn age(object: &Value) -> Value {
    since(text(object, &["metadata", "creationTimestamp"])).into()
}

/// The time since a timestamp; `<unknown>` without one.
pub(crate) fn since(timestamp: &str) -> String {
    moment::parse(timestamp)
        .map_or_else(|| "<unknown>".to_owned(), |then| moment::human(moment::now() - then))
}

/// A label selector as kubectl prints it: `app=web,tier in (a,b)`.
pub(crate) fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return "<none>".to_owned() };
    let mut terms: Vec<String> = labels_text(selector.get("matchLabels")).into_iter().collect();
    for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = text(expression, &["key"]);
        let values: Vec<_> =
            crate::object::list(expression, &["values"]).iter().filter_map(Value::as_str).collect();
        terms.push(match text(expression, &["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    if terms.is_empty() { "<none>".to_owned() } else { terms.join(",") }
}

/// `a=b,c=d`, sorted by key.
pub(crate) fn labels_text(labels: Option<&Value>) -> Option<String> {
    let map = labels.and_then(Value::as_object).filter(|map| !map.is_empty())?;
    let mut terms: Vec<_> =
        map.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    terms.sort();
    Some(terms.join(","))
}
