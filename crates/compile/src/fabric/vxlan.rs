//! In UDP from node to node (RFC 7348), by one device that is told of every peer and learns nothing.
//!
//! ```text
//!   10.244.2.0/24 via 10.244.2.0 onlink ── plumb.1 10.244.1.0/32 ── VXLAN ── 192.168.1.11
//!   route ─> neighbour: the VTEP's hardware address ─> forwarding entry: the node
//! ```
//!
//! IPv6 is the same beside it (VTEP ::), through the same device.

pub mod guard;

use std::net::IpAddr;

use kstate::net::{Forward, Link, LinkKind, NetState, Route, RouteKey, RouteKind};
use semantics::Settings;
use semantics::node::{Announced, Own, Peer};
use semantics::topology::Sources;
use types::wire::{VXLAN_DEVICE, VXLAN_PORT, VXLAN_VNI};
use types::{Family, IfName, IpNet, Mac, Vni};

use super::{Clash, Fabric, Guarding, OwnChain};
use crate::fragment::Fragment;
use crate::net::entry::Entry;
use crate::net::{MAIN_TABLE, hash_bytes};
use crate::role::Role;

pub struct Vxlan;

/// The VTEP's hardware address: the same after every restart, so that peers' entries stay right. Locally
/// administered, and apart from pod addresses, which begin with 0a:58.
pub fn vtep_mac(node: &str) -> Mac {
    let [a, b, c, d] = hash_bytes(node);
    Mac([0x0e, 0x70, a, b, c, d])
}

fn device() -> Option<IfName> {
    IfName::new(VXLAN_DEVICE).ok()
}

impl Fabric for Vxlan {
    fn device(&self) -> Option<&'static str> {
        Some(VXLAN_DEVICE)
    }

    fn leads(&self, _: &Settings) -> Vec<IfName> {
        device().into_iter().collect()
    }

    fn own(&self, own: &Own, settings: &Settings) -> NetState {
        let mut state = NetState::default();
        let Some(vxlan) = device() else { return state };
        let kind = LinkKind::Vxlan { vni: Vni(VXLAN_VNI), local: own.underlay, port: VXLAN_PORT };
        let mac = Some(vtep_mac(&settings.node));
        let link = Link { kind, mac, mtu: Some(settings.mtu), up: true, port: None };
        state.links.insert(vxlan.clone(), link);
        let addresses = own.subnets.iter().map(|subnet| (vxlan.clone(), IpNet::from(subnet.fabric)));
        state.addresses.extend(addresses);
        state
    }

    fn sysctls(&self, family: Family) -> &'static [(&'static str, &'static str)] {
        match family {
            Family::V4 => &[("net/ipv4/conf/plumb.1/forwarding", "1")],
            Family::V6 => &[
                ("net/ipv6/conf/plumb.1/disable_ipv6", "0"),
                ("net/ipv6/conf/plumb.1/accept_ra", "0"),
                ("net/ipv6/conf/plumb.1/accept_dad", "0"),
            ],
        }
    }

    fn port(&self) -> Option<u16> {
        Some(VXLAN_PORT)
    }

    /// Inner Ethernet 14, IPv4 20 or IPv6 40, UDP 8, VXLAN 8 (RFC 7348 §5).
    fn overhead(&self, underlay: IpAddr) -> u32 {
        match Family::of(underlay) {
            Family::V4 => 50,
            Family::V6 => 70,
        }
    }

    fn announces(&self, node: &str) -> Announced {
        Announced { vtep_mac: Some(vtep_mac(node)) }
    }

    fn lacks(&self, _: &Own, peer: &Peer) -> Option<&'static str> {
        peer.announced.vtep_mac.is_none().then_some("its agent has not published a VTEP address")
    }

    fn entries(&self, own: &Own, peer: &Peer) -> Vec<Entry> {
        let Some((vxlan, mac)) = device().zip(peer.announced.vtep_mac) else { return Vec::new() };
        let Some(underlay) = peer.underlay(own) else { return Vec::new() };
        let mut entries = vec![Entry::Forward((vxlan.clone(), mac), Forward::Node(underlay))];
        for subnet in peer.subnets() {
            let route = Route {
                dev: Some(vxlan.clone()),
                via: Some(subnet.fabric),
                onlink: true,
                src: None,
                kind: RouteKind::Unicast,
            };
            entries.push(Entry::Neighbour((vxlan.clone(), subnet.fabric), mac));
            entries.push(Entry::Route(RouteKey { dst: subnet.net, table: MAIN_TABLE }, route));
        }
        entries
    }

    fn clash(&self, (name, peer): (&str, &Announced), (rival, other): (&str, &Announced)) -> Option<Clash> {
        let mac = peer.vtep_mac.filter(|mac| other.vtep_mac == Some(*mac))?;
        Some(Clash {
            message: format!("its VTEP has the hardware address of node {rival}'s, {mac}"),
            next_step: format!(
                "the address is a hash of a node's name: let {name} or {rival} join by another"
            ),
        })
    }

    fn guard(&self, sources: &Sources, settings: &Settings, family: Family) -> Guarding {
        guard::guarding(sources, settings, family)
    }

    fn guard_peer(&self, fragment: &mut Fragment, peer: &Peer, family: Family) {
        guard::peer(fragment, peer, family);
    }

    fn chains(&self) -> &'static [OwnChain] {
        guard::CHAINS
    }

    fn set_role(&self, name: &str) -> Option<Role> {
        name.starts_with(guard::INSIDE).then_some(Role::Stranger)
    }
}
