//! What Kubernetes' documents say should happen to the first packet of a connection on one node, straight from
//! the objects. Written to be read against the API's text, not to be fast, and it shares nothing with the
//! compiler: where the two differ, one of them is wrong.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::{Attachment, Cluster, Node};
use types::wire::DNS_PEER_PORT;
use types::{Family, IpNet, Protocol};

use crate::packet::{CtState, Packet, Place};
use crate::{fabric, wiring};

pub mod further;
pub mod policy;
pub mod service;
pub mod withheld;

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
    // RFC 1122 §3.2.1.3 (g): a loopback address must not appear outside a host.
    if packet.iif.is_some() && [packet.src, packet.dst].iter().any(IpAddr::is_loopback) {
        return BTreeSet::from([Fate::Dropped]);
    }
    if !may_come(packet, cluster, place) {
        return BTreeSet::from([Fate::Dropped]);
    }
    if packet.ct != CtState::New {
        return BTreeSet::from([go_on(packet, cluster, place)]);
    }
    if is_dns(packet, place) {
        return dns(packet, cluster, place);
    }
    match choose(packet, cluster, place) {
        Choice::NotAService => BTreeSet::from([deliver(packet, packet.destination(), cluster, place)]),
        Choice::Endpoints { endpoints, .. } => {
            endpoints.into_iter().map(|to| deliver(packet, to, cluster, place)).collect()
        }
        Choice::Reject { .. } => BTreeSet::from([Fate::Rejected]),
        Choice::Drop { .. } => BTreeSet::from([Fate::Dropped]),
    }
}

/// Whether such a source comes by such a link: from pods only what is a pod here, from outside nothing of the cluster's
/// own. What the fabric's own link let in was looked at before it was unwrapped.
fn may_come(packet: &Packet, cluster: &Cluster, place: &Place) -> bool {
    match packet.iif.as_ref() {
        None => true,
        Some(link) if fabric::of(place.fabric).is_device(link) => true,
        Some(link) if wiring::is_of_pods(place.wiring, link, cluster) => {
            let own = local_pod(packet.src, cluster);
            own.or_else(|| further::speaker(packet.src, cluster, place)).is_some()
        }
        Some(_) => {
            let service = place.service_cidrs.iter().any(|cidr| cidr.contains(&packet.src));
            !service && !place.is_pod_address(packet.src)
        }
    }
}

/// On this node's pod network, where no pod has it.
fn nobody_has(address: IpAddr, cluster: &Cluster, place: &Place) -> bool {
    let own = cluster.nodes.get(&place.node).filter(|node| underlay_ip(node).is_some());
    let here = own.and_then(|node| pod_cidr(node, Family::of(address)));
    here.is_some_and(|cidr| cidr.contains(&address)) && local_pod(address, cluster).is_none()
}

/// A packet of a connection that is known. The connection must still be allowed as its client began it: a policy that no
/// longer allows it cuts it both ways (NP-41), and whatever the policies for the way of an answer say, it passes with
/// its connection (NP-10). Errors pass. NAT stays what it was, unseen here.
fn go_on(packet: &Packet, cluster: &Cluster, place: &Place) -> Fate {
    let to = packet.destination();
    // Nobody hears the query, whatever is known of its flow, and its resolver asks again.
    let query = is_dns(packet, place) && packet.protocol == Protocol::Udp;
    if query && !place.dns_here && packet.iif.is_some() {
        return Fate::Dropped;
    }
    let own = is_own_address(to.ip(), cluster, place);
    if packet.iif.is_some() && !own && nobody_has(to.ip(), cluster, place) {
        return Fate::Rejected;
    }
    // RFC 9293 §3.10.7.4: a segment that belongs nowhere ends no connection, so nobody answers it for a socket that is
    // not there. The only socket that is known of here is that of DNS.
    let segment = packet.ct == CtState::Invalid && packet.protocol == Protocol::Tcp;
    if segment && packet.iif.is_some() && own && !place.dns_here {
        return Fate::Dropped;
    }
    if packet.ct == CtState::Invalid && packet.iif.is_some() && !own {
        return Fate::Dropped;
    }
    let (asked, error) = (packet.asked(), packet.ct == CtState::Related);
    if own {
        return Fate::Local(to);
    }
    if packet.iif.is_some() && !error && !allowed(&asked, asked.destination(), cluster, place) {
        return Fate::Dropped;
    }
    Fate::Out { to, masquerade: false }
}

pub fn is_dns(packet: &Packet, place: &Place) -> bool {
    place.dns_ips.contains(&packet.dst) && packet.dport == 53 && packet.protocol != Protocol::Sctp
}

/// Answered here; by another node's agent while ours is away, and by silence if there is none, so that resolvers ask
/// again. A process of the node itself gets no stand-in.
fn dns(packet: &Packet, cluster: &Cluster, place: &Place) -> BTreeSet<Fate> {
    let here = BTreeSet::from([Fate::Local(packet.destination())]);
    if place.dns_here || packet.iif.is_none() {
        return here;
    }
    let others = cluster.nodes.values().filter(|node| node.name != place.node);
    let peers: BTreeSet<_> = others
        .filter_map(|node| internal_ip(node, Family::of(packet.dst)))
        .map(|ip| {
            let to = SocketAddr::new(ip, DNS_PEER_PORT);
            Fate::Out { to, masquerade: masquerade(packet, to, cluster, place).is_some() }
        })
        .collect();
    if peers.is_empty() { BTreeSet::from([Fate::Dropped]) } else { peers }
}

/// The address that the node is reached by in a family.
pub fn internal_ip(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().copied().find(|ip| Family::of(*ip) == family)
}

/// The address that packets of either family go to between nodes: IPv4 where the node has it.
pub fn underlay_ip(node: &Node) -> Option<IpAddr> {
    internal_ip(node, Family::V4).or_else(|| internal_ip(node, Family::V6))
}

/// Destination known: is it allowed there, and under which source?
fn deliver(packet: &Packet, to: SocketAddr, cluster: &Cluster, place: &Place) -> Fate {
    if is_own_address(to.ip(), cluster, place) {
        // To the node where the pod runs is always allowed, as is from it (NP-12).
        return Fate::Local(to);
    }
    if packet.iif.is_some() && nobody_has(to.ip(), cluster, place) {
        return Fate::Rejected;
    }
    if packet.iif.is_some() && !allowed(packet, to, cluster, place) {
        return Fate::Dropped;
    }
    Fate::Out { to, masquerade: masquerade(packet, to, cluster, place).is_some() }
}

/// Whether all pods of this node that are concerned let it pass.
fn allowed(packet: &Packet, to: SocketAddr, cluster: &Cluster, place: &Place) -> bool {
    let judge = |direction| policy::judge(packet, to, cluster, place, direction);
    Direction::ALL.into_iter().all(|direction| judge(direction).is_none_or(|j| j.allowed()))
}

/// The node's own addresses: underlay, fabric, gateway of its pods, cluster DNS, loopback.
pub fn is_own_address(address: IpAddr, cluster: &Cluster, place: &Place) -> bool {
    if address.is_loopback() || place.dns_ips.contains(&address) {
        return true;
    }
    let Some(node) = cluster.nodes.get(&place.node) else { return false };
    let family = Family::of(address);
    internal_ip(node, family) == Some(address) || is_on_pod_network(address, node)
}

/// The node's own addresses there: of its tunnel, and of its pods' gateway.
fn is_on_pod_network(address: IpAddr, node: &Node) -> bool {
    pod_cidr(node, Family::of(address))
        .is_some_and(|cidr| address == cidr.network() || Some(address) == after(cidr.network()))
}

/// The node that has the address itself, among those of its pods.
pub fn gateway_of(address: IpAddr, cluster: &Cluster) -> Option<&Node> {
    cluster.nodes.values().find(|node| is_on_pod_network(address, node))
}

/// The address after this one.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

pub fn pod_cidr(node: &Node, family: Family) -> Option<IpNet> {
    node.pod_cidrs.iter().find(|cidr| Family::of_net(cidr) == family).map(IpNet::trunc)
}

/// The node on whose pod network an address lies, and which can be reached.
pub fn node_of(address: IpAddr, cluster: &Cluster) -> Option<&Node> {
    cluster
        .nodes
        .values()
        .find(|node| pod_cidr(node, Family::of(address)).is_some_and(|cidr| cidr.contains(&address)))
}

/// The pod of this node that has the address.
pub fn local_pod(address: IpAddr, cluster: &Cluster) -> Option<&Attachment> {
    cluster.attachments.values().map(Box::as_ref).find(|attachment| attachment.ips.contains(&address))
}

/// Receivers of multicast tell senders apart by their address; link-local addresses are for one link.
fn keeps_source(to: IpAddr) -> bool {
    to.is_multicast() || matches!(to, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Why a packet gets the node's address as its source; `None`: it keeps its own.
pub fn masquerade(packet: &Packet, to: SocketAddr, cluster: &Cluster, place: &Place) -> Option<&'static str> {
    let translated = to != packet.destination();
    let pod = place.is_pod_address(packet.src);
    if service::hides_caller(packet, cluster, place) {
        return Some(
            "the address is one for callers from anywhere, and the answer must come back through this node",
        );
    }
    if translated && packet.src == to.ip() && local_pod(packet.src, cluster).is_some() {
        return Some("the pod calls itself");
    }
    if translated && packet.iif.is_none() {
        return Some("the source is the node itself");
    }
    if translated && !pod && place.service_cidrs.iter().any(|cidr| cidr.contains(&packet.dst)) {
        return Some("the source is not a pod, and the answer must come back through this node");
    }
    if pod {
        let outside = !place.is_unmasqueraded(to.ip()) && !keeps_source(to.ip());
        let of_a_node = || cluster.nodes.values().any(|node| node.addresses.contains(&to.ip()));
        return outside.then(|| match of_a_node() {
            true => "the destination is another node",
            false => "the destination is outside of the cluster",
        });
    }
    let peer = node_of(to.ip(), cluster).filter(|node| node.name != place.node);
    // Without an address of its own there is no fabric at all.
    let family = Family::of(to.ip());
    let own = cluster.nodes.get(&place.node);
    let wired = own.and_then(|own| pod_cidr(own, family).and(underlay_ip(own)));
    let same_underlay = |node: &Node| underlay_ip(node).map(Family::of) == wired.map(Family::of);
    let fabric = fabric::of(place.fabric);
    let reachable =
        wired.is_some() && peer.is_some_and(|node| (fabric.is_told_of)(node) && same_underlay(node));
    fabric.hides_strangers.filter(|_| reachable)
}
