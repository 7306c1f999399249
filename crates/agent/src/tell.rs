//! Writes to the API: Events on objects, and on our Node how its pods are reached and that the network is there. A queue of its own, so that
//! a slow or absent API never holds up the datapath. An Event that the API did not take for reasons of its own is written
//! once it does (`backlog.rs`). The same words are written again after a growing pause (`quiet.rs`).

mod backlog;
mod quiet;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use model::{Announced, Key, Kind};
use serde_json::json;
use tokio::sync::mpsc;
use types::hash8;

use crate::metrics::Metrics;

use backlog::{Backlog, Waiting};
use quiet::{Quiet, SILENCE};

/// As many wait at most; more are counted and dropped, since the log has them.
const WAITING: usize = 256;
/// The watch shows within this time that the Node's condition was written.
const SHOWN: Duration = Duration::from_secs(5);
/// An API that did not take an Event is asked again after this long, then after twice that, and so on.
const AGAIN: Duration = Duration::from_secs(1);

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

impl Saying {
    /// Whether it is over with this one. Without a uid, of whatever had the name: it may be gone.
    fn ends_with(&self, ended: &Self) -> bool {
        (&self.object, self.reason, &self.message) == (&ended.object, ended.reason, &ended.message)
            && (ended.uid.is_empty() || ended.uid == self.uid)
    }
}

#[derive(Debug)]
enum Item {
    Happened(Saying),
    Holds(Saying),
    /// And what is said of that, where one of the first was said.
    NoLonger(Vec<Saying>, Option<Saying>),
    Announce(Announced),
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
        let writer = Writer::new(client, node, metrics.clone(), (AGAIN, SILENCE));
        tokio::spawn(writer.run(items));
        Self { queue, metrics }
    }

    /// Something that happened: held back where the same was said a moment ago.
    pub fn say(&self, saying: Saying) {
        if self.queue.try_send(Item::Happened(saying)).is_err() {
            self.metrics.event_dropped();
        }
    }

    /// Something that holds until [`Self::no_longer`] or [`Self::over`]: said later where the same was said a moment ago.
    pub fn holds(&self, saying: Saying) {
        if self.queue.try_send(Item::Holds(saying)).is_err() {
            self.metrics.event_dropped();
        }
    }

    /// What no longer holds is not said, if it was not said yet.
    pub fn no_longer(&self, saying: Saying) {
        // With no room for it, one that is out of date may be said.
        let _ = self.queue.try_send(Item::NoLonger(vec![saying], None));
    }

    /// The same of all that was said of one thing, and that it is over: unless nobody has heard that it was.
    pub fn over(&self, was: Vec<Saying>, over: Saying) {
        if self.queue.try_send(Item::NoLonger(was, Some(over))).is_err() {
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

    /// Publishes on our Node how its pods are reached; the watch shows whether it arrived.
    pub fn announce(&self, announced: Announced) {
        if self.queue.try_send(Item::Announce(announced)).is_err() {
            self.metrics.event_dropped();
        }
    }
}

struct Writer {
    client: Client,
    node: String,
    metrics: Arc<Metrics>,
    quiet: Quiet,
    backlog: Backlog,
    /// When the condition NetworkUnavailable was last taken away.
    available: Option<Instant>,
}

impl Writer {
    fn new(
        client: Client,
        node: String,
        metrics: Arc<Metrics>,
        (again, silence): (Duration, Duration),
    ) -> Self {
        let (quiet, backlog) = (Quiet::new(silence), Backlog::new(again));
        Self { client, node, metrics, quiet, backlog, available: None }
    }

    async fn run(mut self, mut items: mpsc::Receiver<Item>) {
        loop {
            let (waits, withheld) = (self.backlog.due(), self.quiet.due());
            let item = tokio::select! {
                // What no longer holds is heard of first.
                biased;
                item = items.recv() => item,
                () = at(waits) => {
                    self.say_again().await;
                    continue;
                }
                () = at(withheld) => {
                    self.say_withheld().await;
                    continue;
                }
            };
            let Some(item) = item else { return };
            if let Err(error) = self.take(item).await {
                tracing::warn!(%error, "the API did not take what the agent had to say");
            }
        }
    }

    async fn take(&mut self, item: Item) -> Result<(), kube::Error> {
        match item {
            Item::Announce(announced) => self.annotate(announced).await?,
            Item::Available => self.network_available().await?,
            Item::NoLonger(ended, over) => self.end(&ended, over).await,
            Item::Holds(saying) => {
                if !self.backlog.has(&saying) && self.quiet.begins(&saying, Instant::now()) {
                    self.say(saying).await;
                }
            }
            Item::Happened(saying) => {
                if !self.backlog.has(&saying) && self.quiet.happens(&saying, Instant::now()) {
                    self.say(saying).await;
                }
            }
        }
        Ok(())
    }

    async fn annotate(&self, announced: Announced) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let annotations: BTreeMap<_, _> = announced.annotations().into();
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

    async fn end(&mut self, ended: &[Saying], over: Option<Saying>) {
        let mut heard = false;
        for ended in ended {
            let waited = self.backlog.withdraw(ended);
            heard |= self.quiet.ends(ended, waited, over.is_some());
        }
        if let Some(over) = over.filter(|_| heard) {
            self.say(over).await;
        }
    }

    /// What was held back, and still holds.
    async fn say_withheld(&mut self) {
        for saying in self.quiet.take_due(Instant::now()) {
            self.say(saying).await;
        }
    }

    async fn say(&mut self, saying: Saying) {
        let waiting = Waiting { saying, at: SystemTime::now(), since: Instant::now() };
        // While others wait for the API, it is away.
        match self.backlog.due() {
            Some(_) => self.keep(waiting),
            None => {
                if let Some(refused) = self.write(waiting).await {
                    self.backlog.failed(Instant::now());
                    self.keep(refused);
                }
            }
        }
    }

    fn keep(&mut self, waiting: Waiting) {
        if !self.backlog.keep(waiting) {
            self.metrics.event_dropped();
        }
    }

    /// The oldest that waits.
    async fn say_again(&mut self) {
        for _ in 0..self.backlog.give_up_old(Instant::now()) {
            self.metrics.event_dropped();
        }
        let Some(waiting) = self.backlog.take() else { return };
        match self.write(waiting).await {
            None => self.backlog.answered(Instant::now()),
            Some(refused) => {
                self.backlog.put_back(refused);
                self.backlog.failed(Instant::now());
            }
        }
    }

    /// Gives back what is to be tried again.
    async fn write(&mut self, waiting: Waiting) -> Option<Waiting> {
        match self.create(&waiting).await {
            Ok(()) => {}
            // An earlier try arrived, and its answer did not.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) if may_pass(&error) => {
                tracing::warn!(%error, "the API did not take what the agent had to say; it is said again while it holds");
                return Some(waiting);
            }
            Err(error) => {
                tracing::warn!(%error, "the API refuses what the agent had to say");
                self.metrics.event_dropped();
            }
        }
        self.quiet.told(waiting.saying, Instant::now());
        None
    }

    async fn create(&self, waiting: &Waiting) -> Result<(), kube::Error> {
        let event = event(&self.node, &waiting.saying, waiting.at);
        let namespace = event["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Event"), "events");
        let events: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &kind);
        let object = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        events.create(&PostParams::default(), &object).await.map(drop)
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether it is about the API or the way to it, and not about what was asked.
fn may_pass(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::SerdeError(_) => false,
        _ => true,
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
    // `kubectl describe` asks for the uid; kubelets have the name in its place (recordEvent, nodeRef).
    let uid = match saying.object.kind {
        Kind::Node => name.name.to_string(),
        _ => saying.uid.clone(),
    };
    if let Some(fields) = object.as_object_mut().filter(|_| !uid.is_empty()) {
        fields.insert("uid".to_owned(), uid.into());
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
