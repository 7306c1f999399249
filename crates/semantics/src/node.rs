//! The addresses that Node objects give this node and its peers, and whether they are enough.

use std::net::IpAddr;

pub use model::Announced;
use model::{Cluster, Key, Kind, Node};
use serde::{Deserialize, Serialize};
use types::{Family, IpNet, ObjectName};

use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};

/// The addresses that a node derives from its pod CIDR of one family: its own link into the fabric has the first, the
/// pods' gateway the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSubnet {
    pub net: IpNet,
    pub fabric: IpAddr,
    pub gateway: IpAddr,
}

/// What a node must have before anything can be wired on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// By which its peers reach it, whatever they send.
    pub underlay: IpAddr,
    /// Its InternalIP of each family.
    pub addresses: [Option<IpAddr>; 2],
    /// Never empty.
    pub subnets: Vec<PodSubnet>,
}

/// Another node, as this one knows it. It is small and owns nothing, so that looking at one costs no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its InternalIP of each family.
    pub addresses: [Option<IpAddr>; 2],
    pub subnets: [Option<PodSubnet>; 2],
    /// What it says of itself.
    pub announced: Announced,
}

impl Own {
    /// This node, if its object says enough, and what that lacks.
    pub fn of(cluster: &Cluster, settings: &Settings) -> (Option<Self>, Vec<Diagnostic>) {
        let node = cluster.nodes.get(&settings.node);
        let subnets: Vec<_> = node.into_iter().flat_map(pod_subnets).collect();
        let own = node.filter(|_| !subnets.is_empty()).and_then(|node| Some((node, underlay_ip(node)?)));
        let Some((node, underlay)) = own else {
            let message =
                "it has no pod CIDR of at least 8 addresses or no InternalIP; no pod can be wired here";
            return (None, vec![incomplete(&settings.node, message)]);
        };
        let has = |family: &Family| subnets.iter().any(|subnet| Family::of_net(&subnet.net) == *family);
        let missing: Vec<_> =
            settings.families().filter(|family| !has(family)).map(|f| f.to_string()).collect();
        let finding = (!missing.is_empty()).then(|| {
            let missing = missing.join(" and no ");
            incomplete(&settings.node, &format!("it has no {missing} pod CIDR; its pods get no such address"))
        });
        let addresses = Family::ALL.map(|family| internal_ip(node, family));
        (Some(Self { underlay, addresses, subnets }), finding.into_iter().collect())
    }

    /// Whether pods have addresses of the family here: the kernel takes no routes of others.
    pub fn serves(&self, family: Family) -> bool {
        self.subnets.iter().any(|subnet| Family::of_net(&subnet.net) == family)
    }
}

impl Peer {
    pub fn of(node: &Node) -> Self {
        Self {
            addresses: Family::ALL.map(|family| internal_ip(node, family)),
            subnets: Family::ALL.map(|family| pod_subnet(node, family)),
            announced: node.announced,
        }
    }

    pub fn address(&self, family: Family) -> Option<IpAddr> {
        family.pick(self.addresses)
    }

    /// IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = PodSubnet> {
        self.subnets.into_iter().flatten()
    }

    /// By which this node reaches it, whatever it sends.
    pub fn underlay(&self, own: &Own) -> Option<IpAddr> {
        self.address(Family::of(own.underlay))
    }

    /// As this node reaches its pods, whatever is between them: with the subnets of families that both have. Or why it does
    /// not.
    pub fn reached(mut self, own: &Own) -> Result<Self, &'static str> {
        if self.underlay(own).is_none() || self.subnets().next().is_none() {
            return Err("it has no pod CIDR or no InternalIP of our node's family yet");
        }
        for subnet in &mut self.subnets {
            *subnet = subnet.filter(|subnet| own.serves(Family::of_net(&subnet.net)));
        }
        Ok(self)
    }
}

/// The finding that a node lacks something.
pub fn incomplete(node: &str, message: &str) -> Diagnostic {
    Diagnostic {
        object: Key::new(Kind::Node, ObjectName::cluster(node)),
        field: "spec.podCIDRs, status.addresses, metadata.annotations".to_owned(),
        severity: Severity::Warning,
        message: message.to_owned(),
        next_step: "check that the node's agent and the node CIDR controller run".to_owned(),
    }
}

/// What of a node is refused, because another has it.
pub fn refused(node: &str, field: &str, message: &str, next_step: String) -> Diagnostic {
    Diagnostic {
        object: Key::new(Kind::Node, ObjectName::cluster(node)),
        field: field.to_owned(),
        severity: Severity::Error,
        message: format!("{message}; its pods are out of reach"),
        next_step,
    }
}

/// The first pod CIDR of a family that a node has, when it can hold a pod.
pub fn pod_subnet(node: &Node, family: Family) -> Option<PodSubnet> {
    let net = node.pod_cidrs.iter().find(|cidr| Family::of_net(cidr) == family)?.trunc();
    let fabric = net.network();
    let gateway = types::offset(fabric, 1);
    (net.max_prefix_len() - net.prefix_len() >= 3).then_some(PodSubnet { net, fabric, gateway })
}

/// The pod subnets of a node, IPv4 first.
pub fn pod_subnets(node: &Node) -> impl Iterator<Item = PodSubnet> + '_ {
    Family::ALL.into_iter().filter_map(|family| pod_subnet(node, family))
}

/// The node's first InternalIP of a family.
pub fn internal_ip(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().copied().find(|address| Family::of(*address) == family)
}

/// The address by which a node's peers reach it: packets of both families may go over one, IPv4 where the nodes have it.
pub fn underlay_ip(node: &Node) -> Option<IpAddr> {
    Family::ALL.into_iter().find_map(|family| internal_ip(node, family))
}
