//! Reading and writing fields of objects that are JSON trees.

use serde_json::{Map, Value};

use crate::kind::Kind;

/// The text at a path such as `["metadata", "name"]`; empty if absent.
pub(crate) fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, step| value.get(step))
}

pub(crate) fn integer(object: &Value, path: &[&str]) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or_default()
}

/// The list at a path; empty if absent.
pub(crate) fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The map under a field, made if it is missing or something else.
pub(crate) fn map_in<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // Just made one; the compiler cannot know.
        _ => unreachable!("the field was made a map"),
    }
}

/// The object's own map; anything else becomes an empty object.
pub(crate) fn root(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    match object {
        Value::Object(map) => map,
        _ => unreachable!("the object was made a map"),
    }
}

pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    map_in(root(object), "metadata")
}

/// Sets a field unless it is there.
pub(crate) fn default(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    if !map.contains_key(field) {
        map.insert(field.to_owned(), value.into());
    }
}

/// Copies a field of one map to another; absent there means absent here.
pub(crate) fn keep(to: &mut Map<String, Value>, from: Option<&Value>, field: &str) {
    match from.and_then(|from| from.get(field)) {
        Some(value) => _ = to.insert(field.to_owned(), value.clone()),
        None => _ = to.remove(field),
    }
}

/// Puts `kind` and `apiVersion` on it.
pub(crate) fn name_type(kind: &Kind, object: &mut Value) {
    let root = root(object);
    root.insert("kind".to_owned(), kind.kind.into());
    root.insert("apiVersion".to_owned(), kind.api_version().into());
}

pub(crate) fn finalizers(object: &Value) -> &[Value] {
    list(object, &["metadata", "finalizers"])
}

pub(crate) fn is_being_deleted(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some()
}
