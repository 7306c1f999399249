//! Links, addresses, routes and tunnel entries of one node.
//!
//! ```text
//!   pod eth0 10.244.1.4/32 ── veth ──(isolated port)── cni0 10.244.1.1/24
//!                                                        │ routed, so every packet meets the IP hooks
//!   10.244.2.0/24 via 10.244.2.0 onlink ── plumb.1 10.244.1.0/32 ── VXLAN ── 192.168.1.11
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use kstate::net::{BridgePort, Link, LinkKind, NetState, Route, RouteKey, RouteKind};
use model::{Cluster, Key, Kind, Node};
use types::wire::{BRIDGE, VXLAN_DEVICE, VXLAN_PORT, VXLAN_VNI};
use types::{IfName, IpNet, Ipv4Net, Mac, ObjectName, Vni, hash8};

use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};

/// The kernel's main routing table (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;

/// The VTEP's hardware address: the same after every restart, so that peers' entries stay right. Locally
/// administered, and apart from pod addresses, which begin with 0a:58.
pub fn vtep_mac(node: &str) -> Mac {
    let hash = hash8(node);
    let byte = |at: usize| {
        hash.get(at * 2..at * 2 + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or_default()
    };
    Mac([0x0e, 0x70, byte(0), byte(1), byte(2), byte(3)])
}

/// The hardware address that goes with an IPv4 address: `0a:58` and its bytes, as the bridge plugin has it.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x0a, 0x58, a, b, c, d])
}

/// The addresses that a node derives from its pod CIDR: the VTEP has the first, the pods' gateway the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSubnet {
    pub net: Ipv4Net,
    pub vtep: Ipv4Addr,
    pub gateway: Ipv4Addr,
}

/// The first IPv4 pod CIDR of a node, when it has one that can hold a pod.
pub fn pod_subnet(node: &Node) -> Option<PodSubnet> {
    let net = node.pod_cidrs.iter().find_map(|cidr| match cidr {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    })?;
    let vtep = net.network();
    let gateway = Ipv4Addr::from(u32::from(vtep).checked_add(1)?);
    (net.prefix_len() <= 29).then_some(PodSubnet { net, vtep, gateway })
}

/// The node's first IPv4 InternalIP.
pub fn underlay_ip(node: &Node) -> Option<Ipv4Addr> {
    node.addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    })
}

fn device(name: &str) -> Option<IfName> {
    IfName::new(name).ok()
}

fn host_net(address: Ipv4Addr) -> IpNet {
    IpNet::from(IpAddr::V4(address))
}

/// Everything rtnetlink should say on this node, and what is wrong with the nodes it was made from.
pub fn net_state(cluster: &Cluster, settings: &Settings) -> (NetState, Vec<Diagnostic>) {
    let mut state = NetState { sysctls: sysctls(), ..NetState::default() };
    let mut diagnostics = Vec::new();
    let (Some(bridge), Some(vxlan), Some(lo)) = (device(BRIDGE), device(VXLAN_DEVICE), device("lo")) else {
        return (state, diagnostics);
    };
    if let Some(dns @ IpAddr::V4(_)) = settings.dns_ip {
        state.addresses.insert((lo, IpNet::from(dns)));
    }
    let own = cluster.nodes.get(&settings.node);
    let Some((subnet, local)) = own.and_then(|node| pod_subnet(node).zip(underlay_ip(node))) else {
        diagnostics.push(incomplete(
            &settings.node,
            "it has no IPv4 pod CIDR of at least /29 or no IPv4 InternalIP; no pod can be wired here",
        ));
        return (state, diagnostics);
    };
    let link = |kind, mac, port| Link { kind, mac, mtu: Some(settings.mtu), up: true, port };
    state.links.insert(bridge.clone(), link(LinkKind::Bridge, Some(mac_of(subnet.gateway)), None));
    let kind = LinkKind::Vxlan { vni: Vni(VXLAN_VNI), local: local.into(), port: VXLAN_PORT };
    state.links.insert(vxlan.clone(), link(kind, Some(vtep_mac(&settings.node)), None));
    let gateway = Ipv4Net::new(subnet.gateway, subnet.net.prefix_len()).unwrap_or(subnet.net);
    state.addresses.insert((bridge.clone(), gateway.into()));
    state.addresses.insert((vxlan.clone(), host_net(subnet.vtep)));
    for attachment in cluster.attachments.values() {
        let port = BridgePort { bridge: bridge.clone(), isolated: true };
        state.links.insert(attachment.host_if.clone(), link(LinkKind::Veth, None, Some(port)));
    }
    for peer in cluster.nodes.values().filter(|node| node.name != settings.node) {
        diagnostics.extend(add_peer(&mut state, &vxlan, peer));
    }
    (state, diagnostics)
}

/// What a peer needs: a neighbour, a forwarding entry and a route, in the order of FL-05.
fn add_peer(state: &mut NetState, vxlan: &IfName, peer: &Node) -> Option<Diagnostic> {
    let Some((subnet, underlay)) = pod_subnet(peer).zip(underlay_ip(peer)) else {
        return Some(incomplete(
            &peer.name,
            "it has no IPv4 pod CIDR or InternalIP yet; its pods are out of reach",
        ));
    };
    let Some(mac) = peer.vtep_mac else {
        return Some(incomplete(
            &peer.name,
            "its agent has not published a VTEP address; its pods are out of reach",
        ));
    };
    state.neighbours.insert((vxlan.clone(), subnet.vtep.into()), mac);
    state.fdb.insert((vxlan.clone(), mac), underlay.into());
    let route = Route {
        dev: Some(vxlan.clone()),
        via: Some(subnet.vtep.into()),
        onlink: true,
        src: None,
        kind: RouteKind::Unicast,
    };
    state.routes.insert(RouteKey { dst: subnet.net.into(), table: MAIN_TABLE }, route);
    None
}

fn incomplete(node: &str, message: &str) -> Diagnostic {
    Diagnostic {
        object: Key::new(Kind::Node, ObjectName::cluster(node)),
        field: "spec.podCIDRs, status.addresses, metadata.annotations".to_owned(),
        severity: Severity::Warning,
        message: message.to_owned(),
        next_step: "check that the node's agent and the node CIDR controller run".to_owned(),
    }
}

/// `send_redirects` counts where either `all` or the interface says 1 (IN_DEV_TX_REDIRECTS, linux/inetdevice.h):
/// a pod must not be told to reach its neighbour on the bridge directly, which isolation forbids.
fn sysctls() -> BTreeMap<String, String> {
    [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/cni0/send_redirects", "0"),
    ]
    .into_iter()
    .map(|(path, value)| (path.to_owned(), value.to_owned()))
    .collect()
}
