//! A short pod on each node: what it says before it ends is the answer.
//!
//! ```text
//!   create (spec.nodeName, so no scheduler and no taint is in its way) ─> ends ─> termination message ─> deleted
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec, Toleration, Volume, VolumeMount};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};

use crate::connect::explain;
use crate::manifest::{self, NAMESPACE, metadata};
use crate::settings::Settings;

const COMPONENT: &str = "app.kubernetes.io/component";
const ASK: Duration = Duration::from_millis(300);
/// Nothing but a finalizer of somebody's holds a pod back so long.
const GOING: Duration = Duration::from_secs(60);

/// What runs in the pods.
pub struct Job {
    /// Part of the pods' names, and their label.
    pub word: &'static str,
    pub command: Vec<String>,
    pub env: Vec<EnvVar>,
    pub mounts: Vec<(Volume, VolumeMount)>,
    /// Sees the node's processes.
    pub host_pid: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What it said.
    Done(String),
    Failed(String),
    /// It did not start, and why.
    Stuck(String),
}

/// Runs the job on every node and removes its pods again, however it went.
pub async fn run(
    client: &Client,
    settings: &Settings,
    job: &Job,
    nodes: &[String],
    patience: Duration,
) -> Result<BTreeMap<String, Outcome>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    remove(&pods, job.word).await?;
    let outcome = tokio::select! {
        outcome = watch(&pods, settings, job, nodes, patience) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let removed = remove(&pods, job.word).await;
    let outcome = outcome?;
    removed.map(|()| outcome)
}

/// Without grace, so that no kubelet is waited for.
async fn remove(pods: &Api<Pod>, word: &str) -> Result<()> {
    let what = format!("the pods of the {word} in {NAMESPACE}");
    let until = Instant::now() + GOING;
    let selected = ListParams::default().labels(&format!("{COMPONENT}={word}"));
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    loop {
        let left = pods.list(&selected).await.map_err(|error| explain(error, &what))?;
        if left.items.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let names: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
            bail!("{what} do not go: {}; kubectl -n {NAMESPACE} describe pods shows why", names.join(", "));
        }
        pods.delete_collection(&at_once, &selected).await.map_err(|error| explain(error, &what))?;
        tokio::time::sleep(ASK).await;
    }
}

async fn watch(
    pods: &Api<Pod>,
    settings: &Settings,
    job: &Job,
    nodes: &[String],
    patience: Duration,
) -> Result<BTreeMap<String, Outcome>> {
    for (number, node) in nodes.iter().enumerate() {
        let pod = pod(settings, job, node, number);
        let what = format!("the pod of the {} on {node}", job.word);
        pods.create(&PostParams::default(), &pod).await.map_err(|error| explain(error, &what))?;
    }
    let until = Instant::now() + patience;
    let mut outcomes = BTreeMap::new();
    loop {
        let selected = ListParams::default().labels(&format!("{COMPONENT}={}", job.word));
        let listed = pods.list(&selected).await.map_err(|error| explain(error, "list pods"))?;
        let late = Instant::now() >= until;
        for pod in listed.items {
            if let Some(outcome) = outcome(&pod, late) {
                outcomes.insert(node_of(&pod), outcome);
            }
        }
        if outcomes.len() >= nodes.len() || late {
            return Ok(outcomes);
        }
        tokio::time::sleep(ASK).await;
    }
}

/// Waiting for one of these is waiting in vain.
const HOPELESS: [&str; 6] = [
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerError",
    "RunContainerError",
];

fn outcome(pod: &Pod, late: bool) -> Option<Outcome> {
    let status = pod.status.as_ref()?;
    let container = status.container_statuses.as_ref().and_then(|list| list.first());
    let state = container.and_then(|container| container.state.as_ref());
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        let said = ended.message.clone().unwrap_or_default();
        return Some(if ended.exit_code == 0 { Outcome::Done(said) } else { Outcome::Failed(said) });
    }
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.clone()).unwrap_or_default();
    let message = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
    if HOPELESS.contains(&reason.as_str()) {
        return Some(Outcome::Stuck(format!("{reason}: {message}")));
    }
    let phase = status.phase.clone().unwrap_or_default();
    late.then(|| Outcome::Stuck(format!("its pod is still {phase} {reason} {message}").trim_end().to_owned()))
}

fn pod(settings: &Settings, job: &Job, node: &str, number: usize) -> Pod {
    let mut metadata = metadata(&format!("plumb-{}-{number}", job.word), true);
    metadata.labels.get_or_insert_default().insert(COMPONENT.into(), job.word.into());
    let (volumes, volume_mounts) = job.mounts.iter().cloned().unzip();
    let container = Container {
        name: job.word.into(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        command: Some(job.command.clone()),
        env: Some(job.env.clone()),
        volume_mounts: Some(volume_mounts),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(manifest::security()),
        ..Container::default()
    };
    let spec = PodSpec {
        node_name: Some(node.into()),
        host_network: Some(true),
        host_pid: job.host_pid.then_some(true),
        restart_policy: Some("Never".into()),
        automount_service_account_token: Some(false),
        priority_class_name: Some("system-node-critical".into()),
        tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
        // Should nobody be left to delete it.
        active_deadline_seconds: Some(300),
        termination_grace_period_seconds: Some(0),
        containers: vec![container],
        volumes: Some(volumes),
        ..PodSpec::default()
    };
    Pod { metadata, spec: Some(spec), ..Pod::default() }
}

/// The name of a pod's node.
pub fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| pod.name_any())
}
