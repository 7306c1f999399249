//! Neighbours (IP → MAC) and forwarding entries of VXLAN devices (MAC → outer IP): RTM_NEWNEIGH and kin.

use std::net::IpAddr;

use types::Mac;

use super::{AF_BRIDGE, AF_UNSPEC, RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH, family, head};
use crate::message::{Message, Writer, flags, u16_at, u32_at};

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NUD_PERMANENT: u16 = 0x80;
/// The entry is the device's own (VXLAN), not that of the bridge it may be a port of.
const NTF_SELF: u8 = 0x02;
const LENGTH: usize = 12; // struct ndmsg

fn ndmsg(writer: &mut Writer, family: u8, index: u32, flags: u8) {
    writer.raw(&[family, 0, 0, 0]);
    writer.raw(&index.to_ne_bytes());
    writer.raw(&NUD_PERMANENT.to_ne_bytes());
    writer.raw(&[flags, 0]);
}

/// Adds a permanent neighbour or replaces what is there.
pub fn set_neighbour(writer: &mut Writer, seq: u32, index: u32, ip: IpAddr, mac: Mac) {
    let flags = flags::CREATE | flags::REPLACE | flags::ACK;
    writer.message(head(RTM_NEWNEIGH, flags, seq), |writer| {
        ndmsg(writer, family(ip), index, 0);
        writer.ip(NDA_DST, ip);
        writer.bytes(NDA_LLADDR, &mac.0);
    });
}

pub fn delete_neighbour(writer: &mut Writer, seq: u32, index: u32, ip: IpAddr) {
    writer.message(head(RTM_DELNEIGH, flags::ACK, seq), |writer| {
        ndmsg(writer, family(ip), index, 0);
        writer.ip(NDA_DST, ip);
    });
}

/// Frames for `mac` leave the VXLAN device `index` towards the node `dst`; replaces another destination.
pub fn set_fdb(writer: &mut Writer, seq: u32, index: u32, mac: Mac, dst: IpAddr) {
    let flags = flags::CREATE | flags::REPLACE | flags::ACK;
    writer.message(head(RTM_NEWNEIGH, flags, seq), |writer| {
        ndmsg(writer, AF_BRIDGE, index, NTF_SELF);
        writer.bytes(NDA_LLADDR, &mac.0);
        writer.ip(NDA_DST, dst);
    });
}

/// Deletes the entry with all its destinations.
pub fn delete_fdb(writer: &mut Writer, seq: u32, index: u32, mac: Mac) {
    writer.message(head(RTM_DELNEIGH, flags::ACK, seq), |writer| {
        ndmsg(writer, AF_BRIDGE, index, NTF_SELF);
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

/// A neighbour or forwarding entry as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourRow {
    pub link: u32,
    /// Of a forwarding entry the outer destination.
    pub ip: Option<IpAddr>,
    pub mac: Option<Mac>,
    pub permanent: bool,
    /// A forwarding entry (AF_BRIDGE) of the device itself.
    pub fdb: bool,
}

pub fn decode_neighbour(message: &Message<'_>) -> Option<NeighbourRow> {
    let (fixed, attributes) = message.split(LENGTH)?;
    Some(NeighbourRow {
        link: u32_at(fixed, 4)?,
        ip: attributes.find(NDA_DST).and_then(|attribute| attribute.ip()),
        mac: attributes.find(NDA_LLADDR).and_then(|attribute| attribute.mac()),
        permanent: u16_at(fixed, 8)? & NUD_PERMANENT != 0,
        fdb: fixed.first() == Some(&AF_BRIDGE),
    })
}
