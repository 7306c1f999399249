//! Routes: RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE.

use std::net::IpAddr;

use kstate::net::{ROUTE_PROTOCOL, Route, RouteKey, RouteKind};
use types::{IfName, IpNet};

use super::{AF_INET6, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE, family, head};
use crate::message::{Message, Writer, flags, u32_at};

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTNH_F_ONLINK: u32 = 4;
pub const RT_TABLE_LOCAL: u32 = 255;
/// The metric of the kernel's own routes (include/net/ip6_route.h).
const IP6_RT_PRIO_ADDRCONF: u32 = 256;
const RTM_F_CLONED: u32 = 0x200;
/// Of routes that the kernel makes with an address.
pub const RTPROT_KERNEL: u8 = 2;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
/// The kinds that we never make, with iproute2's words (include/uapi/linux/rtnetlink.h).
const OTHER_KINDS: [(u8, &str); 8] = [
    (2, "local"),
    (3, "broadcast"),
    (4, "anycast"),
    (5, "multicast"),
    (6, "blackhole"),
    (8, "prohibit"),
    (9, "throw"),
    (10, "nat"),
];
/// These have no link of their own: IPv6 hangs them on `lo`, IPv4 on nothing.
const NOWHERE: [u8; 4] = [6, RTN_UNREACHABLE, 8, 9];
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;
const LENGTH: usize = 12; // struct rtmsg

/// Adds the route or replaces the one at its key (destination and table, metric 0), whoever made that.
/// `index`: of the route's device.
pub fn set_route(writer: &mut Writer, seq: u32, key: &RouteKey, route: &Route, index: Option<u32>) {
    let flags = flags::CREATE | flags::REPLACE | flags::ACK;
    write_route(writer, (flags, seq), key, route, (index, ROUTE_PROTOCOL));
}

/// Adds a route as an administrator would (`proto static`): no agent takes it for its own and removes it.
/// One that is there already is EEXIST.
pub fn add_route(writer: &mut Writer, seq: u32, key: &RouteKey, route: &Route, index: Option<u32>) {
    let flags = flags::CREATE | flags::EXCL | flags::ACK;
    write_route(writer, (flags, seq), key, route, (index, RTPROT_STATIC));
}

/// As [`add_route`], but replaces one that is there.
pub fn add_static_route(writer: &mut Writer, seq: u32, key: &RouteKey, route: &Route, index: Option<u32>) {
    let flags = flags::CREATE | flags::REPLACE | flags::ACK;
    write_route(writer, (flags, seq), key, route, (index, RTPROT_STATIC));
}

/// The route to the network of an address on a link, as the kernel makes it with the address, in place of what is there.
pub fn set_subnet_route(writer: &mut Writer, seq: u32, index: u32, address: IpNet) {
    let flags = flags::CREATE | flags::REPLACE | flags::ACK;
    let key = RouteKey { dst: address.trunc(), table: RouteKey::MAIN };
    // The kernel's own of IPv6 prefers no source.
    let src = Some(address.addr()).filter(IpAddr::is_ipv4);
    let route = Route { dev: None, via: None, onlink: false, src, kind: RouteKind::Unicast };
    write_route(writer, (flags, seq), &key, &route, (Some(index), RTPROT_KERNEL));
}

fn write_route(
    writer: &mut Writer,
    (flags, seq): (u16, u32),
    key: &RouteKey,
    route: &Route,
    (index, protocol): (Option<u32>, u8),
) {
    let (kind, scope) = match (route.kind, route.via) {
        (RouteKind::Unreachable, _) => (RTN_UNREACHABLE, SCOPE_UNIVERSE),
        (RouteKind::Unicast, None) => (RTN_UNICAST, SCOPE_LINK),
        (RouteKind::Unicast, Some(_)) => (RTN_UNICAST, SCOPE_UNIVERSE),
    };
    writer.message(head(RTM_NEWROUTE, flags, seq), |writer| {
        let nexthop_flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
        rtmsg(writer, key, [protocol, scope, kind], nexthop_flags);
        if let Some(via) = route.via {
            writer.ip(RTA_GATEWAY, via);
        }
        if let Some(src) = route.src {
            writer.ip(RTA_PREFSRC, src);
        }
        if protocol == RTPROT_KERNEL && key.dst.addr().is_ipv6() {
            writer.u32(RTA_PRIORITY, IP6_RT_PRIO_ADDRCONF);
        }
        if let Some(index) = index {
            writer.u32(RTA_OIF, index);
        }
    });
}

/// Deletes our route (protocol 112) at this key; ESRCH when there is none.
pub fn delete_route(writer: &mut Writer, seq: u32, key: &RouteKey) {
    writer.message(head(RTM_DELROUTE, flags::ACK, seq), |writer| {
        rtmsg(writer, key, [ROUTE_PROTOCOL, SCOPE_NOWHERE, 0], 0);
    });
}

/// Deletes the route at this key, whoever made it.
pub fn delete_others_route(writer: &mut Writer, seq: u32, key: &RouteKey) {
    writer.message(head(RTM_DELROUTE, flags::ACK, seq), |writer| {
        rtmsg(writer, key, [0, SCOPE_NOWHERE, 0], 0);
    });
}

fn rtmsg(writer: &mut Writer, key: &RouteKey, [protocol, scope, kind]: [u8; 3], nexthop_flags: u32) {
    let family = family(key.dst.addr());
    // IPv6 knows no scopes.
    let scope = if family == AF_INET6 { SCOPE_UNIVERSE } else { scope };
    let table = u8::try_from(key.table).unwrap_or(0);
    writer.raw(&[family, key.dst.prefix_len(), 0, 0, table, protocol, scope, kind]);
    writer.raw(&nexthop_flags.to_ne_bytes());
    writer.ip(RTA_DST, key.dst.network());
    writer.u32(RTA_TABLE, key.table);
}

/// Asks for the routes of one protocol (the kernel filters when strict checking is on), or all.
pub fn dump_routes(writer: &mut Writer, seq: u32, family: types::Family, protocol: Option<u8>) {
    let family = match family {
        types::Family::V4 => super::AF_INET,
        types::Family::V6 => AF_INET6,
    };
    writer.message(head(RTM_GETROUTE, flags::DUMP, seq), |writer| {
        writer.raw(&[family, 0, 0, 0, 0, protocol.unwrap_or(0), 0, 0]);
        writer.raw(&[0; 4]);
    });
}

/// A route as the kernel tells it, with the device by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRow {
    pub key: RouteKey,
    pub protocol: u8,
    pub link: Option<u32>,
    pub metric: u32,
    /// What it is instead, where we make no such: in iproute2's word, or [`SEVERAL`]. `route` then says nothing of its kind.
    pub other: Option<&'static str>,
    /// `dev` is empty: the index is in `link`.
    pub route: Route,
}

/// Of a route with several next hops.
pub const SEVERAL: &str = "several next hops";

impl RouteRow {
    /// Made by the kernel with an address.
    pub fn is_of_kernel(&self) -> bool {
        self.protocol == RTPROT_KERNEL
    }

    /// In one of the tables that every packet is looked up in, without a rule of somebody's: local and main.
    pub fn is_in_common(&self) -> bool {
        [RT_TABLE_LOCAL, RouteKey::MAIN].contains(&self.key.table)
    }

    /// As `ip route` has it. `dev`: the name of its link.
    pub fn words(&self, dev: Option<&IfName>) -> String {
        let kind = match (self.other, self.route.kind) {
            (Some(SEVERAL), _) | (None, RouteKind::Unicast) => None,
            (Some(other), _) => Some(other.to_owned()),
            (None, RouteKind::Unreachable) => Some("unreachable".to_owned()),
        };
        // The word has been said.
        let route = Route { dev: dev.cloned(), kind: RouteKind::Unicast, ..self.route.clone() };
        let hops = self.other.filter(|other| *other == SEVERAL).map(|_| format!("by {SEVERAL}"));
        let words = [kind, Some(self.key.to_string()), Some(route.to_string()), hops];
        let words: Vec<String> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
        words.join(" ")
    }
}

/// `None` for cached copies, and for kinds that nobody knows.
pub fn decode_route(message: &Message<'_>) -> Option<RouteRow> {
    let (fixed, attributes) = message.split(LENGTH)?;
    let flags = u32_at(fixed, 8)?;
    let &[family, length, _, _, table, protocol, _, kind] = fixed.first_chunk::<8>()?;
    if flags & RTM_F_CLONED != 0 {
        return None;
    }
    let nowhere = NOWHERE.contains(&kind);
    let (kind, other) = match kind {
        RTN_UNICAST => (RouteKind::Unicast, attributes.find(RTA_MULTIPATH).map(|_| SEVERAL)),
        RTN_UNREACHABLE => (RouteKind::Unreachable, None),
        kind => (RouteKind::Unicast, Some(OTHER_KINDS.into_iter().find(|(number, _)| *number == kind)?.1)),
    };
    let dst = match attributes.find(RTA_DST) {
        Some(attribute) => attribute.ip()?,
        None if family == AF_INET6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        None => std::net::Ipv4Addr::UNSPECIFIED.into(),
    };
    let ip = |kind| attributes.find(kind).and_then(|attribute| attribute.ip());
    let number = |kind| attributes.find(kind).and_then(|attribute| attribute.u32());
    let link = number(RTA_OIF).filter(|_| !nowhere);
    Some(RouteRow {
        key: RouteKey {
            dst: IpNet::new(dst, length).ok()?,
            table: number(RTA_TABLE).unwrap_or_else(|| table.into()),
        },
        protocol,
        link,
        metric: number(RTA_PRIORITY).unwrap_or(0),
        other,
        route: Route {
            dev: None,
            via: ip(RTA_GATEWAY),
            onlink: flags & RTNH_F_ONLINK != 0,
            src: ip(RTA_PREFSRC),
            kind,
        },
    })
}
