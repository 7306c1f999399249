//! What nobody gets by asking for it in an object: the ways by which nodes work, and addresses that are every host's.

use std::net::{IpAddr, Ipv4Addr};

use model::{Cluster, HostPort, Node, Service, ServiceType};
use types::{Family, Protocol};

use crate::packet::{Packet, Place};

/// Why this Service does not have the packet's destination as an external address or a node port; `None`: it may.
pub fn from_the_outside(
    packet: &Packet,
    service: &Service,
    cluster: &Cluster,
    place: &Place,
) -> Option<&'static str> {
    let others = cluster.services.values().filter(|other| other.key != service.key);
    let mut owners = others.filter(|other| other.kind != ServiceType::ExternalName);
    if owners.any(|other| other.cluster_ips.contains(&packet.dst)) {
        return Some("it is another Service's ClusterIP");
    }
    if place.dns_ips.contains(&packet.dst) {
        return Some("it is the cluster's DNS");
    }
    if is_special(packet.dst) {
        return Some("it is an address of every host");
    }
    if is_api(packet, cluster, place) || is_own_api(packet, cluster, place) {
        return Some("the API is there");
    }
    if an_older_service_answers_checks(packet, service, cluster) {
        return Some("an older Service's health checks are answered there");
    }
    if place.is_pod_address(packet.dst) {
        return Some("it is an address of pods");
    }
    let nodes = cluster.nodes.values().any(|node| is_at(node, packet.dst));
    (nodes && is_of_every_node(packet.protocol, packet.dport)).then_some("the node itself needs the port")
}

/// Whether the node says that it is reached there, be it as an ExternalIP: clouds translate that to the InternalIP.
pub fn is_at(node: &Node, address: IpAddr) -> bool {
    node.addresses.contains(&address) || node.others.contains(&address)
}

/// Whether the node itself answers health checks of some Service there, which no pod can have then.
pub fn is_health_check(packet: &Packet, cluster: &Cluster, place: &Place) -> bool {
    let family = Family::of(packet.dst);
    let own = cluster.nodes.get(&place.node).and_then(|node| super::internal_ip(node, family));
    let asked = |service: &&Service| {
        service.health_check_port == Some(packet.dport)
            && !service.foreign_proxy
            && service.cluster_ips.iter().any(|ip| Family::of(*ip) == family)
    };
    let mut services = cluster.services.values().map(Box::as_ref).filter(asked);
    let free = |service: &Service| from_the_outside(packet, service, cluster, place).is_none();
    packet.protocol == Protocol::Tcp && own == Some(packet.dst) && services.any(free)
}

/// `healthCheckNodePort`: each node itself answers it, at its address of each family that the Service has.
fn an_older_service_answers_checks(packet: &Packet, service: &Service, cluster: &Cluster) -> bool {
    let family = Family::of(packet.dst);
    let older = cluster.services.values().filter(|other| {
        (other.created, &other.key) < (service.created, &service.key) && !other.foreign_proxy
    });
    let mut asked = older.filter(|other| other.health_check_port == Some(packet.dport));
    cluster.nodes.values().any(|node| is_at(node, packet.dst))
        && packet.protocol == Protocol::Tcp
        && asked.any(|other| other.cluster_ips.iter().any(|ip| Family::of(*ip) == family))
}

/// Why no pod has this port of the node.
pub fn from_pods(asked: &HostPort, cluster: &Cluster, place: &Place) -> Option<&'static str> {
    if is_of_every_node(asked.protocol, asked.port) {
        return Some("the node itself needs the port");
    }
    let mut known = place.api.iter().map(|api| (api.ip(), api.port())).chain(listed_apis(cluster));
    let here = known.any(|(address, port)| {
        let own = cluster.nodes.get(&place.node).is_some_and(|node| is_at(node, address));
        let any = asked.host_ip.is_none_or(|ip| ip.is_unspecified());
        // A server that has one of the node's addresses has them all.
        let met = own || asked.host_ip == Some(address) || (address.is_loopback() && any);
        met && port == asked.port
    });
    if here && asked.protocol == Protocol::Tcp {
        return Some("the API is there");
    }
    // /healthz of the kubelet, /proxyMode of kube-proxy.
    let local = asked.host_ip.is_none_or(|ip| ip == Ipv4Addr::UNSPECIFIED || ip == Ipv4Addr::LOCALHOST);
    (local && asked.protocol == Protocol::Tcp && [10248, 10249].contains(&asked.port))
        .then_some("the node itself is asked there")
}

/// For an API server, which the node must reach.
pub fn is_api(packet: &Packet, cluster: &Cluster, place: &Place) -> bool {
    packet.protocol == Protocol::Tcp
        && (place.api.contains(&packet.destination())
            || listed_apis(cluster).contains(&(packet.dst, packet.dport)))
}

/// An API server of this node, at any of its addresses.
fn is_own_api(packet: &Packet, cluster: &Cluster, place: &Place) -> bool {
    let Some(node) = cluster.nodes.get(&place.node).filter(|node| is_at(node, packet.dst)) else {
        return false;
    };
    let mut known = place.api.iter().map(|api| (api.ip(), api.port())).chain(listed_apis(cluster));
    packet.protocol == Protocol::Tcp && known.any(|(at, port)| port == packet.dport && is_at(node, at))
}

/// The endpoints of default/kubernetes, which kube-apiserver keeps.
fn listed_apis(cluster: &Cluster) -> Vec<(IpAddr, u16)> {
    let slices = cluster.slices.values();
    let of_api = slices.filter(|s| &*s.key.namespace == "default" && s.service == "kubernetes");
    let mut found = Vec::new();
    for slice in of_api {
        for port in slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
            found.extend(slice.endpoints.iter().filter_map(|e| Some((e.address, port.port?))));
        }
    }
    found
}

/// VXLAN, the agent's own server, DNS from node to node, the kubelet, health checks where kube-proxy answers them.
fn is_of_every_node(protocol: Protocol, port: u16) -> bool {
    match protocol {
        Protocol::Tcp => [9475, 9476, 10250, 10256].contains(&port),
        Protocol::Udp => [8472, 9476].contains(&port),
        Protocol::Sctp | Protocol::Icmp => false,
    }
}

/// RFC 6890 §2.2.2, §2.2.3 and RFC 1112: this host, the loopback, the link, groups of hosts; RFC 4291 §2.5.5.2, which is
/// no address on a wire.
pub fn is_special(address: IpAddr) -> bool {
    let by_family = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    by_family || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}
