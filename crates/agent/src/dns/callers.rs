//! Who may ask at a node's own address. That address can be reached from outside of the cluster, and whoever answers
//! strangers there is an amplifier for forged senders and a way to look names up that are nobody's business.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use model::Cluster;
use types::IpNet;

/// Addresses of nodes (the queries of their pods come masqueraded) and of pods.
#[derive(Clone, Debug, Default)]
pub struct Callers(Arc<RwLock<Known>>);

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Known {
    nodes: BTreeSet<IpAddr>,
    pods: Vec<IpNet>,
}

impl Callers {
    pub fn update(&self, cluster: &Cluster) {
        let known = Known {
            nodes: cluster.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
            pods: cluster.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied()).collect(),
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    pub fn may_ask(&self, address: IpAddr) -> bool {
        self.nodes.contains(&address) || self.pods.iter().any(|net| net.contains(&address))
    }
}
