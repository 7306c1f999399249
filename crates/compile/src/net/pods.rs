//! What the node's own pods have in the fabric, pod by pod: one that comes or goes costs what it brings.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kstate::net::{BridgePort, Forward, Link, LinkKind, NetState, PortOptions, Touched};
use model::{Attachment, Cluster};
use types::wire::BRIDGE;
use types::{Family, IfName, Mac};

use super::{Wired, bridge_mac, device, link_local};
use semantics::Settings;

/// By container. A bridge has one entry for a MAC, and ADD gives none twice: of two that have the same the first has it.
pub type Pods = BTreeMap<String, Pod>;

/// What one attachment has in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    host_if: IfName,
    bridge: IfName,
    mac: Mac,
    /// Whether the MAC is nobody else's.
    alone: bool,
    mtu: u32,
    neighbours: Vec<IpAddr>,
}

/// Those of the whole node.
pub fn pods(cluster: &Cluster, settings: &Settings, own: &Wired) -> Pods {
    let mut pods = Pods::new();
    for (container, attachment) in &cluster.attachments {
        let pod = Pod::of((attachment, settings), own, pods.values());
        pods.extend(pod.map(|pod| (container.clone(), pod)));
    }
    pods
}

impl Pod {
    /// `others`: those that may have its MAC before it.
    pub fn of<'a>(
        (attachment, settings): (&Attachment, &Settings),
        own: &Wired,
        mut others: impl Iterator<Item = &'a Self>,
    ) -> Option<Self> {
        let mac = Some(attachment.mac);
        let taken = bridge_mac(own) == mac || others.any(|other| Some(other.mac) == mac);
        Some(Self {
            host_if: attachment.host_if.clone(),
            bridge: device(BRIDGE)?,
            mac: attachment.mac,
            alone: !taken,
            mtu: settings.mtu,
            neighbours: neighbours(attachment, own),
        })
    }

    pub fn insert(&self, state: &mut NetState) {
        let port = BridgePort::new(self.bridge.clone(), PortOptions::OF_POD);
        let link = Link { kind: LinkKind::Veth, mac: None, mtu: Some(self.mtu), up: true, port: Some(port) };
        state.links.insert(self.host_if.clone(), link);
        if self.alone {
            state.fdb.insert((self.host_if.clone(), self.mac), Forward::Port);
        }
        for ip in &self.neighbours {
            state.neighbours.insert((self.bridge.clone(), *ip), self.mac);
        }
    }

    pub fn remove(&self, state: &mut NetState) {
        state.links.remove(&self.host_if);
        state.fdb.remove(&(self.host_if.clone(), self.mac));
        for ip in &self.neighbours {
            state.neighbours.remove(&(self.bridge.clone(), *ip));
        }
    }

    /// What of the state it may have changed, beside its link.
    pub fn touch(&self, touched: &mut Touched) {
        touched.fdb.insert((self.host_if.clone(), self.mac));
        touched.neighbours.extend(self.neighbours.iter().map(|ip| (self.bridge.clone(), *ip)));
    }

    /// Whether the other wants a key of this one's.
    pub fn meets(&self, other: &Self) -> bool {
        (self.host_if == other.host_if || self.mac == other.mac)
            || self.neighbours.iter().any(|ip| other.neighbours.contains(ip))
    }
}

/// The addresses that a pod may have: the node never asks who has them, nor believes who says so. Of the families that
/// `cni0` has addresses of: the kernel takes no others.
fn neighbours(attachment: &Attachment, own: &Wired) -> Vec<IpAddr> {
    let served = |family| own.subnets.iter().any(|subnet| Family::of_net(&subnet.net) == family);
    let mut all: Vec<IpAddr> = attachment.ips.iter().copied().filter(|ip| served(Family::of(*ip))).collect();
    if all.iter().any(IpAddr::is_ipv6) {
        all.push(link_local(attachment.mac).into());
    }
    all
}
