//! The namespace of a test: made, filled, waited for, read, and removed again whatever happened.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};
use types::IpNet;
use types::wire::VTEP_MAC_ANNOTATION;

use super::cast::{OWNER, Place};
use crate::demo::probe::Outcome;
use crate::ready;

/// Between two looks at the API.
const GLANCE: Duration = Duration::from_millis(200);
/// The controller of ServiceAccounts is a matter of milliseconds.
const ACCOUNT: Duration = Duration::from_secs(20);
/// A kubelet says Ready within its 10 s of telling its status after it has a network.
const KUBELET: Duration = Duration::from_secs(15);
/// A namespace that is not gone by then is left to the cluster.
const REMOVAL: Duration = Duration::from_secs(90);

#[derive(Clone)]
pub struct Stage {
    client: Client,
    pub namespace: String,
}

impl Stage {
    /// Makes the namespace; one that an interrupted test left behind goes first.
    pub async fn open(client: Client, namespace: &str) -> Result<Self> {
        let stage = Self { client, namespace: namespace.to_owned() };
        let api: Api<Namespace> = Api::all(stage.client.clone());
        let found = api.get_opt(namespace).await;
        let found =
            found.map_err(|error| install::explain(error, &format!("look for the namespace {namespace}")))?;
        if let Some(found) = found {
            if found.labels().get(OWNER.0).map(String::as_str) != Some(OWNER.1) {
                bail!("the namespace {namespace} is not one of this test's; give another with -n");
            }
            stage.remove().await.context("remove what a test before left behind")?;
        }
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {
            OWNER.0: OWNER.1,
            // Pods of the host network.
            "pod-security.kubernetes.io/enforce": "privileged",
        }}});
        let object = serde_json::from_value(object)?;
        api.create(&PostParams::default(), &object)
            .await
            .map_err(|error| install::explain(error, &format!("make the namespace {namespace}")))?;
        Ok(stage)
    }

    pub async fn remove(&self) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let name = &self.namespace;
        let what = || format!("delete the namespace {name}; kubectl delete namespace {name} tries again");
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => drop(other.with_context(what)?),
        }
        let deadline = Instant::now() + REMOVAL;
        while api.get_opt(name).await.with_context(what)?.is_some() {
            if Instant::now() > deadline {
                bail!(
                    "the namespace {name} is still there after {REMOVAL:?}: kubectl get namespace {name} -o yaml says why"
                );
            }
            tokio::time::sleep(GLANCE).await;
        }
        Ok(())
    }

    /// Makes one object and gives it as the API made it.
    pub async fn make(&self, object: &Value) -> Result<Value> {
        match object["kind"].as_str() {
            Some("Pod") => self.create::<Pod>(object).await,
            Some("Service") => self.create::<Service>(object).await,
            _ => self.create::<NetworkPolicy>(object).await,
        }
    }

    async fn create<K>(&self, object: &Value) -> Result<Value>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Serialize
            + Clone
            + std::fmt::Debug,
    {
        let what = || format!("make {} {}", K::kind(&()).to_lowercase(), object["metadata"]["name"]);
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let typed = serde_json::from_value(object.clone())?;
        let deadline = Instant::now() + ACCOUNT;
        loop {
            match api.create(&PostParams::default(), &typed).await {
                Err(kube::Error::Api(status)) if is_early(&status) && Instant::now() < deadline => {
                    tokio::time::sleep(GLANCE).await;
                }
                made => {
                    let made = made.map_err(|error| install::explain(error, &what()))?;
                    return Ok(serde_json::to_value(made)?);
                }
            }
        }
    }

    /// Waits until these pods are Ready (or, of the host network, run) and gives their addresses.
    pub async fn ready(&self, names: &[String], patience: Duration) -> Result<BTreeMap<String, Vec<IpAddr>>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let deadline = Instant::now() + patience;
        loop {
            let pods = api.list(&ListParams::default()).await.context("list the pods of the test")?.items;
            let missing: Vec<&Pod> = pods
                .iter()
                .filter(|pod| names.contains(&pod.name_any()))
                .filter(|pod| !ready::pod(pod))
                .collect();
            if missing.is_empty() && names.iter().all(|name| pods.iter().any(|pod| pod.name_any() == *name)) {
                return Ok(pods.iter().map(|pod| (pod.name_any(), addresses(pod))).collect());
            }
            if Instant::now() > deadline {
                let each: Vec<String> = missing.iter().map(|pod| waits_for(pod)).collect();
                bail!(
                    "after {patience:?} these pods are not Ready: {}; kubectl -n {} describe pod tells more (--keep \
                     leaves them there)",
                    each.join("; "),
                    self.namespace
                );
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// What a probe has said so far. An unreadable log is an empty one: the caller waits.
    pub async fn outcomes(&self, pod: &str) -> Vec<Outcome> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = LogParams { container: Some("probe".to_owned()), ..LogParams::default() };
        let text = api.logs(pod, &params).await.unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// Pods are refused until the controller has made the new namespace's ServiceAccount.
fn is_early(status: &kube::core::Status) -> bool {
    status.code == 403 && status.message.contains("serviceaccount") && status.message.contains("not found")
}

/// The nodes that are Ready, and those that are not. Kubelets that are about to say Ready are given a moment; `tell`
/// says so.
pub async fn nodes(
    client: &Client,
    only: &[String],
    mut tell: impl FnMut(&str),
) -> Result<(Vec<Place>, Vec<Node>)> {
    let began = Instant::now();
    let mut told = false;
    let (present, not) = loop {
        let nodes = chosen(client, only).await?;
        let soon = |node: &&Node| !ready::node(node) && ready::node_may_be_soon(node);
        let names: Vec<String> = nodes.iter().filter(soon).map(ResourceExt::name_any).collect();
        if names.is_empty() || began.elapsed() > KUBELET {
            break nodes.into_iter().partition::<Vec<Node>, _>(ready::node);
        }
        if !std::mem::replace(&mut told, true) {
            tell(&format!("waiting for the kubelet to say Ready: {}", names.join(", ")));
        }
        tokio::time::sleep(GLANCE).await;
    };
    let place = |(index, node): (usize, &Node)| Place {
        index,
        node: node.name_any(),
        node_ips: node_ips(node),
        pod_cidrs: pod_cidrs(node),
        vtep: node.annotations().get(VTEP_MAC_ANNOTATION).and_then(|mac| mac.parse().ok()),
        ..Place::default()
    };
    Ok((present.iter().enumerate().map(place).collect(), not))
}

async fn chosen(client: &Client, only: &[String]) -> Result<Vec<Node>> {
    let nodes =
        Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("list the nodes")?;
    if let Some(unknown) = only.iter().find(|name| nodes.iter().all(|node| node.name_any() != **name)) {
        bail!("the cluster has no node {unknown}; kubectl get nodes lists them");
    }
    Ok(nodes.into_iter().filter(|node| only.is_empty() || only.contains(&node.name_any())).collect())
}

fn node_ips(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let all = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
    all.filter_map(|cidr| cidr.parse().ok()).collect()
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn waits_for(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let waiting = status.container_statuses.iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        Some(format!("{}: {}", waiting.reason.clone()?, waiting.message.clone().unwrap_or_default()))
    });
    let phase = status.phase.unwrap_or_else(|| "without a status".to_owned());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    format!("{} on {node} ({})", pod.name_any(), waiting.unwrap_or(phase))
}

/// Addresses of a Service that the API has made.
pub fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    let all = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    all.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}
