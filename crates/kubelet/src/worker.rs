//! One worker per pod: brings the pod to what its object says, and reports what it is.
//!
//! ```text
//! adopt or make the sandbox ──> start containers ──> wait ──┬─ container ended ── restart after a pause, or done
//!        ^                                                  ├─ probe ── readiness, or kill
//!        └────── whole pod rebuilt ── pause process ended ──┤
//!                                                           └─ deletion ── TERM, grace, KILL ── DEL ── gone
//! ```

mod containers;
mod report;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kernel::process::Process;
use kube::ResourceExt;
use tokio::sync::watch;

use crate::events::Kind;
use crate::record::{PodRecord, Sandbox};
use crate::runtime::{Runtime, ended};
use crate::{moment, sandbox};
use containers::Containers;
use report::Report;

/// What the API says of the pod.
#[derive(Clone, Debug)]
pub enum Wanted {
    Pod(Arc<Pod>),
    /// It is no longer there: what runs of it has to go.
    Gone,
}

impl Wanted {
    /// The seconds of grace when it is to end, as far as the API tells them.
    fn ending(&self) -> Option<Option<i64>> {
        match self {
            Self::Gone => Some(None),
            Self::Pod(pod) if pod.metadata.deletion_timestamp.is_some() => {
                Some(pod.metadata.deletion_grace_period_seconds)
            }
            Self::Pod(_) => None,
        }
    }
}

/// kubelet's default, when neither the deletion nor the pod says.
const GRACE: i64 = 30;
/// Between two tries to make or remove a sandbox, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub struct Worker {
    runtime: Arc<Runtime>,
    record: PodRecord,
    wanted: watch::Receiver<Wanted>,
    pod: Arc<Pod>,
    report: Report,
    started: String,
}

/// Why a sandbox's life is over.
enum Over {
    /// The pod is to end.
    Ending,
    /// Every container has ended for good.
    Done,
    /// The pause process ended.
    Lost,
}

impl Worker {
    pub fn new(runtime: Arc<Runtime>, pod: Arc<Pod>, wanted: watch::Receiver<Wanted>) -> Self {
        let record = runtime.records.pod(&pod.uid().unwrap_or_default());
        let report = Report::start(runtime.client.clone(), &pod);
        let known = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let known = known.and_then(|time| serde_json::to_value(time).ok()?.as_str().map(str::to_owned));
        Self { started: known.unwrap_or_else(moment::now), runtime, record, wanted, pod, report }
    }

    /// Runs until the pod is gone from the node.
    pub async fn run(mut self) {
        if !self.refused() && !self.finished_before() {
            self.live().await;
        }
        while self.wanted.borrow_and_update().ending().is_none() {
            if self.wanted.changed().await.is_err() {
                // The kubelet ends; the pod stays.
                return;
            }
        }
        self.remove_sandbox().await;
        if let Err(error) = self.record.remove() {
            tracing::warn!(pod = %self.name(), "{error:#}");
        }
        self.report.delete().await;
    }

    fn name(&self) -> String {
        format!("{}/{}", self.pod.namespace().unwrap_or_default(), self.pod.name_any())
    }

    fn spec(&self) -> PodSpec {
        self.pod.spec.clone().unwrap_or_default()
    }

    /// A pod with a field that would be ignored is not started at all.
    fn refused(&mut self) -> bool {
        let spec = match serde_json::to_value(self.spec()) {
            Ok(spec) => k8s::supported::unsupported(&spec, "spec"),
            Err(error) => vec![format!("spec ({error})")],
        };
        if spec.is_empty() {
            return false;
        }
        let message = format!("not supported by this kubelet: {}; remove it from the pod", spec.join(", "));
        self.runtime.events.pod(&self.pod, Kind::Warning, "UnsupportedField", &message);
        self.report.failed(&self.pod, &self.runtime, ("UnsupportedField", &message), &self.started);
        true
    }

    /// It had ended for good before this kubelet started.
    fn finished_before(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    async fn live(&mut self) {
        loop {
            let Some((sandbox, pause)) = self.sandbox().await else { return };
            let mut containers =
                Containers::new(self.runtime.clone(), self.record.clone(), sandbox, &self.pod);
            let over = self.attend(&mut containers, &pause).await;
            match over {
                Over::Ending => {
                    let grace = self.grace();
                    containers.terminate(&self.pod, grace).await;
                    return;
                }
                Over::Done => {
                    self.remove_sandbox().await;
                    return;
                }
                Over::Lost => {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.runtime.events.pod(&self.pod, Kind::Normal, "SandboxChanged", message);
                    containers.abandon().await;
                    self.remove_sandbox().await;
                }
            }
        }
    }

    async fn attend(&mut self, containers: &mut Containers, pause: &Process) -> Over {
        containers.start_due(&self.pod).await;
        loop {
            self.report.running(&self.pod, &self.runtime, containers, &self.started);
            if containers.all_done(&self.pod) {
                return Over::Done;
            }
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        // The kubelet ends; what runs goes on running.
                        std::future::pending::<()>().await;
                    }
                    if self.update() {
                        return Over::Ending;
                    }
                    containers.reconsider(&self.pod);
                }
                _ = ended(pause) => return Over::Lost,
                () = containers.next_change(&self.pod) => {}
            }
            containers.start_due(&self.pod).await;
        }
    }

    /// Takes the newest object; true when the pod is to end.
    fn update(&mut self) -> bool {
        let wanted = self.wanted.borrow_and_update().clone();
        if let Wanted::Pod(pod) = &wanted {
            self.pod = Arc::clone(pod);
        }
        wanted.ending().is_some()
    }

    fn grace(&self) -> Duration {
        let told = self.wanted.borrow().ending().flatten();
        let seconds = told.or_else(|| self.spec().termination_grace_period_seconds).unwrap_or(GRACE);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// The sandbox of an earlier kubelet, or a new one; `None` when the pod is to end before there is one.
    async fn sandbox(&mut self) -> Option<(Sandbox, Process)> {
        if let Some(adopted) = self.adopt().await {
            return Some(adopted);
        }
        let mut pause = FIRST_PAUSE;
        loop {
            if self.update() {
                return None;
            }
            self.report.creating(&self.pod, &self.runtime, &self.started);
            match self.make().await {
                Ok(made) => return Some(made),
                Err(error) => {
                    let message = format!("Failed to create pod sandbox: {error:#}");
                    self.runtime.events.pod(&self.pod, Kind::Warning, "FailedCreatePodSandBox", &message);
                }
            }
            tokio::select! {
                _ = self.wanted.changed() => {}
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    async fn adopt(&self) -> Option<(Sandbox, Process)> {
        let sandbox = self.record.sandbox()?;
        let pause = self.record.pause()?;
        if sandbox.addresses.is_empty() {
            // Its ADD was never finished.
            return None;
        }
        if let Some(network) = sandbox.network.clone() {
            let network = crate::cni::Network::parse(network).ok()?;
            if let Err(error) = self.runtime.cni.check(&network, &sandbox).await {
                // The agent may be away for a moment: the pod is not torn down for that.
                let message = format!("{error:#}");
                self.runtime.events.pod(&self.pod, Kind::Warning, "NetworkCheckFailed", &message);
            }
        }
        Some((sandbox, pause))
    }

    async fn make(&mut self) -> Result<(Sandbox, Process)> {
        let before = self.record.sandbox();
        sandbox::destroy(&self.runtime.cni, &self.record).await?;
        if !self.spec().host_network.unwrap_or(false) {
            let mut ready = self.runtime.network_ready.clone();
            if !*ready.borrow_and_update() {
                tokio::select! {
                    _ = ready.wait_for(|ready| *ready) => {}
                    _ = self.wanted.changed() => anyhow::bail!("the pod changed while it waited for a network"),
                }
            }
        }
        let attempt = before.map_or(0, |sandbox| sandbox.attempt + 1);
        sandbox::make(&self.runtime, &self.record, &self.pod, attempt).await
    }

    /// Until it succeeds: an attachment that is left behind would keep an address for ever.
    async fn remove_sandbox(&self) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = sandbox::destroy(&self.runtime.cni, &self.record).await {
            let message = format!("{error:#}");
            self.runtime.events.pod(&self.pod, Kind::Warning, "FailedKillPod", &message);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Ends what a pod left that the API no longer knows.
pub async fn remove_orphan(runtime: &Runtime, uid: &str) {
    let record = runtime.records.pod(uid);
    let mut pause = FIRST_PAUSE;
    while let Err(error) = sandbox::destroy(&runtime.cni, &record).await {
        tracing::warn!(uid, "an orphaned pod cannot be removed: {error:#}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if let Err(error) = record.remove() {
        tracing::warn!(uid, "{error:#}");
    }
}
