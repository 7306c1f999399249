//! Strategic merge patch: a merge patch that knows which lists merge, and by which key.
//! Rules: apimachinery, pkg/util/strategicpatch; directives: contributors/devel/sig-api-machinery/strategic-merge-patch.md.
//!
//! ```text
//! {"$patch": "replace" | "delete" | "merge"}      for a map, or an element of a keyed list
//! {"$setElementOrder/list": [keys…]}              the order in which the list ends
//! {"$deleteFromPrimitiveList/list": [values…]}
//! {"$retainKeys": [fields…]}                      every other field goes
//! ```

use serde_json::{Map, Value};

use crate::schema::{Merge, Type, named};
use crate::status::Failure;

pub(super) const ORDER: &str = "$setElementOrder/";
pub(super) const FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// Patches an object of the named type in place.
pub(super) fn apply(type_name: &'static str, target: &mut Value, patch: &Value) -> Result<(), Failure> {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => map(Some(type_name), target, patch),
        _ => Err(Failure::bad_request("error decoding patch: a strategic merge patch is an object")),
    }
}

fn map(
    shape: Option<&'static str>,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), Failure> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            target.clear();
            target.extend(plain(patch));
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        None | Some("merge") => {}
        Some(other) => return Err(bad(&format!("unknown $patch directive {other:?}"))),
    }
    if let Some(Value::Array(kept)) = patch.get("$retainKeys") {
        target.retain(|name, _| kept.iter().any(|k| k.as_str() == Some(name)));
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(FROM_LIST) {
            delete_from_list(target, list, value);
        }
    }
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        field(shape, target, name, value)?;
    }
    for (name, order) in patch {
        if let (Some(list), Value::Array(order)) = (name.strip_prefix(ORDER), order) {
            let merge = merge_of(shape, list);
            if let Some(Value::Array(items)) = target.get_mut(list) {
                sort(items, order, merge);
            }
        }
    }
    Ok(())
}

pub(super) fn merge_of(shape: Option<&str>, field: &str) -> Merge {
    shape.and_then(named).and_then(|s| s.field(field)).map_or(Merge::Replace, |f| f.merge)
}

fn field(
    shape: Option<&'static str>,
    target: &mut Map<String, Value>,
    name: &str,
    value: &Value,
) -> Result<(), Failure> {
    let known = shape.and_then(named).and_then(|s| s.field(name));
    if value.is_null() {
        target.remove(name);
        return Ok(());
    }
    match (value, target.get_mut(name)) {
        (Value::Object(patch), Some(Value::Object(inner))) => {
            let inner_shape = known.and_then(|f| struct_of(&f.ty));
            map(inner_shape, inner, patch)?;
            if patch.get("$patch").and_then(Value::as_str) == Some("delete") {
                target.remove(name);
            }
        }
        (Value::Object(patch), _) => {
            let mut fresh = Map::new();
            map(known.and_then(|f| struct_of(&f.ty)), &mut fresh, patch)?;
            target.insert(name.to_owned(), Value::Object(fresh));
        }
        (Value::Array(patch), existing) => {
            let mut items = match existing {
                Some(Value::Array(items)) => std::mem::take(items),
                _ => Vec::new(),
            };
            match known.map(|f| (f.merge, struct_of(&f.ty))) {
                Some((Merge::ByKey(key), shape)) => keyed(key, shape, &mut items, patch)?,
                Some((Merge::Set, _)) => {
                    for value in patch {
                        if !items.contains(value) {
                            items.push(value.clone());
                        }
                    }
                }
                _ => items = patch.clone(),
            }
            target.insert(name.to_owned(), Value::Array(items));
        }
        (value, _) => _ = target.insert(name.to_owned(), value.clone()),
    }
    Ok(())
}

/// Merges a list whose elements are told apart by `key`.
fn keyed(
    key: &str,
    shape: Option<&'static str>,
    items: &mut Vec<Value>,
    patch: &[Value],
) -> Result<(), Failure> {
    // A lone {"$patch": "replace"} element says that the patch is the whole list.
    if patch.iter().any(|p| p.get("$patch").and_then(Value::as_str) == Some("replace")) {
        *items = patch
            .iter()
            .filter_map(Value::as_object)
            .map(|p| plain(p).collect::<Map<_, _>>())
            .filter(|p| !p.is_empty())
            .map(Value::Object)
            .collect();
        return Ok(());
    }
    for element in patch {
        let Value::Object(element) = element else {
            return Err(bad("an element of a keyed list is no object"));
        };
        let Some(wanted) = element.get(key) else {
            return Err(bad(&format!(
                "map: {} does not contain declared merge key: {key}",
                Value::Object(element.clone())
            )));
        };
        let place = items.iter().position(|item| item.get(key) == Some(wanted));
        let deletes = element.get("$patch").and_then(Value::as_str) == Some("delete");
        if deletes {
            items.retain(|item| item.get(key) != Some(wanted));
            continue;
        }
        match place.and_then(|at| items.get_mut(at)) {
            Some(Value::Object(item)) => map(shape, item, element)?,
            _ => {
                let mut fresh = Map::new();
                map(shape, &mut fresh, element)?;
                items.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// Brings the elements that the patch's author knew into the order he gave; those that only the server has
/// keep their place behind the element they followed.
fn sort(items: &mut Vec<Value>, order: &[Value], merge: Merge) {
    let same = |item: &Value, wanted: &Value| match merge {
        Merge::ByKey(key) => item.get(key).is_some() && item.get(key) == wanted.get(key),
        _ => item == wanted,
    };
    let rank = |item: &Value| order.iter().position(|wanted| same(item, wanted));
    let mut ranked: Vec<(usize, Value)> = Vec::with_capacity(items.len());
    let mut server_only: Vec<(Option<usize>, Value)> = Vec::new();
    let mut previous = None;
    for item in items.drain(..) {
        match rank(&item) {
            Some(at) => {
                previous = Some(at);
                ranked.push((at, item));
            }
            None => server_only.push((previous, item)),
        }
    }
    ranked.sort_by_key(|(at, _)| *at);
    let mut waiting = server_only.into_iter().peekable();
    while let Some((_, item)) = waiting.next_if(|(after, _)| after.is_none()) {
        items.push(item);
    }
    let mut rest: Vec<_> = waiting.collect();
    for (at, item) in ranked {
        items.push(item);
        let (here, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(after, _)| *after == Some(at));
        items.extend(here.into_iter().map(|(_, item)| item));
        rest = later;
    }
    items.extend(rest.into_iter().map(|(_, item)| item));
}

fn delete_from_list(target: &mut Map<String, Value>, list: &str, values: &Value) {
    if let (Some(Value::Array(items)), Value::Array(values)) = (target.get_mut(list), values) {
        items.retain(|item| !values.contains(item));
    }
}

/// The patch without its directives.
fn plain(patch: &Map<String, Value>) -> impl Iterator<Item = (String, Value)> {
    patch.iter().filter(|(name, _)| !name.starts_with('$')).map(|(n, v)| (n.clone(), v.clone()))
}

pub(super) fn struct_of(ty: &Type) -> Option<&'static str> {
    match ty {
        Type::Struct(name) => Some(name),
        Type::List(inner) => struct_of(inner),
        _ => None,
    }
}

fn bad(why: &str) -> Failure {
    Failure::bad_request(format!("error applying strategic merge patch: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(type_name: &'static str, mut object: Value, patch: Value) -> Value {
        assert_eq!(apply(type_name, &mut object, &patch), Ok(()));
        object
    }

    #[test]
    fn containers_merge_by_name_and_are_deleted_by_directive() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "host"}, {"name": "b"}]}});
        let patch = json!({"spec": {"containers": [
            {"name": "a", "image": "other"}, {"name": "b", "$patch": "delete"}, {"name": "c", "image": "host"}]}});
        let result = json!({"spec": {"containers": [{"name": "a", "image": "other"}, {"name": "c", "image": "host"}]}});
        assert_eq!(patched("Pod", pod, patch), result);
    }

    #[test]
    fn the_order_is_the_one_asked_for() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}});
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
            "containers": [{"name": "c"}]}});
        let names = json!({"spec": {"containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}, {"name": "server"}]}});
        assert_eq!(patched("Pod", pod, patch), names);
    }

    #[test]
    fn lists_without_a_key_are_replaced_and_sets_are_united() {
        let pod = json!({"metadata": {"finalizers": ["x"]}, "spec": {"containers": [{"name": "a", "args": ["1", "2"]}]}});
        let patch = json!({"metadata": {"finalizers": ["y"], "$deleteFromPrimitiveList/finalizers": ["x"]},
            "spec": {"containers": [{"name": "a", "args": ["3"]}]}});
        let result = json!({"metadata": {"finalizers": ["y"]}, "spec": {"containers": [{"name": "a", "args": ["3"]}]}});
        assert_eq!(patched("Pod", pod, patch), result);
    }

    #[test]
    fn directives_replace_delete_and_retain() {
        let deployment = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "selector": {"matchLabels": {"a": "b"}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"},
            "selector": {"$patch": "replace", "matchLabels": {"c": "d"}}}});
        let result =
            json!({"spec": {"strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"c": "d"}}}});
        assert_eq!(patched("Deployment", deployment.clone(), patch), result);
        let patch = json!({"spec": {"strategy": {"$patch": "delete"}, "selector": null}});
        assert_eq!(patched("Deployment", deployment, patch), json!({"spec": {}}));
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        let patch = json!({"spec": {"containers": [{"image": "host"}]}});
        assert!(apply("Pod", &mut pod, &patch).is_err());
    }
}
