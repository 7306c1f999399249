//! Whose an address and port are, where several Services want them. A claim is (address, protocol, port):
//!
//! ```text
//!   a ClusterIP           its Service's, with every port, whoever lists the address as external
//!   external, node port   the oldest Service's; of equally old ones the first by name (L-07). So is the port of a node at
//!                         which its health checks are answered. A node port is at every node, so whoever asks for the
//!                         address of another node meets it here, too
//!   the node's own        nobody's (`reserved.rs`)
//! ```

use std::net::IpAddr;

use model::{Cluster, Key, Kind, Service, ServicePort, ServiceType};
use types::{Family, ObjectName, Protocol};

use super::{is_proxied, node_port};
use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};
use crate::fabric::internal_ip;
use crate::service::{health, reserved};

/// How a Service has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// What a Service wants to have to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub door: Door,
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// Why a Service does not get it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    Special(&'static str),
    Reserved(&'static str),
    Dns,
    ClusterIp(ObjectName),
    Holder(ObjectName),
}

/// Judges the claims of one Service.
pub struct Judge<'a> {
    pub cluster: &'a Cluster,
    pub settings: &'a Settings,
    pub service: &'a Service,
    /// The node's address that node ports are at.
    pub node: Option<IpAddr>,
}

impl Judge<'_> {
    /// Whether the Service has it; if not, who has is said.
    pub fn grants(&self, claim: &Claim, diagnostics: &mut Vec<Diagnostic>) -> bool {
        let refusal = match claim.door {
            Door::ClusterIp => self.older(claim, |other| other.cluster_ips.contains(&claim.address)),
            Door::ExternalIp | Door::LoadBalancer | Door::NodePort => self.outside(claim),
        };
        diagnostics.extend(refusal.as_ref().map(|refusal| self.finding(claim, refusal)));
        refusal.is_none()
    }

    /// What is said about a port for health checks that the node needs itself (`health.rs` does not answer there).
    pub fn health_check(&self) -> Option<Diagnostic> {
        let (address, port) = self.node.zip(self.service.health_check_port)?;
        let what = reserved::front((self.cluster, self.settings), (address, Protocol::Tcp, port))?;
        Some(Diagnostic {
            object: Key::new(Kind::Service, self.service.key.clone()),
            field: "spec.healthCheckNodePort".to_owned(),
            severity: Severity::Warning,
            message: format!("health checks are not answered: port {port} is kept for {what}"),
            next_step: "use another port".to_owned(),
        })
    }

    fn outside(&self, claim: &Claim) -> Option<Refusal> {
        let Claim { address, protocol, port, .. } = *claim;
        if let Some(what) = reserved::special(address) {
            return Some(Refusal::Special(what));
        }
        if self.settings.dns_ips.contains(&address) {
            return Some(Refusal::Dns);
        }
        let is_cluster_ip = |other: &&Service| {
            other.key != self.service.key
                && other.kind != ServiceType::ExternalName
                && other.cluster_ips.contains(&address)
        };
        if let Some(owner) = self.cluster.services_at(address).find(is_cluster_ip) {
            return Some(Refusal::ClusterIp(owner.key.clone()));
        }
        if let Some(what) = reserved::front((self.cluster, self.settings), (address, protocol, port)) {
            return Some(Refusal::Reserved(what));
        }
        let external = |other: &Service| {
            other.external_ips.contains(&address) || other.load_balancer_ips.contains(&address)
        };
        let at_address = self.older(claim, external);
        at_address.or_else(|| self.older_node_port(claim))
    }

    /// An older Service that has the address and a port of this number.
    fn older(&self, claim: &Claim, has: impl Fn(&Service) -> bool) -> Option<Refusal> {
        let same = |port: &ServicePort| (port.protocol, port.port) == (claim.protocol, claim.port);
        let others = self.cluster.services_at(claim.address);
        self.oldest(others.filter(|other| has(other) && other.ports.iter().any(same)))
    }

    fn older_node_port(&self, claim: &Claim) -> Option<Refusal> {
        let family = Family::of(claim.address);
        let mut nodes = self.cluster.nodes.values();
        if !nodes.any(|node| internal_ip(node, family) == Some(claim.address)) {
            return None;
        }
        let others = self.cluster.services_of_node_port(claim.port);
        let has = |other: &Service| {
            let same = |port: &ServicePort| {
                port.protocol == claim.protocol && node_port(other, port) == Some(claim.port)
            };
            other.ports.iter().any(same) || health::answers(other, claim.protocol, claim.address, claim.port)
        };
        self.oldest(others.filter(|other| has(other)))
    }

    /// The first of these before ours; its own claims meet the same refusals as ours, of which there were none.
    fn oldest<'b>(&self, others: impl Iterator<Item = &'b Service>) -> Option<Refusal> {
        fn rank(service: &Service) -> (u64, &ObjectName) {
            (service.created, &service.key)
        }
        let before = others.filter(|other| is_proxied(other) && rank(other) < rank(self.service));
        before
            .min_by_key(|other| (other.created, other.key.clone()))
            .map(|first| Refusal::Holder(first.key.clone()))
    }

    fn finding(&self, claim: &Claim, refusal: &Refusal) -> Diagnostic {
        let Claim { door, address, protocol, port } = claim;
        let field = match door {
            Door::ClusterIp => "spec.clusterIPs",
            Door::ExternalIp => "spec.externalIPs",
            Door::LoadBalancer => "status.loadBalancer.ingress[].ip",
            Door::NodePort => "spec.ports[].nodePort",
        };
        let (why, next_step) = match refusal {
            Refusal::Special(what) => (format!("it is {what}"), "use an address that leads to the nodes"),
            Refusal::Reserved(what) => {
                (format!("it is kept for {what}"), "use another port or another address")
            }
            Refusal::Dns => ("it is the cluster's DNS".to_owned(), "use another address"),
            Refusal::ClusterIp(owner) => {
                (format!("it is the ClusterIP of Service {owner}"), "use an address that no Service has")
            }
            Refusal::Holder(holder) => {
                (format!("Service {holder} has it and comes first"), "use another port or another address")
            }
        };
        Diagnostic {
            object: Key::new(Kind::Service, self.service.key.clone()),
            field: field.to_owned(),
            severity: Severity::Warning,
            message: format!("{address}, port {port}/{protocol}, does not lead to this Service: {why}"),
            next_step: next_step.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Event, Node, Row};

    /// A node port is at each node: whoever asks for another node's address is refused here as there.
    #[test]
    fn an_external_address_takes_no_node_port_of_any_node_and_nothing_of_pods() {
        let mut cluster = Cluster::default();
        let mut put = |row| drop(cluster.apply(Event::Upsert(row)));
        for (name, address) in [("node1", "192.168.1.10"), ("node2", "192.168.1.11")] {
            let addresses = vec![address.parse().unwrap()];
            put(Row::Node(Node { name: name.into(), addresses, ..Node::default() }));
        }
        let port =
            |port, node_port| ServicePort { port, node_port, name: format!("p{port}"), ..Default::default() };
        let service = |name: &str, created, ip: &str| Service {
            key: ObjectName::new("shop", name),
            created,
            cluster_ips: vec![ip.parse().unwrap()],
            ..Service::default()
        };
        put(Row::Service(Box::new(Service {
            kind: ServiceType::LoadBalancer,
            ports: vec![port(80, Some(30_080))],
            health_check_port: Some(30_555),
            ..service("old", 1, "10.96.0.7")
        })));
        put(Row::Service(Box::new(Service {
            external_ips: ["192.168.1.10", "192.168.1.11", "10.244.2.4"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
            ports: vec![port(30_080, None), port(30_555, None), port(30_099, None)],
            ..service("young", 2, "10.96.0.8")
        })));
        for node in ["node1", "node2"] {
            let settings = Settings::new(node, vec!["10.244.0.0/16".parse().unwrap()], 1450);
            let young = ObjectName::new("shop", "young");
            let plan = super::super::plan(&cluster, &settings, &young, Family::V4).unwrap();
            let fronts = plan.ports.iter().flat_map(|port| &port.fronts);
            let fronts: Vec<String> = fronts
                .filter(|front| !front.address.to_string().starts_with("10.96."))
                .map(|front| format!("{}:{}", front.address, front.port))
                .collect();
            assert_eq!(fronts, ["192.168.1.10:30099", "192.168.1.11:30099"], "{node}");
            let kept = |what: &str| plan.diagnostics.iter().filter(|d| d.message.contains(what)).count();
            assert_eq!((kept("Service shop/old has it"), kept("kept for pods")), (4, 3), "{node}");
        }
    }
}
