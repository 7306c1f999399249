//! Subresources of stored objects: a workload's scale, a pod's binding to its node.

use http::Response;
use serde_json::{Value, json};

use crate::api::Body;
use crate::kind::{NAMESPACE, POD};
use crate::object::{at, integer, list, map_in, metadata, root, text};
use crate::patch::Format;
use crate::request::Call;
use crate::status::Failure;
use crate::store::{Key, Stored};
use crate::{invalid, moment, response, write};

/// `autoscaling/v1` Scale of a Deployment or ReplicaSet.
pub(crate) async fn scale(call: &Call) -> Result<Response<Body>, Failure> {
    let key = Key::new(call.kind, &call.namespace, &call.name);
    let (found, revision) = call.api.inner.store.get(&key);
    call.api.inner.store.settled(revision).await?;
    let stored = found.ok_or_else(|| Failure::not_found(call.kind.group, call.kind.plural, &call.name))?;
    Ok(response::json(200, &scale_of(&stored)?))
}

fn scale_of(stored: &Stored) -> Result<Value, Failure> {
    let object = stored.value()?;
    let meta = |field: &str| at(&object, &["metadata", field]).cloned().unwrap_or_default();
    let selector = crate::table::selector_text(at(&object, &["spec", "selector"]));
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": meta("name"), "namespace": meta("namespace"), "uid": meta("uid"),
            "resourceVersion": meta("resourceVersion"), "creationTimestamp": meta("creationTimestamp")},
        "spec": {"replicas": integer(&object, &["spec", "replicas"])},
        "status": {"replicas": integer(&object, &["status", "replicas"]), "selector": selector},
    }))
}

/// PUT (without a content type of a patch) or PATCH of the Scale.
pub(crate) async fn rescale(
    call: &Call,
    format: Option<Format>,
    sent: Value,
) -> Result<Response<Body>, Failure> {
    let key = Key::new(call.kind, &call.namespace, &call.name);
    let (stored, revision) = call.api.inner.store.write(|tx| {
        let old = tx.get(&key).cloned();
        let old = old.ok_or_else(|| Failure::not_found(call.kind.group, call.kind.plural, &call.name))?;
        let current = scale_of(&old)?;
        let wanted = match format {
            None => sent,
            // A Scale has no lists: a strategic patch of it is a merge patch.
            Some(Format::Strategic) => Format::Merge.apply(call.kind, current, &sent)?,
            Some(format) => format.apply(call.kind, current, &sent)?,
        };
        let revision = text(&wanted, &["metadata", "resourceVersion"]);
        if !revision.is_empty() && revision != old.revision.to_string() {
            return Err(Failure::conflict(
                call.kind.group,
                call.kind.plural,
                &call.name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        let replicas = at(&wanted, &["spec", "replicas"]).cloned().unwrap_or_else(|| 0.into());
        if !replicas.as_i64().is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n)) {
            let mut complaints = invalid::Complaints::default();
            complaints.invalid("spec.replicas", &replicas, "must be greater than or equal to 0");
            complaints.verdict(call.kind, &call.name)?;
        }
        let mut object = old.value()?;
        if at(&object, &["spec", "replicas"]) == Some(&replicas) || write::is_dry_run(call) {
            return Ok(old);
        }
        map_in(root(&mut object), "spec").insert("replicas".to_owned(), replicas);
        write::bump_generation(&mut object);
        tx.put(key, object)
    })?;
    call.api.inner.store.settled(revision).await?;
    Ok(response::json(200, &scale_of(&stored)?))
}

/// The scheduler's decision: the pod's node, once.
pub(crate) async fn bind(call: &Call, binding: &Value) -> Result<Response<Body>, Failure> {
    let node = text(binding, &["target", "name"]).to_owned();
    if node.is_empty() {
        return Err(Failure::bad_request("a Binding needs target.name, the name of a node"));
    }
    let key = Key::new(&POD, &call.namespace, &call.name);
    let ((), revision) = call.api.inner.store.write(|tx| {
        let old = tx.get(&key).cloned().ok_or_else(|| Failure::not_found("", POD.plural, &call.name))?;
        let mut pod = old.value()?;
        let conflict = |why: String| Failure::conflict("", "pods/binding", &call.name, &why);
        let bound = text(&pod, &["spec", "nodeName"]);
        if !bound.is_empty() {
            return Err(conflict(format!("pod {} is already assigned to node {bound:?}", call.name)));
        }
        if at(&pod, &["metadata", "deletionTimestamp"]).is_some() {
            return Err(conflict(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                call.name
            )));
        }
        map_in(root(&mut pod), "spec").insert("nodeName".to_owned(), node.into());
        let mut conditions = list(&pod, &["status", "conditions"]).to_vec();
        conditions.retain(|c| text(c, &["type"]) != "PodScheduled");
        conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": moment::format(moment::now())}));
        map_in(root(&mut pod), "status").insert("conditions".to_owned(), conditions.into());
        tx.put(key, pod).map(drop)
    })?;
    call.api.inner.store.settled(revision).await?;
    Ok(response::json(201, &success()))
}

/// PUT of a namespace's finalizers: without one left, the namespace goes.
pub(crate) async fn finalize(call: &Call, sent: &Value) -> Result<Response<Body>, Failure> {
    let key = Key::new(&NAMESPACE, "", &call.name);
    let (stored, revision) = call.api.inner.store.write(|tx| {
        let old =
            tx.get(&key).cloned().ok_or_else(|| Failure::not_found("", NAMESPACE.plural, &call.name))?;
        let mut namespace = old.value()?;
        let left = list(sent, &["spec", "finalizers"]).to_vec();
        let done = left.is_empty() && crate::object::finalizers(&namespace).is_empty();
        map_in(root(&mut namespace), "spec").insert("finalizers".to_owned(), left.into());
        let deleted = metadata(&mut namespace).contains_key("deletionTimestamp");
        if deleted && done { tx.remove(key, namespace) } else { tx.put(key, namespace) }
    })?;
    call.api.inner.store.settled(revision).await?;
    crate::read::one(call, 200, &stored)
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
