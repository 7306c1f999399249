//! Which endpoints take the traffic of a Service's ports, decided once for all backends (EP-01..07, SVC-01..06).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use model::{Cluster, Endpoint, Key, Kind, Service, ServiceType, TrafficPolicy};
use types::{Family, ObjectName, Protocol};

use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};

/// Label of a Node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What one Service means on one node in one family: each has its own addresses and endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// ClusterIPs of the family.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<PortPlan>,
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub outcome: Outcome,
}

/// What happens to a new connection to a ClusterIP's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One of these, each as likely as the others; sorted, never empty.
    Spread(Vec<SocketAddr>),
    /// Nobody anywhere could take it: the caller is told at once (V-01).
    Reject,
    /// Somebody could, but not under the Service's local policy (V-05).
    Drop,
}

/// `None`: not a Service that a proxy handles (SVC-02).
pub fn plan(
    cluster: &Cluster,
    settings: &Settings,
    name: &ObjectName,
    family: Family,
) -> Option<ServicePlan> {
    let service = cluster.services.get(name)?;
    let mut diagnostics = Vec::new();
    if service.foreign_proxy {
        return None;
    }
    unsupported(service, settings, &mut diagnostics);
    if service.headless || service.kind == ServiceType::ExternalName {
        return (!diagnostics.is_empty()).then(|| ServicePlan { diagnostics, ..ServicePlan::default() });
    }
    let addresses: Vec<_> =
        service.cluster_ips.iter().copied().filter(|ip| Family::of(*ip) == family).collect();
    let ports = service
        .ports
        .iter()
        .map(|port| {
            let local = service.internal_policy == TrafficPolicy::Local;
            let candidates = candidates((cluster, family), settings, name, (&port.name, port.protocol));
            let outcome = outcome(&candidates, local, own_zone(cluster, settings), &settings.node);
            PortPlan { name: port.name.clone(), protocol: port.protocol, port: port.port, outcome }
        })
        .collect();
    Some(ServicePlan { addresses, ports, diagnostics })
}

fn own_zone<'a>(cluster: &'a Cluster, settings: &Settings) -> Option<&'a str> {
    cluster.nodes.get(&settings.node)?.labels.get(ZONE).map(String::as_str)
}

/// An endpoint of one port; when two slices list one address, it is one endpoint, and local if either says so
/// (SVC-05).
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    local: bool,
}

type Candidates<'a> = BTreeMap<SocketAddr, Candidate<'a>>;

/// All endpoints that list this port by name and protocol, sorted by address (EP-07).
fn candidates<'a>(
    (cluster, family): (&'a Cluster, Family),
    settings: &Settings,
    service: &ObjectName,
    (name, protocol): (&str, Protocol),
) -> Candidates<'a> {
    let mut found = Candidates::new();
    for slice in cluster.slices_of(service) {
        let numbers = slice.ports.iter().filter(|p| p.name == name && p.protocol == protocol);
        for number in numbers.filter_map(|p| p.port).filter(|n| *n != 0) {
            for endpoint in slice.endpoints.iter().filter(|e| Family::of(e.address) == family) {
                let local = endpoint.node.as_deref() == Some(&settings.node);
                let entry = found
                    .entry(SocketAddr::new(endpoint.address, number))
                    .or_insert(Candidate { endpoint, local });
                entry.local |= local;
                if rank(endpoint) > rank(entry.endpoint) {
                    entry.endpoint = endpoint;
                }
            }
        }
    }
    found
}

/// The better of two reports about one address counts: ready, then serving while terminating.
fn rank(endpoint: &Endpoint) -> u8 {
    if endpoint.ready { 2 } else { u8::from(endpoint.serving && endpoint.terminating) }
}

fn outcome(all: &Candidates<'_>, local: bool, zone: Option<&str>, node: &str) -> Outcome {
    let of_rank = |rank_wanted: u8, local_only: bool| -> Vec<SocketAddr> {
        all.iter()
            .filter(|(_, c)| rank(c.endpoint) == rank_wanted && (c.local || !local_only))
            .map(|(address, _)| *address)
            .collect()
    };
    let ready = || if local { of_rank(2, true) } else { near(all, zone, node) };
    let usable = [ready(), of_rank(1, local)].into_iter().find(|set| !set.is_empty());
    match usable {
        Some(set) => Outcome::Spread(set),
        None if all.values().any(|c| rank(c.endpoint) > 0) => Outcome::Drop,
        None => Outcome::Reject,
    }
}

/// The ready endpoints, narrowed by topology hints when every one of them has a hint and one names us (EP-05).
fn near(all: &Candidates<'_>, zone: Option<&str>, node: &str) -> Vec<SocketAddr> {
    let ready: Vec<_> = all.iter().filter(|(_, c)| rank(c.endpoint) == 2).collect();
    let narrowed = |hints: fn(&Endpoint) -> &[String], us: &str| -> Option<Vec<SocketAddr>> {
        let everywhere = ready.iter().all(|(_, c)| !hints(c.endpoint).is_empty());
        let ours = ready.iter().filter(|(_, c)| hints(c.endpoint).iter().any(|hint| hint == us));
        let ours: Vec<_> = ours.map(|(address, _)| **address).collect();
        (everywhere && !ours.is_empty()).then_some(ours)
    };
    narrowed(|e| &e.node_hints, node)
        .or_else(|| narrowed(|e| &e.zone_hints, zone?))
        .unwrap_or_else(|| ready.iter().map(|(address, _)| **address).collect())
}

/// Names each field that this program does not act on yet.
fn unsupported(service: &Service, settings: &Settings, diagnostics: &mut Vec<Diagnostic>) {
    let mut warn = |field: &str, message: &str| {
        diagnostics.push(Diagnostic {
            object: Key::new(Kind::Service, service.key.clone()),
            field: field.to_owned(),
            severity: Severity::Warning,
            message: message.to_owned(),
            next_step: "reach the Service by its ClusterIP or name inside the cluster".to_owned(),
        });
    };
    match service.kind {
        ServiceType::NodePort => warn("spec.type", "NodePort is not supported yet: no node port is opened"),
        ServiceType::LoadBalancer => {
            warn(
                "spec.type",
                "LoadBalancer is not supported yet: neither its address nor node ports are served",
            );
        }
        ServiceType::ClusterIp | ServiceType::ExternalName => {}
    }
    if !service.external_ips.is_empty() {
        warn("spec.externalIPs", "external addresses are not supported yet: they are not served");
    }
    if service.affinity.is_some() {
        warn(
            "spec.sessionAffinity",
            "ClientIP affinity is not supported yet: each connection may reach another endpoint",
        );
    }
    let served = |ip: &IpAddr| settings.families().any(|family| family == Family::of(*ip));
    if let Some(other) = service.cluster_ips.iter().find(|ip| !served(ip)) {
        let family = Family::of(*other);
        warn("spec.clusterIPs", &format!("no pod of this cluster has {family}: {other} is not served"));
    }
}
