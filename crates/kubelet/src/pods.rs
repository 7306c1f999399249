//! The pods of this node: one watch, one worker each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::{mpsc, watch};

use crate::mirror;
use crate::runtime::Runtime;
use crate::worker::{Wanted, Worker, remove_orphan};

/// Between two tries to reach the API.
const PAUSE: Duration = Duration::from_millis(100);

struct Pods {
    runtime: Arc<Runtime>,
    workers: HashMap<String, watch::Sender<Wanted>>,
    /// Uids of workers that have ended.
    ended: mpsc::UnboundedSender<String>,
    /// Of the list that is being received.
    listed: HashSet<String>,
    synced: bool,
}

/// Follows the API for ever. While it is away, every pod stays as it is.
pub async fn follow(runtime: Arc<Runtime>) {
    let (ended, mut endings) = mpsc::unbounded_channel();
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", runtime.node));
    let mut events = watcher(Api::<Pod>::all(runtime.client.clone()), config).boxed();
    let mut pods = Pods { runtime, workers: HashMap::new(), ended, listed: HashSet::new(), synced: false };
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => pods.take(event),
                Some(Err(error)) => {
                    tracing::debug!(%error, "the API cannot be watched");
                    tokio::time::sleep(PAUSE).await;
                }
                None => return,
            },
            Some(uid) = endings.recv() => { pods.workers.remove(&uid); }
        }
    }
}

impl Pods {
    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.insert(pod.uid().unwrap_or_default());
                self.apply(pod);
            }
            Event::InitDone => self.list_done(),
            Event::Apply(pod) => self.apply(pod),
            Event::Delete(pod) => self.gone(&pod.uid().unwrap_or_default()),
        }
    }

    fn apply(&mut self, pod: Pod) {
        // What it shows runs already.
        if mirror::is_one(&pod) {
            return;
        }
        let Some(uid) = pod.uid() else { return };
        let pod = Arc::new(pod);
        match self.workers.get(&uid) {
            Some(worker) => {
                worker.send_replace(Wanted::Pod(pod));
            }
            None => {
                let (sender, receiver) = watch::channel(Wanted::Pod(Arc::clone(&pod)));
                self.workers.insert(uid.clone(), sender);
                let worker = Worker::new(Arc::clone(&self.runtime), pod, receiver);
                let ended = self.ended.clone();
                tokio::spawn(async move {
                    worker.run().await;
                    // Fails when the kubelet ends, with which all ends.
                    let _ = ended.send(uid);
                });
            }
        }
    }

    fn gone(&self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            worker.send_replace(Wanted::Gone);
        }
    }

    /// What is not in the list is gone; at the first list also what an earlier kubelet left.
    fn list_done(&mut self) {
        for (uid, worker) in &self.workers {
            if !self.listed.contains(uid) {
                worker.send_replace(Wanted::Gone);
            }
        }
        if !std::mem::replace(&mut self.synced, true) {
            for uid in self.runtime.records.uids() {
                if !self.workers.contains_key(&uid) {
                    let runtime = Arc::clone(&self.runtime);
                    tokio::spawn(async move { remove_orphan(&runtime, &uid).await });
                }
            }
        }
    }
}
