//! What nobody gets by asking for it in an object: the ways by which nodes work, and addresses that are every host's.

use std::net::IpAddr;

use model::{Cluster, HostPort, Service, ServiceType};
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
    if is_api(packet, cluster, place) {
        return Some("the API is there");
    }
    if an_older_service_answers_checks(packet, service, cluster) {
        return Some("an older Service's health checks are answered there");
    }
    let nodes = cluster.nodes.values().any(|node| node.addresses.contains(&packet.dst));
    if place.is_pod_address(packet.dst) && !nodes {
        return Some("it is an address of pods");
    }
    (nodes && is_of_every_node(packet.protocol, packet.dport)).then_some("the node itself needs the port")
}

/// `healthCheckNodePort`: each node itself answers it, at its address of each family that the Service has.
fn an_older_service_answers_checks(packet: &Packet, service: &Service, cluster: &Cluster) -> bool {
    let family = Family::of(packet.dst);
    let mut nodes = cluster.nodes.values();
    let older = cluster.services.values().filter(|other| {
        (other.created, &other.key) < (service.created, &service.key) && !other.foreign_proxy
    });
    let mut asked = older.filter(|other| other.health_check_port == Some(packet.dport));
    nodes.any(|node| super::internal_ip(node, family) == Some(packet.dst))
        && packet.protocol == Protocol::Tcp
        && asked.any(|other| other.cluster_ips.iter().any(|ip| Family::of(*ip) == family))
}

/// Why no pod has this port of the node.
pub fn from_pods(asked: &HostPort, cluster: &Cluster, place: &Place) -> Option<&'static str> {
    if is_of_every_node(asked.protocol, asked.port) {
        return Some("the node itself needs the port");
    }
    let known = place.api.iter().map(|api| (api.ip(), api.port()));
    let here = known.chain(listed_apis(cluster)).any(|(address, port)| {
        let own = cluster.nodes.get(&place.node).is_some_and(|node| node.addresses.contains(&address));
        let meant = asked.host_ip.is_none_or(|ip| ip == address || ip.is_unspecified());
        let of_node = own || address.is_loopback() || asked.host_ip == Some(address);
        of_node && meant && port == asked.port
    });
    (here && asked.protocol == Protocol::Tcp).then_some("the API is there")
}

/// For an API server, which the node must reach.
pub fn is_api(packet: &Packet, cluster: &Cluster, place: &Place) -> bool {
    packet.protocol == Protocol::Tcp
        && (place.api.contains(&packet.destination())
            || listed_apis(cluster).contains(&(packet.dst, packet.dport)))
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
        Protocol::Sctp => false,
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
