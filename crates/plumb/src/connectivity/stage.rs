//! The namespace of a test: made, filled, waited for, read, and removed again whatever happened.

use std::collections::{BTreeMap, BTreeSet};
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
use super::show::Progress;
use crate::advice::Cluster;
use crate::demo::probe::Outcome;
use crate::{ready, status};

/// Between two looks at the API.
const GLANCE: Duration = Duration::from_millis(200);
/// The controller of ServiceAccounts is a matter of milliseconds.
const ACCOUNT: Duration = Duration::from_secs(20);
/// A kubelet says Ready within its 10 s of telling its status after it has a network.
const KUBELET: Duration = Duration::from_secs(15);
/// Pods that are still there after this long have nobody to end them …
pub const STUCK: Duration = Duration::from_secs(40);
/// … which is likely from the beginning where they did not even start.
pub const FAILED: Duration = Duration::from_secs(5);
/// A namespace that is not gone by then is left to the cluster.
const REMOVAL: Duration = Duration::from_secs(90);

#[derive(Clone)]
pub struct Stage {
    pub cluster: Cluster,
    pub namespace: String,
}

impl Stage {
    /// Makes the namespace; one that a test before left behind goes first.
    pub async fn open(&self, progress: &Progress) -> Result<()> {
        let namespace = self.namespace.as_str();
        let api: Api<Namespace> = Api::all(self.client());
        let found = api.get_opt(namespace).await;
        let found =
            found.map_err(|error| install::explain(error, &format!("look for the namespace {namespace}")))?;
        if let Some(found) = found {
            if found.labels().get(OWNER.0).map(String::as_str) != Some(OWNER.1) {
                bail!("the namespace {namespace} is not one of this test's; give another with -n");
            }
            self.remove(FAILED, progress).await.context("remove what a test before left behind")?;
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
        Ok(())
    }

    fn client(&self) -> Client {
        self.cluster.client.clone()
    }

    /// The pods that had to be taken out of the API by force: where nobody ends them, the namespace would stay for ever.
    pub async fn remove(&self, stuck: Duration, progress: &Progress) -> Result<Vec<String>> {
        let api: Api<Namespace> = Api::all(self.client());
        let name = &self.namespace;
        let kubectl = |words: &str| self.cluster.advice.kubectl(words);
        let again = || kubectl(&format!("delete namespace {name}"));
        let what = || format!("delete the namespace {name}; {} tries again", again());
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
            other => drop(other.with_context(what)?),
        }
        let began = Instant::now();
        let mut forced = Vec::new();
        while api.get_opt(name).await.with_context(what)?.is_some() {
            if began.elapsed() > stuck && forced.is_empty() {
                forced = self.force().await.with_context(what)?;
            }
            if began.elapsed() > REMOVAL {
                let look = kubectl(&format!("get namespace {name} -o yaml"));
                bail!("the namespace {name} is still there after {REMOVAL:?}: {look} says why");
            }
            progress.waits(|| format!("the end of the pods in the namespace {name}"));
            tokio::time::sleep(GLANCE).await;
        }
        Ok(forced)
    }

    /// As `kubectl delete pod --force` does it; their node ends them once it can.
    async fn force(&self) -> Result<Vec<String>> {
        let api: Api<Pod> = Api::namespaced(self.client(), &self.namespace);
        let mut forced = Vec::new();
        for pod in api.list(&ListParams::default()).await?.items {
            match api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.into()),
                Ok(_) => forced.push(format!("{} on {}", pod.name_any(), node_of(&pod))),
            }
        }
        Ok(forced)
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
        let api: Api<K> = Api::namespaced(self.client(), &self.namespace);
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
    pub async fn ready(
        &self,
        names: &[String],
        (patience, progress): (Duration, &Progress),
    ) -> Result<BTreeMap<String, Vec<IpAddr>>> {
        let api: Api<Pod> = Api::namespaced(self.client(), &self.namespace);
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
                let (each, namespace) = (each.join("; "), &self.namespace);
                let on: BTreeSet<String> = missing.iter().map(|pod| node_of(pod)).collect();
                let next = match self.wrong_on(&on).await {
                    Some(causes) => causes,
                    None => {
                        let describe = self.cluster.advice.kubectl(&format!("-n {namespace} describe pod"));
                        format!("; {describe} tells more (--keep leaves them there)")
                    }
                };
                bail!("after {patience:?} these pods are not Ready: {each}{next}");
            }
            progress.waits(|| match missing.as_slice() {
                [] => "the pods of the test".to_owned(),
                [first, rest @ ..] => {
                    let more =
                        if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
                    format!("{}{more}", waits_for(first))
                }
            });
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// What `plumb status` says of these nodes, in its form.
    pub async fn wrong_on(&self, nodes: &BTreeSet<String>) -> Option<String> {
        let status = status::look(&self.cluster).await.ok()?;
        let lines = status.nodes.iter().filter(|line| nodes.contains(&line.node));
        let wrong = lines.flat_map(|line| line.problems.iter().map(move |problem| (&line.node, problem)));
        let told: Vec<String> = wrong
            .map(|(node, wrong)| format!("\n✗ {node}: {}\n  next: {}", wrong.what, wrong.next))
            .collect();
        (!told.is_empty()).then(|| told.concat())
    }

    /// What a probe has said so far. An unreadable log is an empty one: the caller waits.
    pub async fn outcomes(&self, pod: &str) -> Vec<Outcome> {
        let api: Api<Pod> = Api::namespaced(self.client(), &self.namespace);
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
    cluster: &Cluster,
    only: &[String],
    mut tell: impl FnMut(&str),
) -> Result<(Vec<Place>, Vec<Node>)> {
    let began = Instant::now();
    let mut told = false;
    let (present, not) = loop {
        let nodes = chosen(cluster, only).await?;
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

async fn chosen(Cluster { client, advice }: &Cluster, only: &[String]) -> Result<Vec<Node>> {
    let nodes =
        Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("list the nodes")?;
    if let Some(unknown) = only.iter().find(|name| nodes.iter().all(|node| node.name_any() != **name)) {
        bail!("the cluster has no node {unknown}; {} lists them", advice.kubectl("get nodes"));
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
        let said = [waiting.reason.clone(), waiting.message.clone()].into_iter().flatten();
        Some(said.filter(|words| !words.is_empty()).collect::<Vec<_>>().join(": "))
    });
    let phase = status.phase.unwrap_or_else(|| "without a status".to_owned());
    format!("{} on {} ({})", pod.name_any(), node_of(pod), waiting.unwrap_or(phase))
}

fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// Addresses of a Service that the API has made.
pub fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    let all = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    all.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}
