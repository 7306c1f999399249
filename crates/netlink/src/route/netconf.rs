//! That somebody has changed a sysctl of which the kernel tells: RTM_NEWNETCONF (forwarding and rp_filter among them,
//! `inet_netconf_notify_devconf` in net/ipv4/devinet.c and its sibling in net/ipv6/addrconf.c).

use crate::message::{Message, u32_at};

const NETCONFA_IFINDEX: u16 = 1;
/// NETCONFA_IFINDEX_ALL and _DEFAULT, -1 and -2.
const ALL: u32 = u32::MAX;
const DEFAULT: u32 = u32::MAX - 1;
const LENGTH: usize = 1; // struct netconfmsg

/// What the sysctl is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// `conf/all`
    All,
    /// `conf/default`, what links that come later begin with.
    Default,
    Link(u32),
}

/// Which one it was, and what it is now, is read from /proc/sys by whoever cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetconfRow {
    pub of: Of,
}

pub fn decode_netconf(message: &Message<'_>) -> Option<NetconfRow> {
    let (_, attributes) = message.split(LENGTH)?;
    let of = match attributes.find(NETCONFA_IFINDEX)?.value {
        index if u32_at(index, 0)? == ALL => Of::All,
        index if u32_at(index, 0)? == DEFAULT => Of::Default,
        index => Of::Link(u32_at(index, 0)?),
    };
    Some(NetconfRow { of })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Head, Writer, messages};
    use crate::route::RTM_NEWNETCONF;

    /// As the kernel writes it: the family, padding, attributes.
    #[test]
    fn it_says_whose_sysctl_was_changed() {
        for (index, of) in [(-1, Of::All), (-2, Of::Default), (7, Of::Link(7))] {
            let mut writer = Writer::new();
            writer.message(Head { kind: RTM_NEWNETCONF, flags: 0, seq: 0 }, |writer| {
                writer.raw(&[2, 0, 0, 0]);
                writer.bytes(NETCONFA_IFINDEX, &i32::to_ne_bytes(index));
                writer.u32(2, 0);
            });
            let row = messages(writer.as_bytes()).next().and_then(|message| decode_netconf(&message));
            assert_eq!(row, Some(NetconfRow { of }));
        }
    }
}
