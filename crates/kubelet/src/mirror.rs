//! The node's agent as a pod of the API. In a lab no API starts agents, as none starts static pods; those a kubelet shows
//! by mirror pods, and this one shows the agent so: `plumb status` and `plumb trace` find the agents of a lab as they
//! find those of a DaemonSet.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use types::wire::{AGENT_LABELS, AGENT_NAMESPACE, AGENT_PORT};

use crate::moment;
use crate::node::Identity;
use crate::probe::{Plan, Verdict};
use crate::status::{Seen, State, View, render};

/// On mirror pods alone (pkg/kubelet/types/constants.go).
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Somebody who deletes it gets it back.
const LOOK: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

/// Whether a pod only shows what somebody else runs.
pub fn is_one(pod: &Pod) -> bool {
    pod.annotations().contains_key(MIRROR)
}

/// Keeps it there, and Ready while the agent is; never ends.
pub async fn keep(client: Client, identity: Identity) {
    let Ok(agent) = Agent::new(client, identity).inspect_err(|error| tracing::warn!("{error:#}")) else {
        return;
    };
    let (sender, mut verdicts) = mpsc::channel(1);
    tokio::spawn(agent.probe.clone().watch_readiness(sender));
    // A kubelet that starts anew leaves what its predecessor said until it knows better.
    let mut ready = None;
    loop {
        if let Err(error) = agent.show(ready).await {
            tracing::debug!(%error, "the agent's pod cannot be written yet");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        tokio::select! {
            verdict = verdicts.recv() => match verdict {
                Some(verdict) => ready = Some(verdict == Verdict::Ready),
                None => return,
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

struct Agent {
    pods: Api<Pod>,
    pod: Pod,
    addresses: Vec<String>,
    probe: Plan,
    since: String,
}

impl Agent {
    fn new(client: Client, identity: Identity) -> Result<Self> {
        let labels: serde_json::Map<_, _> =
            AGENT_LABELS.map(|(name, value)| (name.to_owned(), json!(value))).into_iter().collect();
        // As kubelets name static pods.
        let name = format!("plumb-{}", identity.name);
        let probe = json!({"httpGet": {"path": "/healthz", "port": AGENT_PORT}, "periodSeconds": 2,
            "timeoutSeconds": 3, "failureThreshold": 2});
        let pod = json!({
            "metadata": {"name": name, "namespace": AGENT_NAMESPACE, "labels": labels,
                "annotations": {MIRROR: name, "kubernetes.io/config.source": "lab"}},
            "spec": {"nodeName": identity.name, "hostNetwork": true, "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "agent", "image": "host", "command": ["plumb", "agent"],
                    "readinessProbe": probe}]},
        });
        let pod: Pod = serde_json::from_value(pod).context("the pod that shows the agent")?;
        let container = pod.spec.iter().flat_map(|spec| &spec.containers).next();
        let container = container.context("the pod that shows the agent has no container")?;
        let probe = container.readiness_probe.as_ref().context("the agent's pod has no probe")?;
        let address = identity.addresses.first().context("the node has no address")?;
        let probe = Plan::new(probe, container, address)
            .map_err(|why| anyhow::anyhow!("the probe of the agent's pod: {why}"))?;
        let (pods, since) = (Api::namespaced(client, AGENT_NAMESPACE), moment::now());
        Ok(Self { pods, pod, addresses: identity.addresses, probe, since })
    }

    /// Writes what is not there or not so.
    async fn show(&self, ready: Option<bool>) -> kube::Result<()> {
        let name = self.pod.name_any();
        let mut there = self.pods.get_opt(&name).await?;
        if there.as_ref().is_some_and(|pod| !is_one(pod) || pod.metadata.deletion_timestamp.is_some()) {
            self.pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
            there = None;
        }
        let pod = match there {
            Some(pod) => pod,
            None => self.pods.create(&PostParams::default(), &self.pod).await?,
        };
        let told = is_ready(&pod);
        let ready = ready.or(told).unwrap_or(false);
        if told == Some(ready) && self.has_addresses(&pod) {
            return Ok(());
        }
        let agent = Seen {
            name: "agent".into(),
            image: "host".into(),
            restarts: 0,
            ready,
            state: State::Running { since: self.since.clone() },
            last: None,
        };
        let status = render(&View {
            pod: &pod,
            node_addresses: &self.addresses,
            addresses: &self.addresses,
            sandbox: true,
            containers: &[agent],
            failure: None,
            started: &self.since,
        });
        let patch = Patch::Merge(json!({ "status": status }));
        self.pods.patch_status(&name, &PatchParams::default(), &patch).await.map(drop)
    }

    fn has_addresses(&self, pod: &Pod) -> bool {
        let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        ips.map(|ip| ip.ip.as_str()).eq(self.addresses.iter().map(String::as_str))
    }
}

/// What its status says; `None`: nothing yet.
fn is_ready(pod: &Pod) -> Option<bool> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().find(|it| it.type_ == "Ready").map(|ready| ready.status == "True")
}
