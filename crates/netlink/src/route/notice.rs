//! What the kernel says by itself on the multicast groups [`super::GROUPS`].

use super::{
    AddressRow, LinkRow, NeighbourRow, NetconfRow, ProgramRow, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH,
    RTM_DELQDISC, RTM_DELROUTE, RTM_DELRULE, RTM_DELTFILTER, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH,
    RTM_NEWNETCONF, RTM_NEWROUTE, RTM_NEWRULE, RTM_NEWTFILTER, RouteRow, decode_address,
    decode_end_of_program, decode_link, decode_neighbour, decode_netconf, decode_program, decode_route,
};
use crate::message::Message;

/// Something changed; `true` means that it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Link(LinkRow, bool),
    Address(AddressRow, bool),
    Route(RouteRow, bool),
    Neighbour(NeighbourRow, bool),
    /// One came or went.
    Rule,
    Program(ProgramRow, bool),
    /// A sysctl has another value.
    Sysctl(NetconfRow),
}

/// `None` for messages that tell of nothing we hold.
pub fn decode_notice(message: &Message<'_>) -> Option<Notice> {
    Some(match message.kind {
        RTM_NEWLINK | RTM_DELLINK => Notice::Link(decode_link(message)?, message.kind == RTM_DELLINK),
        RTM_NEWADDR | RTM_DELADDR => Notice::Address(decode_address(message)?, message.kind == RTM_DELADDR),
        RTM_NEWROUTE | RTM_DELROUTE => Notice::Route(decode_route(message)?, message.kind == RTM_DELROUTE),
        RTM_NEWNEIGH | RTM_DELNEIGH => {
            Notice::Neighbour(decode_neighbour(message)?, message.kind == RTM_DELNEIGH)
        }
        RTM_NEWRULE | RTM_DELRULE => Notice::Rule,
        RTM_NEWTFILTER => Notice::Program(decode_program(message)?, false),
        RTM_DELTFILTER | RTM_DELQDISC => Notice::Program(decode_end_of_program(message)?, true),
        RTM_NEWNETCONF => Notice::Sysctl(decode_netconf(message)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(kind in prop_oneof![16_u16..48, Just(RTM_NEWNETCONF)], body in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = decode_notice(&Message { kind, flags: 0, seq: 0, portid: 0, body: &body });
        }
    }
}
