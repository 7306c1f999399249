//! Links: RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK.

use std::net::IpAddr;

use kstate::net::{Link, LinkKind, PortOptions};
use types::{IfName, Mac, Vni};

use super::{AF_BRIDGE, AF_UNSPEC, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, head};
use crate::message::{Attributes, Message, Writer, flags, u32_at};

const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_FLUSH: u16 = 24;
const IFLA_BRPORT_GROUP_FWD_MASK: u16 = 31;
/// The options that are a byte, 0 or 1.
const PORT_OPTIONS: [(PortOptions, u16); 6] = [
    (PortOptions::LEARNING, 8),
    (PortOptions::FLOOD, 9),
    (PortOptions::MCAST_FLOOD, 27),
    (PortOptions::BCAST_FLOOD, 30),
    (PortOptions::ISOLATED, 33),
    (PortOptions::LOCKED, 39),
];
/// All of 01:80:c2:00:00:00 to …0f but …01: pause frames are dropped anyway, and the kernel refuses the bit
/// (BR_GROUPFWD_MACPAUSE).
const GROUP_FWD_ALL: u16 = 0xfffd;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const VETH_INFO_PEER: u16 = 1;
const LENGTH: usize = 16; // struct ifinfomsg

/// `struct ifinfomsg`; `up`: `None` leaves the flag alone.
fn ifinfo(writer: &mut Writer, family: u8, index: u32, up: Option<bool>) {
    writer.raw(&[family, 0, 0, 0]);
    writer.raw(&index.to_ne_bytes());
    writer.raw(&u32::from(up == Some(true)).to_ne_bytes());
    writer.raw(&(if up.is_some() { IFF_UP } else { 0 }).to_ne_bytes());
}

/// Makes a bridge or VXLAN device. A veth pair needs more: [`add_pod_pair`].
pub fn add_link(writer: &mut Writer, seq: u32, name: &IfName, link: &Link, master: Option<u32>) {
    let flags = flags::CREATE | flags::EXCL | flags::ACK;
    writer.message(head(RTM_NEWLINK, flags, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, Some(link.up));
        writer.text(IFLA_IFNAME, name.as_str());
        attributes_of(writer, link.mac, link.mtu, master);
        writer.nest(IFLA_LINKINFO, |writer| kind_info(writer, &link.kind));
    });
}

fn attributes_of(writer: &mut Writer, mac: Option<Mac>, mtu: Option<u32>, master: Option<u32>) {
    if let Some(mac) = mac {
        writer.bytes(IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = mtu {
        writer.u32(IFLA_MTU, mtu);
    }
    if let Some(master) = master {
        writer.u32(IFLA_MASTER, master);
    }
}

fn kind_info(writer: &mut Writer, kind: &LinkKind) {
    match kind {
        LinkKind::Bridge => writer.text(IFLA_INFO_KIND, "bridge"),
        LinkKind::Veth => writer.text(IFLA_INFO_KIND, "veth"),
        LinkKind::Vxlan { vni, local, port } => {
            writer.text(IFLA_INFO_KIND, "vxlan");
            writer.nest(IFLA_INFO_DATA, |writer| {
                writer.u32(IFLA_VXLAN_ID, vni.0);
                let local_kind = if local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
                writer.ip(local_kind, *local);
                writer.u8(IFLA_VXLAN_LEARNING, 0);
                writer.be16(IFLA_VXLAN_PORT, *port);
            });
        }
    }
}

/// A veth pair whose peer is born in another network namespace. The peer cannot be born up (ENOTCONN).
#[derive(Clone, Copy, Debug)]
pub struct PodPair<'a> {
    pub host: &'a IfName,
    pub host_mac: Option<Mac>,
    pub peer: &'a IfName,
    pub peer_mac: Option<Mac>,
    /// An open namespace file, or `None` for a pair within one namespace.
    pub peer_netns: Option<i32>,
    pub mtu: Option<u32>,
    /// Index of the bridge that the host side becomes a port of.
    pub master: Option<u32>,
    /// Link group of the host side (0: the default group).
    pub group: u32,
}

/// Makes the pair, its host side up.
pub fn add_pod_pair(writer: &mut Writer, seq: u32, pair: &PodPair<'_>) {
    let flags = flags::CREATE | flags::EXCL | flags::ACK;
    writer.message(head(RTM_NEWLINK, flags, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, Some(true));
        writer.text(IFLA_IFNAME, pair.host.as_str());
        attributes_of(writer, pair.host_mac, pair.mtu, pair.master);
        if pair.group != 0 {
            writer.u32(IFLA_GROUP, pair.group);
        }
        writer.nest(IFLA_LINKINFO, |writer| {
            writer.text(IFLA_INFO_KIND, "veth");
            writer.nest(IFLA_INFO_DATA, |writer| {
                writer.nest(VETH_INFO_PEER, |writer| {
                    ifinfo(writer, AF_UNSPEC, 0, None);
                    writer.text(IFLA_IFNAME, pair.peer.as_str());
                    attributes_of(writer, pair.peer_mac, pair.mtu, None);
                    if let Some(fd) = pair.peer_netns {
                        writer.bytes(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                    }
                });
            });
        });
    });
}

/// Sets what can change: MAC, MTU, up, master (`Some(0)` takes it out of its bridge).
pub fn change_link(writer: &mut Writer, seq: u32, index: u32, link: &Link, master: Option<u32>) {
    writer.message(head(RTM_NEWLINK, flags::ACK, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, index, Some(link.up));
        attributes_of(writer, link.mac, link.mtu, master);
    });
}

/// Sets how a link is a port of its bridge, by the link's name: it may have been made in the same batch. What the port
/// has learned goes where it is to learn no more. A kernel passes over options that it does not have.
pub fn set_port(writer: &mut Writer, seq: u32, name: &IfName, options: PortOptions) {
    writer.message(head(RTM_NEWLINK, flags::ACK, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, None);
        writer.text(IFLA_IFNAME, name.as_str());
        writer.nest(IFLA_LINKINFO, |writer| {
            writer.text(IFLA_INFO_SLAVE_KIND, "bridge");
            writer.nest(IFLA_INFO_SLAVE_DATA, |writer| {
                for (option, kind) in PORT_OPTIONS {
                    writer.u8(kind, options.has(option).into());
                }
                let groups = if options.has(PortOptions::GROUP_FWD) { GROUP_FWD_ALL } else { 0 };
                writer.u16(IFLA_BRPORT_GROUP_FWD_MASK, groups);
                if !options.has(PortOptions::LEARNING) {
                    writer.flag(IFLA_BRPORT_FLUSH);
                }
            });
        });
    });
}

pub fn set_up(writer: &mut Writer, seq: u32, index: u32, up: bool) {
    writer.message(head(RTM_NEWLINK, flags::ACK, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, index, Some(up));
    });
}

/// Moves a link, by name, to a link group: groups are deleted at one RCU grace period for all.
pub fn set_group(writer: &mut Writer, seq: u32, name: &IfName, group: u32) {
    writer.message(head(RTM_NEWLINK, flags::ACK, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, None);
        writer.text(IFLA_IFNAME, name.as_str());
        writer.u32(IFLA_GROUP, group);
    });
}

pub fn delete_link(writer: &mut Writer, seq: u32, name: &IfName) {
    writer.message(head(RTM_DELLINK, flags::ACK, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, None);
        writer.text(IFLA_IFNAME, name.as_str());
    });
}

/// Deletes every link of the group at once.
pub fn delete_group(writer: &mut Writer, seq: u32, group: u32) {
    writer.message(head(RTM_DELLINK, flags::ACK, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, None);
        writer.u32(IFLA_GROUP, group);
    });
}

/// Asks for all links, without their counters: those are most of the answer and its cost.
pub fn dump_links(writer: &mut Writer, seq: u32) {
    writer.message(head(RTM_GETLINK, flags::DUMP, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, None);
        writer.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
}

pub fn get_link(writer: &mut Writer, seq: u32, name: &IfName) {
    writer.message(head(RTM_GETLINK, 0, seq), |writer| {
        ifinfo(writer, AF_UNSPEC, 0, None);
        writer.text(IFLA_IFNAME, name.as_str());
    });
}

/// A link as the kernel describes it, any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRow {
    pub index: u32,
    pub name: IfName,
    /// `bridge`, `vxlan`, `veth` …; empty for hardware and `lo`.
    pub kind: String,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub up: bool,
    /// Something answers at the other end of the cable.
    pub carrier: bool,
    /// Index of the bridge (or other upper device).
    pub master: Option<u32>,
    /// Index of the peer of a veth, in the namespace `peer_netns`.
    pub peer: Option<u32>,
    pub peer_netns: Option<i32>,
    pub group: u32,
    pub vxlan: Option<(Vni, Option<IpAddr>, u16)>,
    /// Of a port of a bridge: what is on, and what this kernel does not tell of.
    pub port: Option<(PortOptions, PortOptions)>,
    /// A notice of the bridge about a port (AF_BRIDGE), which has no link info.
    pub of_bridge: bool,
}

impl LinkRow {
    /// The kind in our words, for the kinds that we make.
    pub fn link_kind(&self) -> Option<LinkKind> {
        match (self.kind.as_str(), self.vxlan) {
            ("bridge", _) => Some(LinkKind::Bridge),
            ("veth", _) => Some(LinkKind::Veth),
            ("vxlan", Some((vni, Some(local), port))) => Some(LinkKind::Vxlan { vni, local, port }),
            _ => None,
        }
    }
}

pub fn decode_link(message: &Message<'_>) -> Option<LinkRow> {
    let (fixed, attributes) = message.split(LENGTH)?;
    let text = |kind| attributes.find(kind).and_then(|attribute| attribute.text());
    let number = |kind| attributes.find(kind).and_then(|attribute| attribute.u32());
    let mut row = LinkRow {
        index: u32_at(fixed, 4)?,
        name: IfName::new(text(IFLA_IFNAME)?).ok()?,
        kind: String::new(),
        mac: attributes.find(IFLA_ADDRESS).and_then(|attribute| attribute.mac()),
        mtu: number(IFLA_MTU),
        up: u32_at(fixed, 8)? & IFF_UP != 0,
        carrier: u32_at(fixed, 8)? & IFF_LOWER_UP != 0,
        master: number(IFLA_MASTER).filter(|index| *index != 0),
        peer: number(IFLA_LINK).filter(|index| *index != 0),
        peer_netns: number(IFLA_LINK_NETNSID).map(|id| i32::from_ne_bytes(id.to_ne_bytes())),
        group: number(IFLA_GROUP).unwrap_or(0),
        vxlan: None,
        port: None,
        of_bridge: fixed.first() == Some(&AF_BRIDGE),
    };
    if let Some(info) = attributes.find(IFLA_LINKINFO) {
        decode_info(&mut row, &info.nested());
    }
    if let Some(port) = attributes.find(IFLA_PROTINFO).filter(|_| row.of_bridge) {
        row.port = Some(decode_port(&port.nested()));
    }
    Some(row)
}

fn decode_info(row: &mut LinkRow, info: &Attributes<'_>) {
    if let Some(kind) = info.find(IFLA_INFO_KIND).and_then(|attribute| attribute.text()) {
        row.kind = kind.to_owned();
    }
    if row.kind == "vxlan"
        && let Some(data) = info.find(IFLA_INFO_DATA).map(|attribute| attribute.nested())
    {
        let local = data.find(IFLA_VXLAN_LOCAL).or_else(|| data.find(IFLA_VXLAN_LOCAL6));
        let vni = data.find(IFLA_VXLAN_ID).and_then(|attribute| attribute.u32()).unwrap_or(0);
        let port = data.find(IFLA_VXLAN_PORT).and_then(|attribute| attribute.be16()).unwrap_or(0);
        row.vxlan = Some((Vni(vni), local.and_then(|attribute| attribute.ip()), port));
    }
    let of_bridge = info.find(IFLA_INFO_SLAVE_KIND).and_then(|attribute| attribute.text()) == Some("bridge");
    if let Some(port) = info.find(IFLA_INFO_SLAVE_DATA).filter(|_| of_bridge) {
        row.port = Some(decode_port(&port.nested()));
    }
}

fn decode_port(port: &Attributes<'_>) -> (PortOptions, PortOptions) {
    let (mut options, mut unknown) = (PortOptions::default(), PortOptions::default());
    for (option, kind) in PORT_OPTIONS {
        match port.find(kind).and_then(|attribute| attribute.u8()) {
            None => unknown = unknown.and(option),
            Some(0) => {}
            Some(_) => options = options.and(option),
        }
    }
    match port.find(IFLA_BRPORT_GROUP_FWD_MASK).and_then(|attribute| attribute.u16()) {
        None => unknown = unknown.and(PortOptions::GROUP_FWD),
        Some(GROUP_FWD_ALL) => options = options.and(PortOptions::GROUP_FWD),
        Some(_) => {}
    }
    (options, unknown)
}
