//! The Node object: registered, kept alive by a Lease, Ready when pods can be attached to the network.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cni::{self, Cni};
use crate::moment;
use crate::record::Records;

/// As kubelet does (nodeStatusUpdateFrequency, and leases of 40 s renewed every 10).
const HEARTBEAT: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// How soon a network configuration that appears is noticed, before there is one and after.
const GLANCE: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(100);

/// Who we are.
#[derive(Clone, Debug)]
pub struct Identity {
    pub name: String,
    pub addresses: Vec<String>,
}

/// Registers the node and keeps its status true; never ends.
pub async fn keep(client: Client, identity: Identity, mut network: watch::Receiver<bool>) {
    let nodes: Api<Node> = Api::all(client.clone());
    loop {
        let ready = *network.borrow_and_update();
        if let Err(error) = report(&nodes, &identity, ready).await {
            tracing::debug!(%error, "the node's status cannot be written yet");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if let Err(error) = renew(&client, &identity.name).await {
            tracing::debug!(%error, "the node's lease cannot be renewed");
        }
        tokio::select! {
            changed = network.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
    }
}

async fn report(nodes: &Api<Node>, identity: &Identity, ready: bool) -> kube::Result<()> {
    let labels = json!({
        "kubernetes.io/hostname": identity.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture(),
    });
    let node = json!({"metadata": {"name": identity.name, "labels": labels}});
    let existing = nodes.get_opt(&identity.name).await?;
    if existing.is_none() {
        let node: Node = serde_json::from_value(node).map_err(kube::Error::SerdeError)?;
        match nodes.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    let status = json!({"status": status(identity, ready, existing.as_ref())});
    nodes.patch_status(&identity.name, &PatchParams::default(), &Patch::Merge(&status)).await.map(drop)
}

fn status(identity: &Identity, ready: bool, existing: Option<&Node>) -> Value {
    let now = moment::now();
    let (status, reason, message) = match ready {
        true => ("True", "KubeletReady", "kubelet is posting ready status".to_owned()),
        false => ("False", "KubeletNotReady", cni::describe("/etc/cni/net.d".as_ref())),
    };
    let old = existing.and_then(|node| node.status.as_ref()?.conditions.as_ref());
    let since = old
        .and_then(|list| list.iter().find(|old| old.type_ == "Ready" && old.status == status))
        .and_then(|old| old.last_transition_time.as_ref())
        .map_or_else(|| json!(now), |time| json!(time));
    let internal = identity.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address}));
    let hostname = json!({"type": "Hostname", "address": identity.name});
    let addresses: Vec<Value> = internal.chain([hostname]).collect();
    let resources = json!({
        "cpu": std::thread::available_parallelism().map_or(1, usize::from).to_string(),
        "memory": memory(), "pods": "110",
    });
    json!({
        "addresses": addresses,
        "capacity": resources, "allocatable": resources,
        "conditions": [{
            "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": info(),
    })
}

fn info() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = read("/etc/os-release");
    let image = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let version = concat!("v", env!("CARGO_PKG_VERSION"), "+plumb");
    json!({
        "architecture": architecture(), "operatingSystem": "linux", "osImage": image.trim_matches('"'),
        "kernelVersion": read("/proc/sys/kernel/osrelease"), "bootID": read("/proc/sys/kernel/random/boot_id"),
        "machineID": read("/etc/machine-id"), "systemUUID": read("/etc/machine-id"),
        "containerRuntimeVersion": concat!("plumb://", env!("CARGO_PKG_VERSION")),
        "kubeletVersion": version, "kubeProxyVersion": version,
    })
}

/// As Go spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn memory() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).unwrap_or("0");
    format!("{kib}Ki")
}

async fn renew(client: &Client, node: &str) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let spec = json!({
        "holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": moment::now_micros()});
    match leases.patch(node, &PatchParams::default(), &Patch::Merge(&json!({"spec": spec}))).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let lease = json!({"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": spec});
            let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
            leases.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Waits for a network configuration, has the network forget what no living sandbox uses, and says that pods may be
/// attached; afterwards says whether the configuration is still there.
pub async fn watch_network(cni: Cni, records: Records, ready: Arc<watch::Sender<bool>>) {
    let network = loop {
        match cni.network() {
            Ok(Some(network)) => break network,
            Ok(None) => {}
            Err(error) => tracing::warn!("{error:#}"),
        }
        tokio::time::sleep(GLANCE).await;
    };
    let valid: Vec<_> = records
        .uids()
        .iter()
        .filter_map(|uid| records.pod(uid).sandbox())
        .filter(|sandbox| sandbox.network.is_some())
        .collect();
    if let Err(error) = cni.gc(&network, &valid).await {
        tracing::warn!("what earlier pods left in the network could not be collected: {error:#}");
    }
    loop {
        let there = matches!(cni.network(), Ok(Some(_)));
        ready.send_if_modified(|ready| std::mem::replace(ready, there) != there);
        tokio::time::sleep(LOOK).await;
    }
}
