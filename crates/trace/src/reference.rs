//! What Kubernetes' documents say should happen to the first packet of a connection on one node, straight from
//! the objects. Written to be read against the API's text, not to be fast, and it shares nothing with the
//! compiler: where the two differ, one of them is wrong.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::{Attachment, Cluster, Node};
use types::wire::DNS_PEER_PORT;
use types::{IpNet, Protocol};

use crate::packet::{Packet, Place};

pub mod policy;
pub mod service;

pub use policy::{Direction, Judgement, Miss};
pub use service::{Choice, choose};

/// One thing that may happen; chance decides among several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Taken by the node itself.
    Local(SocketAddr),
    /// Sent on, to a pod of this node or off the node.
    Out {
        to: SocketAddr,
        masquerade: bool,
    },
    Rejected,
    Dropped,
}

/// Every fate that is right.
pub fn fates(packet: &Packet, cluster: &Cluster, place: &Place) -> BTreeSet<Fate> {
    if is_dns(packet, place) {
        return dns(packet, cluster, place);
    }
    match choose(packet, cluster, place) {
        Choice::NotAService => BTreeSet::from([deliver(packet, packet.destination(), cluster, place)]),
        Choice::Endpoints { endpoints, .. } => {
            endpoints.into_iter().map(|to| deliver(packet, to, cluster, place)).collect()
        }
        Choice::Reject { .. } => BTreeSet::from([Fate::Rejected]),
        Choice::Drop => BTreeSet::from([Fate::Dropped]),
    }
}

pub fn is_dns(packet: &Packet, place: &Place) -> bool {
    Some(packet.dst) == place.dns_ip && packet.dport == 53 && packet.protocol != Protocol::Sctp
}

/// Answered here; by another node's agent while ours is away. A process of the node itself gets no stand-in.
fn dns(packet: &Packet, cluster: &Cluster, place: &Place) -> BTreeSet<Fate> {
    let here = BTreeSet::from([Fate::Local(packet.destination())]);
    if place.dns_here || packet.iif.is_none() {
        return here;
    }
    let others = cluster.nodes.values().filter(|node| node.name != place.node);
    let peers: BTreeSet<_> = others
        .filter_map(internal_ip)
        .map(|ip| {
            let to = SocketAddr::new(ip, DNS_PEER_PORT);
            Fate::Out { to, masquerade: place.is_pod_address(packet.src) }
        })
        .collect();
    if peers.is_empty() { here } else { peers }
}

pub fn internal_ip(node: &Node) -> Option<IpAddr> {
    node.addresses.iter().copied().find(IpAddr::is_ipv4)
}

/// Destination known: is it allowed there, and under which source?
fn deliver(packet: &Packet, to: SocketAddr, cluster: &Cluster, place: &Place) -> Fate {
    if is_own_address(to.ip(), cluster, place) {
        // To the node where the pod runs is always allowed, as is from it (NP-12).
        return Fate::Local(to);
    }
    if packet.iif.is_some() {
        let allowed = Direction::ALL.into_iter().all(|direction| {
            policy::judge(packet, to, cluster, place, direction).is_none_or(|j| j.allowed())
        });
        if !allowed {
            return Fate::Dropped;
        }
    }
    Fate::Out { to, masquerade: masquerade(packet, to, cluster, place).is_some() }
}

/// The node's own addresses: underlay, tunnel, gateway of its pods, cluster DNS.
pub fn is_own_address(address: IpAddr, cluster: &Cluster, place: &Place) -> bool {
    if Some(address) == place.dns_ip {
        return true;
    }
    let Some(node) = cluster.nodes.get(&place.node) else { return false };
    let of_pods = pod_cidr(node).and_then(|cidr| {
        let first = cidr.hosts().next()?;
        Some(address == cidr.network() || address == first)
    });
    internal_ip(node) == Some(address) || of_pods.unwrap_or(false)
}

pub fn pod_cidr(node: &Node) -> Option<IpNet> {
    node.pod_cidrs.iter().find(|cidr| matches!(cidr, IpNet::V4(_))).map(IpNet::trunc)
}

/// The node on whose pod network an address lies, and which can be reached.
pub fn node_of(address: IpAddr, cluster: &Cluster) -> Option<&Node> {
    cluster.nodes.values().find(|node| pod_cidr(node).is_some_and(|cidr| cidr.contains(&address)))
}

/// The pod of this node that has the address.
pub fn local_pod(address: IpAddr, cluster: &Cluster) -> Option<&Attachment> {
    cluster.attachments.values().find(|attachment| attachment.ips.contains(&address))
}

/// Why a packet gets the node's address as its source; `None`: it keeps its own.
pub fn masquerade(packet: &Packet, to: SocketAddr, cluster: &Cluster, place: &Place) -> Option<&'static str> {
    let translated = to != packet.destination();
    let pod = place.is_pod_address(packet.src);
    if translated && packet.src == to.ip() && local_pod(packet.src, cluster).is_some() {
        return Some("the pod calls itself");
    }
    if pod {
        let outside = !place.is_pod_address(to.ip()) && !to.ip().is_multicast();
        return outside.then_some("the destination is outside of the cluster");
    }
    let peer = node_of(to.ip(), cluster).filter(|node| node.name != place.node);
    // Without an address of its own there is no tunnel at all.
    let wired =
        cluster.nodes.get(&place.node).is_some_and(|own| internal_ip(own).zip(pod_cidr(own)).is_some());
    let reachable = wired && peer.is_some_and(|node| node.vtep_mac.is_some() && internal_ip(node).is_some());
    reachable.then_some("the source is not a pod, and the answer must come back through the tunnel")
}
