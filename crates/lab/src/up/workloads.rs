//! Waits until what was applied runs: Pods and Deployments.

mod lacking;
mod steady;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use self::steady::Clock;
pub use self::steady::Seen;
use super::wait;
use crate::apply::Item;
use crate::progress::{About, Progress, State};
use crate::serving;

const GLANCE: Duration = Duration::from_millis(10);
/// Reasons for which waiting is in vain: only another manifest helps.
const HOPELESS: [&str; 5] =
    ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "StartError", CRASHES];
const CRASHES: &str = "CrashLoopBackOff";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deployment,
    Pod,
}

impl Kind {
    fn word(self) -> &'static str {
        if self == Self::Pod { "pod" } else { "deployment" }
    }
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
        let word = kind.word();
        Self { kind, shown: format!("{word} {namespace}/{name}"), namespace, name }
    }

    fn about(&self) -> About<'_> {
        About { workload: Some((self.kind.word(), &self.namespace)), name: &self.name }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Where one workload stands.
#[derive(Debug, PartialEq, Eq)]
enum Stand {
    Ready,
    /// It has ended, and well.
    Succeeded,
    Waiting(String),
    /// Why, and what of kubectl's tells more.
    Hopeless(String, Option<String>),
}

impl Stand {
    fn told(&self) -> (State, Option<&str>) {
        match self {
            Self::Ready => (State::Ready, None),
            Self::Succeeded => (State::Succeeded, None),
            Self::Waiting(why) => (State::NotReady, Some(why)),
            Self::Hopeless(why, _) => (State::Failed, Some(why)),
        }
    }
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

/// Waits, and says what is not Ready in time.
pub struct Wait<'a> {
    pub client: &'a Client,
    /// As the lab's user has to call it.
    pub kubectl: &'a str,
    pub deadline: Instant,
    pub progress: &'a Progress,
    pub seen: Seen,
}

impl Wait<'_> {
    /// Fails with all that is not Ready and why; the lab goes on running.
    pub async fn ready(&self, workloads: &[Workload]) -> Result<()> {
        let mut left: Vec<&Workload> = workloads.iter().collect();
        loop {
            let (mut hopeless, mut waiting) = (Vec::new(), Vec::new());
            for workload in left {
                let stand = stand(self.client, workload, &self.seen);
                let stand = serving::soon(serving::left(self.deadline), stand);
                let stand = self.progress.awaits(|| format!("{workload}: the API answers"), stand).await?;
                let (state, why) = stand.told();
                self.progress.stands(workload.about(), state, why);
                match stand {
                    Stand::Ready => self.progress.step(&format!("{workload} Ready")),
                    Stand::Succeeded => self.progress.step(&format!("{workload} Succeeded")),
                    Stand::Hopeless(why, next) => hopeless.push((workload, why, next)),
                    Stand::Waiting(why) => waiting.push((workload, why)),
                }
            }
            if !hopeless.is_empty() {
                return Err(self.in_vain(hopeless, waiting).await);
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() > self.deadline {
                return Err(self.late(waiting).await);
            }
            self.progress.waits(|| {
                let said: Vec<String> =
                    waiting.iter().map(|(workload, why)| format!("{workload}: {why}")).collect();
                wait::first(&said, "; ")
            });
            left = waiting.into_iter().map(|(workload, _)| workload).collect();
            tokio::time::sleep(GLANCE).await;
        }
    }
}

async fn stand(client: &Client, workload: &Workload, seen: &Seen) -> Result<Stand> {
    let Workload { namespace, name, .. } = workload;
    let clock = Clock::now(seen);
    let deleted = || Stand::Hopeless("it was deleted".into(), None);
    if workload.kind == Kind::Pod {
        let pod = Api::<Pod>::namespaced(client.clone(), namespace).get_opt(name).await?;
        return Ok(pod.map_or_else(deleted, |pod| pod_stand(&pod, clock)));
    }
    let deployment = Api::<Deployment>::namespaced(client.clone(), namespace).get_opt(name).await?;
    let Some(deployment) = deployment else { return Ok(deleted()) };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation == deployment.metadata.generation;
    let have = Have {
        updated: status.updated_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
    };
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?;
    let pods = pods.items.iter().filter(|pod| is_of(pod, name)).map(|pod| pod_stand(pod, clock));
    Ok(as_paused(&deployment, deployment_stand(current.then_some(have), wanted, pods)))
}

/// A new template of one that is paused comes to no pod until it is resumed; its pods that are there may become Ready.
fn as_paused(deployment: &Deployment, stand: Stand) -> Stand {
    let is_paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    match stand {
        Stand::Waiting(why) if is_paused => {
            Stand::Waiting(format!("it is paused (`paused: true`; kubectl rollout resume ends that): {why}"))
        }
        stand => stand,
    }
}

/// Whether this Deployment has made the pod, as it stays.
fn is_of(pod: &Pod, deployment: &str) -> bool {
    let made = |owner: &str| {
        owner
            .strip_prefix(deployment)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|hash| !hash.contains('-'))
    };
    let owned = pod.owner_references().iter().any(|owner| owner.kind == "ReplicaSet" && made(&owner.name));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    owned && pod.metadata.deletion_timestamp.is_none() && phase != Some("Failed")
}

/// How many pods a Deployment says it has.
#[derive(Clone, Copy, Debug)]
struct Have {
    /// Of the newest template.
    updated: i32,
    available: i32,
}

/// `have`: once its controller has seen the newest template.
fn deployment_stand(have: Option<Have>, wanted: i32, pods: impl Iterator<Item = Stand>) -> Stand {
    let Some(Have { updated, available }) = have else {
        return Stand::Waiting("its controller has not seen it yet".into());
    };
    let has_all = updated.min(available) >= wanted;
    let mut waits = None;
    for stand in pods {
        match stand {
            Stand::Ready | Stand::Succeeded => {}
            // One of a former template may be about to go.
            Stand::Hopeless(why, _) if has_all => waits = waits.or(Some(why)),
            Stand::Hopeless(..) => return stand,
            Stand::Waiting(why) => waits = waits.or(Some(why)),
        }
    }
    match waits {
        why if available < wanted => {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            Stand::Waiting(format!("{available} of {wanted} pods are available{why}"))
        }
        _ if updated < wanted => {
            Stand::Waiting(format!("{updated} of {wanted} pods are of its newest template"))
        }
        Some(why) => Stand::Waiting(why),
        None => Stand::Ready,
    }
}

/// Where a pod stands. One that ends and is not to be started again is done when it has succeeded; one that fails is none
/// that was Ready for a moment.
fn pod_stand(pod: &Pod, clock: Clock<'_>) -> Stand {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    if phase == "Succeeded" {
        return Stand::Succeeded;
    }
    if phase == "Failed" {
        return failed(pod);
    }
    if condition("Ready").is_some_and(|ready| ready.status == "True") {
        return clock.unsteady(pod).map_or(Stand::Ready, |container| {
            Stand::Waiting(format!("container {container} has just been started, and has no readiness probe"))
        });
    }
    let waiting = status.container_statuses.iter().flatten().find_map(waits_for);
    if let Some((container, reason, text)) = waiting
        && HOPELESS.contains(&reason.as_str())
    {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let next = match reason.as_str() {
            CRASHES => format!("-n {namespace} logs {name} -c {container} --previous"),
            _ => format!("-n {namespace} describe pod {name}"),
        };
        let ended = status.container_statuses.iter().flatten().filter(|one| one.name == container);
        let code = ended
            .filter_map(|one| one.last_state.as_ref()?.terminated.as_ref())
            .map(|end| end.exit_code)
            .next();
        let code = code.map(|code| format!(", which ended with exit code {code}")).unwrap_or_default();
        return Stand::Hopeless(format!("pod {name}: {reason}: {text}{code}"), Some(next));
    }
    let unscheduled = condition("PodScheduled").filter(|scheduled| scheduled.status == "False");
    let why = unscheduled.and_then(|scheduled| scheduled.message.clone());
    let why = why.or_else(|| unproven(pod)).unwrap_or_else(|| format!("it is {phase}"));
    Stand::Waiting(why)
}

/// Of a pod that runs and is not Ready: which container's probe has not passed.
fn unproven(pod: &Pod) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    pod.status.as_ref()?.container_statuses.iter().flatten().find_map(|status| {
        status.state.as_ref()?.running.as_ref()?;
        let container = containers.iter().find(|container| container.name == status.name)?;
        let probe = match status.started {
            Some(false) => container.startup_probe.as_ref().map(|_| "startup"),
            _ if !status.ready => container.readiness_probe.as_ref().map(|_| "readiness"),
            _ => None,
        };
        probe.map(|probe| format!("the {probe} probe of container {} has not passed", status.name))
    })
}

/// One that will not be started again, and what its container ended with.
fn failed(pod: &Pod) -> Stand {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let status = pod.status.clone().unwrap_or_default();
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let ended = all.filter_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then_some((&container.name, ended))
    });
    let said = status.message.or(status.reason);
    let Some((container, ended)) = ended.into_iter().next() else {
        let why = said.unwrap_or_else(|| "it has failed".into());
        return Stand::Hopeless(
            format!("pod {name}: {why}"),
            Some(format!("-n {namespace} describe pod {name}")),
        );
    };
    // `Error` is what every exit code but 0 is called.
    let more = [said, ended.reason.clone().filter(|reason| reason != "Error"), ended.message.clone()];
    let more: Vec<String> = more.into_iter().flatten().map(|text| text.trim().to_owned()).collect();
    let more: String = more.iter().filter(|text| !text.is_empty()).map(|text| format!(": {text}")).collect();
    Stand::Hopeless(
        format!(
            "pod {name}: it has failed: container {container} ended with exit code {}{more}",
            ended.exit_code
        ),
        Some(format!("-n {namespace} logs {name} -c {container}")),
    )
}

/// The container, the reason and more words.
fn waits_for(container: &ContainerStatus) -> Option<(String, String, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let words = waiting.message.clone().unwrap_or_default();
    Some((container.name.clone(), waiting.reason.clone()?, words))
}
