//! Waits until what was applied runs: Pods and Deployments.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::Progress;
use crate::apply::Item;

const GLANCE: Duration = Duration::from_millis(10);
/// Reasons for which waiting is in vain: only another manifest helps.
const HOPELESS: [&str; 3] = ["ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deployment,
    Pod,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    kind: Kind,
    namespace: String,
    name: String,
    /// As it is printed.
    shown: String,
}

impl Workload {
    /// What of a manifest is waited for.
    pub fn of(item: &Item) -> Option<Self> {
        let kind = match item.kind() {
            "Pod" => Kind::Pod,
            "Deployment" => Kind::Deployment,
            _ => return None,
        };
        let namespace = item.object.namespace().unwrap_or_else(|| "default".into());
        Some(Self { kind, namespace, name: item.object.name_any(), shown: item.to_string() })
    }

    fn found<K: ResourceExt>(kind: Kind, object: &K) -> Self {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let word = if kind == Kind::Pod { "pod" } else { "deployment" };
        Self { kind, shown: format!("{word} {namespace}/{name}"), namespace, name }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Where one workload stands.
enum Stand {
    Ready,
    Waiting(String),
    Hopeless(String),
}

/// All Deployments, and the pods that belong to none.
pub async fn all(client: &Client, namespace: Option<&str>) -> Result<Vec<Workload>> {
    let listed = ListParams::default();
    let (deployments, pods): (Api<Deployment>, Api<Pod>) = match namespace {
        None => (Api::all(client.clone()), Api::all(client.clone())),
        Some(one) => (Api::namespaced(client.clone(), one), Api::namespaced(client.clone(), one)),
    };
    let deployments = deployments.list(&listed).await?;
    let pods = pods.list(&listed).await?.items.into_iter();
    // A pod that leaves will not be Ready, and one that has failed is its maker's to make again.
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    let alone = |pod: &Pod| pod.owner_references().iter().all(|owner| owner.kind != "ReplicaSet");
    Ok(deployments
        .iter()
        .map(|deployment| Workload::found(Kind::Deployment, deployment))
        .chain(pods.filter(|pod| stays(pod) && alone(pod)).map(|pod| Workload::found(Kind::Pod, &pod)))
        .collect())
}

/// Fails with what is not Ready and why; the lab goes on running.
pub async fn ready(
    client: &Client,
    workloads: &[Workload],
    deadline: Instant,
    progress: &Progress,
) -> Result<()> {
    for workload in workloads {
        loop {
            match stand(client, workload).await? {
                Stand::Ready => break,
                Stand::Hopeless(why) => bail!("{workload} will not become Ready: {why}"),
                Stand::Waiting(why) if Instant::now() > deadline => {
                    let Workload { namespace, name, .. } = workload;
                    let kind = if workload.kind == Kind::Pod { "pod" } else { "deployment" };
                    bail!(
                        "{workload} is not Ready after {} s: {why}; kubectl -n {namespace} describe {kind} {name} \
                         tells more",
                        progress.seconds()
                    )
                }
                Stand::Waiting(_) => tokio::time::sleep(GLANCE).await,
            }
        }
        progress.step(&format!("{workload} Ready"));
    }
    Ok(())
}

async fn stand(client: &Client, workload: &Workload) -> Result<Stand> {
    let Workload { namespace, name, .. } = workload;
    if workload.kind == Kind::Pod {
        let pod = Api::<Pod>::namespaced(client.clone(), namespace).get_opt(name).await?;
        return Ok(pod.map_or(Stand::Hopeless("it was deleted".into()), |pod| pod_stand(&pod)));
    }
    let deployment = Api::<Deployment>::namespaced(client.clone(), namespace).get_opt(name).await?;
    let Some(deployment) = deployment else { return Ok(Stand::Hopeless("it was deleted".into())) };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation == deployment.metadata.generation;
    let have = status.updated_replicas.unwrap_or(0).min(status.available_replicas.unwrap_or(0));
    if current && have >= wanted {
        return Ok(Stand::Ready);
    }
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?;
    let prefix = format!("{name}-");
    let pods = pods.items.into_iter().filter(|pod| pod.name_any().starts_with(&prefix));
    let hopeless = pods.map(|pod| pod_stand(&pod)).find(|stand| matches!(stand, Stand::Hopeless(_)));
    Ok(hopeless.unwrap_or_else(|| Stand::Waiting(format!("{have} of {wanted} pods are available"))))
}

fn pod_stand(pod: &Pod) -> Stand {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    if phase == "Succeeded" || condition("Ready").is_some_and(|ready| ready.status == "True") {
        return Stand::Ready;
    }
    if phase == "Failed" {
        let why = status.message.or(status.reason).unwrap_or_else(|| "it has failed".into());
        return Stand::Hopeless(format!("pod {}: {why}", pod.name_any()));
    }
    let waiting = status.container_statuses.iter().flatten().find_map(waits_for);
    if let Some((reason, text)) = waiting
        && HOPELESS.contains(&reason.as_str())
    {
        return Stand::Hopeless(format!("pod {}: {reason}: {text}", pod.name_any()));
    }
    let unscheduled = condition("PodScheduled").filter(|scheduled| scheduled.status == "False");
    let why = unscheduled.and_then(|scheduled| scheduled.message.clone());
    Stand::Waiting(why.unwrap_or_else(|| format!("it is {phase}")))
}

fn waits_for(container: &ContainerStatus) -> Option<(String, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.clone()?, waiting.message.clone().unwrap_or_default()))
}
