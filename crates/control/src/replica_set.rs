//! ReplicaSets: as many pods as asked for, no more and no fewer.

use std::cmp::Reverse;

use jiff::Timestamp;
use serde_json::{Value, json};
use types::{Labels, ObjectName, Selector};

use crate::brain::Brain;
use crate::kind::Kind;
use crate::view::{Meta, Namespace, OwnerReference, Pod, ReplicaSet, ReplicaSetStatus};
use crate::world::{Clock, World};
use crate::write::{Decision, Notice, Propagation, Target, Write};

/// Preference for which pod goes first; lower goes first (KEP-2255).
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub fn decide(world: &World, name: &ObjectName, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(set) = world.get::<ReplicaSet>(name) else { return decision };
    let Some(selector) = set.spec.selector.selector() else { return decision };
    let pods = claim(world, set, &selector, &mut decision);
    if !set.metadata.terminating() {
        decision.writes.extend(scale(world, set, &pods));
    }
    let status = status(set, &pods, world.clock(now), &mut decision);
    if status != set.status {
        decision.writes.push(Write::status(Kind::ReplicaSet, &set.metadata, &status));
    }
    decision
}

/// The active pods of this set: its own that still match, and matching ones that nobody manages.
fn claim<'a>(
    world: &'a World,
    set: &ReplicaSet,
    selector: &Selector,
    decision: &mut Decision,
) -> Vec<&'a Pod> {
    let mut claimed = Vec::new();
    for pod in world.within::<Pod>(&set.metadata.namespace).filter(|p| p.active()) {
        let matches = selector.matches(&pod.metadata.labels);
        match pod.metadata.controller() {
            Some(owner) if owner.uid == set.metadata.uid => {
                if matches {
                    claimed.push(pod);
                } else {
                    decision.writes.push(release(Kind::Pod, &pod.metadata, &set.metadata.uid));
                }
            }
            None if matches && !set.metadata.terminating() => {
                claimed.push(pod);
                let owner = OwnerReference::controller(Kind::ReplicaSet, &set.metadata);
                decision.writes.push(adopt(Kind::Pod, &pod.metadata, owner));
            }
            _ => {}
        }
    }
    claimed
}

/// Makes `owner` the manager of an object that has none.
pub(crate) fn adopt(kind: Kind, meta: &Meta, owner: OwnerReference) -> Write {
    let mut owners = meta.owner_references.clone();
    owners.push(owner);
    owners_patch(kind, meta, &owners)
}

/// Lets go of an object that does not match any more.
pub(crate) fn release(kind: Kind, meta: &Meta, uid: &str) -> Write {
    let rest: Vec<_> = meta.owner_references.iter().filter(|o| o.uid != uid).cloned().collect();
    owners_patch(kind, meta, &rest)
}

fn owners_patch(kind: Kind, meta: &Meta, owners: &[OwnerReference]) -> Write {
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "ownerReferences": owners}});
    Write::patch(kind, meta, patch)
}

fn scale(world: &World, set: &ReplicaSet, pods: &[&Pod]) -> Vec<Write> {
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    if pods.len() < wanted {
        let namespace = world.named::<Namespace>(&set.metadata.namespace);
        if namespace.is_some_and(|n| n.metadata.terminating()) {
            return Vec::new();
        }
        return (pods.len()..wanted).map(|_| create(set)).collect();
    }
    let mut ranked: Vec<&&Pod> = pods.iter().collect();
    ranked.sort_by_cached_key(|pod| rank(pod, pods));
    ranked.into_iter().take(pods.len() - wanted).map(|pod| delete(set, pod)).collect()
}

/// Who goes first, in the order of kube-controller-manager's ActivePodsWithRanks: not placed, not running, not
/// ready, cheap, with many siblings on its node, ready for the shortest time, youngest.
type Rank =
    (bool, u8, bool, i64, Reverse<usize>, Reverse<Option<Timestamp>>, Reverse<Option<Timestamp>>, String);

fn rank(pod: &Pod, pods: &[&Pod]) -> Rank {
    let siblings = pods.iter().filter(|p| p.spec.node_name == pod.spec.node_name).count();
    let phase = match pod.status.phase.as_str() {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = pod.metadata.annotations.get(DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0);
    (
        !pod.spec.node_name.is_empty(),
        phase,
        pod.ready(),
        cost,
        Reverse(siblings),
        Reverse(pod.ready_since()),
        Reverse(pod.metadata.creation_timestamp),
        pod.metadata.name.clone(),
    )
}

fn notice(set: &ReplicaSet, reason: &'static str, note: String) -> Notice {
    let about = Target::of(Kind::ReplicaSet, &set.metadata);
    Notice { about, warning: false, reason, note, source: Brain::ReplicaSet.component() }
}

fn create(set: &ReplicaSet) -> Write {
    let template = &set.spec.template;
    let mut metadata = json!({
        "generateName": format!("{}-", set.metadata.name),
        "namespace": set.metadata.namespace,
        "ownerReferences": [OwnerReference::controller(Kind::ReplicaSet, &set.metadata)],
    });
    for part in ["labels", "annotations", "finalizers"] {
        match &template["metadata"][part] {
            Value::Null => {}
            some => metadata[part] = some.clone(),
        }
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"],
    });
    let done = notice(set, "SuccessfulCreate", "Created pod: {name}".into());
    Write::Create { kind: Kind::Pod, object, done: Some(done) }
}

fn delete(set: &ReplicaSet, pod: &Pod) -> Write {
    let done = notice(set, "SuccessfulDelete", format!("Deleted pod: {}", pod.metadata.name));
    Write::Delete {
        target: Target::of(Kind::Pod, &pod.metadata),
        propagation: Propagation::Background,
        done: Some(done),
    }
}

fn status(set: &ReplicaSet, pods: &[&Pod], clock: Clock, decision: &mut Decision) -> ReplicaSetStatus {
    let labels: Labels =
        serde_json::from_value(set.spec.template["metadata"]["labels"].clone()).unwrap_or_default();
    let labelled = Selector::from_labels(&labels);
    let mut status = ReplicaSetStatus {
        observed_generation: set.metadata.generation,
        replicas: i64::try_from(pods.len()).unwrap_or(i64::MAX),
        ..ReplicaSetStatus::default()
    };
    for pod in pods {
        status.fully_labeled_replicas += i64::from(labelled.matches(&pod.metadata.labels));
        status.ready_replicas += i64::from(pod.ready());
        match pod.available(set.spec.min_ready_seconds, clock) {
            Ok(()) => status.available_replicas += 1,
            Err(Some(missing)) => decision.look_again(missing),
            Err(None) => {}
        }
    }
    status
}

#[cfg(test)]
mod tests;
