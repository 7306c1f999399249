//! The addresses that a Node object gives its node.

use std::net::IpAddr;

use model::Node;
use serde::{Deserialize, Serialize};
use types::{Family, IpNet};

/// The addresses that a node derives from its pod CIDR of one family: its own link into the fabric has the first, the
/// pods' gateway the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSubnet {
    pub net: IpNet,
    pub fabric: IpAddr,
    pub gateway: IpAddr,
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

/// The address by which a node's tunnel is reached: packets of both families go through one tunnel, over IPv4 where
/// the nodes have it.
pub fn underlay_ip(node: &Node) -> Option<IpAddr> {
    Family::ALL.into_iter().find_map(|family| internal_ip(node, family))
}
