//! Endpoint choice as the API documents it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use model::{Cluster, Endpoint, Service, ServiceType, TrafficPolicy};
use types::{Family, ObjectName};

use crate::packet::{Packet, Place};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Not an address that services have.
    NotAService,
    /// Any of these.
    Endpoints {
        service: ObjectName,
        port: String,
        endpoints: BTreeSet<SocketAddr>,
    },
    Reject {
        service: ObjectName,
    },
    Drop,
}

struct Found<'a> {
    address: SocketAddr,
    endpoint: &'a Endpoint,
}

pub fn choose(packet: &Packet, cluster: &Cluster, place: &Place) -> Choice {
    let owner = cluster.services.values().find(|service| {
        let proxied =
            !service.headless && !service.foreign_proxy && service.kind != ServiceType::ExternalName;
        proxied && service.cluster_ips.contains(&packet.dst)
    });
    let Some(service) = owner else {
        let ours = place.service_cidrs.iter().any(|cidr| cidr.contains(&packet.dst));
        return if ours { Choice::Drop } else { Choice::NotAService };
    };
    let port = service.ports.iter().find(|p| p.port == packet.dport && p.protocol == packet.protocol);
    let Some(port) = port else { return Choice::Reject { service: service.key.clone() } };
    let all = endpoints(cluster, service, (&port.name, packet));
    match pick(&all, service, cluster, place) {
        Some(endpoints) if !endpoints.is_empty() => {
            Choice::Endpoints { service: service.key.clone(), port: port.name.clone(), endpoints }
        }
        Some(_) => Choice::Reject { service: service.key.clone() },
        None => Choice::Drop,
    }
}

fn endpoints<'a>(cluster: &'a Cluster, service: &Service, (port, packet): (&str, &Packet)) -> Vec<Found<'a>> {
    let slices = cluster
        .slices
        .values()
        .filter(|slice| slice.service == service.key.name && slice.key.namespace == service.key.namespace);
    let mut found = Vec::new();
    for slice in slices {
        for listed in &slice.ports {
            let Some(number) = listed.port.filter(|number| *number > 0) else { continue };
            if listed.name == port && listed.protocol == packet.protocol {
                found.extend(
                    slice.endpoints.iter().filter(|e| Family::of(e.address) == Family::of(packet.dst)).map(
                        |endpoint| Found { address: SocketAddr::new(endpoint.address, number), endpoint },
                    ),
                );
            }
        }
    }
    found
}

/// `None`: there are usable endpoints, but none under the Service's policy here. An empty set: none anywhere.
fn pick(
    all: &[Found<'_>],
    service: &Service,
    cluster: &Cluster,
    place: &Place,
) -> Option<BTreeSet<SocketAddr>> {
    // One address in two slices is one endpoint: ready if either says so, local if either says so.
    let ready_addresses: BTreeSet<_> = all.iter().filter(|f| f.endpoint.ready).map(|f| f.address).collect();
    let local_addresses: BTreeSet<_> =
        all.iter().filter(|f| f.endpoint.node.as_ref() == Some(&place.node)).map(|f| f.address).collect();
    let draining: BTreeSet<_> = all
        .iter()
        .filter(|f| f.endpoint.serving && f.endpoint.terminating && !ready_addresses.contains(&f.address))
        .map(|f| f.address)
        .collect();
    if service.internal_policy == TrafficPolicy::Local {
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
    let zone = cluster.nodes.get(&place.node).and_then(|n| n.labels.get("topology.kubernetes.io/zone"));
    let by = |hints: &dyn Fn(&Endpoint) -> Vec<String>, us: &String| {
        if ready.iter().any(|f| hints(f.endpoint).is_empty()) {
            return None;
        }
        let mine: BTreeSet<_> =
            ready.iter().filter(|f| hints(f.endpoint).contains(us)).map(|f| f.address).collect();
        (!mine.is_empty()).then_some(mine)
    };
    by(&|e| e.node_hints.clone(), &place.node)
        .or_else(|| zone.and_then(|zone| by(&|e| e.zone_hints.clone(), zone)))
}
