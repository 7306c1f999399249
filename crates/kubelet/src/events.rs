//! Events about pods: one object per cause, counted when it repeats.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use types::hash8;

use crate::moment;

/// Whether something went as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Warning,
}

/// Where events are handed in; writing them is never waited for.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Entry>,
}

#[derive(Debug)]
struct Entry {
    namespace: String,
    name: String,
    body: serde_json::Value,
}

/// Beyond this many unwritten events new ones are dropped: they are advice, not state.
const BACKLOG: usize = 1_000;
const TRIES: usize = 5;

impl Events {
    /// Starts the writer.
    pub fn start(client: Client, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(write(client, node.to_owned(), receiver));
        Self { sender }
    }

    /// `kubectl describe pod` shows it.
    pub fn pod(&self, pod: &Pod, kind: Kind, reason: &str, message: &str) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let uid = pod.uid().unwrap_or_default();
        let unique = hash8(&format!("{uid} {reason} {message}"));
        let body = json!({
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
            "type": match kind { Kind::Normal => "Normal", Kind::Warning => "Warning" },
            "reason": reason, "message": message,
        });
        let entry = Entry { name: format!("{name}.{unique}"), namespace, body };
        if self.sender.try_send(entry).is_err() {
            tracing::warn!(reason, message, "too many events at once; one is dropped");
        }
    }
}

async fn write(client: Client, node: String, mut receiver: mpsc::Receiver<Entry>) {
    let mut counts: HashMap<String, u32> = HashMap::new();
    while let Some(entry) = receiver.recv().await {
        if counts.len() > BACKLOG {
            counts.clear();
        }
        let count = counts.entry(format!("{}/{}", entry.namespace, entry.name)).or_insert(0);
        *count += 1;
        for try_number in 1..=TRIES {
            match write_one(&client, &node, &entry, *count).await {
                Ok(()) => break,
                Err(error) if try_number == TRIES => tracing::warn!(%error, "an event could not be written"),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

async fn write_one(client: &Client, node: &str, entry: &Entry, count: u32) -> kube::Result<()> {
    let api: Api<Event> = Api::namespaced(client.clone(), &entry.namespace);
    let now = moment::now();
    if count > 1 {
        let change = json!({"count": count, "lastTimestamp": now});
        match api.patch(&entry.name, &PatchParams::default(), &Patch::Merge(&change)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
    }
    let mut body = entry.body.clone();
    body["metadata"] = json!({"name": entry.name, "namespace": entry.namespace});
    body["firstTimestamp"] = json!(now);
    body["lastTimestamp"] = json!(now);
    body["count"] = json!(count);
    body["source"] = json!({"component": "kubelet", "host": node});
    body["reportingComponent"] = json!("kubelet");
    body["reportingInstance"] = json!(node);
    let event: Event = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &event).await {
        // Written by the kubelet before us; or its namespace is going away, and it with it.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}
