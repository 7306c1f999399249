//! What the sender's node can say of the way on another node: which pod has the address and what its policies say, as
//! the objects tell. How it is wired there only that node knows.

use model::TrafficPolicy;
use types::ObjectName;

use super::{Onward, View, policy_fact};
use crate::hop::{Fact, Hop, Stage};
use crate::packet::Packet;
use crate::reference::service::{self, Choice, Elsewhere};
use crate::reference::{Direction, policy, withheld};

pub fn hops(view: &View<'_>, onward: &Onward) -> Vec<Hop> {
    // A node's own address, be it a Service's port there, of which it alone knows the endpoint that it takes.
    let nodes = view.cluster.nodes.get(&onward.node);
    if nodes.is_some_and(|node| withheld::is_at(node, onward.destination.ip())) {
        let (destination, on) = (onward.destination, Some(onward.node.clone()));
        return vec![Hop::new(Stage::Pod, &onward.node, Fact::Pod { pod: None, destination, on })];
    }
    let judgement = policy::judge_elsewhere(&onward.packet(view.fabric()), onward.destination, view.cluster);
    let (pod, allowed) = match &judgement {
        Some(judgement) => (Some(judgement.pod.clone()), judgement.allowed()),
        None => (None, true),
    };
    let fact = judgement.map(|judgement| policy_fact(judgement, Direction::Ingress));
    let policy = fact.map(|fact| Hop::new(Stage::Ingress, &onward.node, fact));
    let (destination, on) = (onward.destination, Some(onward.node.clone()));
    let arrives = allowed.then(|| Hop::new(Stage::Pod, &onward.node, Fact::Pod { pod, destination, on }));
    policy.into_iter().chain(arrives).collect()
}

/// Of a Service's node port at another node: which Service that node sends it on to.
pub fn node_port(packet: &Packet, view: &View<'_>) -> Option<Fact> {
    let found = service::at_other_node(packet, view.cluster, view.place)?;
    let Elsewhere { service, port, node, policy, .. } = found;
    let port = if port.is_empty() { port } else { format!(":{port}") };
    let policy = policy_word(policy);
    let why =
        format!("stays: it is the nodePort of {service}{port} at {node} (externalTrafficPolicy: {policy})");
    Some(Fact::Direct { destination: packet.destination(), why, service: Some(service) })
}

/// Where that node leads it nowhere.
pub fn stopped(packet: &Packet, view: &View<'_>) -> Option<Hop> {
    let Elsewhere { service, node, policy, choice, .. } =
        service::at_other_node(packet, view.cluster, view.place)?;
    let (rejected, why) = match choice {
        Choice::Endpoints { .. } | Choice::NotAService => return None,
        Choice::Reject { .. } => (true, why_without_endpoint(packet, view, &service)),
        Choice::Drop { .. } if policy == TrafficPolicy::Local => {
            (false, format!("{service} has no endpoint on {node} (externalTrafficPolicy: Local)"))
        }
        Choice::Drop { why, .. } => (false, why.to_owned()),
    };
    let fact = Fact::Refused {
        frontend: packet.destination(),
        service: Some(service),
        rejected,
        why,
        leaves: false,
    };
    Some(Hop::new(Stage::Node, &node, fact))
}

/// Why a port of a Service leads to nobody.
pub fn why_without_endpoint(packet: &Packet, view: &View<'_>, service: &ObjectName) -> String {
    match service::nameless(packet, view.cluster, view.place) {
        Some((target, port)) => {
            format!("{service}: no ready pod has a port named {target} (targetPort of {port})")
        }
        None => format!("{service} has no ready endpoint"),
    }
}

fn policy_word(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}
