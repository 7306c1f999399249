//! Endpoint choice as the API documents it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::{Cluster, Endpoint, Service, ServicePort, ServiceType, TrafficPolicy};
use types::{Family, ObjectName, Protocol};

use super::withheld;
use crate::packet::{Packet, Place};

/// What a port that a pod wants of its node is called; no Service's port is (it has no capital letters).
pub const HOST_PORT: &str = "hostPort";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Not an address that services have.
    NotAService,
    /// Any of these. A pod that wants a port of this node is named as its Service, and the port `hostPort`.
    Endpoints { service: ObjectName, port: String, endpoints: BTreeSet<SocketAddr> },
    /// `has_port`: it lacks endpoints alone.
    Reject { service: ObjectName, has_port: bool },
    /// `None`: of an address that no Service has.
    Drop { service: Option<ObjectName>, why: &'static str },
}

struct Found<'a> {
    address: SocketAddr,
    endpoint: &'a Endpoint,
}

/// Which of a Service's addresses the caller used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    ClusterIp,
    /// NodePort, external IP or load balancer.
    External,
    /// NodePort at the address of another node, or at another of this one's: nothing here answers.
    OtherNode,
}

/// A Service that the packet asks for.
struct Asked<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    door: Door,
}

pub fn choose(packet: &Packet, cluster: &Cluster, place: &Place) -> Choice {
    if let Some(service) = shut_out(packet, cluster, place) {
        let why = "the source is not in loadBalancerSourceRanges";
        return Choice::Drop { service: Some(service.key.clone()), why };
    }
    let Some(Asked { service, port, door }) = asked(packet, cluster, place) else {
        let of_address = proxied(cluster).find(|service| service.cluster_ips.contains(&packet.dst));
        if let Some(service) = of_address {
            return Choice::Reject { service: service.key.clone(), has_port: false };
        }
        let ours = place.service_cidrs.iter().any(|cidr| cidr.contains(&packet.dst));
        if ours {
            return Choice::Drop { service: None, why: "no Service has this address" };
        }
        let Some((pod, endpoint)) = host_port(packet, cluster, place) else { return Choice::NotAService };
        let (service, port) = (pod.clone(), HOST_PORT.to_owned());
        return Choice::Endpoints { service, port, endpoints: BTreeSet::from([endpoint]) };
    };
    let (local, why) = match door {
        Door::ClusterIp => (
            service.internal_policy == TrafficPolicy::Local,
            "none of the Service's endpoints is on this node (internalTrafficPolicy: Local)",
        ),
        // Callers of the cluster itself are served as if they had asked for the ClusterIP (V-04).
        Door::External | Door::OtherNode => (
            service.external_policy == TrafficPolicy::Local && is_stranger(packet, place),
            "none of the Service's endpoints is on this node (externalTrafficPolicy: Local)",
        ),
    };
    let all = endpoints(cluster, service, (&port.name, packet));
    let service = service.key.clone();
    match pick(&all, local, cluster, place) {
        Some(endpoints) if !endpoints.is_empty() => {
            Choice::Endpoints { service, port: port.name.clone(), endpoints }
        }
        Some(_) => Choice::Reject { service, has_port: true },
        None => Choice::Drop { service: Some(service), why },
    }
}

/// Whether the answer must come back through this node although the Service's endpoint may be anywhere (V-06):
/// callers of an address that is known outside, unless the policy keeps them to endpoints of this node.
pub fn hides_caller(packet: &Packet, cluster: &Cluster, place: &Place) -> bool {
    asked(packet, cluster, place).is_some_and(|asked| {
        asked.door == Door::External && asked.service.external_policy == TrafficPolicy::Cluster
    })
}

/// Neither a pod nor a process of this node.
fn is_stranger(packet: &Packet, place: &Place) -> bool {
    packet.iif.is_some() && !place.is_pod_address(packet.src)
}

/// Services that a proxy looks at (SVC-02).
fn proxied(cluster: &Cluster) -> impl Iterator<Item = &Service> {
    cluster.services.values().map(Box::as_ref).filter(|service| {
        !service.headless && !service.foreign_proxy && service.kind != ServiceType::ExternalName
    })
}

/// Who is asked here. A node port of another node, or of another address of this one, is asked there, and of nobody here.
fn asked<'a>(packet: &Packet, cluster: &'a Cluster, place: &Place) -> Option<Asked<'a>> {
    first_asked(packet, cluster, place).filter(|asked| asked.door != Door::OtherNode)
}

/// The Service whose ClusterIP it is; else of those that want the address and port the one that was created first, and of
/// equally old ones the first by name.
fn first_asked<'a>(packet: &Packet, cluster: &'a Cluster, place: &Place) -> Option<Asked<'a>> {
    let own =
        cluster.nodes.get(&place.node).and_then(|node| super::internal_ip(node, Family::of(packet.dst)));
    let to_own = own == Some(packet.dst);
    let to_node = cluster.nodes.values().any(|node| withheld::is_at(node, packet.dst));
    let wanted = proxied(cluster).filter_map(|service| {
        let typed = matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer);
        let inside = service.cluster_ips.contains(&packet.dst);
        let outside =
            service.external_ips.contains(&packet.dst) || service.load_balancer_ips.contains(&packet.dst);
        let same = service.ports.iter().filter(|port| port.protocol == packet.protocol);
        let by_number = |number: &dyn Fn(&ServicePort) -> Option<u16>| {
            same.clone().find(|port| number(port) == Some(packet.dport))
        };
        let port = |wanted: bool| if wanted { by_number(&|port| Some(port.port)) } else { None };
        let node_port = || if to_node && typed { by_number(&|port| port.node_port) } else { None };
        let cluster_ip = port(inside).map(|port| (port, Door::ClusterIp));
        let external = || {
            let open = withheld::from_the_outside(packet, service, cluster, place).is_none();
            let there = port(outside).map(|port| (port, Door::External));
            let at_node = || Some((node_port()?, if to_own { Door::External } else { Door::OtherNode }));
            there.or_else(at_node).filter(|_| open)
        };
        let (port, door) = cluster_ip.or_else(external)?;
        Some(Asked { service, port, door })
    });
    wanted
        .min_by_key(|asked| (asked.door != Door::ClusterIp, asked.service.created, asked.service.key.clone()))
}

/// A Service's node port, asked for at another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    pub service: ObjectName,
    pub port: String,
    pub node: String,
    pub policy: TrafficPolicy,
    /// What that node makes of it.
    pub choice: Choice,
}

impl Elsewhere {
    /// Whether that node sends it on.
    pub fn leads_on(&self) -> bool {
        matches!(self.choice, Choice::Endpoints { .. })
    }
}

/// `None`: it is no such port. A pod's packet comes there from its own node's address.
pub fn at_other_node(packet: &Packet, cluster: &Cluster, place: &Place) -> Option<Elsewhere> {
    let Asked { service, port, .. } =
        first_asked(packet, cluster, place).filter(|asked| asked.door == Door::OtherNode)?;
    let mut others = cluster.nodes.values().filter(|node| node.name != place.node);
    let node = others.find(|node| withheld::is_at(node, packet.dst))?;
    let own = cluster.nodes.get(&place.node)?;
    let src = super::internal_ip(own, Family::of(packet.dst)).unwrap_or(packet.src);
    let there = Place { node: node.name.clone(), ..place.clone() };
    Some(Elsewhere {
        service: service.key.clone(),
        port: port.name.clone(),
        node: node.name.clone(),
        policy: service.external_policy,
        choice: choose(&Packet { src, ..packet.clone() }, cluster, &there),
    })
}

/// The Service that is known outside by this address, which nobody in the cluster has, and has no such port there. Such a
/// packet goes the way of any that is for the outside.
pub fn without_port<'a>(packet: &Packet, cluster: &'a Cluster, place: &Place) -> Option<&'a ObjectName> {
    let in_cluster = cluster.nodes.values().any(|node| withheld::is_at(node, packet.dst))
        || super::is_own_address(packet.dst, cluster, place)
        || place.is_pod_address(packet.dst);
    let mut by_it = proxied(cluster).filter(|service| {
        let known = service.external_ips.iter().chain(&service.load_balancer_ips);
        known.clone().any(|address| *address == packet.dst)
    });
    let plain = packet.protocol != Protocol::Icmp && !in_cluster;
    by_it.next().filter(|_| plain).map(|service| &service.key)
}

/// A port that is asked for and leads to nobody, although the Service has ready pods: the name that its targetPort says and
/// none of them knows, and its own number.
pub fn nameless(packet: &Packet, cluster: &Cluster, place: &Place) -> Option<(String, u16)> {
    let Asked { service, port, .. } = first_asked(packet, cluster, place)?;
    let target = port.target.as_deref()?;
    let mut ready = cluster.slices_of(&service.key).filter(|slice| !slice.headless).flat_map(|slice| {
        let known = slice.ports.iter().any(|p| p.name == port.name && p.protocol == port.protocol);
        let endpoints = slice.endpoints.iter().map(move |endpoint| (endpoint, known));
        endpoints.filter(|(e, _)| e.ready && Family::of(e.address) == Family::of(packet.dst))
    });
    let first = ready.next()?;
    let none = std::iter::once(first).chain(ready).all(|(_, known)| !known);
    none.then(|| (target.to_owned(), port.port))
}

/// The pod of this node that wants the port of the node: at this address of it, or else at all.
fn host_port<'a>(
    packet: &Packet,
    cluster: &'a Cluster,
    place: &Place,
) -> Option<(&'a ObjectName, SocketAddr)> {
    // Packets from ::1 cannot leave a host, so nothing is promised there.
    let own = packet.dst != Ipv6Addr::LOCALHOST && super::is_own_address(packet.dst, cluster, place);
    if !own || withheld::is_api(packet, cluster, place) || withheld::is_health_check(packet, cluster, place) {
        return None;
    }
    let family = Family::of(packet.dst);
    let wanted = |at: &dyn Fn(Option<IpAddr>) -> bool| {
        cluster.attachments.values().find_map(|wired| {
            let address = wired.ips.iter().copied().find(|ip| Family::of(*ip) == family)?;
            let free = |asked: &&model::HostPort| withheld::from_pods(asked, cluster, place).is_none();
            let port = wired.host_ports.iter().filter(free).find(|asked| {
                at(asked.host_ip) && asked.port == packet.dport && asked.protocol == packet.protocol
            })?;
            Some((&wired.pod, SocketAddr::new(address, port.container_port)))
        })
    };
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    wanted(&|at| at == Some(packet.dst)).or_else(|| wanted(&|at| at.is_none_or(|at| at == any)))
}

/// L-02: the load balancer's address has a list of sources, and this one is not on it. A list that says nothing about
/// the family, or allows everything in one of its entries, is none. It is the list of the Service that has the address
/// and port, and of no other.
fn shut_out<'a>(packet: &Packet, cluster: &'a Cluster, place: &Place) -> Option<&'a Service> {
    let Asked { service, port, door } = asked(packet, cluster, place)?;
    let any = service.source_ranges.iter().any(|range| range.prefix_len() == 0);
    let mut of_family = service
        .source_ranges
        .iter()
        .filter(|range| Family::of_net(range) == Family::of(packet.src))
        .peekable();
    let balanced = door == Door::External
        && port.port == packet.dport
        && service.load_balancer_ips.contains(&packet.dst);
    let guarded = balanced && !any && of_family.peek().is_some();
    (guarded && !of_family.any(|range| range.contains(&packet.src))).then_some(service)
}

fn endpoints<'a>(cluster: &'a Cluster, service: &Service, (port, packet): (&str, &Packet)) -> Vec<Found<'a>> {
    let slices = cluster
        .slices
        .values()
        .filter(|slice| *slice.service == *service.key.name && slice.key.namespace == service.key.namespace)
        .filter(|slice| !slice.headless);
    let mut found = Vec::new();
    for slice in slices {
        for listed in &slice.ports {
            let Some(number) = listed.port.filter(|number| *number > 0) else { continue };
            if listed.name == port && listed.protocol == packet.protocol {
                // An address that each host understands differently is nobody's endpoint.
                let usable = slice.endpoints.iter().filter(|e| !withheld::is_special(e.address));
                let of_family = usable.filter(|e| Family::of(e.address) == Family::of(packet.dst));
                found.extend(
                    of_family.map(|endpoint| Found {
                        address: SocketAddr::new(endpoint.address, number),
                        endpoint,
                    }),
                );
            }
        }
    }
    found
}

/// `None`: there are usable endpoints, but none under the Service's policy here. An empty set: none anywhere.
fn pick(all: &[Found<'_>], local: bool, cluster: &Cluster, place: &Place) -> Option<BTreeSet<SocketAddr>> {
    // One address in two slices is one endpoint: ready if either says so, local if either says so.
    let ready_addresses: BTreeSet<_> = all.iter().filter(|f| f.endpoint.ready).map(|f| f.address).collect();
    let local_addresses: BTreeSet<_> =
        all.iter().filter(|f| f.endpoint.node.as_deref() == Some(&*place.node)).map(|f| f.address).collect();
    let draining: BTreeSet<_> = all
        .iter()
        .filter(|f| f.endpoint.serving && f.endpoint.terminating && !ready_addresses.contains(&f.address))
        .map(|f| f.address)
        .collect();
    if local {
        let here = |set: &BTreeSet<SocketAddr>| -> BTreeSet<_> { set & &local_addresses };
        if !here(&ready_addresses).is_empty() {
            return Some(here(&ready_addresses));
        }
        if !here(&draining).is_empty() {
            return Some(here(&draining));
        }
        return (ready_addresses.is_empty() && draining.is_empty()).then(BTreeSet::new);
    }
    if ready_addresses.is_empty() {
        return Some(draining);
    }
    Some(hinted(all, cluster, place).unwrap_or(ready_addresses))
}

/// EP-05: hints count only if every ready endpoint has one, and only if one is for us.
fn hinted(all: &[Found<'_>], cluster: &Cluster, place: &Place) -> Option<BTreeSet<SocketAddr>> {
    let mut ready: Vec<&Found<'_>> = Vec::new();
    for found in all.iter().filter(|f| f.endpoint.ready) {
        // The first report of an address counts, in the order of the slices' names.
        if !ready.iter().any(|known| known.address == found.address) {
            ready.push(found);
        }
    }
    let zone = cluster.nodes.get(&place.node).and_then(|n| n.zone.as_ref());
    let by = |hints: fn(&Endpoint) -> &[String], us: &String| {
        if ready.iter().any(|f| hints(f.endpoint).is_empty()) {
            return None;
        }
        let mine: BTreeSet<_> =
            ready.iter().filter(|f| hints(f.endpoint).contains(us)).map(|f| f.address).collect();
        (!mine.is_empty()).then_some(mine)
    };
    by(Endpoint::node_hints, &place.node).or_else(|| by(Endpoint::zone_hints, zone?))
}
