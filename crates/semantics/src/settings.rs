//! What a node knows beside the cluster.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use types::{Backend, Fabric, Family, IfName, IpNet, Wiring};

/// What a node must know that no object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name of the node that this is compiled for.
    pub node: String,
    /// Where pods of the cluster have their addresses: nobody else has one of these. Which of them are wired here the
    /// attachments say.
    pub pod_pools: Vec<IpNet>,
    /// Where pods go under their own addresses: to all pods, and wherever else the answer finds back by itself.
    pub unmasqueraded: Vec<IpNet>,
    /// Where ClusterIPs live; an address in here that no Service has goes nowhere (V-08).
    pub service_cidrs: Vec<IpNet>,
    /// The cluster's DNS addresses, at most one of each family, answered on this node; none: no DNS of ours.
    pub dns_ips: Vec<IpAddr>,
    /// Where pods may send from beside their own addresses, if their annotations ask for it.
    pub allow_sources: Vec<IpNet>,
    /// Where the agent reaches the API, as far as that is known in numbers.
    pub api: Vec<SocketAddr>,
    /// Who carries Services and policies.
    pub backend: Backend,
    /// How packets reach pods of other nodes.
    pub fabric: Fabric,
    /// How pods are attached to their node.
    pub wiring: Wiring,
    /// MTU of pods and of what leads to them: that of the underlay less what the fabric adds.
    pub mtu: u32,
    /// The machine's links that the node's own addresses are on.
    pub uplinks: BTreeSet<IfName>,
}

impl Settings {
    /// Of a cluster with these pods, which go to each other alone under their own addresses, without Services, DNS, further sources and known addresses of its API.
    pub fn new(node: impl Into<String>, pod_pools: Vec<IpNet>, mtu: u32) -> Self {
        Self {
            node: node.into(),
            unmasqueraded: pod_pools.clone(),
            pod_pools,
            service_cidrs: Vec::new(),
            dns_ips: Vec::new(),
            allow_sources: Vec::new(),
            api: Vec::new(),
            backend: Backend::default(),
            fabric: Fabric::default(),
            wiring: Wiring::default(),
            mtu,
            uplinks: BTreeSet::new(),
        }
    }

    /// The families that pods have addresses of.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        let pods_have = |family: &Family| self.pod_pools.iter().any(|c| Family::of_net(c) == *family);
        Family::ALL.into_iter().filter(pods_have)
    }

    /// Whether pods have addresses of it.
    pub fn serves(&self, family: Family) -> bool {
        self.families().any(|of_pods| of_pods == family)
    }

    /// The cluster's DNS address of a family.
    pub fn dns_ip(&self, family: Family) -> Option<IpAddr> {
        self.dns_ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}
