//! The way on a node that a packet came to from another: to a pod, to the node itself, or by its port of a Service on to an
//! endpoint.

use std::net::{IpAddr, SocketAddr};

use types::{Family, IfName, ObjectName};

use super::{Expected, Onward, View, Way, elsewhere};
use crate::hop::{Fact, Stage};
use crate::reference::{self, Choice, Direction, service};
use crate::wiring;

/// The hops on the node of the destination. `endpoint`: the one that the observed connection took from there.
pub fn arrival(view: &View<'_>, onward: &Onward, endpoint: Option<SocketAddr>) -> Expected {
    let mut way = Way { view, packet: onward.packet(view.fabric()), hops: Vec::new() };
    let to = onward.destination;
    match is_at(view, to.ip()) {
        true => way.at_node(to, endpoint),
        false => way.arrive(to, view.fabric().link()),
    }
    Expected { hops: way.hops, onward: None, elsewhere: Vec::new() }
}

/// Whether the node itself has the address.
fn is_at(view: &View<'_>, address: IpAddr) -> bool {
    let (cluster, place) = (view.cluster, view.place);
    let named = cluster.nodes.get(&place.node).is_some_and(|node| node.addresses.contains(&address));
    named || reference::is_own_address(address, cluster, place)
}

impl Way<'_, '_> {
    /// On the node of the destination.
    pub fn arrive(&mut self, to: SocketAddr, from: Option<IfName>) {
        let node = &self.view.place.node;
        let Some(attachment) = reference::local_pod(to.ip(), self.view.cluster) else {
            // Of its own prefix a node knows that there is nobody, and says so.
            let own = reference::node_of(to.ip(), self.view.cluster).is_some_and(|of| of.name == *node);
            let why = match own {
                true => format!("no pod of {node} has this address"),
                false => "no node has pods with such an address".to_owned(),
            };
            let fact = Fact::Refused { frontend: to, service: None, rejected: own, why, leaves: false };
            self.push(Stage::Node, fact);
            return;
        };
        let (host_if, pod) = (attachment.host_if.clone(), attachment.pod.clone());
        let bridge = wiring::shared(attachment.wiring);
        self.push(Stage::Node, Fact::Node { from, bridge, host_if });
        self.enter(pod, to);
    }

    fn enter(&mut self, pod: ObjectName, to: SocketAddr) {
        if self.policy(Direction::Ingress, to) {
            let on = Some(self.view.place.node.clone());
            self.push(Stage::Pod, Fact::Pod { pod: Some(pod), destination: to, on });
        }
    }

    /// The node has the address: a Service's port there leads on, anything else it takes itself.
    fn at_node(&mut self, to: SocketAddr, endpoint: Option<SocketAddr>) {
        match service::choose(&self.packet, self.view.cluster, self.view.place) {
            Choice::NotAService => {
                self.push(Stage::Node, Fact::LocalRoute { destination: to });
                let on = Some(self.view.place.node.clone());
                self.push(Stage::Pod, Fact::Pod { pod: None, destination: to, on });
            }
            Choice::Endpoints { service, port, endpoints } => {
                let choices: Vec<_> = endpoints.into_iter().collect();
                let taken = endpoint.filter(|endpoint| choices.contains(endpoint));
                let Some(endpoint) = taken.or_else(|| choices.first().copied()) else { return };
                let chain = self.chain_of(to);
                let affinity = self.affinity(&service, &port);
                let fact = Fact::Service { service, port, frontend: to, endpoint, choices, chain, affinity };
                self.push(Stage::Node, fact);
                self.go_behind(endpoint);
            }
            Choice::Reject { service, has_port } => {
                let why = self.why_rejected(&service, has_port);
                let refused = Fact::Refused {
                    frontend: to,
                    service: Some(service),
                    rejected: true,
                    why,
                    leaves: false,
                };
                self.push(Stage::Node, refused);
            }
            Choice::Drop { service, why } => {
                let why = why.to_owned();
                self.push(
                    Stage::Node,
                    Fact::Refused { frontend: to, service, rejected: false, why, leaves: false },
                );
            }
        }
    }

    /// From a node's port on to a pod there, or of a further node, whose policies the objects tell.
    fn go_behind(&mut self, to: SocketAddr) {
        let view = self.view;
        if let Some(attachment) = reference::local_pod(to.ip(), view.cluster) {
            return self.enter(attachment.pod.clone(), to);
        }
        let Some(node) = reference::node_of(to.ip(), view.cluster) else {
            let at = |node: &&model::Node| node.addresses.contains(&to.ip());
            let on = view.cluster.nodes.values().find(at).map(|node| node.name.clone());
            return self.push(Stage::Pod, Fact::Pod { pod: None, destination: to, on });
        };
        let hidden = reference::masquerade(&self.packet, to, view.cluster, view.place);
        let own = hidden.and_then(|_| view.fabric().own_address(view.net, Family::of(to.ip())));
        let source = SocketAddr::new(own.unwrap_or(self.packet.src), self.packet.sport);
        let protocol = self.packet.protocol;
        let onward = Onward { node: node.name.clone(), protocol, source, destination: to };
        self.hops.extend(elsewhere::hops(view, &onward));
    }

    /// Why the address of a Service answers with a refusal.
    pub fn why_rejected(&self, service: &ObjectName, has_port: bool) -> String {
        let (protocol, port) = (self.packet.protocol, self.packet.dport);
        match has_port {
            _ if protocol == types::Protocol::Icmp => format!(
                "no interface has a ClusterIP: rules translate the ports of {service} and nothing else, so that nobody is \
                 there to answer an echo; ask for one of its ports, or ping its pods"
            ),
            true => elsewhere::why_without_endpoint(&self.packet, self.view, service),
            false => format!("{service} has no port {port}/{protocol}"),
        }
    }
}
