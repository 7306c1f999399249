//! Neighbours (IP → MAC), forwarding entries of VXLAN devices (MAC → outer IP) and of ports of bridges: RTM_NEWNEIGH and
//! kin.

use std::net::IpAddr;

use kstate::net::Forward;
use types::Mac;

use super::{AF_BRIDGE, AF_UNSPEC, RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH, family, head};
use crate::message::{Message, Writer, flags, u16_at, u32_at};

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_MASTER: u16 = 9;
/// Of a bridge's entry: neither aged nor learned anew. Permanent ones are the bridge's own addresses.
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
/// The entry is the device's own (VXLAN), not that of the bridge it may be a port of.
const NTF_SELF: u8 = 0x02;
/// The entry is that of the bridge that the device is a port of.
const NTF_MASTER: u8 = 0x04;
const LENGTH: usize = 12; // struct ndmsg

fn ndmsg(writer: &mut Writer, family: u8, index: u32, (state, flags): (u16, u8)) {
    writer.raw(&[family, 0, 0, 0]);
    writer.raw(&index.to_ne_bytes());
    writer.raw(&state.to_ne_bytes());
    writer.raw(&[flags, 0]);
}

/// The state and flags of a forwarding entry.
fn of_fdb(to: Forward) -> (u16, u8) {
    match to {
        Forward::Node(_) => (NUD_PERMANENT, NTF_SELF),
        Forward::Port => (NUD_NOARP, NTF_MASTER),
    }
}

/// Adds a permanent neighbour or replaces what is there.
pub fn set_neighbour(writer: &mut Writer, seq: u32, index: u32, ip: IpAddr, mac: Mac) {
    let flags = flags::CREATE | flags::REPLACE | flags::ACK;
    writer.message(head(RTM_NEWNEIGH, flags, seq), |writer| {
        ndmsg(writer, family(ip), index, (NUD_PERMANENT, 0));
        writer.ip(NDA_DST, ip);
        writer.bytes(NDA_LLADDR, &mac.0);
    });
}

pub fn delete_neighbour(writer: &mut Writer, seq: u32, index: u32, ip: IpAddr) {
    writer.message(head(RTM_DELNEIGH, flags::ACK, seq), |writer| {
        ndmsg(writer, family(ip), index, (NUD_PERMANENT, 0));
        writer.ip(NDA_DST, ip);
    });
}

/// Frames for `mac` leave by the link `index`: a VXLAN device towards a node, or a port of a bridge. Replaces another
/// destination, and what the bridge has learned of this MAC.
pub fn set_fdb(writer: &mut Writer, seq: u32, index: u32, mac: Mac, to: Forward) {
    let flags = flags::CREATE | flags::REPLACE | flags::ACK;
    writer.message(head(RTM_NEWNEIGH, flags, seq), |writer| {
        ndmsg(writer, AF_BRIDGE, index, of_fdb(to));
        writer.bytes(NDA_LLADDR, &mac.0);
        if let Forward::Node(address) = to {
            writer.ip(NDA_DST, address);
        }
    });
}

/// Deletes the entry with all its destinations.
pub fn delete_fdb(writer: &mut Writer, seq: u32, index: u32, mac: Mac, to: Forward) {
    writer.message(head(RTM_DELNEIGH, flags::ACK, seq), |writer| {
        ndmsg(writer, AF_BRIDGE, index, of_fdb(to));
        writer.bytes(NDA_LLADDR, &mac.0);
    });
}

/// Asks for the neighbours on one link, of both families.
pub fn dump_neighbours(writer: &mut Writer, seq: u32, index: u32) {
    writer.message(head(RTM_GETNEIGH, flags::DUMP, seq), |writer| {
        writer.raw(&[AF_UNSPEC, 0, 0, 0]);
        writer.raw(&[0; 8]);
        writer.u32(NDA_IFINDEX, index);
    });
}

/// Asks for the forwarding entries of one link.
pub fn dump_fdb(writer: &mut Writer, seq: u32, index: u32) {
    writer.message(head(RTM_GETNEIGH, flags::DUMP, seq), |writer| {
        writer.raw(&[AF_BRIDGE, 0, 0, 0]);
        writer.raw(&index.to_ne_bytes());
        writer.raw(&[0; 4]);
    });
}

/// Asks for the forwarding entries of a bridge, at all its ports.
pub fn dump_bridge_fdb(writer: &mut Writer, seq: u32, bridge: u32) {
    writer.message(head(RTM_GETNEIGH, flags::DUMP, seq), |writer| {
        writer.raw(&[AF_BRIDGE, 0, 0, 0]);
        writer.raw(&[0; 8]);
        writer.u32(NDA_MASTER, bridge);
    });
}

/// A neighbour or forwarding entry as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourRow {
    /// Of a bridge's entry the port.
    pub link: u32,
    /// Of a forwarding entry the outer destination, if that is all there is: the kernel names the port, the network and the
    /// link only where they are not the device's own (vxlan_fdb_info), and we never set them.
    pub ip: Option<IpAddr>,
    pub mac: Option<Mac>,
    pub permanent: bool,
    /// A forwarding entry (AF_BRIDGE) of the device itself, or of a bridge.
    pub fdb: bool,
    /// A bridge's, of a port, and neither learned nor the bridge's own address.
    pub port: bool,
}

impl NeighbourRow {
    /// Where a static forwarding entry leads.
    pub fn forward(&self) -> Option<Forward> {
        match (self.port, self.ip) {
            (true, _) => Some(Forward::Port),
            (false, Some(address)) if self.fdb => Some(Forward::Node(address)),
            (false, _) => None,
        }
    }
}

pub fn decode_neighbour(message: &Message<'_>) -> Option<NeighbourRow> {
    let (fixed, attributes) = message.split(LENGTH)?;
    let (state, flags) = (u16_at(fixed, 8)?, *fixed.get(10)?);
    let fdb = fixed.first() == Some(&AF_BRIDGE);
    // The kernel names the bridge of such an entry; a request of ours, the device's master.
    let of_bridge = attributes.find(NDA_MASTER).is_some() || flags & NTF_MASTER != 0;
    let elsewhere =
        fdb && [NDA_PORT, NDA_VNI, NDA_IFINDEX].iter().any(|kind| attributes.find(*kind).is_some());
    Some(NeighbourRow {
        link: u32_at(fixed, 4)?,
        ip: attributes.find(NDA_DST).filter(|_| !elsewhere).and_then(|attribute| attribute.ip()),
        mac: attributes.find(NDA_LLADDR).and_then(|attribute| attribute.mac()),
        permanent: state & NUD_PERMANENT != 0,
        fdb,
        port: fdb && of_bridge && flags & NTF_SELF == 0 && state & NUD_NOARP != 0,
    })
}
