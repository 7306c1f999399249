//! Addresses on links: RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR.

use std::net::IpAddr;

use types::IpNet;

use super::{AF_UNSPEC, RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR, family, head};
use crate::message::{Message, Writer, flags, u32_at};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: a pod's address is usable at once (cni.md, IPv6).
const IFA_F_NODAD: u8 = 0x02;
const LENGTH: usize = 8; // struct ifaddrmsg

fn ifaddr(writer: &mut Writer, index: u32, address: IpNet) {
    let flags = if address.addr().is_ipv6() { IFA_F_NODAD } else { 0 };
    writer.raw(&[family(address.addr()), address.prefix_len(), flags, 0]);
    writer.raw(&index.to_ne_bytes());
    writer.ip(IFA_LOCAL, address.addr());
    writer.ip(IFA_ADDRESS, address.addr());
}

/// Adds it; the very same address that is there already is EEXIST.
pub fn add_address(writer: &mut Writer, seq: u32, index: u32, address: IpNet) {
    let flags = flags::CREATE | flags::EXCL | flags::ACK;
    writer.message(head(RTM_NEWADDR, flags, seq), |writer| ifaddr(writer, index, address));
}

pub fn delete_address(writer: &mut Writer, seq: u32, index: u32, address: IpNet) {
    writer.message(head(RTM_DELADDR, flags::ACK, seq), |writer| ifaddr(writer, index, address));
}

pub fn dump_addresses(writer: &mut Writer, seq: u32) {
    writer
        .message(head(RTM_GETADDR, flags::DUMP, seq), |writer| writer.raw(&[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0]));
}

/// An address as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRow {
    pub link: u32,
    pub address: IpNet,
}

impl AddressRow {
    /// fe80::/10, which the kernel gives to every link by itself.
    pub fn is_link_local_v6(&self) -> bool {
        matches!(self.address.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local())
    }
}

pub fn decode_address(message: &Message<'_>) -> Option<AddressRow> {
    let (fixed, attributes) = message.split(LENGTH)?;
    // On point-to-point links IFA_ADDRESS is the other end; IPv6 has only IFA_ADDRESS there.
    let ip = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?.ip()?;
    let address = IpNet::new(ip, *fixed.get(1)?).ok()?;
    Some(AddressRow { link: u32_at(fixed, 4)?, address })
}
