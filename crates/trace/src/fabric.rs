//! What a packet to another node's pod should meet between the nodes: a row for each fabric. This is what `compile` is
//! judged by, so it is said here again.

use std::net::IpAddr;

use kstate::net::{LinkKind, NetState};
use model::Node;
use types::wire::{VXLAN_DEVICE, VXLAN_PORT};
use types::{Family, IfName};

use crate::eval::Exit;
use crate::hop::Fact;
use crate::reference::internal_ip;

/// What is around a packet on the wire, by the desired state or else the peer's Node.
pub type Wrapped = fn(&NetState, &Exit, Option<&Node>) -> Option<Fact>;

/// What is expected of one fabric.
#[derive(Debug)]
pub struct Fabric {
    /// The link by which packets leave to other nodes' pods and come from them. `None`: an uplink.
    pub device: Option<&'static str>,
    /// The UDP port that nodes alone are heard at.
    pub port: Option<u16>,
    /// Why a source that is no pod leaves as this node's own; `None`: its answers come back by themselves.
    pub hides_strangers: Option<&'static str>,
    /// Whether a node has said all that others need to reach it.
    pub is_told_of: fn(&Node) -> bool,
    /// `None`: packets are on the wire as they are.
    pub wrapped: Option<Wrapped>,
}

pub fn of(choice: types::Fabric) -> &'static Fabric {
    match choice {
        types::Fabric::Vxlan => &VXLAN,
    }
}

/// In UDP from node to node (RFC 7348).
static VXLAN: Fabric = Fabric {
    device: Some(VXLAN_DEVICE),
    port: Some(VXLAN_PORT),
    hides_strangers: Some("the source is not a pod, and the answer must come back through the tunnel"),
    is_told_of: |node| node.announced.vtep_mac.is_some(),
    wrapped: Some(in_vxlan),
};

/// Links of all fabrics: who compares what several nodes saw does not know which each of them has.
pub fn devices() -> impl Iterator<Item = &'static str> {
    types::Fabric::ALL.iter().filter_map(|choice| of(*choice).device)
}

/// In place of the name of an uplink, which the model does not know.
const UPLINK: &str = "uplink";

impl Fabric {
    pub fn is_device(&self, link: &IfName) -> bool {
        self.device == Some(link.as_str())
    }

    /// Whether what leaves like this goes to the peer, and as the fabric has it.
    pub fn leads(&self, exit: &Exit, peer: &Node) -> bool {
        match self.device {
            Some(_) => exit.dev.as_ref().is_some_and(|dev| self.is_device(dev)),
            None => exit.via.is_some_and(|via| peer.addresses.contains(&via)),
        }
    }

    /// The link of its own.
    pub fn link(&self) -> Option<IfName> {
        self.device.and_then(|device| IfName::new(device).ok())
    }

    /// Where packets come in from other nodes.
    pub fn comes_by(&self) -> Option<IfName> {
        self.link().or_else(|| IfName::new(UPLINK).ok())
    }

    /// This node's own address on the link of the fabric.
    pub fn own_address(&self, net: &NetState, family: Family) -> Option<IpAddr> {
        let mut of_device = net.addresses.iter().filter(|(link, _)| self.is_device(link));
        of_device.find(|(_, net)| Family::of_net(net) == family).map(|(_, net)| net.addr())
    }
}

fn in_vxlan(net: &NetState, exit: &Exit, peer: Option<&Node>) -> Option<Fact> {
    let dev = exit.dev.clone()?;
    let LinkKind::Vxlan { vni, local, port } = net.links.get(&dev)?.kind.clone() else { return None };
    let mac = net.neighbours.get(&(dev.clone(), exit.via?)).copied();
    let outer = mac.and_then(|mac| net.fdb.get(&(dev.clone(), mac))?.node());
    Some(Fact::Tunnel {
        dev,
        vni: vni.0,
        outer_source: local,
        outer_destination: outer.or_else(|| internal_ip(peer?, Family::of(local)))?,
        outer_port: port,
        inner_mac: mac,
        // Ethernet 14, IPv4 20 or IPv6 40, UDP 8, VXLAN 8 (RFC 7348 §5).
        extra_bytes: if local.is_ipv4() { 50 } else { 70 },
    })
}
