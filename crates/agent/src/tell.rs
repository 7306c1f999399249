//! Writes to the API: Events on objects, and on our Node the VTEP's hardware address and that the network is there. A queue of its own, so that
//! a slow or absent API never holds up the datapath.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use model::{Key, Kind};
use serde_json::json;
use tokio::sync::mpsc;
use types::{Mac, hash8};

use crate::metrics::Metrics;

/// As many wait at most; more are counted and dropped, since the log has them.
const WAITING: usize = 256;
/// The same words on the same object are not said again within this time.
const SILENCE: Duration = Duration::from_secs(600);
/// The watch shows within this time that the Node's condition was written.
const SHOWN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Saying {
    pub object: Key,
    /// `kubectl describe pod` shows Events of this very pod only; empty: of any that had the name.
    pub uid: String,
    /// `false`: a Warning.
    pub normal: bool,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug)]
enum Item {
    Saying(Saying),
    Vtep(Mac),
    Available,
}

/// The end of the queue that the node's loop writes to.
#[derive(Clone, Debug)]
pub struct Tell {
    queue: mpsc::Sender<Item>,
    metrics: Arc<Metrics>,
}

impl Tell {
    /// Starts the writer.
    pub fn start(client: Client, node: String, metrics: Arc<Metrics>) -> Self {
        let (queue, items) = mpsc::channel(WAITING);
        let writer = Writer { client, node, said: HashMap::new(), available: None };
        tokio::spawn(writer.run(items));
        Self { queue, metrics }
    }

    pub fn say(&self, saying: Saying) {
        if self.queue.try_send(Item::Saying(saying)).is_err() {
            self.metrics.event_dropped();
        }
    }

    /// Takes the condition NetworkUnavailable from our Node, and with it the taint that the node lifecycle
    /// controller makes of it; the watch shows whether it worked.
    pub fn network_available(&self) {
        if self.queue.try_send(Item::Available).is_err() {
            self.metrics.event_dropped();
        }
    }

    /// Publishes the VTEP's address on our Node; the watch shows whether it arrived.
    pub fn vtep(&self, mac: Mac) {
        if self.queue.try_send(Item::Vtep(mac)).is_err() {
            self.metrics.event_dropped();
        }
    }
}

struct Writer {
    client: Client,
    node: String,
    said: HashMap<Saying, Instant>,
    /// When the condition NetworkUnavailable was last taken away.
    available: Option<Instant>,
}

impl Writer {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.recv().await {
            let done = match item {
                Item::Vtep(mac) => self.annotate(mac).await,
                Item::Available => self.network_available().await,
                Item::Saying(saying) => self.say(saying).await,
            };
            if let Err(error) = done {
                tracing::warn!(%error, "the API did not take what the agent had to say");
            }
        }
    }

    async fn annotate(&self, mac: Mac) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let annotations = json!({ types::wire::VTEP_MAC_ANNOTATION: mac.to_string() });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        nodes.patch_metadata(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }

    async fn network_available(&mut self) -> Result<(), kube::Error> {
        if self.available.is_some_and(|at| at.elapsed() < SHOWN) {
            return Ok(());
        }
        self.available = Some(Instant::now());
        let nodes: Api<Node> = Api::all(self.client.clone());
        let now = timestamp(SystemTime::now());
        let condition = json!({
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "PlumbIsUp",
            "message": "Plumb wires pods on this node",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        });
        // Conditions are merged by their type.
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        nodes.patch_status(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }

    async fn say(&mut self, saying: Saying) -> Result<(), kube::Error> {
        let now = Instant::now();
        self.said.retain(|_, at| now.duration_since(*at) < SILENCE);
        if self.said.contains_key(&saying) {
            return Ok(());
        }
        let event = event(&self.node, &saying, SystemTime::now());
        let namespace = event["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Event"), "events");
        let events: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &kind);
        self.said.insert(saying, now);
        let object = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        events.create(&PostParams::default(), &object).await.map(drop)
    }
}

/// Kind and apiVersion as the API has them; an attachment is told on its pod by the caller.
fn reference(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Node => ("Node", "v1"),
        Kind::Namespace => ("Namespace", "v1"),
        Kind::Pod | Kind::Attachment => ("Pod", "v1"),
        Kind::Service => ("Service", "v1"),
        Kind::EndpointSlice => ("EndpointSlice", "discovery.k8s.io/v1"),
        Kind::Policy => ("NetworkPolicy", "networking.k8s.io/v1"),
    }
}

/// RFC 3339, in seconds.
fn timestamp(at: SystemTime) -> String {
    let time =
        k8s_openapi::jiff::Timestamp::try_from(at).map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    time.unwrap_or_default()
}

/// A core/v1 Event. Those about cluster-scoped objects live in `default`, as kubelet's do.
fn event(node: &str, saying: &Saying, at: SystemTime) -> serde_json::Value {
    let name = &saying.object.name;
    let (kind, version) = reference(saying.object.kind);
    let namespace = if name.namespace.is_empty() { "default" } else { &name.namespace };
    let nanos = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let suffix = format!("{nanos:x}{}", hash8(&format!("{}{}{node}", saying.reason, saying.message)));
    let time = timestamp(at);
    let mut object =
        json!({ "kind": kind, "apiVersion": version, "name": name.name, "namespace": name.namespace });
    if let Some(fields) = object.as_object_mut().filter(|_| !saying.uid.is_empty()) {
        fields.insert("uid".to_owned(), saying.uid.clone().into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": format!("{}.{suffix}", name.name), "namespace": namespace },
        "involvedObject": object,
        "reason": saying.reason,
        "message": saying.message,
        "type": if saying.normal { "Normal" } else { "Warning" },
        "source": { "component": "plumb-agent", "host": node },
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::ObjectName;

    #[test]
    fn an_event_names_object_reason_and_source() {
        let saying = Saying {
            object: Key::new(Kind::Policy, ObjectName::new("shop", "p")),
            uid: String::new(),
            normal: false,
            reason: "Unsupported",
            message: "spec.x".into(),
        };
        let event = event("node1", &saying, SystemTime::UNIX_EPOCH);
        assert_eq!(event["involvedObject"]["apiVersion"], "networking.k8s.io/v1");
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["firstTimestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(event["type"], "Warning");
    }

    #[test]
    fn events_about_nodes_live_in_default() {
        let object = Key::new(Kind::Node, ObjectName::cluster("node1"));
        let (uid, message) = (String::new(), String::new());
        let saying = Saying { object, uid, normal: true, reason: "DriftMended", message };
        let event = event("node1", &saying, SystemTime::now());
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["involvedObject"].get("uid"), None);
    }
}
