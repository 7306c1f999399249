//! Tables: what `kubectl get` prints.

use serde_json::{Value, json};

use crate::form::partial;
use crate::kind::Kind;
use crate::object::text;

/// A table with its columns.
pub(crate) fn whole(kind: &Kind, metadata: &Value, rows: Vec<Value>) -> Value {
    let _ = kind;
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [
        {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0},
        {"name": "Age", "type": "string", "format": "", "description": "", "priority": 0}], "rows": rows})
}

/// One object's row.
pub(crate) fn row(kind: &Kind, object: Value, whole_object: bool) -> Value {
    let _ = kind;
    let age = crate::moment::parse(text(&object, &["metadata", "creationTimestamp"]))
        .map_or("<unknown>".to_owned(), |t| crate::moment::human(crate::moment::now() - t));
    let cells = json!([text(&object, &["metadata", "name"]), age]);
    let object = if whole_object { object } else { partial(&object) };
    json!({"cells": cells, "object": object})
}
