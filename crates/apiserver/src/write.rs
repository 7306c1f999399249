//! CREATE, PUT and PATCH: decode → stamp → default → validate → allocate → store.

use std::sync::Arc;

use http::{HeaderValue, Response};
use serde_json::{Value, json};

use crate::api::Body;
use crate::kind::{
    DEPLOYMENT, EVENT, Kind, NAMESPACE, NEW_EVENT, POD, REPLICA_SET, SERVICE, SERVICE_ACCOUNT,
};
use crate::object::{at, is_being_deleted, keep, map_in, metadata, name_type, root, text};
use crate::patch::Format;
use crate::request::Call;
use crate::schema::check::{Strictness, conform};
use crate::status::Failure;
use crate::store::{Key, Stored, Transaction};
use crate::{
    clusterip, credentials, defaults, events, invalid, moment, nodeport, read, service_type, validate,
};

/// Stores a new object.
pub(crate) async fn create(call: &Call, mut object: Value) -> Result<Response<Body>, Failure> {
    let warnings = decode(call, &mut object)?;
    let kind = call.kind.stored_as();
    stamp(call, &mut object)?;
    defaults::apply(kind, &mut object);
    let name = text(&object, &["metadata", "name"]).to_owned();
    let mut complaints = invalid::Complaints::default();
    validate::create(kind, &object, &mut complaints);
    complaints.verdict(kind, &name)?;
    let dry = is_dry_run(call);
    let key = Key::new(kind, &call.namespace, &name);
    let (stored, revision) = call.api.inner.store.write(|tx| {
        check_namespace(tx, call, &name)?;
        if tx.get(&key).is_some() {
            return Err(Failure::already_exists(call.kind.group, call.kind.plural, &name));
        }
        if *kind == SERVICE {
            clusterip::allocate(tx, &key, &mut object, (None, call.api.inner.config.families))?;
            nodeport::allocate(tx, &key, &mut object, None)?;
        }
        if dry {
            return Ok(dry_run(&object));
        }
        if *kind == NAMESPACE {
            let account = default_account(&name);
            tx.put(Key::new(&SERVICE_ACCOUNT, &name, "default"), account)?;
        }
        tx.put(key, object)
    })?;
    call.api.inner.store.settled(revision).await?;
    warned(read::one(call, 201, &stored)?, &warnings)
}

/// Replaces an object, its status, or a namespace's finalizers.
pub(crate) async fn put(call: &Call, mut object: Value) -> Result<Response<Body>, Failure> {
    let warnings = decode(call, &mut object)?;
    update(call, |_| Ok(object), &warnings).await
}

/// Changes a part of an object.
pub(crate) async fn patch(call: &Call, content_type: &str, patch: Value) -> Result<Response<Body>, Failure> {
    let format = Format::of(content_type)?;
    let warnings = std::sync::Mutex::new(Vec::new());
    let change = |old: &Value| {
        let mut new = format.apply(call.kind, old.clone(), &patch)?;
        let found = decode(call, &mut new)?;
        if let Ok(mut warnings) = warnings.lock() {
            *warnings = found;
        }
        Ok(new)
    };
    let response = update(call, change, &[]).await?;
    let warnings = warnings.into_inner().unwrap_or_default();
    warned(response, &warnings)
}

async fn update(
    call: &Call,
    change: impl FnOnce(&Value) -> Result<Value, Failure>,
    warnings: &[String],
) -> Result<Response<Body>, Failure> {
    let kind = call.kind.stored_as();
    let key = Key::new(kind, &call.namespace, &call.name);
    let (stored, revision) = call.api.inner.store.write(|tx| {
        let old = tx.get(&key).cloned();
        let old = old.ok_or_else(|| Failure::not_found(kind.group, kind.plural, &call.name))?;
        let before = old.value()?;
        let mut shown = before.clone();
        if call.kind.group == NEW_EVENT.group {
            shown = events::to_new(shown);
        }
        let new = change(&shown)?;
        let new = if call.kind.group == NEW_EVENT.group { events::to_stored(new) } else { new };
        succeed(tx, call, &before, new).and_then(|new| finish(tx, call, &old, new))
    })?;
    call.api.inner.store.settled(revision).await?;
    warned(read::one(call, 200, &stored)?, warnings)
}

/// The object that follows `before`: what clients may not change is as it was.
fn succeed(tx: &Transaction<'_>, call: &Call, before: &Value, mut new: Value) -> Result<Value, Failure> {
    let kind = call.kind.stored_as();
    check_identity(call, before, &new)?;
    name_type(kind, &mut new);
    let meta = metadata(&mut new);
    let old_meta = before.get("metadata");
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        keep(meta, old_meta, field);
    }
    meta.remove("managedFields");
    meta.remove("selfLink");
    if kind.kind == NAMESPACE.kind {
        let labels = map_in(meta, "labels");
        labels.insert("kubernetes.io/metadata.name".to_owned(), call.name.as_str().into());
    }
    let map = root(&mut new);
    match call.sub.as_str() {
        "status" => keep(map, Some(before), "spec"),
        "finalize" => keep(map, Some(before), "status"),
        _ if kind.has_status() => {
            keep(map, Some(before), "status");
            if *kind == NAMESPACE {
                keep(map, Some(before), "spec");
            }
        }
        _ => {}
    }
    if *kind == SERVICE && call.sub.is_empty() {
        clusterip::inherit(&mut new, before);
        service_type::forget(&mut new, before);
    }
    defaults::apply(kind, &mut new);
    let mut complaints = invalid::Complaints::default();
    validate::update(kind, &new, before, &mut complaints);
    complaints.verdict(kind, &call.name)?;
    if *kind == SERVICE && call.sub.is_empty() {
        let key = Key::new(kind, &call.namespace, &call.name);
        clusterip::allocate(tx, &key, &mut new, (Some(before), call.api.inner.config.families))?;
        nodeport::allocate(tx, &key, &mut new, Some(before))?;
    }
    if kind.generation && content_changed(kind, before, &new) {
        bump_generation(&mut new);
    }
    Ok(new)
}

/// Stores it, unless nothing changed; removes it when it only waited for its last finalizer.
fn finish(
    tx: &mut Transaction<'_>,
    call: &Call,
    old: &Arc<Stored>,
    new: Value,
) -> Result<Arc<Stored>, Failure> {
    let kind = call.kind.stored_as();
    let key = Key::new(kind, &call.namespace, &call.name);
    if is_dry_run(call) {
        return Ok(dry_run(&new));
    }
    let waits_for_kubelet = *kind == POD
        && at(&new, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0) > 0;
    let namespace_holds =
        *kind == NAMESPACE && !crate::object::list(&new, &["spec", "finalizers"]).is_empty();
    let held = !crate::object::finalizers(&new).is_empty() || waits_for_kubelet || namespace_holds;
    if is_being_deleted(&new) && !held {
        return tx.remove(key, new);
    }
    if old.value()? == new {
        return Ok(old.clone());
    }
    tx.put(key, new)
}

fn check_identity(call: &Call, before: &Value, new: &Value) -> Result<(), Failure> {
    let conflict = |why: &str| Failure::conflict(call.kind.group, call.kind.plural, &call.name, why);
    let name = text(new, &["metadata", "name"]);
    if !name.is_empty() && name != call.name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        )));
    }
    let revision = text(new, &["metadata", "resourceVersion"]);
    if !revision.is_empty() && revision != "0" && revision != text(before, &["metadata", "resourceVersion"]) {
        return Err(conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        ));
    }
    let (uid, old_uid) = (text(new, &["metadata", "uid"]), text(before, &["metadata", "uid"]));
    if !uid.is_empty() && uid != old_uid {
        return Err(conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
        )));
    }
    Ok(())
}

/// Checks group, kind, namespace and shape; returns warnings about unknown fields.
fn decode(call: &Call, object: &mut Value) -> Result<Vec<String>, Failure> {
    if !object.is_object() {
        return Err(Failure::bad_request("the request's body is not an object"));
    }
    let (version, kind) = (call.kind.api_version(), call.kind.kind);
    let (sent_version, sent_kind) =
        (text(object, &["apiVersion"]).to_owned(), text(object, &["kind"]).to_owned());
    if !sent_version.is_empty() && sent_version != version {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({sent_version}) does not match the expected API version ({version})"
        )));
    }
    if !sent_kind.is_empty() && sent_kind != kind {
        return Err(Failure::bad_request(format!(
            "{sent_kind} in version \"{}\" cannot be handled as a {kind}: the kind of the object does not match \
             the resource of the URL",
            call.kind.version
        )));
    }
    let strictness = match call.query.get("fieldValidation") {
        "Strict" => Strictness::Strict,
        "" | "Warn" => Strictness::Warn,
        "Ignore" => Strictness::Ignore,
        other => {
            return Err(Failure::new(
                422,
                "Invalid",
                format!(
                    "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"{other}\": \
                     supported values: \"Ignore\", \"Strict\", \"Warn\""
                ),
            ));
        }
    };
    let unknown = conform(call.kind, object, strictness)?;
    name_type(call.kind, object);
    let namespace = text(object, &["metadata", "namespace"]);
    if !namespace.is_empty() && namespace != call.namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let meta = metadata(object);
    meta.remove("managedFields");
    if call.kind.namespaced {
        meta.insert("namespace".to_owned(), call.namespace.as_str().into());
    } else {
        meta.remove("namespace");
    }
    Ok(unknown.into_iter().map(|path| format!("unknown field \"{path}\"")).collect())
}

/// What the server alone decides about a new object.
fn stamp(call: &Call, object: &mut Value) -> Result<(), Failure> {
    if call.kind.group == NEW_EVENT.group {
        *object = events::to_stored(std::mem::take(object));
    }
    let kind = call.kind.stored_as();
    if call.kind.namespaced && call.namespace.is_empty() {
        return Err(Failure::bad_request("an object of this kind needs a namespace in the URL"));
    }
    let meta = metadata(object);
    if meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    for field in
        ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "resourceVersion"]
    {
        meta.remove(field);
    }
    let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = meta.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if name.is_empty() && !prefix.is_empty() {
        meta.insert("name".to_owned(), generated_name(&prefix)?.into());
    }
    meta.insert("uid".to_owned(), new_uid()?.into());
    meta.insert("creationTimestamp".to_owned(), moment::format(moment::now()).into());
    if kind.generation {
        meta.insert("generation".to_owned(), 1.into());
    }
    if *kind == NAMESPACE {
        let name = meta.get("name").cloned().unwrap_or_default();
        map_in(meta, "labels").insert("kubernetes.io/metadata.name".to_owned(), name);
    }
    let map = root(object);
    match kind {
        k if *k == POD => {
            _ = map.insert("status".to_owned(), json!({"phase": "Pending", "qosClass": "BestEffort"}))
        }
        k if *k == NAMESPACE => {
            map.insert("spec".to_owned(), json!({"finalizers": ["kubernetes"]}));
            map.insert("status".to_owned(), json!({"phase": "Active"}));
        }
        k if *k == SERVICE => _ = map.insert("status".to_owned(), json!({"loadBalancer": {}})),
        k if *k == REPLICA_SET => _ = map.insert("status".to_owned(), json!({"replicas": 0})),
        k if k.group == DEPLOYMENT.group => _ = map.insert("status".to_owned(), json!({})),
        _ => {}
    }
    Ok(())
}

fn check_namespace(tx: &Transaction<'_>, call: &Call, name: &str) -> Result<(), Failure> {
    if !call.kind.namespaced {
        return Ok(());
    }
    let namespace = tx.get(&Key::new(&NAMESPACE, "", &call.namespace));
    let namespace = namespace.ok_or_else(|| Failure::not_found("", NAMESPACE.plural, &call.namespace))?;
    let terminating = namespace.fields.iter().any(|(f, v)| *f == "status.phase" && v == "Terminating");
    // Events may tell of a namespace's end until it is gone.
    if terminating && *call.kind.stored_as() != EVENT {
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            call.namespace
        );
        let mut failure = Failure::forbidden(call.kind.group, call.kind.plural, name, &why);
        if let Some(Value::Object(details)) = &mut failure.details {
            let message = format!("namespace {} is being terminated", call.namespace);
            let cause = json!([{"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}]);
            details.insert("causes".to_owned(), cause);
        }
        return Err(failure);
    }
    Ok(())
}

/// Everything but metadata and status counts; EndpointSlices have no spec.
fn content_changed(kind: &Kind, before: &Value, new: &Value) -> bool {
    let content = |object: &Value| {
        let mut object = object.clone();
        let map = root(&mut object);
        map.remove("metadata");
        map.remove("status");
        object
    };
    kind.generation && content(before) != content(new)
}

pub(crate) fn bump_generation(object: &mut Value) {
    let generation = crate::object::integer(object, &["metadata", "generation"]);
    metadata(object).insert("generation".to_owned(), (generation + 1).into());
}

/// `?dryRun=All`: everything but the storing.
pub(crate) fn is_dry_run(call: &Call) -> bool {
    call.query.get("dryRun") == "All"
}

fn dry_run(object: &Value) -> Arc<Stored> {
    Arc::new(Stored::unstored(object))
}

/// The ServiceAccount that every namespace has.
pub(crate) fn default_account(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
        "name": "default", "namespace": namespace, "uid": new_uid().unwrap_or_default(),
        "creationTimestamp": moment::format(moment::now())}})
}

/// A random UUID, version 4 (RFC 9562 §5.4).
pub(crate) fn new_uid() -> Result<String, Failure> {
    let hex =
        credentials::random_hex(16).map_err(|e| Failure::internal(format!("no random numbers: {e}")))?;
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    let variant = match part(16..17) {
        "0" | "4" | "8" | "c" => "8",
        "1" | "5" | "9" | "d" => "9",
        "2" | "6" | "a" | "e" => "a",
        _ => "b",
    };
    Ok(format!("{}-{}-4{}-{variant}{}-{}", part(0..8), part(8..12), part(13..16), part(17..20), part(20..32)))
}

/// The prefix and five characters that make no words (apimachinery, util/rand).
fn generated_name(prefix: &str) -> Result<String, Failure> {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let hex =
        credentials::random_hex(10).map_err(|e| Failure::internal(format!("no random numbers: {e}")))?;
    let mut name: String = prefix.chars().take(58).collect();
    for at in 0..5 {
        let number = hex.get(at * 4..at * 4 + 4).and_then(|h| usize::from_str_radix(h, 16).ok()).unwrap_or(0);
        name.extend(LETTERS.get(number % LETTERS.len()).copied().map(char::from));
    }
    Ok(name)
}

fn warned(mut response: Response<Body>, warnings: &[String]) -> Result<Response<Body>, Failure> {
    for warning in warnings {
        let text = format!("299 - \"{}\"", warning.replace('\\', "\\\\").replace('"', "\\\""));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
    Ok(response)
}
