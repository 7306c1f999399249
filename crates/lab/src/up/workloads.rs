//! Waits until what the manifests ask for runs: Pods and Deployments that were applied.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::Progress;
use crate::apply::Item;

const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(10);
/// Reasons for which waiting is in vain: only another manifest helps.
const HOPELESS: [&str; 3] = ["ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff"];

/// Where one workload stands.
enum Stand {
    Ready,
    Waiting(String),
    Hopeless(String),
}

/// Fails with what is not Ready and why; the lab goes on running.
pub async fn ready(client: &Client, items: &[Item], progress: &Progress) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for item in items.iter().filter(|item| ["Pod", "Deployment"].contains(&item.kind())) {
        let what = item.to_string();
        loop {
            match stand(client, item).await? {
                Stand::Ready => break,
                Stand::Hopeless(why) => bail!("{what} will not become Ready: {why}"),
                Stand::Waiting(why) if Instant::now() > deadline => {
                    bail!("{what} is not Ready after {PATIENCE:?}: {why}; `kubectl describe` tells more")
                }
                Stand::Waiting(_) => tokio::time::sleep(GLANCE).await,
            }
        }
        progress.step(&format!("{what} Ready"));
    }
    Ok(())
}

async fn stand(client: &Client, item: &Item) -> Result<Stand> {
    let namespace = item.object.namespace().unwrap_or_else(|| "default".into());
    let name = item.object.name_any();
    if item.kind() == "Pod" {
        let pod = Api::<Pod>::namespaced(client.clone(), &namespace).get(&name).await?;
        return Ok(pod_stand(&pod));
    }
    let deployment = Api::<Deployment>::namespaced(client.clone(), &namespace).get(&name).await?;
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation == deployment.metadata.generation;
    let have = status.updated_replicas.unwrap_or(0).min(status.available_replicas.unwrap_or(0));
    if current && have >= wanted {
        return Ok(Stand::Ready);
    }
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace).list(&ListParams::default()).await?;
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
