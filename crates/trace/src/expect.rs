//! The way that a packet from a pod should take, hop by hop, from the cluster and the desired state of a node.
//! [`departure`] is what the pod's node knows; [`arrival`] continues it on the node of the destination.

use std::net::{IpAddr, SocketAddr};

use kstate::net::{LinkKind, NetState};
use kstate::nft::build::encode;
use kstate::nft::{ElemKey, Ruleset, targets};
use model::{Attachment, Cluster};
use serde::{Deserialize, Serialize};
use types::wire::{BRIDGE, VXLAN_DEVICE};
use types::{IfName, ObjectName, Protocol};

use crate::eval::{self, Exit};
use crate::hop::{Fact, Hop, RuleMiss, Stage};
use crate::packet::{CtState, Packet, Place};
use crate::reference::{self, Choice, Direction, Judgement, policy};

/// Bytes that VXLAN over IPv4 adds: Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348 §5).
const VXLAN_BYTES: u32 = 50;

/// What a node wants: the model, and what compile made of it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub cluster: &'a Cluster,
    pub nft: &'a Ruleset,
    pub net: &'a NetState,
    pub place: &'a Place,
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
}

/// One node's part of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub hops: Vec<Hop>,
    /// The last line: how the answer comes back; `None` when none is expected.
    pub way_back: Option<Hop>,
    /// The node that the packet goes on to, and as what.
    pub onward: Option<Onward>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onward {
    pub node: String,
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// The hops up to where the packet leaves this node, or its pod on this node; the pod must be wired here.
pub fn departure(view: &View<'_>, pod: &ObjectName, target: &Target) -> Option<Expected> {
    let attachment = view.cluster.attachments.values().find(|a| a.pod == *pod)?;
    let source = attachment.ips.iter().copied().find(|ip| ip.is_ipv4() == target.destination.is_ipv4())?;
    let packet = Packet {
        iif: IfName::new(BRIDGE).ok(),
        src: source,
        dst: target.destination.ip(),
        protocol: target.protocol,
        sport: target.sport,
        dport: target.destination.port(),
        ct: CtState::New,
    };
    let mut way = Way { view, packet, hops: Vec::new() };
    way.start(attachment);
    let onward = way.go(target);
    let way_back = way.back(target, onward.as_ref());
    Some(Expected { hops: way.hops, way_back, onward: onward.and_then(|(_, onward)| onward) })
}

/// The hops on the node of the destination.
pub fn arrival(view: &View<'_>, onward: &Onward) -> Expected {
    let packet = Packet {
        iif: IfName::new(VXLAN_DEVICE).ok(),
        src: onward.source.ip(),
        dst: onward.destination.ip(),
        protocol: onward.protocol,
        sport: onward.source.port(),
        dport: onward.destination.port(),
        ct: CtState::New,
    };
    let mut way = Way { view, packet, hops: Vec::new() };
    way.arrive(onward.destination, IfName::new(VXLAN_DEVICE).ok());
    Expected { hops: way.hops, way_back: None, onward: None }
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
        if let Ok(bridge) = IfName::new(BRIDGE) {
            let (pod, host_if) = (attachment.pod.clone(), attachment.host_if.clone());
            self.push(Stage::Veth, Fact::Veth { pod, host_if, bridge });
        }
    }

    /// From the service on; yields where the packet goes when it is not stopped before.
    fn go(&mut self, target: &Target) -> Option<(SocketAddr, Option<Onward>)> {
        let to = self.service(target)?;
        let view = self.view;
        let local: Vec<IpAddr> =
            view.cluster.nodes.get(&view.place.node).map(|n| n.addresses.clone()).unwrap_or_default();
        let exit = match eval::route_of(view.net, &local, to.ip()) {
            Some(exit) => exit,
            None => {
                self.push(Stage::Route, Fact::LocalRoute { destination: to });
                return None;
            }
        };
        self.push(Stage::Route, route_fact(to.ip(), &exit));
        if !self.policy(Direction::Egress, to) {
            return None;
        }
        self.masq(to, &exit);
        if exit.dev.as_ref().is_some_and(|dev| dev.as_str() == VXLAN_DEVICE) {
            return Some((to, self.tunnel(to, &exit)));
        }
        if reference::local_pod(to.ip(), view.cluster).is_some() {
            return self.arrive(to, None).then_some((to, None));
        }
        self.push(Stage::Pod, Fact::Pod { pod: None, destination: to });
        Some((to, None))
    }

    /// The destination after the service's choice; `None` when it ends here.
    fn service(&mut self, target: &Target) -> Option<SocketAddr> {
        let frontend = target.destination;
        let refused =
            |service, rejected, why: &str| Fact::Refused { frontend, service, rejected, why: why.to_owned() };
        if reference::is_dns(&self.packet, self.view.place) {
            self.push(Stage::Service, Fact::Direct { destination: frontend });
            return Some(frontend);
        }
        let fact = match reference::choose(&self.packet, self.view.cluster, self.view.place) {
            Choice::NotAService => {
                self.push(Stage::Service, Fact::Direct { destination: frontend });
                return Some(frontend);
            }
            Choice::Endpoints { service, port, endpoints } => {
                let choices: Vec<_> = endpoints.into_iter().collect();
                let taken = target.endpoint.filter(|endpoint| choices.contains(endpoint));
                let endpoint = taken.or_else(|| choices.first().copied())?;
                let chain = self.chain_of(frontend);
                self.push(
                    Stage::Service,
                    Fact::Service { service, port, frontend, endpoint, choices, chain },
                );
                return Some(endpoint);
            }
            Choice::Reject { service } => {
                refused(Some(service), true, "the Service has no endpoint for this port")
            }
            Choice::Drop => {
                refused(None, false, "nobody here takes it: no Service, or none of its endpoints is local")
            }
        };
        self.push(Stage::Service, fact);
        None
    }

    /// `table/chain` that the frontend's element leads to.
    fn chain_of(&self, frontend: SocketAddr) -> String {
        let protocol = self.packet.protocol;
        let start = encode(&[frontend.ip().into(), protocol.into(), frontend.port().into()]);
        let key = ElemKey { start, end: None };
        let chains = self.view.nft.tables.iter().filter_map(|(id, table)| {
            let chain = table.sets.values().find_map(|set| match set.elements.get(&key) {
                Some(kstate::nft::ElemData::Verdict(verdict)) => targets(verdict),
                _ => None,
            })?;
            Some(format!("{}/{chain}", id.name))
        });
        chains.into_iter().next().unwrap_or_default()
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

    fn masq(&mut self, to: SocketAddr, exit: &Exit) {
        let view = self.view;
        let why = reference::masquerade(&self.packet, to, view.cluster, view.place);
        let node = view.cluster.nodes.get(&view.place.node);
        let device_address = || {
            let dev = exit.dev.as_ref()?;
            view.net.addresses.iter().find(|(link, _)| link == dev).map(|(_, net)| net.addr())
        };
        let fact = match why {
            Some(why) => Fact::Masq {
                source: device_address().or_else(|| node.and_then(reference::internal_ip)),
                masquerade: true,
                why: why.to_owned(),
            },
            None => Fact::Masq {
                source: Some(self.packet.src),
                masquerade: false,
                why: "the destination is a pod".to_owned(),
            },
        };
        self.push(Stage::Masq, fact);
    }

    fn tunnel(&mut self, to: SocketAddr, exit: &Exit) -> Option<Onward> {
        let view = self.view;
        let dev = exit.dev.clone()?;
        let LinkKind::Vxlan { vni, local, port } = view.net.links.get(&dev)?.kind.clone() else {
            return None;
        };
        let mac = view.net.neighbours.get(&(dev.clone(), exit.via?)).copied();
        let outer = mac.and_then(|mac| view.net.fdb.get(&(dev.clone(), mac)).copied());
        let node = reference::node_of(to.ip(), view.cluster)?;
        let fact = Fact::Tunnel {
            dev,
            vni: vni.0,
            outer_source: local,
            outer_destination: outer.or_else(|| reference::internal_ip(node))?,
            outer_port: port,
            inner_mac: mac,
            extra_bytes: VXLAN_BYTES,
        };
        self.push(Stage::Tunnel, fact);
        Some(Onward {
            node: node.name.clone(),
            protocol: self.packet.protocol,
            source: SocketAddr::new(self.packet.src, self.packet.sport),
            destination: to,
        })
    }

    /// On the pod's node; whether the packet gets there.
    fn arrive(&mut self, to: SocketAddr, from: Option<IfName>) -> bool {
        let Some(attachment) = reference::local_pod(to.ip(), self.view.cluster) else {
            self.push(Stage::Pod, Fact::Pod { pod: None, destination: to });
            return true;
        };
        let (host_if, pod) = (attachment.host_if.clone(), attachment.pod.clone());
        if let Ok(bridge) = IfName::new(BRIDGE) {
            self.push(Stage::Node, Fact::Node { from, bridge, host_if });
        }
        let allowed = self.policy(Direction::Ingress, to);
        if allowed {
            self.push(Stage::Pod, Fact::Pod { pod: Some(pod), destination: to });
        }
        allowed
    }

    fn back(&self, target: &Target, reached: Option<&(SocketAddr, Option<Onward>)>) -> Option<Hop> {
        let (to, onward) = reached?;
        let mut through = Vec::new();
        if let Some(onward) = onward {
            through.push(format!("{} on {}", VXLAN_DEVICE, onward.node));
            through.push(format!("{} on {}", VXLAN_DEVICE, self.view.place.node));
        }
        through.extend(self.hops.iter().find_map(|hop| match &hop.fact {
            Fact::Veth { host_if, bridge, .. } => Some(format!("{bridge}, {host_if}")),
            _ => None,
        }));
        let fact = Fact::Return { source: target.destination, source_before: *to, through };
        Some(Hop::new(Stage::Return, &self.view.place.node, fact))
    }
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
