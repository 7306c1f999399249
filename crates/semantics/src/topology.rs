//! This node, the pods that are wired here, and its peers, as values. Each is made when it is asked for: a round that
//! concerns one of thousands looks at no other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Attachment, Cluster};
use types::{Family, IfName, IpNet, Mac};

use crate::Settings;
use crate::diagnostic::Diagnostic;
use crate::further::granted;
use crate::node::{Own, Peer, pod_subnets};

/// A node and what is around it at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Topology<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
}

/// A pod of this node, as it is attached. How is not said here: what is there for all pods at once can be there for one
/// wiring only, so the node's choice holds for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached<'a> {
    /// The node's end of its link.
    pub host_if: &'a IfName,
    pub mac: Mac,
    pub ips: &'a [IpAddr],
}

impl<'a> Attached<'a> {
    pub fn of(row: &'a Attachment) -> Self {
        Self { host_if: &row.host_if, mac: row.mac, ips: &row.ips }
    }
}

/// Which sources there are in one family, of all pods and of all peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// What pods of this node may send from beside their own addresses; no two overlap.
    pub further: Vec<IpNet>,
    /// Families, and lengths of the networks that pods of other nodes have. They are of any family: what is between nodes
    /// may carry the one in the other.
    pub elsewhere: BTreeSet<(Family, u8)>,
}

impl<'a> Topology<'a> {
    pub fn new(cluster: &'a Cluster, settings: &'a Settings) -> Self {
        Self { cluster, settings }
    }

    pub fn own(&self) -> (Option<Own>, Vec<Diagnostic>) {
        Own::of(self.cluster, self.settings)
    }

    /// By container.
    pub fn pods(&self) -> impl Iterator<Item = (&'a str, Attached<'a>)> {
        self.cluster.attachments.iter().map(|(container, row)| (container.as_str(), Attached::of(row)))
    }

    pub fn pod(&self, container: &str) -> Option<Attached<'a>> {
        self.cluster.attachments.get(container).map(|row| Attached::of(row))
    }

    /// Whether a pod of this node wants a port of it.
    pub fn has_host_ports(&self) -> bool {
        self.cluster.attachments.values().any(|row| !row.host_ports.is_empty())
    }

    /// By name.
    pub fn peers(&self) -> impl Iterator<Item = (&'a str, Peer)> {
        let own = &self.settings.node;
        let others = self.cluster.nodes.values().filter(move |node| node.name != *own);
        others.map(|node| (node.name.as_str(), Peer::of(node)))
    }

    /// `None` of this node itself.
    pub fn peer(&self, name: &str) -> Option<Peer> {
        self.cluster.nodes.get(name).filter(|node| node.name != self.settings.node).map(Peer::of)
    }

    pub fn sources(&self, family: Family) -> Sources {
        let of = |row: &'a Attachment| granted((self.cluster, self.settings), row, family);
        let further = self.cluster.attachments.values().flat_map(|row| of(row)).collect();
        let peers = self.cluster.nodes.values().filter(|node| node.name != self.settings.node);
        let nets = peers.flat_map(pod_subnets).map(|subnet| subnet.net);
        Sources {
            further: IpNet::aggregate(&further),
            elsewhere: nets.map(|net| (Family::of_net(&net), net.prefix_len())).collect(),
        }
    }
}
