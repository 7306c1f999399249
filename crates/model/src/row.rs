//! The rows: what this program keeps of each Kubernetes object, cut at the border (150,000 pods as whole
//! objects are 5.6 GiB, as rows 98 MiB). A field is here only because some brain reads it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::{Family, IfName, IpNet, Labels, Mac, ObjectName, Protocol, Selector, Wiring};

use crate::Announced;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// InternalIPs, the primary first.
    pub addresses: Vec<IpAddr>,
    /// What else its status says that it is reached at, ExternalIPs above all. Nobody is trusted for one of these: no
    /// tunnel goes there, and no node is known by it.
    pub others: Vec<IpAddr>,
    /// `spec.podCIDRs`; empty until the node CIDR controller has spoken.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone` (EP-05).
    pub zone: Option<String>,
    pub announced: Announced,
    /// The condition NetworkUnavailable is True: a cloud's controller waits for somebody to say that pods have a
    /// network.
    pub network_unavailable: bool,
    /// It is being deleted, or the cluster autoscaler is about to.
    pub leaving: bool,
}

impl Node {
    /// Of every type that its status names.
    pub fn every_address(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().chain(&self.others).copied()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: Labels,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl Phase {
    /// A finished pod has given its address back: it must leave every peer set at once (NP-43).
    pub fn finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub key: ObjectName,
    /// As runtimes know it: of a mirror pod that of its static pod.
    pub uid: String,
    pub node: Option<String>,
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    /// One of all pods that have the same.
    pub labels: Arc<Labels>,
    pub phase: Phase,
    pub terminating: bool,
    pub ready: bool,
    /// Seconds that its containers may take to end.
    pub grace: u32,
    /// Named container ports, those of restartable init containers included (NP-22).
    pub ports: Vec<NamedPort>,
    pub hostname: Option<String>,
    pub subdomain: Option<String>,
    /// From [`types::wire::SOURCES_ANNOTATION`], of the few that have it.
    pub sources: Option<Box<Sources>>,
}

impl Pod {
    /// That nobody else has meanwhile: none while it is the node, or has ended.
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.host_network || self.phase.finished() { &[] } else { &self.ips }
    }

    /// Where else it asks to send from, as long as it can send at all.
    pub fn further_sources(&self) -> &[IpNet] {
        let ends = self.host_network || self.phase.finished();
        self.sources.as_ref().filter(|_| !ends).map_or(&[], |sources| &sources.nets)
    }
}

/// Where a pod asks to send from, beside its own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// As in [`Service::created`]: of two pods that ask for one address, the older has it.
    pub created: u64,
    pub nets: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when unnamed, which is legal only for a single port (SVC-01).
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
    /// `targetPort`, where that is a name; each pod has its own number for it, or none (ES-02).
    pub target: Option<Box<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub key: ObjectName,
    pub uid: String,
    /// `creationTimestamp` as its digits, which are in order; the highest number when there is none. Of two Services
    /// that want one address and port, the older has it.
    pub created: u64,
    pub kind: ServiceType,
    /// Empty for ExternalName and headless Services.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// ClientIP affinity's timeout in seconds.
    pub affinity: Option<u32>,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer that nodes answer for: those of `ipMode` VIP (L-01).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may reach those; none: everybody (L-02).
    pub source_ranges: Vec<IpNet>,
    /// Where a load balancer asks whether this node has endpoints of its own (L-05).
    pub health_check_port: Option<u16>,
    pub external_name: Option<String>,
    pub publish_not_ready: bool,
    /// Label `service.kubernetes.io/service-proxy-name` is there: not ours (SVC-02).
    pub foreign_proxy: bool,
}

/// `name` matches a [`ServicePort::name`]; `port: None` means any port and is ignored by proxies (SVC-03).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: Option<u16>,
}

/// A node holds a hundred thousand of these: what few of them have is behind a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the rest is ignored as Kubernetes does (SVC-03).
    pub address: IpAddr,
    pub node: Option<Box<str>>,
    pub hostname: Option<Box<str>>,
    /// Conditions with the API's defaults filled in (SVC-04).
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The pod of `targetRef`, when there is one.
    pub pod: Option<Box<ObjectName>>,
    pub hints: Option<Box<Hints>>,
}

/// Whom an endpoint is meant for (EP-05).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

impl Endpoint {
    /// One that serves, of which nothing else is known.
    pub fn ready(address: impl Into<IpAddr>) -> Self {
        Self {
            address: address.into(),
            node: None,
            hostname: None,
            ready: true,
            serving: true,
            terminating: false,
            pod: None,
            hints: None,
        }
    }

    pub fn zone_hints(&self) -> &[String] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }

    pub fn node_hints(&self) -> &[String] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    pub key: ObjectName,
    /// Label `kubernetes.io/service-name`, in the slice's own namespace.
    pub service: String,
    /// Label `service.kubernetes.io/headless` is there: its addresses are found by name only (SVC-02).
    pub headless: bool,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrName {
    Number(u16),
    Name(String),
}

/// `protocol` is TCP when the object leaves it out (NP-20); `port: None` is every port of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPort {
    pub protocol: Protocol,
    pub port: Option<IntOrName>,
    pub end_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `namespaces: None` is the policy's own namespace; `pods: None` is every pod there (NP-05).
    Pods {
        namespaces: Option<Selector>,
        pods: Option<Selector>,
    },
    Block {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
}

/// No peers: any source. No ports: any port and any protocol (NP-04).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    pub peers: Vec<Peer>,
    pub ports: Vec<PolicyPort>,
}

/// `None` for a direction: the policy does not isolate it. `Some(vec![])`: it denies everything (NP-02, NP-03).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub key: ObjectName,
    pub pods: Selector,
    pub ingress: Option<Vec<PolicyRule>>,
    pub egress: Option<Vec<PolicyRule>>,
    /// What the object says and this program cannot do yet, by field path. The policy then fails closed:
    /// the rule that holds it allows nothing.
    pub unsupported: Vec<String>,
}

/// A pod that is wired to this node, as the node itself knows it: there before the API knows the address,
/// which is how a policy can be in the kernel before ADD returns (NP-40).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The runtime's container id and interface name: the identity that CNI uses.
    pub container: String,
    pub pod: ObjectName,
    pub uid: String,
    pub ips: Vec<IpAddr>,
    /// How it was attached, whatever the node would choose now.
    pub wiring: Wiring,
    /// The host side of the pod's veth.
    pub host_if: IfName,
    pub mac: Mac,
    /// Ports of the node that lead to this pod, as the runtime asked for them.
    pub host_ports: Vec<HostPort>,
    /// Further sources that its pod does not get yet: the node could not record that it has them, or has still to forget
    /// what another pod began from there.
    pub withheld: Vec<IpNet>,
}

/// A `hostPort` of a container (the CNI capability `portMappings`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub port: u16,
    pub container_port: u16,
    /// `None`: every address of the node.
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    /// Whether it is for every address that the node has in a family.
    pub fn is_everywhere(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_unspecified() && Family::of(ip) == family)
    }

    pub fn is(&self, protocol: Protocol, port: u16) -> bool {
        (self.protocol, self.port) == (protocol, port)
    }

    /// Whether it is reached at any address of a family at all.
    fn is_of(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| Family::of(ip) == family)
    }

    /// Whether some packet would be meant for both: a port of the node leads to one pod only.
    pub fn clashes(&self, other: &Self) -> bool {
        let meet = |family: &Family| {
            let both = self.is_of(*family) && other.is_of(*family);
            let any = self.is_everywhere(*family) || other.is_everywhere(*family);
            both && (any || self.host_ip == other.host_ip)
        };
        self.is(other.protocol, other.port) && Family::ALL.iter().any(meet)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)?;
        self.host_ip.map_or(Ok(()), |ip| write!(f, " of {ip}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_port_clashes_where_a_packet_could_be_for_both() {
        let port = |host_ip: &str| HostPort {
            protocol: Protocol::Tcp,
            port: 8080,
            container_port: 80,
            host_ip: host_ip.parse().ok(),
        };
        let clash = |a: &str, b: &str| {
            assert_eq!(port(a).clashes(&port(b)), port(b).clashes(&port(a)), "{a} {b}");
            port(a).clashes(&port(b))
        };
        for (a, b) in [("", ""), ("", "127.0.0.1"), ("", "::"), ("0.0.0.0", "10.0.0.1"), ("::1", "::1")] {
            assert!(clash(a, b), "{a:?} {b:?}");
        }
        for (a, b) in [("127.0.0.1", "10.0.0.1"), ("0.0.0.0", "::"), ("0.0.0.0", "::1"), ("::", "10.0.0.1")] {
            assert!(!clash(a, b), "{a:?} {b:?}");
        }
        assert!(!port("").clashes(&HostPort { protocol: Protocol::Udp, ..port("") }));
        assert!(!port("").clashes(&HostPort { port: 8081, ..port("") }));
        assert_eq!(port("10.0.0.1").to_string(), "8080/tcp of 10.0.0.1");
    }
}
