//! Who may ask. Nodes' addresses can be reached from outside of the cluster, the cluster's DNS address by whoever has a
//! route to it, and who answers strangers there is an amplifier for forged senders and a way to look names up that are
//! nobody's business.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use model::Cluster;
use types::IpNet;

/// Addresses of nodes (the queries of their pods come masqueraded), of pods, and of this node's own programs, whose
/// queries to an address of the node come from that address.
#[derive(Clone, Debug)]
pub struct Callers(Arc<RwLock<Known>>);

#[derive(Debug)]
pub struct Known {
    nodes: BTreeSet<IpAddr>,
    /// Of pods and Services, as the agent was started with; the cluster's DNS addresses are among them.
    ranges: Vec<IpNet>,
    /// Pod CIDRs of nodes beyond those.
    pods: Vec<IpNet>,
}

impl Callers {
    pub fn new(ranges: &[IpNet]) -> Self {
        let (nodes, pods) = (BTreeSet::new(), Vec::new());
        Self(Arc::new(RwLock::new(Known { nodes, ranges: ranges.to_vec(), pods })))
    }

    pub fn update(&self, cluster: &Cluster) {
        let nodes = cluster.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
        let pods = cluster.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let pods = pods.filter(|pods| !known.ranges.iter().any(|range| range.contains(pods))).collect();
        known.nodes = nodes;
        known.pods = pods;
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    pub fn may_ask(&self, address: IpAddr) -> bool {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        within(&self.ranges) || self.nodes.contains(&address) || address.is_loopback() || within(&self.pods)
    }
}
