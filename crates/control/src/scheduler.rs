//! The scheduler: which node a pod runs on. Spread: the node with the fewest pods of the same owner, then
//! with the fewest pods, then the first by name.
//!
//! It reads nodeSelector, taints and tolerations, cordons, readiness, host ports, required pod anti-affinity and
//! topology spread constraints. A pod that asks for more
//! is refused by the name of the field: placing it anyhow would ignore what it asked for.

mod topology;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::brain::Brain;
use crate::kind::Kind;
use crate::view::{Condition, Node, Pod, Taint, Toleration, condition};
use crate::world::World;
use crate::write::{Decision, Notice, Target, Write};

use topology::Topology;

/// Binds every pod that waits, oldest first, and says of the others why they wait.
pub fn decide(world: &World, now: Timestamp) -> Decision {
    let mut placed: Vec<(&str, &Pod)> = world
        .all::<Pod>()
        .filter(|p| !p.spec.node_name.is_empty() && !p.finished())
        .map(|p| (p.spec.node_name.as_str(), p))
        .collect();
    let mut waiting: Vec<&Pod> = world.all::<Pod>().filter(|p| waits(p)).collect();
    waiting.sort_by_key(|p| (p.metadata.creation_timestamp, p.metadata.version()));
    let mut writes = Vec::new();
    for pod in waiting {
        match place(world, pod, &placed) {
            Ok(node) => {
                placed.push((node, pod));
                writes.push(bind(pod, node));
            }
            Err(why) => writes.extend(unschedulable(pod, &why, now)),
        }
    }
    Decision::writes(writes)
}

fn waits(pod: &Pod) -> bool {
    let ours = ["", "default-scheduler"].contains(&pod.spec.scheduler_name.as_str());
    ours && pod.spec.node_name.is_empty() && pod.active()
}

fn place<'a>(world: &'a World, pod: &Pod, placed: &[(&str, &Pod)]) -> Result<&'a str, String> {
    if let Some(field) = unsupported(pod) {
        return Err(format!(
            "{field} is not supported by this scheduler; remove it, or name the node in spec.nodeName"
        ));
    }
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut fit: Vec<&Node> = Vec::new();
    let topology = Topology::new(world.all::<Node>().collect(), placed);
    for node in world.all::<Node>() {
        match refusal(node, pod, placed).or_else(|| topology.refusal(node, pod).map(str::to_owned)) {
            Some(why) => *refusals.entry(why).or_default() += 1,
            None => fit.push(node),
        }
    }
    let total = fit.len() + refusals.values().sum::<usize>();
    let best = fit.into_iter().min_by_key(|node| {
        let here = || placed.iter().filter(|(name, _)| *name == node.metadata.name).map(|(_, p)| p);
        let siblings = here().filter(|p| same_owner(p, pod)).count();
        (siblings, here().count(), &node.metadata.name)
    });
    best.map(|node| node.metadata.name.as_str()).ok_or_else(|| {
        let reasons: Vec<String> = refusals.into_iter().map(|(why, n)| format!("{n} {why}")).collect();
        let reasons = if reasons.is_empty() { "the cluster has no node".into() } else { reasons.join(", ") };
        format!("0/{total} nodes are available: {reasons}.")
    })
}

/// Pods of one controller, or bare pods of one namespace with the same labels.
fn same_owner(a: &Pod, b: &Pod) -> bool {
    match (a.metadata.controller(), b.metadata.controller()) {
        (Some(x), Some(y)) => x.uid == y.uid,
        (None, None) => {
            a.metadata.namespace == b.metadata.namespace && a.metadata.labels == b.metadata.labels
        }
        _ => false,
    }
}

fn unsupported(pod: &Pod) -> Option<&'static str> {
    let affinity = &pod.spec.affinity;
    let hard = |part: &Value| {
        let required = &part["requiredDuringSchedulingIgnoredDuringExecution"];
        !required.is_null() && required.as_array().is_none_or(|list| !list.is_empty())
    };
    if hard(&affinity.node_affinity) {
        Some("spec.affinity.nodeAffinity")
    } else if hard(&affinity.pod_affinity) {
        Some("spec.affinity.podAffinity")
    } else if affinity.pod_anti_affinity.required.iter().any(|t| t.namespace_selector.is_some()) {
        Some("spec.affinity.podAntiAffinity with a namespaceSelector")
    } else if !pod.spec.scheduling_gates.is_empty() {
        Some("spec.schedulingGates")
    } else {
        None
    }
}

/// Why a node cannot take a pod, in kube-scheduler's words.
fn refusal(node: &Node, pod: &Pod, placed: &[(&str, &Pod)]) -> Option<String> {
    let tolerated = |taint: &&Taint| !pod.spec.tolerations.iter().any(|t| tolerates(t, taint));
    if node.metadata.terminating() {
        return Some("node(s) were being deleted".into());
    }
    if !node.ready() {
        return Some("node(s) were not ready".into());
    }
    if node.spec.unschedulable {
        return Some("node(s) were unschedulable".into());
    }
    if let Some((key, value)) =
        pod.spec.node_selector.iter().find(|(k, v)| node.metadata.labels.get(*k) != Some(*v))
    {
        return Some(format!("node(s) didn't match Pod's node selector ({key}={value})"));
    }
    let taints = node.spec.taints.iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    if let Some(taint) = taints.into_iter().find(tolerated) {
        return Some(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value));
    }
    let here = placed.iter().filter(|(name, _)| *name == node.metadata.name);
    if here.into_iter().any(|(_, other)| ports_clash(pod, other)) {
        return Some("node(s) didn't have free ports for the requested pod ports".into());
    }
    None
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    let value = toleration.operator == "Exists" || toleration.value == taint.value;
    let key = toleration.key == taint.key || (toleration.key.is_empty() && toleration.operator == "Exists");
    effect && key && value
}

/// Two host ports clash on one node when protocol and number are the same and the addresses meet.
fn ports_clash(a: &Pod, b: &Pod) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    let ports = |pod: &'_ Pod| -> Vec<_> {
        let all = pod.running_containers().flat_map(|c| c.ports.clone());
        all.filter(|p| p.host_port != 0).collect()
    };
    let taken = ports(b);
    ports(a).iter().any(|x| {
        taken.iter().any(|y| {
            x.protocol == y.protocol
                && x.host_port == y.host_port
                && (x.host_ip == y.host_ip || any(&x.host_ip) || any(&y.host_ip))
        })
    })
}

fn notice(pod: &Pod, reason: &'static str, note: String) -> Notice {
    let warning = reason == "FailedScheduling";
    let about = Target::of(Kind::Pod, &pod.metadata);
    Notice { about, warning, reason, note, source: Brain::Scheduler.component() }
}

fn bind(pod: &Pod, node: &str) -> Write {
    let note = format!("Successfully assigned {} to {node}", pod.metadata.key());
    Write::Bind {
        pod: Target::of(Kind::Pod, &pod.metadata),
        node: node.to_owned(),
        done: notice(pod, "Scheduled", note),
    }
}

/// The condition and the Event, once per reason: the condition remembers what has been said.
fn unschedulable(pod: &Pod, why: &str, now: Timestamp) -> Vec<Write> {
    let said = condition(&pod.status.conditions, "PodScheduled");
    if said.is_some_and(|c| c.status == "False" && c.message == why) {
        return Vec::new();
    }
    let since = said.filter(|c| c.status == "False").and_then(|c| c.last_transition_time).unwrap_or(now);
    let mut conditions = pod.status.conditions.clone();
    conditions.retain(|c| c.kind != "PodScheduled");
    conditions.push(Condition {
        kind: "PodScheduled".into(),
        status: "False".into(),
        reason: "Unschedulable".into(),
        message: why.to_owned(),
        last_transition_time: Some(since),
        ..Condition::default()
    });
    vec![
        Write::status_at(Kind::Pod, &pod.metadata, json!({"conditions": conditions})),
        Write::Post(notice(pod, "FailedScheduling", why.to_owned())),
    ]
}

#[cfg(test)]
mod tests;
