//! Where the kernel would send a packet: RTM_GETROUTE for one destination.

use std::net::IpAddr;

use super::{RTM_GETROUTE, family, head};
use crate::message::{Message, Writer};

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const LENGTH: usize = 12; // struct rtmsg

/// A packet as far as routing looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub from: Option<IpAddr>,
    pub to: IpAddr,
    /// Index of the link that it comes by; `None`: the node itself sends it.
    pub iif: Option<u32>,
}

/// Asks as for a real packet, source check and forwarding of the link included: what would be dropped is refused with the
/// error that drops it (`inet_rtm_getroute`, net/ipv4/route.c).
pub fn get_route(writer: &mut Writer, seq: u32, lookup: &Lookup) {
    let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let from = lookup.from.map_or(0, whole);
    writer.message(head(RTM_GETROUTE, 0, seq), |writer| {
        writer.raw(&[family(lookup.to), whole(lookup.to), from, 0, 0, 0, 0, 0]);
        writer.raw(&[0; 4]);
        writer.ip(RTA_DST, lookup.to);
        if let Some(from) = lookup.from {
            writer.ip(RTA_SRC, from);
        }
        if let Some(iif) = lookup.iif {
            writer.u32(RTA_IIF, iif);
        }
    });
}

/// Where a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Index of the link.
    pub link: u32,
    /// The router, where there is one.
    pub via: Option<IpAddr>,
}

/// Of an answer to [`get_route`].
pub fn decode_way(message: &Message<'_>) -> Option<Way> {
    let (_, attributes) = message.split(LENGTH)?;
    let via = attributes.find(RTA_GATEWAY).and_then(|attribute| attribute.ip());
    Some(Way { link: attributes.find(RTA_OIF)?.u32()?, via })
}
