//! Which endpoints take the traffic of a Service's ports, decided once for all backends (EP-01..07, SVC-01..06).
//!
//! ```text
//!   Service port ─┬─ ClusterIP:port ─────────────────────┐   inside:  pods and the node itself
//!                 ├─ node address:nodePort ──┐           ├─> Front ─ outside: everybody else
//!                 ├─ externalIP:port ────────┼─ external ┘
//!                 └─ load balancer IP:port ──┘
//! ```

mod choose;
mod claims;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::{Cluster, Key, Kind, Service, ServicePort, ServiceType, TrafficPolicy};
use types::{Family, IpNet, ObjectName, Protocol};

use super::cause::Lack;
use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};
use crate::dns;
use crate::node::internal_ip;
use choose::{Candidates, Choice};
use claims::{Claim, Door, Judge};

pub use choose::serves;
pub use claims::holder;

/// What one Service means on one node in one family: each has its own addresses and endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    pub service: ObjectName,
    /// ClusterIPs of the family: a port of these that no port plan has is refused.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<PortPlan>,
    /// Where the node itself answers health checks of load balancers (`health.rs`).
    pub health: Option<SocketAddr>,
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    pub name: String,
    pub protocol: Protocol,
    /// Where callers find the port; not where nodes answer DNS.
    pub fronts: Vec<Front>,
    /// For how many seconds after its last connection a client address returns to its endpoint (A-01).
    pub affinity: Option<u32>,
}

/// One address and port that leads to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    pub address: IpAddr,
    pub port: u16,
    /// For pods of the cluster and the node itself.
    pub inside: Way,
    /// For everybody else; `None`: the same.
    pub outside: Option<Way>,
    /// Who may come at all, wherever from; empty: everybody. Others are dropped ([`super::cause::Cause::SourceRange`]).
    pub sources: Vec<IpNet>,
}

/// What happens to a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub outcome: Outcome,
    /// The endpoint sees an address of this node, so that its answer comes back through here (V-06).
    pub masquerade: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One of these, each as likely as the others; sorted, never empty.
    Spread(Vec<SocketAddr>),
    /// No endpoint takes it.
    Without(Lack),
}

/// `None`: not a Service that a proxy handles (SVC-02).
pub fn plan(
    cluster: &Cluster,
    settings: &Settings,
    name: &ObjectName,
    family: Family,
) -> Option<ServicePlan> {
    let service = cluster.services.get(name).filter(|service| is_proxied(service))?;
    let addresses: Vec<_> =
        service.cluster_ips.iter().copied().filter(|ip| Family::of(*ip) == family).collect();
    let external = external_addresses(service, family);
    let node = node_address(cluster, settings, family);
    let judge = Judge { cluster, settings, service };
    let mut diagnostics = Vec::new();
    // An address that is listed twice, say as external IP and as the load balancer's, is one; the first counts.
    let mut known = BTreeSet::new();
    let mut ports = Vec::new();
    for port in &service.ports {
        let candidates = Candidates::of((cluster, family), settings, name, port, &mut diagnostics);
        let zone = cluster.nodes.get(&settings.node).and_then(|node| node.zone.as_deref());
        let choice = candidates.choose(zone, &settings.node);
        let mut fronts: Vec<(Door, Front)> = addresses
            .iter()
            .map(|address| (Door::ClusterIp, internal(service, port, *address, &choice)))
            .collect();
        for (door, address, sources) in &external {
            let front = from_outside(service, (*address, port.port), &choice);
            fronts.push((*door, Front { sources: sources.clone(), ..front }));
        }
        if let Some((own, number)) = node.zip(node_port(service, port)) {
            fronts.push((Door::NodePort, from_outside(service, (own, number), &choice)));
        }
        fronts.retain(|(door, front)| {
            let claim =
                Claim { door: *door, address: front.address, protocol: port.protocol, port: front.port };
            known.insert((claim.address, claim.protocol, claim.port))
                && judge.grants(&claim, &mut diagnostics)
                && !dns::answers(settings, (claim.address, claim.protocol, claim.port))
        });
        let fronts = fronts.into_iter().map(|(_, front)| front).collect();
        let (name, protocol) = (port.name.clone(), port.protocol);
        ports.push(PortPlan { name, protocol, fronts, affinity: service.affinity });
    }
    let health = node.zip(service.health_check_port).filter(|_| !addresses.is_empty());
    let health = health.filter(|(address, port)| {
        let claim =
            Claim { door: Door::HealthCheck, address: *address, protocol: Protocol::Tcp, port: *port };
        known.insert((*address, Protocol::Tcp, *port)) && judge.grants(&claim, &mut diagnostics)
    });
    findings(service, settings, &mut diagnostics);
    let health = health.map(SocketAddr::from);
    Some(ServicePlan { service: name.clone(), addresses, ports, health, diagnostics })
}

/// Whether a proxy has anything to do with it (SVC-02).
fn is_proxied(service: &Service) -> bool {
    !service.foreign_proxy && !service.headless && service.kind != ServiceType::ExternalName
}

/// The node's first address of a family: the `primary` of kube-proxy's nftables mode (N-01). Not the loopback
/// address (N-02).
pub fn node_address(cluster: &Cluster, settings: &Settings, family: Family) -> Option<IpAddr> {
    cluster.nodes.get(&settings.node).and_then(|node| internal_ip(node, family))
}

/// Zero or absent where a LoadBalancer wants none (N-04).
fn node_port(service: &Service, port: &ServicePort) -> Option<u16> {
    let typed = matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer);
    port.node_port.filter(|_| typed)
}

/// Addresses beside the ClusterIP that lead to the Service's ports, with who may use them: source ranges are for the
/// load balancer's only (L-02).
fn external_addresses(service: &Service, family: Family) -> Vec<(Door, IpAddr, Vec<IpNet>)> {
    let open = service.source_ranges.iter().any(|range| range.prefix_len() == 0);
    let balanced = service.load_balancer_ips.iter().map(|address| {
        // Ranges of another family leave this one open (L-02).
        let same = |range: &&IpNet| Family::of_net(range) == family;
        let sources = service.source_ranges.iter().filter(same).filter(|_| !open).map(IpNet::trunc).collect();
        (Door::LoadBalancer, *address, sources)
    });
    let plain = service.external_ips.iter().map(|address| (Door::ExternalIp, *address, Vec::new()));
    balanced.chain(plain).filter(|(_, address, _)| Family::of(*address) == family).collect()
}

/// The ClusterIP: one way for all callers, by the internal policy.
fn internal(service: &Service, port: &ServicePort, address: IpAddr, choice: &Choice) -> Front {
    let outcome = match service.internal_policy {
        TrafficPolicy::Cluster => choice.cluster(),
        TrafficPolicy::Local => choice.local(),
    };
    let inside = Way { outcome, masquerade: false };
    Front { address, port: port.port, inside, outside: None, sources: Vec::new() }
}

/// An address that the outside knows, by the external policy. Under `Local` callers of the cluster itself take the
/// short way: all endpoints, as if they had asked the ClusterIP (V-04).
fn from_outside(service: &Service, (address, port): (IpAddr, u16), choice: &Choice) -> Front {
    let sources = Vec::new();
    let way = |outcome, masquerade| Way { outcome, masquerade };
    match service.external_policy {
        TrafficPolicy::Cluster => {
            let everywhere = way(choice.cluster(), true);
            Front { address, port, inside: everywhere.clone(), outside: Some(everywhere), sources }
        }
        TrafficPolicy::Local => Front {
            address,
            port,
            inside: way(choice.cluster(), false),
            outside: Some(way(choice.local(), false)),
            sources,
        },
    }
}

/// Names what does not happen although the object may look as if it did.
fn findings(service: &Service, settings: &Settings, diagnostics: &mut Vec<Diagnostic>) {
    let mut warn = |field: &str, message: &str, next_step: &str| {
        diagnostics.push(Diagnostic {
            object: Key::new(Kind::Service, service.key.clone()),
            field: field.to_owned(),
            severity: Severity::Warning,
            message: message.to_owned(),
            next_step: next_step.to_owned(),
        });
    };
    let inside = "reach the Service by its ClusterIP or name inside the cluster";
    let served = |ip: &IpAddr| settings.families().any(|family| family == Family::of(*ip));
    if let Some(other) = service.cluster_ips.iter().find(|ip| !served(ip)) {
        let family = Family::of(*other);
        warn(
            "spec.clusterIPs",
            &format!("no pod of this cluster has {family}: {other} is not served"),
            inside,
        );
    }
    for address in &service.load_balancer_ips {
        let of_family = |range: &IpNet| Family::of_net(range) == Family::of(*address);
        if !service.source_ranges.is_empty() && !service.source_ranges.iter().any(of_family) {
            warn(
                "spec.loadBalancerSourceRanges",
                &format!("no range is of the family of {address}: everybody may reach it"),
                "add a range of that family",
            );
        }
    }
}
