//! EndpointSlices of Services with a selector (ES-01 … ES-12): which addresses serve, on which ports.
//!
//! ```text
//!  service ──selects──> pods ──endpoint──> desired, by (family, ports)
//!                                             │ place (ES-08)
//!  slices that exist ────────────────────────>└──> create, patch, delete
//! ```

mod place;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use types::wire::SERVICE_NAME;
use types::{Labels, ObjectName, Protocol, Selector};

use crate::brain::Settings;
use crate::kind::Kind;
use crate::view::{
    Endpoint, EndpointConditions, EndpointSlice, Hints, Node, Pod, PortTarget, Service, SlicePort, TargetRef,
};
use crate::world::World;
use crate::write::{Decision, Write};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Endpoints that may share a slice (ES-02).
pub(crate) type Group = (&'static str, Vec<SlicePort>);

pub(crate) fn zone(node: &Node) -> Option<&String> {
    node.metadata.labels.get(ZONE)
}

pub fn decide(world: &World, name: &ObjectName, settings: &Settings) -> Decision {
    // Without its Service a slice is garbage, and the collector's.
    let Some(service) = world.get::<Service>(name) else { return Decision::default() };
    let spec = &service.spec;
    if spec.selector.is_empty() || spec.kind == "ExternalName" || service.metadata.terminating() {
        return Decision::default();
    }
    let (ours, foreign) = existing(world, service);
    let mut writes: Vec<Write> =
        foreign.into_iter().map(|s| Write::delete(Kind::EndpointSlice, &s.metadata)).collect();
    for family in families(service) {
        let desired = desired(world, service, family);
        let actual: Vec<&EndpointSlice> = ours.iter().copied().filter(|s| s.address_type == family).collect();
        let placed = place::place(desired, &actual, family, settings.max_endpoints_per_slice);
        writes.extend(placed.writes(service));
    }
    let known = families(service);
    let dropped = ours.iter().filter(|s| !known.contains(&s.address_type.as_str()));
    writes.extend(dropped.map(|s| Write::delete(Kind::EndpointSlice, &s.metadata)));
    Decision::writes(writes)
}

fn families(service: &Service) -> Vec<&'static str> {
    let named = service.spec.ip_families.iter();
    let all: Vec<&str> = named.map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if all.is_empty() { vec!["IPv4"] } else { all }
}

/// The Service's slices that this controller manages, and those of an earlier Service of that name (ES-10).
fn existing<'a>(world: &'a World, service: &'a Service) -> (Vec<&'a EndpointSlice>, Vec<&'a EndpointSlice>) {
    world
        .within::<EndpointSlice>(&service.metadata.namespace)
        .filter(|s| s.metadata.labels.get(SERVICE_NAME) == Some(&service.metadata.name))
        .filter(|s| s.metadata.labels.get(MANAGED_BY).is_some_and(|m| m == MANAGER))
        .filter(|s| !s.metadata.terminating())
        .partition(|s| s.metadata.controlled_by(&service.metadata.uid))
}

/// Every endpoint that should be, in the order of the pods' names.
fn desired(world: &World, service: &Service, family: &'static str) -> BTreeMap<Group, Vec<Endpoint>> {
    let selector = Selector::from_labels(&service.spec.selector);
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for pod in world.within::<Pod>(&service.metadata.namespace) {
        // A terminating pod stays, so that its last connections are served; a finished one does not (ES-04).
        if pod.finished() || !selector.matches(&pod.metadata.labels) {
            continue;
        }
        let of_family = |ip: &IpAddr| ip.is_ipv4() == (family == "IPv4");
        let Some(address) = pod.addresses().into_iter().find(of_family) else { continue };
        let node = world.named::<Node>(&pod.spec.node_name);
        // The zone would be missing; the node's arrival asks again (ES-07).
        if node.is_none() && !service.spec.publish_not_ready_addresses {
            continue;
        }
        let ports = ports(service, pod);
        groups.entry((family, ports)).or_default().push(endpoint(service, pod, node, address));
    }
    groups
}

/// The Service's ports as this pod has them; a name that the pod does not define gives none (ES-02).
fn ports(service: &Service, pod: &Pod) -> Vec<SlicePort> {
    let mut ports: Vec<SlicePort> = service
        .spec
        .ports
        .iter()
        .filter_map(|p| {
            let port = match &p.target_port {
                None | Some(PortTarget::Number(0)) => p.port,
                Some(PortTarget::Number(number)) => *number,
                Some(PortTarget::Name(name)) => named_port(pod, name, p.protocol)?,
            };
            let (name, app_protocol) = (p.name.clone(), p.app_protocol.clone());
            Some(SlicePort { name, protocol: p.protocol, port, app_protocol })
        })
        .collect();
    ports.sort();
    ports
}

fn named_port(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let mut all = pod.running_containers().flat_map(|c| &c.ports);
    all.find(|p| p.name == name && p.protocol == protocol).map(|p| p.container_port)
}

fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>, address: IpAddr) -> Endpoint {
    let terminating = pod.metadata.terminating();
    let ready = service.spec.publish_not_ready_addresses || (pod.ready() && !terminating);
    let hostname = (!pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name)
        .then(|| pod.spec.hostname.clone());
    let zone = node.and_then(zone).cloned();
    let node_name = (!pod.spec.node_name.is_empty()).then(|| pod.spec.node_name.clone());
    let hints = ready.then(|| hints(service, zone.as_deref(), node_name.as_deref())).flatten();
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: EndpointConditions { ready, serving: pod.ready(), terminating },
        hostname,
        node_name,
        zone,
        target_ref: Some(TargetRef {
            kind: "Pod".into(),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        }),
        hints,
        turned: pod.ready_since(),
    }
}

/// Traffic prefers its own zone or node (ES-12). Proportional hints (`topology-mode: Auto`) are not made.
fn hints(service: &Service, zone: Option<&str>, node: Option<&str>) -> Option<Hints> {
    let same_node = service.spec.traffic_distribution == "PreferSameNode";
    let same_zone = ["PreferSameZone", "PreferClose"].contains(&service.spec.traffic_distribution.as_str());
    if !same_node && !same_zone {
        return None;
    }
    let named = |name: Option<&str>| name.map(|n| crate::view::Named { name: n.to_owned() });
    let hints = Hints {
        for_zones: named(zone).into_iter().collect(),
        for_nodes: named(node).into_iter().filter(|_| same_node).collect(),
    };
    (hints != Hints::default()).then_some(hints)
}

/// The labels a slice of this Service bears (ES-01).
fn labels(service: &Service) -> Labels {
    let reserved = [SERVICE_NAME, MANAGED_BY, HEADLESS];
    let own = service.metadata.labels.iter().filter(|(k, _)| !reserved.contains(&k.as_str()));
    let mut labels: Labels = own.map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.cluster_ip == "None" {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

/// When what changed came to be: the earliest turn of readiness, or the Service itself (ES-11).
fn trigger(service: &Service, turned: impl Iterator<Item = Timestamp>, young: bool) -> Option<String> {
    let born = service.metadata.creation_timestamp.filter(|_| young);
    turned.chain(born).min().map(|t| t.to_string())
}

#[cfg(test)]
mod tests;
