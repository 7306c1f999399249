//! JSON patch, RFC 6902, with pointers of RFC 6901.

use serde_json::Value;

use crate::status::Failure;

/// All operations, or none.
pub(super) fn apply(mut object: Value, patch: &Value) -> Result<Value, Failure> {
    let Value::Array(operations) = patch else {
        return Err(Failure::bad_request("error decoding patch: a JSON patch is a list of operations"));
    };
    for operation in operations {
        step(&mut object, operation)?;
    }
    Ok(object)
}

fn step(object: &mut Value, operation: &Value) -> Result<(), Failure> {
    let text = |field: &str| {
        operation.get(field).and_then(Value::as_str).ok_or_else(|| {
            Failure::bad_request(format!("error decoding patch: an operation lacks \"{field}\": {operation}"))
        })
    };
    let value = || operation.get("value").cloned().ok_or_else(|| refused("add", "value is missing"));
    let (op, path) = (text("op")?, text("path")?);
    let missing = || refused(op, &format!("path {path:?} does not exist"));
    match op {
        "test" => {
            let expected = value()?;
            let found = object.pointer(path).unwrap_or(&Value::Null);
            if *found == expected {
                return Ok(());
            }
            Err(refused("test", &format!("testing path {path:?} failed: it is {found}, not {expected}")))
        }
        "add" => insert(object, path, value()?).ok_or_else(missing),
        "remove" => remove(object, path).map(drop).ok_or_else(missing),
        "replace" => {
            *object.pointer_mut(path).ok_or_else(missing)? = value()?;
            Ok(())
        }
        "copy" => {
            let copied = object.pointer(text("from")?).cloned().ok_or_else(missing)?;
            insert(object, path, copied).ok_or_else(missing)
        }
        "move" => {
            let from = text("from")?;
            if path.starts_with(&format!("{from}/")) {
                return Err(refused("move", "a value cannot move into itself"));
            }
            let moved = remove(object, from).ok_or_else(missing)?;
            insert(object, path, moved).ok_or_else(missing)
        }
        other => Err(Failure::bad_request(format!("error decoding patch: unknown operation {other:?}"))),
    }
}

/// kube-apiserver answers 422 when a well-formed patch does not apply.
fn refused(op: &str, why: &str) -> Failure {
    Failure::new(
        422,
        "Invalid",
        format!(
            "the server rejected our request due to an error in our request: {op} operation does not apply: {why}"
        ),
    )
}

fn split(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn insert(object: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    let (parent, last) = split(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(map) => _ = map.insert(last, value),
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let index = last.parse::<usize>().ok().filter(|i| *i <= list.len())?;
            list.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = split(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(map) => map.remove(&last),
        Value::Array(list) => {
            let index = last.parse::<usize>().ok().filter(|i| *i < list.len())?;
            Some(list.remove(index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_follow_rfc_6902() {
        let object = json!({"a": {"b/c": 1, "list": [1, 3]}});
        let patch = json!([
            {"op": "test", "path": "/a/b~1c", "value": 1},
            {"op": "add", "path": "/a/list/1", "value": 2},
            {"op": "add", "path": "/a/list/-", "value": 4},
            {"op": "replace", "path": "/a/b~1c", "value": "x"},
            {"op": "copy", "from": "/a/list/0", "path": "/first"},
            {"op": "move", "from": "/a/b~1c", "path": "/moved"},
            {"op": "remove", "path": "/a/list/0"},
        ]);
        let result = json!({"a": {"list": [2, 3, 4]}, "first": 1, "moved": "x"});
        assert_eq!(apply(object, &patch), Ok(result));
    }

    #[test]
    fn what_does_not_apply_is_refused() {
        let object = json!({"a": [1]});
        for patch in [
            json!({"op": "add"}),
            json!([{"op": "remove", "path": "/b"}]),
            json!([{"op": "add", "path": "/a/5", "value": 1}]),
            json!([{"op": "replace", "path": "/x", "value": 1}]),
            json!([{"op": "test", "path": "/a/0", "value": 2}]),
            json!([{"op": "move", "from": "/a", "path": "/a/0"}]),
            json!([{"op": "grow", "path": "/a"}]),
        ] {
            assert!(apply(object.clone(), &patch).is_err(), "{patch}");
        }
    }
}
