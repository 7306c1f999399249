//! DELETE: at once, or marked and finished by the kubelet, finalizers or the namespace controller.

use http::Response;
use serde_json::{Value, json};

use crate::api::Body;
use crate::kind::{NAMESPACE, POD};
use crate::object::{at, finalizers, is_being_deleted, map_in, metadata, root, text};
use crate::request::Call;
use crate::select::Selection;
use crate::status::Failure;
use crate::store::{Key, ListQuery, Stored, Transaction};
use crate::{moment, read, response, write};

/// Namespaces that a cluster cannot be without (plugin/pkg/admission/namespace/lifecycle).
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

enum Outcome {
    Gone(std::sync::Arc<Stored>),
    Marked(std::sync::Arc<Stored>),
}

/// Deletes the named object.
pub(crate) async fn one(call: &Call, options: &Value) -> Result<Response<Body>, Failure> {
    let (outcome, revision) = call.api.inner.store.write(|tx| delete(tx, call, &call.name, options))?;
    call.api.inner.store.settled(revision).await?;
    match outcome {
        Outcome::Marked(stored) => read::one(call, 200, &stored),
        Outcome::Gone(stored) if call.kind.kind == POD.kind => read::one(call, 200, &stored),
        Outcome::Gone(stored) => {
            let uid = text(&stored.value()?, &["metadata", "uid"]).to_owned();
            let details =
                json!({"name": call.name, "group": call.kind.group, "kind": call.kind.plural, "uid": uid});
            Ok(response::json(
                200,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
            ))
        }
    }
}

/// Deletes everything that the selectors choose, and answers with the list of it.
pub(crate) async fn collection(call: &Call, options: &Value) -> Result<Response<Body>, Failure> {
    let store = &call.api.inner.store;
    let selection =
        Selection::parse(call.kind, call.query.get("labelSelector"), call.query.get("fieldSelector"))?;
    let resource = call.kind.stored_as().qualified();
    let query = ListQuery { resource: &resource, namespace: &call.namespace, start: None, at: 0 };
    let listed = store.list(&query)?;
    let chosen: Vec<_> =
        listed.objects.iter().filter(|(key, stored)| selection.matches(key, stored)).collect();
    let mut items = Vec::with_capacity(chosen.len());
    let mut last = listed.revision;
    for (key, _) in chosen {
        let mut inner = call.again();
        inner.namespace.clone_from(&key.namespace);
        match store.write(|tx| delete(tx, &inner, &key.name, options)) {
            Ok((Outcome::Gone(stored) | Outcome::Marked(stored), revision)) => {
                last = revision;
                items.push(stored.value()?);
            }
            // Someone else was faster: it is gone, as was asked.
            Err(failure) if failure.code == 404 => {}
            Err(failure) => return Err(failure),
        }
    }
    store.settled(last).await?;
    Ok(response::json(
        200,
        &json!({"kind": format!("{}List", call.kind.kind), "apiVersion": call.kind.api_version(),
            "metadata": {"resourceVersion": last.to_string()}, "items": items}),
    ))
}

fn delete(tx: &mut Transaction<'_>, call: &Call, name: &str, options: &Value) -> Result<Outcome, Failure> {
    let kind = call.kind.stored_as();
    let key = Key::new(kind, &call.namespace, name);
    let old = tx.get(&key).cloned().ok_or_else(|| Failure::not_found(kind.group, kind.plural, name))?;
    let mut object = old.value()?;
    check_preconditions(call, name, &object, options)?;
    if *kind == NAMESPACE && IMMORTAL.contains(&name) {
        return Err(Failure::forbidden("", kind.plural, name, "this namespace may not be deleted"));
    }
    let dry = write::is_dry_run(call)
        || at(options, &["dryRun"]).and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    let grace = if *kind == POD { pod_grace(call, &object, options) } else { 0 };
    add_propagation_finalizer(call, &mut object, options);
    let holds_namespace =
        *kind == NAMESPACE && !crate::object::list(&object, &["spec", "finalizers"]).is_empty();
    if grace <= 0 && finalizers(&object).is_empty() && !holds_namespace {
        return Ok(Outcome::Gone(if dry { old } else { tx.remove(key, object)? }));
    }
    let left = at(&object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    // Asking again changes nothing, unless it shortens the grace.
    if is_being_deleted(&object) && left.is_none_or(|left| grace >= left) && old.value()? == object {
        return Ok(Outcome::Marked(old));
    }
    let grace = left.map_or(grace, |left| left.min(grace));
    let meta = metadata(&mut object);
    meta.insert("deletionTimestamp".to_owned(), moment::format(moment::now() + grace).into());
    meta.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    if *kind == NAMESPACE {
        map_in(root(&mut object), "status").insert("phase".to_owned(), "Terminating".into());
        metadata(&mut object).remove("deletionGracePeriodSeconds");
    }
    if kind.generation {
        write::bump_generation(&mut object);
    }
    Ok(Outcome::Marked(if dry { old } else { tx.put(key, object)? }))
}

fn check_preconditions(call: &Call, name: &str, object: &Value, options: &Value) -> Result<(), Failure> {
    let conflict = |what: &str, wanted: &str, found: &str| {
        let why =
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(Failure::conflict(call.kind.group, call.kind.plural, name, &why))
    };
    for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let (wanted, found) = (text(options, &["preconditions", field]), text(object, &["metadata", field]));
        if !wanted.is_empty() && wanted != found {
            return conflict(what, wanted, found);
        }
    }
    Ok(())
}

/// Seconds that the kubelet has to stop a pod; none where no kubelet has it, or it has stopped by itself.
fn pod_grace(call: &Call, pod: &Value, options: &Value) -> i64 {
    let stopped = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if text(pod, &["spec", "nodeName"]).is_empty() || stopped {
        return 0;
    }
    let asked = at(options, &["gracePeriodSeconds"]).and_then(Value::as_i64);
    let asked = asked.or_else(|| call.query.get("gracePeriodSeconds").parse().ok());
    let own = || at(pod, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
    asked.or_else(own).unwrap_or(30).max(0)
}

/// The garbage collector removes them when dependents are gone, or orphaned.
fn add_propagation_finalizer(call: &Call, object: &mut Value, options: &Value) {
    let asked = match text(options, &["propagationPolicy"]) {
        "" => call.query.get("propagationPolicy"),
        asked => asked,
    };
    let finalizer = match asked {
        "Foreground" => "foregroundDeletion",
        "Orphan" => "orphan",
        _ => return,
    };
    if finalizers(object).iter().any(|f| f.as_str() == Some(finalizer)) {
        return;
    }
    let list = metadata(object).entry("finalizers").or_insert_with(|| json!([]));
    if let Value::Array(list) = list {
        list.push(finalizer.into());
    }
}
