//! The one interpreter of [`Write`]s: each becomes one request (two where the API has to be asked first).

use control::view::OwnerReference;
use control::write::{Notice, Propagation, Target};
use control::{Kind, Write};
use http::{Method, Request};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use thiserror::Error;
use types::ObjectName;

use crate::path;

/// What a write made of the world, as the API answered: known before the watch tells it.
#[derive(Debug)]
pub enum Outcome {
    Stored(Kind, Value),
    Gone(Target),
    Bound(ObjectName, String),
    Nothing,
}

#[derive(Debug, Error)]
#[error("{write}: {cause}; tried again with a growing pause")]
pub struct PerformError {
    pub write: String,
    #[source]
    pub cause: kube::Error,
}

impl PerformError {
    /// Somebody else was faster: nothing is wrong, the watch brings what they wrote.
    pub fn is_conflict(&self) -> bool {
        code(&self.cause) == Some(409)
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Performs a write. An object that is gone already is an outcome, not an error.
pub async fn perform(client: &Client, write: &Write) -> Result<Outcome, PerformError> {
    let performed = match write {
        Write::Create { kind, object, done } => create(client, *kind, object, done.as_ref()).await,
        Write::Patch { target, subresource, patch } => {
            let mut body = patch.clone();
            // A namesake made in between has another uid, which no patch may change.
            body["metadata"]["uid"] = json!(target.uid);
            let tail = subresource.map(|s| format!("/{s}")).unwrap_or_default();
            let path = format!("{}{tail}", path::object(target.kind, &target.name));
            let stored = send(client, Method::PATCH, &path, &body).await;
            gone_or(stored.map(|value| Outcome::Stored(target.kind, value)), target)
        }
        Write::Delete { target, propagation, done } => {
            let deleted = delete(client, target, *propagation).await;
            if let (Ok(_), Some(notice)) = (&deleted, done) {
                post(client, notice).await;
            }
            deleted
        }
        Write::Collect { target, owners } => collect(client, target, owners).await,
        Write::Bind { pod, node, done } => bind(client, pod, node, done).await,
        Write::DeleteEvents { namespace } => {
            let path = format!("/api/v1/namespaces/{namespace}/events");
            send(client, Method::DELETE, &path, &json!({})).await.map(|_| Outcome::Nothing)
        }
        Write::Finalize { namespace } => finalize(client, namespace).await,
        Write::Post(notice) => {
            post(client, notice).await;
            Ok(Outcome::Nothing)
        }
    };
    performed.map_err(|cause| PerformError { write: write.to_string(), cause })
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> Result<Value, kube::Error> {
    let media = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = if method == Method::GET { Vec::new() } else { body.to_string().into_bytes() };
    let request =
        Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, media).body(body);
    client.request(request.map_err(kube::Error::HttpError)?).await
}

fn gone_or(result: Result<Outcome, kube::Error>, target: &Target) -> Result<Outcome, kube::Error> {
    match result {
        Err(error) if code(&error) == Some(404) => Ok(Outcome::Gone(target.clone())),
        other => other,
    }
}

async fn create(
    client: &Client,
    kind: Kind,
    object: &Value,
    done: Option<&Notice>,
) -> Result<Outcome, kube::Error> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let created = send(client, Method::POST, &path::collection(kind, namespace), object).await;
    match (&created, done) {
        (Ok(value), Some(notice)) => {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            let note = notice.note.replace("{name}", name);
            post(client, &Notice { note, ..notice.clone() }).await;
        }
        (Err(kube::Error::Api(status)), Some(notice)) if status.code != 409 => {
            let note = format!("Error creating: {}", status.message);
            let failed = Notice { note, reason: "FailedCreate", warning: true, ..notice.clone() };
            post(client, &failed).await;
        }
        _ => {}
    }
    created.map(|value| Outcome::Stored(kind, value))
}

async fn delete(client: &Client, target: &Target, propagation: Propagation) -> Result<Outcome, kube::Error> {
    let options = json!({
        "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation.name(),
        "preconditions": {"uid": target.uid},
    });
    let answer = send(client, Method::DELETE, &path::object(target.kind, &target.name), &options).await;
    // An object that ends with grace comes back with its deletion time; anything else says that it is gone.
    let outcome = answer.map(|value| match value["metadata"]["deletionTimestamp"].is_string() {
        true => Outcome::Stored(target.kind, value),
        false => Outcome::Gone(target.clone()),
    });
    gone_or(outcome, target)
}

async fn collect(
    client: &Client,
    target: &Target,
    owners: &[OwnerReference],
) -> Result<Outcome, kube::Error> {
    for owner in owners {
        let Some(kind) = Kind::of_reference(&owner.api_version, &owner.kind) else {
            return Ok(Outcome::Nothing);
        };
        let namespace = if kind.namespaced() { &*target.name.namespace } else { "" };
        let place = path::object(kind, &ObjectName::new(namespace, &owner.name));
        match send(client, Method::GET, &place, &Value::Null).await {
            Ok(found) if found["metadata"]["uid"] == json!(owner.uid) => return Ok(Outcome::Nothing),
            Ok(_) => {}
            Err(error) if code(&error) == Some(404) => {}
            Err(error) => return Err(error),
        }
    }
    delete(client, target, Propagation::Background).await
}

async fn bind(client: &Client, pod: &Target, node: &str, done: &Notice) -> Result<Outcome, kube::Error> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name.name, "namespace": pod.name.namespace, "uid": pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let place = format!("{}/binding", path::object(pod.kind, &pod.name));
    let bound = send(client, Method::POST, &place, &binding).await;
    if bound.is_ok() {
        post(client, done).await;
    }
    gone_or(bound.map(|_| Outcome::Bound(pod.name.clone(), node.to_owned())), pod)
}

async fn finalize(client: &Client, target: &Target) -> Result<Outcome, kube::Error> {
    let place = path::object(Kind::Namespace, &target.name);
    let found = match send(client, Method::GET, &place, &Value::Null).await {
        Ok(found) if found["metadata"]["uid"] == json!(target.uid) => found,
        Ok(_) => return Ok(Outcome::Gone(target.clone())),
        Err(error) => return gone_or(Err(error), target),
    };
    let mut namespace = found;
    if let Some(finalizers) = namespace["spec"]["finalizers"].as_array_mut() {
        finalizers.retain(|f| f != "kubernetes");
    }
    // The answer may be the namespace as it was last: only the watch knows whether it is gone.
    let done = send(client, Method::PUT, &format!("{place}/finalize"), &namespace).await;
    gone_or(done.map(|_| Outcome::Nothing), target)
}

/// Posts an Event. It tells; nothing depends on it, so a failure is only logged.
async fn post(client: &Client, notice: &Notice) {
    let about = &notice.about;
    // Events about cluster-scoped objects live in `default`.
    let namespace = if about.name.namespace.is_empty() { "default" } else { &*about.name.namespace };
    let now = Timestamp::now();
    let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {
            "name": format!("{}.{:x}", about.name.name, now.as_nanosecond()), "namespace": namespace,
        },
        "involvedObject": {
            "apiVersion": about.kind.api_version(), "kind": about.kind.name(),
            "namespace": about.name.namespace, "name": about.name.name, "uid": about.uid,
        },
        "type": if notice.warning { "Warning" } else { "Normal" },
        "reason": notice.reason, "message": notice.note,
        "source": {"component": notice.source},
        "reportingComponent": notice.source, "reportingInstance": "",
        "firstTimestamp": seconds, "lastTimestamp": seconds, "count": 1,
    });
    let place = format!("/api/v1/namespaces/{namespace}/events");
    if let Err(error) = send(client, Method::POST, &place, &event).await {
        tracing::debug!(about = %about, reason = notice.reason, %error, "controllers: event not posted");
    }
}
