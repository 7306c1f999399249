//! Node lifecycle: a node that is silent for too long is not known to be ready. Its pods stay where they
//! are (a lab's node that comes back finds them running), and leave the Services' ready endpoints.

use jiff::Timestamp;
use serde_json::json;

use crate::brain::{Brain, Settings};
use crate::kind::Kind;
use crate::view::{Condition, Lease, Node, Pod, condition};
use crate::world::World;
use crate::write::{Decision, Notice, Target, Write};

const SILENT: &str = "Kubelet stopped posting node status.";

pub fn decide(world: &World, name: &str, settings: &Settings, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(node) = world.named::<Node>(name) else { return decision };
    let lease = world
        .get::<Lease>(&types::ObjectName::new("kube-node-lease", name))
        .and_then(|lease| lease.spec.renew_time);
    let heartbeat = condition(&node.status.conditions, "Ready").and_then(|c| c.last_heartbeat_time);
    // A node that never spoke is as old as its object.
    let said = if lease.or(heartbeat).is_some() {
        [lease, heartbeat]
    } else {
        [node.metadata.creation_timestamp, None]
    };
    // Each by itself: the later date may be of a clock that was set back since.
    let silent = said.into_iter().flatten().map(|at| world.clock(now).silent_since(at)).min();
    let Some(silent) = silent else { return decision };
    let left = settings.node_grace_seconds - silent;
    if left > 0 {
        decision.look_again(left);
        return decision;
    }
    let ready = condition(&node.status.conditions, "Ready");
    if ready.is_none_or(|c| c.status != "Unknown") {
        decision.writes.push(unknown(node, now));
        decision.writes.push(Write::Post(Notice {
            about: Target::of(Kind::Node, &node.metadata),
            warning: false,
            reason: "NodeNotReady",
            note: format!("Node {name} status is now: NodeNotReady"),
            source: Brain::NodeLife.component(),
        }));
    }
    for pod in world.all::<Pod>().filter(|p| p.spec.node_name == name && p.ready()) {
        decision.writes.push(not_ready(pod, now));
    }
    decision
}

/// Every condition that the kubelet speaks of is unknown now. The list is replaced whole, so only this
/// version of the node may be changed: a kubelet that wakes up at this very moment wins.
fn unknown(node: &Node, now: Timestamp) -> Write {
    let mut conditions = node.status.conditions.clone();
    if condition(&conditions, "Ready").is_none() {
        conditions.push(Condition { kind: "Ready".into(), ..Condition::default() });
    }
    for c in &mut conditions {
        let spoken_by_kubelet =
            ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].contains(&c.kind.as_str());
        if spoken_by_kubelet && c.status != "Unknown" {
            c.status = "Unknown".into();
            c.reason = "NodeStatusUnknown".into();
            c.message = SILENT.into();
            c.last_transition_time = Some(now);
        }
    }
    Write::status_at(Kind::Node, &node.metadata, json!({"conditions": conditions}))
}

fn not_ready(pod: &Pod, now: Timestamp) -> Write {
    let mut conditions = pod.status.conditions.clone();
    for c in conditions.iter_mut().filter(|c| c.kind == "Ready") {
        c.status = "False".into();
        c.reason = "NodeNotReady".into();
        c.last_transition_time = Some(now);
    }
    Write::status_at(Kind::Pod, &pod.metadata, json!({"conditions": conditions}))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::memory::Memory;

    fn status(api: &Memory) -> String {
        let node = api.world.named::<Node>("node1").cloned().unwrap_or_default();
        condition(&node.status.conditions, "Ready").map(|c| c.status.clone()).unwrap_or_default()
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_its_pods_not_ready_but_stay() {
        let mut api = Memory::default();
        api.ready_node("node1");
        let lease = json!({"spec": {"renewTime": api.now.to_string()}});
        api.apply(Kind::Lease, "kube-node-lease/node1", lease);
        let pod = json!({"spec": {"nodeName": "node1"}, "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}]}});
        api.apply(Kind::Pod, "shop/web", pod);
        api.pass(39);
        api.settle();
        assert_eq!(status(&api), "True");
        api.pass(1);
        api.settle();
        assert_eq!(status(&api), "Unknown");
        let pod = api.world.get::<Pod>(&types::ObjectName::new("shop", "web")).unwrap();
        assert!(!pod.ready() && pod.active());
    }

    /// Forward, and back to before the node was made.
    #[test]
    fn a_clock_that_is_set_silences_nobody_and_hides_no_silence() {
        for jump in [86_400, -20 * 365 * 86_400] {
            let mut api = Memory::default();
            api.ready_node("node1");
            api.pass(30);
            api.set_clock(jump);
            api.settle();
            assert_eq!(status(&api), "True", "{jump}");
            // It is heard by the new clock, and long after that: the old dates say nothing.
            for _ in 0..3 {
                api.pass(30);
                let lease = json!({"spec": {"renewTime": api.now.to_string()}});
                api.apply(Kind::Lease, "kube-node-lease/node1", lease);
                api.settle();
                assert_eq!(status(&api), "True", "{jump}");
            }
            api.pass(39);
            api.settle();
            assert_eq!(status(&api), "True", "{jump}");
            api.pass(1);
            api.settle();
            assert_eq!(status(&api), "Unknown", "{jump}");
        }
    }

    #[test]
    fn a_node_that_renews_its_lease_stays_ready() {
        let mut api = Memory::default();
        api.ready_node("node1");
        for _ in 0..5 {
            api.pass(30);
            let lease = json!({"spec": {"renewTime": api.now.to_string()}});
            api.apply(Kind::Lease, "kube-node-lease/node1", lease);
            api.settle();
            assert_eq!(status(&api), "True");
        }
    }
}
