//! From the applied objects to nodes that work: told node by node, with the remedy where one does not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use crate::connect::explain;
use crate::jobs::node_of;
use crate::manifest::{LABEL, NAME, NAMESPACE};

const ASK: Duration = Duration::from_millis(500);

/// How far a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// No pod of the agent yet, or one that has not started.
    Waiting(String),
    /// The agent runs: from here on the node is changed.
    Starting(String),
    /// The agent is ready, the Node not yet.
    AgentReady,
    Works,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting(why) => write!(f, "waiting: {why}"),
            Self::Starting(why) => write!(f, "agent starts{why}"),
            Self::AgentReady => write!(f, "agent works; the kubelet has not said Ready yet"),
            Self::Works => write!(f, "works"),
        }
    }
}

/// How an installation ended.
#[derive(Debug)]
pub struct Ended {
    pub steps: BTreeMap<String, Step>,
}

impl Ended {
    pub fn all_work(&self) -> bool {
        self.steps.values().all(|step| *step == Step::Works)
    }

    /// Whether an agent ever ran anywhere.
    pub fn changed(&self) -> bool {
        self.steps.values().any(|step| !matches!(step, Step::Waiting(_)))
    }
}

/// Follows all nodes until each works or patience ends; prints every step that a node makes.
pub async fn follow(client: &Client, image: &str, patience: Duration) -> Result<Ended> {
    let until = Instant::now() + patience;
    let mut steps: BTreeMap<String, Step> = BTreeMap::new();
    loop {
        for (node, step) in look(client, image).await? {
            if steps.get(&node) != Some(&step) {
                println!("  {node}: {step}");
                steps.insert(node, step);
            }
        }
        let ended = Ended { steps };
        if ended.all_work() || Instant::now() >= until {
            return Ok(ended);
        }
        steps = ended.steps;
        tokio::time::sleep(ASK).await;
    }
}

/// The agents' pods by their nodes, those that are ending too.
pub async fn agents(client: &Client) -> Result<Vec<(String, Pod)>> {
    let selected = ListParams::default().labels(&format!("{LABEL}={NAME},app.kubernetes.io/component=agent"));
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE).list(&selected).await;
    let pods = pods.map_err(|error| explain(error, "list the agents' pods"))?;
    Ok(pods.items.into_iter().map(|pod| (node_of(&pod), pod)).collect())
}

/// The condition Ready: `True`, `False`, or `Unknown` when its kubelet has been silent.
pub fn readiness(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == "Ready")
}

async fn look(client: &Client, image: &str) -> Result<BTreeMap<String, Step>> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
    let nodes = nodes.map_err(|error| explain(error, "list nodes"))?;
    let staying =
        agents(client).await?.into_iter().filter(|(_, pod)| pod.metadata.deletion_timestamp.is_none());
    let of_node: BTreeMap<String, Pod> = staying.collect();
    let step = |node: Node| {
        let name = node.name_any();
        let step = of_node
            .get(&name)
            .map_or_else(|| Step::Waiting("no pod of the agent yet".into()), |pod| step(pod, &node, image));
        (name, step)
    };
    Ok(nodes.items.into_iter().map(step).collect())
}

fn step(pod: &Pod, node: &Node, image: &str) -> Step {
    let wanted =
        pod.spec.as_ref().and_then(|spec| spec.containers.first()).and_then(|first| first.image.as_deref());
    if wanted != Some(image) {
        return Step::Starting(": the one of another version still runs".into());
    }
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let Some(container) = statuses.and_then(|list| list.first()) else {
        return Step::Waiting("its pod has no container yet".into());
    };
    let state = container.state.clone().unwrap_or_default();
    let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    if let Some(waiting) = state.waiting {
        let reason = waiting.reason.unwrap_or_default();
        return match ended.or(state.terminated.as_ref()) {
            Some(ended) => Step::Starting(format!(" and ends: {}", last_words(ended.message.as_deref()))),
            None => {
                Step::Waiting(format!("{reason} {}", waiting.message.unwrap_or_default()).trim_end().into())
            }
        };
    }
    if !container.ready {
        let before = ended.map(|ended| format!(" and ends: {}", last_words(ended.message.as_deref())));
        return Step::Starting(before.unwrap_or_default());
    }
    if readiness(node).is_some_and(|ready| ready.status == "True") { Step::Works } else { Step::AgentReady }
}

/// The end of its log: from where it says why it ends, or the last line.
fn last_words(message: Option<&str>) -> String {
    let lines: Vec<&str> = message.unwrap_or_default().trim_end().lines().collect();
    let why = lines.iter().rposition(|line| line.starts_with("plumb: "));
    let said = lines.get(why.unwrap_or(lines.len().saturating_sub(1))..).unwrap_or_default();
    if said.is_empty() { "without a word".into() } else { said.join("\n      ") }
}

/// What to do about a node that does not work.
pub fn remedy(node: &str, step: &Step, image: &str) -> String {
    match step {
        Step::Waiting(why) if why.contains("Image") => format!(
            "the node cannot get the image {image}: check that its registry answers, or import it there: \
             ctr -n k8s.io image import plumb.tar"
        ),
        Step::Waiting(_) => format!(
            "its kubelet has not started the agent: kubectl describe node {node}; kubectl -n {NAMESPACE} get pods \
             -o wide --field-selector spec.nodeName={node}"
        ),
        Step::Starting(_) => format!(
            "kubectl -n {NAMESPACE} logs -l {LABEL}={NAME} --prefix --tail=20 shows what its agent waits for"
        ),
        Step::AgentReady => format!("kubectl describe node {node} shows what the kubelet misses"),
        Step::Works => String::new(),
    }
}
