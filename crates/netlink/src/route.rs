//! rtnetlink: links, addresses, routes, neighbours and forwarding entries as bytes (rtnetlink(7)).
//! Requests name interfaces by index; who sends them resolves names.
//!
//! An own codec of few messages instead of the generated `netlink-bindings`: we need 12 messages with about
//! 40 attributes of its 30,000 lines, share the framing with nf_tables, and read in one way: never panic,
//! skip what is unknown.

mod address;
mod link;
mod lookup;
mod neighbour;
mod netconf;
mod notice;
mod program;
#[cfg(test)]
mod roundtrip;
mod routes;
mod rule;

pub use address::{AddressRow, add_address, decode_address, delete_address, dump_addresses};
pub use link::{
    LinkRow, PodPair, add_link, add_pod_pair, change_link, decode_link, delete_group, delete_link,
    dump_links, get_link, set_group, set_port, set_up,
};
pub use lookup::{Lookup, Way, decode_way, get_route};
pub use neighbour::{
    NeighbourRow, decode_neighbour, delete_fdb, delete_neighbour, dump_bridge_fdb, dump_fdb, dump_neighbours,
    set_fdb, set_neighbour,
};
pub use netconf::{NetconfRow, Of, decode_netconf};
pub use notice::{Notice, decode_notice};
pub use program::{
    ProgramRow, add_clsact, decode_end_of_program, decode_program, delete_program, dump_programs, set_program,
};
pub use routes::{
    RT_TABLE_LOCAL, RTPROT_KERNEL, RouteRow, SEVERAL, add_route, add_static_route, decode_route,
    delete_others_route, delete_route, dump_routes, set_route, set_subnet_route,
};
pub use rule::{RuleAction, RuleRow, decode_rule, dump_rules};

use crate::message::Head;

/// Message numbers of include/uapi/linux/rtnetlink.h.
pub const RTM_NEWLINK: u16 = 16;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_SETLINK: u16 = 19;
pub const RTM_NEWADDR: u16 = 20;
pub const RTM_DELADDR: u16 = 21;
pub const RTM_GETADDR: u16 = 22;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_DELROUTE: u16 = 25;
pub const RTM_GETROUTE: u16 = 26;
pub const RTM_NEWNEIGH: u16 = 28;
pub const RTM_DELNEIGH: u16 = 29;
pub const RTM_GETNEIGH: u16 = 30;
pub const RTM_NEWRULE: u16 = 32;
pub const RTM_DELRULE: u16 = 33;
pub const RTM_GETRULE: u16 = 34;
pub const RTM_NEWQDISC: u16 = 36;
pub const RTM_DELQDISC: u16 = 37;
pub const RTM_NEWTFILTER: u16 = 44;
pub const RTM_DELTFILTER: u16 = 45;
pub const RTM_GETTFILTER: u16 = 46;
pub const RTM_NEWNETCONF: u16 = 80;

/// Multicast groups whose notices tell of what [`kstate::net::NetState`] holds, and of what may take its packets.
pub const GROUPS: [u32; 11] = [
    1,  // RTNLGRP_LINK
    3,  // RTNLGRP_NEIGH, forwarding entries too
    4,  // RTNLGRP_TC, programs and what they are in
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    8,  // RTNLGRP_IPV4_RULE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
    19, // RTNLGRP_IPV6_RULE
    24, // RTNLGRP_IPV4_NETCONF
    25, // RTNLGRP_IPV6_NETCONF
];

pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_BRIDGE: u8 = 7;
pub(crate) const AF_INET6: u8 = 10;

pub(crate) fn family(ip: std::net::IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

pub(crate) fn head(kind: u16, flags: u16, seq: u32) -> Head {
    Head { kind, flags, seq }
}
