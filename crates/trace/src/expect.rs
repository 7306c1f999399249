//! The way that a packet from a pod should take, hop by hop, from the cluster and the desired state of a node.
//! [`departure`] is what the pod's node knows; [`arrival`] continues it on the node of the destination.

mod arrival;
mod elsewhere;
pub mod own;

use std::net::{IpAddr, SocketAddr};

use kstate::net::NetState;
use kstate::nft::build::encode;
use kstate::nft::{ElemData, ElemKey, Expr, Ruleset, Table, target};
use model::{Attachment, Cluster};
use serde::{Deserialize, Serialize};
use types::{Family, IfName, IpNet, ObjectName, Protocol};

use crate::eval::{self, Exit};
use crate::fabric::{self, Fabric};
use crate::hop::{Fact, Hop, RuleMiss, Stage};
use crate::packet::{CtState, Packet, Place};
use crate::reference::{self, Choice, Direction, Judgement, policy, service};
use crate::wiring;

pub use arrival::arrival;

/// What a node wants: the model, and what compile made of it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub cluster: &'a Cluster,
    pub nft: &'a Ruleset,
    pub net: &'a NetState,
    pub place: &'a Place,
}

impl View<'_> {
    fn fabric(&self) -> &'static Fabric {
        fabric::of(self.place.fabric)
    }
}

/// Where the packet is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub protocol: Protocol,
    pub destination: SocketAddr,
    /// The pod's source port, when it is known already.
    pub sport: u16,
    /// The endpoint that the observed connection took.
    pub endpoint: Option<SocketAddr>,
    /// Whom its answers go to: another than the pod where its source was masqueraded.
    #[serde(default)]
    pub answers_to: Option<SocketAddr>,
}

/// One node's part of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub hops: Vec<Hop>,
    /// The node that the packet goes on to, and as what.
    pub onward: Option<Onward>,
    /// What this node expects of that one, for when it cannot be asked. Agents of earlier versions do not tell.
    #[serde(default)]
    pub elsewhere: Vec<Hop>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onward {
    pub node: String,
    pub protocol: Protocol,
    /// As it leaves the sender's node: after masquerade.
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// The hops up to where the packet leaves this node, or its pod on this node; the pod must be wired here.
pub fn departure(view: &View<'_>, pod: &ObjectName, target: &Target) -> Option<Expected> {
    let attachment = view.cluster.attachments.values().find(|a| a.pod == *pod)?;
    let node = &view.place.node;
    if let Some(hops) = own::hops(node, attachment, (target.protocol, target.destination)) {
        return Some(Expected { hops, onward: None, elsewhere: Vec::new() });
    }
    let source = attachment.ips.iter().copied().find(|ip| ip.is_ipv4() == target.destination.is_ipv4())?;
    let packet = Packet {
        iif: Some(wiring::of_pod(attachment)),
        src: source,
        dst: target.destination.ip(),
        protocol: target.protocol,
        sport: target.sport,
        dport: target.destination.port(),
        ct: CtState::New,
    };
    let mut way = Way { view, packet, hops: Vec::new() };
    let nobodys = Some(target.destination).filter(|to| own::is_of_link(to.ip()));
    if let Some(why) = nobodys.and_then(|to| own::is_nobodys(to.ip(), view.place)) {
        way.nowhere(why);
        return Some(Expected { hops: way.hops, onward: None, elsewhere: Vec::new() });
    }
    if let Some((stage, why)) = own::ends_at_node(target.destination.ip(), view.place) {
        way.for_many(stage, why, attachment);
        return Some(Expected { hops: way.hops, onward: None, elsewhere: Vec::new() });
    }
    way.start(attachment);
    let onward = way.go(target);
    let elsewhere = onward.iter().flat_map(|onward| elsewhere::hops(view, onward)).collect();
    Some(Expected { hops: way.hops, onward, elsewhere })
}

impl Onward {
    /// As it comes out of the fabric.
    fn packet(&self, fabric: &Fabric) -> Packet {
        Packet {
            iif: fabric.comes_by(),
            src: self.source.ip(),
            dst: self.destination.ip(),
            protocol: self.protocol,
            sport: self.source.port(),
            dport: self.destination.port(),
            ct: CtState::New,
        }
    }
}

struct Way<'a, 'v> {
    view: &'a View<'v>,
    packet: Packet,
    hops: Vec<Hop>,
}

impl Way<'_, '_> {
    fn push(&mut self, stage: Stage, fact: Fact) {
        self.hops.push(Hop::new(stage, &self.view.place.node, fact));
    }

    fn start(&mut self, attachment: &Attachment) {
        let (protocol, source, destination) =
            (self.packet.protocol, self.packet.src, self.packet.destination());
        self.push(Stage::Socket, Fact::Socket { protocol, source, destination });
        let (pod, host_if) = (attachment.pod.clone(), attachment.host_if.clone());
        let bridge = wiring::shared(attachment.wiring);
        self.push(Stage::Veth, Fact::Veth { pod, host_if, bridge });
    }

    /// Nobody answers for the address of the next step, so nothing leaves the pod.
    fn nowhere(&mut self, why: String) {
        let (protocol, source, destination) =
            (self.packet.protocol, self.packet.src, self.packet.destination());
        self.push(Stage::Socket, Fact::Socket { protocol, source, destination });
        let fact =
            Fact::Refused { frontend: destination, service: None, rejected: false, why, leaves: false };
        self.push(Stage::Veth, fact);
    }

    /// What is for many ends at the pod's link, or at the node that takes it itself.
    fn for_many(&mut self, stage: Stage, why: String, attachment: &Attachment) {
        if stage == Stage::Veth {
            return self.nowhere(why);
        }
        self.start(attachment);
        let frontend = self.packet.destination();
        self.push(stage, Fact::Refused { frontend, service: None, rejected: false, why, leaves: false });
    }

    /// From the service on; yields the node that the packet goes on to.
    fn go(&mut self, target: &Target) -> Option<Onward> {
        if own::is_of_link(target.destination.ip()) {
            self.taken_by_node(target.destination);
            return None;
        }
        let to = self.service(target)?;
        let view = self.view;
        let local: Vec<IpAddr> =
            view.cluster.nodes.get(&view.place.node).map(|n| n.addresses.clone()).unwrap_or_default();
        if self.is_for_nodes(to) {
            self.push(Stage::Route, only_nodes(to));
            return None;
        }
        let Some(exit) = eval::route_of(view.net, &local, to.ip()) else {
            self.taken_by_node(to);
            return None;
        };
        self.push(Stage::Route, route_fact(to.ip(), &exit));
        if !self.policy(Direction::Egress, to) {
            return None;
        }
        let source = self.masq((target, to), &exit);
        let peer = reference::node_of(to.ip(), view.cluster);
        if let Some(peer) = peer.filter(|peer| view.fabric().leads(&exit, peer)) {
            return self.across((source, to), &exit, peer);
        }
        if view.place.is_pod_address(to.ip()) {
            self.arrive(to, None);
            return None;
        }
        if let Some(hop) = elsewhere::stopped(&self.packet, view) {
            self.hops.push(hop);
            return None;
        }
        if let Some(door) = service::at_other_node(&self.packet, view.cluster, view.place) {
            let protocol = self.packet.protocol;
            return Some(Onward { node: door.node, protocol, source, destination: to });
        }
        let at = |node: &&model::Node| node.addresses.contains(&to.ip());
        let on = view.cluster.nodes.values().find(at).map(|node| node.name.clone());
        self.push(Stage::Pod, Fact::Pod { pod: None, destination: to, on });
        None
    }

    fn taken_by_node(&mut self, to: SocketAddr) {
        self.push(Stage::Route, Fact::LocalRoute { destination: to });
        let on = Some(self.view.place.node.clone());
        self.push(Stage::Pod, Fact::Pod { pod: None, destination: to, on });
    }

    /// The destination after the service's choice; `None` when it ends here.
    fn service(&mut self, target: &Target) -> Option<SocketAddr> {
        let frontend = target.destination;
        let refused = |service, rejected, why: &str| Fact::Refused {
            frontend,
            service,
            rejected,
            why: why.to_owned(),
            leaves: false,
        };
        let direct = |why: &str| Fact::Direct { destination: frontend, why: why.to_owned(), service: None };
        if reference::is_dns(&self.packet, self.view.place) {
            self.push(Stage::Service, direct("is DNS, which every node answers itself"));
            return Some(frontend);
        }
        let fact = match reference::choose(&self.packet, self.view.cluster, self.view.place) {
            Choice::NotAService if self.is_for_nodes(frontend) => only_nodes(frontend),
            Choice::NotAService
                if let Some(service) =
                    service::without_port(&self.packet, self.view.cluster, self.view.place) =>
            {
                let why = self.why_rejected(service, false);
                let (service, frontend) = (Some(service.clone()), frontend);
                Fact::Refused { frontend, service, rejected: false, why, leaves: true }
            }
            Choice::NotAService => {
                let node_port = elsewhere::node_port(&self.packet, self.view);
                let fact = node_port.unwrap_or_else(|| direct(own::remark(frontend.ip())));
                self.push(Stage::Service, fact);
                return Some(frontend);
            }
            Choice::Endpoints { service, port, endpoints } => {
                let choices: Vec<_> = endpoints.into_iter().collect();
                let taken = target.endpoint.filter(|endpoint| choices.contains(endpoint));
                let endpoint = taken.or_else(|| choices.first().copied())?;
                let chain = self.chain_of(frontend);
                let affinity = self.affinity(&service, &port);
                let fact = Fact::Service { service, port, frontend, endpoint, choices, chain, affinity };
                self.push(Stage::Service, fact);
                return Some(endpoint);
            }
            Choice::Reject { service, has_port } => {
                let why = self.why_rejected(&service, has_port);
                refused(Some(service), true, &why)
            }
            Choice::Drop { service, why } => refused(service, false, why),
        };
        self.push(Stage::Service, fact);
        None
    }

    /// How long a client stays; no Service is of that name where the port is a pod's own.
    fn affinity(&self, service: &ObjectName, port: &str) -> Option<u32> {
        let row = self.view.cluster.services.get(service).filter(|_| port != service::HOST_PORT)?;
        row.affinity
    }

    /// A tunnel's port, at whatever node: a pod that sends there would speak for all that the tunnel brings.
    fn is_for_nodes(&self, to: SocketAddr) -> bool {
        let own = reference::is_own_address(to.ip(), self.view.cluster, self.view.place);
        let of_fabric = self.view.fabric().port == Some(to.port());
        let tunnel = self.packet.protocol == Protocol::Udp && of_fabric;
        tunnel && (own || !self.view.place.is_pod_address(to.ip()))
    }

    /// `table/chain` that the frontend's element leads to.
    fn chain_of(&self, frontend: SocketAddr) -> String {
        let protocol = self.packet.protocol;
        let key = [frontend.ip().into(), protocol.into(), frontend.port().into()];
        let key = ElemKey::point(encode(&key));
        let chains = self.view.nft.tables.iter();
        let mut chains = chains.filter_map(|(id, table)| Some(format!("{}/{}", id.name, led(table, &key)?)));
        chains.next().unwrap_or_default()
    }

    fn policy(&mut self, direction: Direction, to: SocketAddr) -> bool {
        let view = self.view;
        let Some(judgement) = policy::judge(&self.packet, to, view.cluster, view.place, direction) else {
            return true;
        };
        let allowed = judgement.allowed();
        let stage = match direction {
            Direction::Egress => Stage::Egress,
            Direction::Ingress => Stage::Ingress,
        };
        self.push(stage, policy_fact(judgement, direction));
        allowed
    }

    /// Yields what it leaves as.
    fn masq(&mut self, (target, to): (&Target, SocketAddr), exit: &Exit) -> SocketAddr {
        let view = self.view;
        let why = reference::masquerade(&self.packet, to, view.cluster, view.place);
        let node = view.cluster.nodes.get(&view.place.node);
        let family = Family::of(to.ip());
        let device_address = || {
            let dev = exit.dev.as_ref()?;
            let of_dev = |(link, net): &&(IfName, IpNet)| link == dev && Family::of_net(net) == family;
            view.net.addresses.iter().find(of_dev).map(|(_, net)| net.addr())
        };
        let own = SocketAddr::new(self.packet.src, self.packet.sport);
        let (fact, leaves_as) = match why {
            Some(why) => {
                let source =
                    device_address().or_else(|| node.and_then(|node| reference::internal_ip(node, family)));
                let same_port = source.map(|source| SocketAddr::new(source, own.port()));
                let fact = Fact::Masq { source, masquerade: true, why: why.to_owned() };
                (fact, target.answers_to.or(same_port).unwrap_or(own))
            }
            None => {
                let why = match reference::gateway_of(to.ip(), view.cluster) {
                    Some(node) => format!("the destination is {}'s own on the pod network", node.name),
                    None if view.place.is_unmasqueraded(to.ip()) && !view.place.is_pod_address(to.ip()) => {
                        "pods keep their addresses on the way there".to_owned()
                    }
                    None => "the destination is a pod".to_owned(),
                };
                (Fact::Masq { source: Some(own.ip()), masquerade: false, why }, own)
            }
        };
        self.push(Stage::Masq, fact);
        leaves_as
    }

    /// To another node.
    fn across(
        &mut self,
        (source, to): (SocketAddr, SocketAddr),
        exit: &Exit,
        peer: &model::Node,
    ) -> Option<Onward> {
        if let Some(wrapped) = self.view.fabric().wrapped {
            self.push(Stage::Tunnel, wrapped(self.view.net, exit, Some(peer))?);
        }
        Some(Onward { node: peer.name.clone(), protocol: self.packet.protocol, source, destination: to })
    }
}

fn only_nodes(frontend: SocketAddr) -> Fact {
    let why = "it is the port of the nodes' tunnel, where nodes alone are heard".to_owned();
    Fact::Refused { frontend, service: None, rejected: false, why, leaves: false }
}

fn route_fact(destination: IpAddr, exit: &Exit) -> Fact {
    let Exit { dev, via, onlink, prefix } = exit.clone();
    Fact::Route { destination, prefix, via, dev, onlink }
}

fn policy_fact(judgement: Judgement, direction: Direction) -> Fact {
    let allowed = judgement.allowed();
    let misses = judgement.misses.into_iter();
    Fact::Policy {
        direction: direction.word().to_owned(),
        pod: judgement.pod,
        isolated_by: judgement.isolated_by,
        allowed_by: judgement.by,
        misses: misses.map(|m| RuleMiss { policy: m.policy, rule: m.rule, why: m.why }).collect(),
        allowed,
    }
}

/// The chain that the key's number leads to, or the key's own chain to which that one leads.
fn led<'a>(table: &'a Table, key: &ElemKey) -> Option<&'a str> {
    let numbers = table.sets.values().filter_map(|set| match set.elements.get(key) {
        Some(ElemData::Value(number)) => Some(ElemKey::point(number.clone())),
        _ => None,
    });
    let lead =
        |number: ElemKey| table.sets.values().find_map(|set| set.elements.get(&number).and_then(target));
    let shared = numbers.into_iter().find_map(lead)?;
    let exprs =
        table.chains.get(shared).into_iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs);
    let own = exprs.filter_map(|expr| match expr {
        Expr::LookupVerdict { set, .. } => table.sets.get(set.as_str())?.elements.get(key).and_then(target),
        _ => None,
    });
    Some(own.into_iter().next().unwrap_or(shared))
}
