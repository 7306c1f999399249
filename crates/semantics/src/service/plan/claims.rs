//! Whose an address and port are, where several Services want them. A claim is (address, protocol, port):
//!
//! ```text
//!   a ClusterIP           its Service's, with every port, whoever lists the address as external
//!   external, node port   the oldest Service's; of equally old ones the first by name (L-07). So is the port of a node at
//!                         which its health checks are answered. A node port is at every node, so whoever asks for the
//!                         address of another node, of whatever type, meets it here, too
//!   host port             a pod's, where no Service has it (`host_port.rs`): Services come first whatever their age, since
//!                         they have the port on all nodes alike, and a pod's comes and goes with it
//!   the node's own        nobody's (`reserved.rs`)
//! ```

use std::net::IpAddr;

use model::{Cluster, Key, Kind, Node, Service, ServicePort, ServiceType};
use types::{Family, ObjectName, Protocol};

use super::{is_proxied, node_address, node_port};
use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};
use crate::service::{health, reserved};

/// How a Service has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
    /// At which the node itself answers.
    HealthCheck,
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
    Reserved(String),
    Dns,
    ClusterIp(ObjectName),
    Holder(ObjectName),
}

/// Judges the claims of one Service.
pub struct Judge<'a> {
    pub cluster: &'a Cluster,
    pub settings: &'a Settings,
    pub service: &'a Service,
}

impl Judge<'_> {
    /// Whether the Service has it; if not, who has is said.
    pub fn grants(&self, claim: &Claim, diagnostics: &mut Vec<Diagnostic>) -> bool {
        let refusal = match claim.door {
            Door::ClusterIp => {
                let first = self.older(claim, |other| other.cluster_ips.contains(&claim.address));
                first.map(|first| Refusal::Holder(first.key.clone()))
            }
            Door::ExternalIp | Door::LoadBalancer | Door::NodePort | Door::HealthCheck => self.outside(claim),
        };
        diagnostics.extend(refusal.as_ref().map(|refusal| self.finding(claim, refusal)));
        refusal.is_none()
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
            return Some(Refusal::Reserved(what.to_string()));
        }
        let at_address = self.older(claim, |other| is_external(other, address));
        let older = at_address.into_iter().chain(self.older_node_port(claim));
        older.min_by(|a, b| rank(a).cmp(&rank(b))).map(|first| Refusal::Holder(first.key.clone()))
    }

    /// An older Service that has the address and a port of this number.
    fn older(&self, claim: &Claim, has: impl Fn(&Service) -> bool) -> Option<&Service> {
        let same = |port: &ServicePort| (port.protocol, port.port) == (claim.protocol, claim.port);
        let others = self.cluster.services_at(claim.address);
        self.oldest(others.filter(|other| has(other) && other.ports.iter().any(same)))
    }

    fn older_node_port(&self, claim: &Claim) -> Option<&Service> {
        let others = self.cluster.services_of_node_port(claim.port);
        let at = (claim.address, claim.protocol, claim.port);
        let first = self.oldest(others.filter(|other| answers_at_nodes(other, at)))?;
        // A cloud translates an ExternalIP to the InternalIP, where the node port is.
        let of_node = |node: &Node| node.every_address().any(|own| own == claim.address);
        self.cluster.nodes.values().any(of_node).then_some(first)
    }

    /// The first of these before ours; its own claims meet the same refusals as ours, of which there were none.
    fn oldest<'b>(&self, others: impl Iterator<Item = &'b Service>) -> Option<&'b Service> {
        let before = others.filter(|other| is_proxied(other) && rank(other) < rank(self.service));
        before.min_by(|a, b| rank(a).cmp(&rank(b)))
    }

    fn finding(&self, claim: &Claim, refusal: &Refusal) -> Diagnostic {
        let Claim { door, address, protocol, port } = claim;
        let field = match door {
            Door::ClusterIp => "spec.clusterIPs",
            Door::ExternalIp => "spec.externalIPs",
            Door::LoadBalancer => "status.loadBalancer.ingress[].ip",
            Door::NodePort => "spec.ports[].nodePort",
            Door::HealthCheck => "spec.healthCheckNodePort",
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
            message: match door {
                Door::HealthCheck => {
                    format!("health checks are not answered at {address}, port {port}: {why}")
                }
                _ => format!("{address}, port {port}/{protocol}, does not lead to this Service: {why}"),
            },
            next_step: next_step.to_owned(),
        }
    }
}

fn rank(service: &Service) -> (u64, &ObjectName) {
    (service.created, &service.key)
}

fn is_external(service: &Service, address: IpAddr) -> bool {
    service.external_ips.contains(&address) || service.load_balancer_ips.contains(&address)
}

/// By a node port, or for health checks.
fn answers_at_nodes(service: &Service, (address, protocol, number): (IpAddr, Protocol, u16)) -> bool {
    let same = |port: &ServicePort| port.protocol == protocol && node_port(service, port) == Some(number);
    service.ports.iter().any(same) || health::answers(service, protocol, address, number)
}

/// The Service that has a port of this node, before any pod that wants it as its host port.
///
/// `named`: the pod wants this one address. Of a pod that wants all of them an external address is one among others, and
/// mostly its own Service's: load balancers that are made of host ports (k3s) have the nodes' addresses.
pub fn holder(
    (cluster, settings): (&Cluster, &Settings),
    at: (IpAddr, Protocol, u16),
    named: bool,
) -> Option<ObjectName> {
    let (address, protocol, port) = at;
    let own = node_address(cluster, settings, Family::of(address)) == Some(address);
    let by_port = cluster.services_of_node_port(port).filter(|_| own);
    let by_port = by_port.filter(|service| answers_at_nodes(service, at));
    let same = |wanted: &ServicePort| (wanted.protocol, wanted.port) == (protocol, port);
    let by_address = cluster.services_at(address).filter(|_| named);
    let by_address =
        by_address.filter(|service| is_external(service, address) && service.ports.iter().any(same));
    let all = by_port.chain(by_address).filter(|service| is_proxied(service));
    let first = all.min_by(|a, b| rank(a).cmp(&rank(b)))?;
    let claim = Claim { door: Door::NodePort, address, protocol, port };
    let refused = Judge { cluster, settings, service: first }.outside(&claim);
    refused.is_none().then(|| first.key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Event, Row};

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
