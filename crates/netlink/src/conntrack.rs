//! Connection tracking over nfnetlink: which connections the kernel knows, how NAT rewrites them, and forgetting
//! one. Numbers are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
//!
//! ```text
//!   original  10.244.1.4:41224 → 10.96.14.7:8080     as the client sends
//!   reply     10.244.2.9:8080  → 10.244.1.4:41224    as the server answers: its source is where DNAT led
//! ```

mod stats;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use types::Family;

use crate::message::{Attribute, Attributes, Head, Message, Writer, attributes, flags};
use crate::nfnetlink::{self, DecodeError};

pub use stats::{Counted, Usage, ask_counted, ask_usage};

const NEW: u16 = 1 << 8;
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
const GET_STATS_CPU: u16 = (1 << 8) | 4;
const GET_STATS: u16 = (1 << 8) | 5;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const ID: u16 = 12;
const FILTER: u16 = 25;

/// Bits of CTA_FILTER_ORIG_FLAGS: which parts of the tuple count (net/netfilter/nf_internals.h).
const BY_SRC: u32 = 1;
const BY_DST: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DST_PORT: u32 = 1 << 5;

/// Bits of [`Entry::status`] (enum ip_conntrack_status).
pub mod status {
    pub const SEEN_REPLY: u32 = 1 << 1;
    pub const ASSURED: u32 = 1 << 2;
    pub const CONFIRMED: u32 = 1 << 3;
    pub const SRC_NAT: u32 = 1 << 4;
    pub const DST_NAT: u32 = 1 << 5;
}

/// One direction of a connection; protocols without ports have 0 there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// Of ICMP: what tells two conversations apart.
    pub icmp: Option<Icmp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Icmp {
    pub id: u16,
    pub kind: u8,
    pub code: u8,
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (types::Protocol::from_number(self.protocol), self.icmp) {
            (Some(protocol), _) => write!(f, "{protocol} {} → {}", self.src, self.dst),
            (None, Some(icmp)) => write!(f, "icmp {} → {} id {}", self.src.ip(), self.dst.ip(), icmp.id),
            (None, None) => write!(f, "protocol {} {} → {}", self.protocol, self.src.ip(), self.dst.ip()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub original: Tuple,
    pub reply: Tuple,
    pub status: u32,
    /// Seconds until the kernel forgets it.
    pub timeout: Option<u32>,
    pub mark: u32,
    /// Tells this connection from a later one of the same tuple.
    pub id: Option<u32>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, answers {}", self.original, self.reply)
    }
}

impl Entry {
    /// `None` for other messages.
    pub fn decode(message: &Message<'_>) -> Option<Result<Self, DecodeError>> {
        (message.kind == NEW).then(|| Self::read(message).ok_or(DecodeError::new("a conntrack entry")))
    }

    fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = attributes(nfnetlink::split(message)?.1);
        let number = |kind| attributes.find(kind).and_then(|attribute: Attribute<'_>| attribute.be32());
        Some(Self {
            original: read_tuple(attributes.find(TUPLE_ORIGINAL)?.nested())?,
            reply: read_tuple(attributes.find(TUPLE_REPLY)?.nested())?,
            status: number(STATUS).unwrap_or(0),
            timeout: number(TIMEOUT),
            mark: number(MARK).unwrap_or(0),
            id: number(ID),
        })
    }
}

fn read_tuple(tuple: Attributes<'_>) -> Option<Tuple> {
    let (ip, proto) = (tuple.find(1)?.nested(), tuple.find(2)?.nested());
    let address = |v4, v6| ip.find(v4).or(ip.find(v6)).and_then(|attribute| attribute.ip());
    let port = |kind| proto.find(kind).and_then(|attribute| attribute.be16());
    let byte = |kind| proto.find(kind).and_then(|attribute| attribute.u8());
    // ICMP has its id, type and code at 4, 5, 6 and ICMPv6 at 7, 8, 9.
    let icmp = |first: u16| Some(Icmp { id: port(first)?, kind: byte(first + 1)?, code: byte(first + 2)? });
    Some(Tuple {
        src: SocketAddr::new(address(1, 3)?, port(2).unwrap_or(0)),
        dst: SocketAddr::new(address(2, 4)?, port(3).unwrap_or(0)),
        protocol: byte(1)?,
        icmp: icmp(4).or(icmp(7)),
    })
}

/// Which entries to show: those whose original direction has all of what is given, and whose answers come from
/// `answerer`. The kernel sorts them out (5.8 and newer; before, [`Filter::matches`] does).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub protocol: Option<u8>,
    pub src: Option<IpAddr>,
    pub dst: Option<IpAddr>,
    /// Counts only together with `protocol`.
    pub dst_port: Option<u16>,
    /// The source of the reply direction: where DNAT led, or `dst`.
    pub answerer: Option<IpAddr>,
}

impl Filter {
    pub fn matches(&self, entry: &Entry) -> bool {
        let tuple = &entry.original;
        self.protocol.is_none_or(|protocol| protocol == tuple.protocol)
            && self.src.is_none_or(|src| src == tuple.src.ip())
            && self.dst.is_none_or(|dst| dst == tuple.dst.ip())
            && self.dst_port.is_none_or(|port| self.protocol.is_none() || port == tuple.dst.port())
            && self.answerer.is_none_or(|answerer| answerer == entry.reply.src.ip())
    }

    fn flags(&self) -> u32 {
        let bits = [
            (self.src.is_some(), BY_SRC),
            (self.dst.is_some(), BY_DST),
            (self.protocol.is_some(), BY_PROTOCOL),
            (self.protocol.is_some() && self.dst_port.is_some(), BY_DST_PORT),
        ];
        bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
    }
}

/// Asks for all entries of a family that match.
pub fn dump(writer: &mut Writer, seq: u32, family: Family, filter: &Filter) {
    // The kernel leaves out just the entries whose IPv6 addresses are equal (ctnetlink_filter_match_tuple compares
    // them the wrong way round; 5.8 to 6.18, measured there), so those are left to `Filter::matches`.
    let filter = match family {
        Family::V4 => *filter,
        Family::V6 => Filter { src: None, dst: None, answerer: None, ..*filter },
    };
    let head = Head { kind: GET, flags: flags::DUMP, seq };
    let message = nfnetlink::open(writer, head, (family_number(family), 0));
    let by_answerer = filter.answerer.map_or(0, |_| BY_SRC);
    if filter.flags() != 0 {
        writer.nest(TUPLE_ORIGINAL, |w| write_original(w, &filter));
    }
    if filter.answerer.is_some() {
        writer.nest(TUPLE_REPLY, |w| w.nest(1, |w| write_addresses(w, filter.answerer, None)));
    }
    if filter.flags() | by_answerer != 0 {
        // CTA_FILTER_ORIG_FLAGS and, needed beside it, CTA_FILTER_REPLY_FLAGS.
        writer.nest(FILTER, |w| {
            w.u32(1, filter.flags());
            w.u32(2, by_answerer);
        });
    }
    writer.close_message(message);
}

fn write_original(w: &mut Writer, filter: &Filter) {
    if filter.src.is_some() || filter.dst.is_some() {
        w.nest(1, |w| write_addresses(w, filter.src, filter.dst));
    }
    if let Some(protocol) = filter.protocol {
        w.nest(2, |w| {
            w.u8(1, protocol);
            if let Some(port) = filter.dst_port {
                w.be16(3, port);
            }
        });
    }
}

/// Asks to forget one entry, and for an acknowledgement; ENOENT when it is gone already.
pub fn delete(writer: &mut Writer, seq: u32, entry: &Entry) {
    let tuple = &entry.original;
    let head = Head { kind: DELETE, flags: flags::ACK, seq };
    let message = nfnetlink::open(writer, head, (family_number(Family::of(tuple.src.ip())), 0));
    writer.nest(TUPLE_ORIGINAL, |w| {
        w.nest(1, |w| write_addresses(w, Some(tuple.src.ip()), Some(tuple.dst.ip())));
        w.nest(2, |w| {
            w.u8(1, tuple.protocol);
            match tuple.icmp {
                Some(icmp) => {
                    let first = if tuple.src.is_ipv4() { 4 } else { 7 };
                    w.be16(first, icmp.id);
                    w.u8(first + 1, icmp.kind);
                    w.u8(first + 2, icmp.code);
                }
                None => {
                    w.be16(2, tuple.src.port());
                    w.be16(3, tuple.dst.port());
                }
            }
        });
    });
    if let Some(id) = entry.id {
        writer.be32(ID, id);
    }
    writer.close_message(message);
}

fn write_addresses(w: &mut Writer, src: Option<IpAddr>, dst: Option<IpAddr>) {
    let kind = |address: IpAddr, v4| if address.is_ipv4() { v4 } else { v4 + 2 };
    for (address, v4) in [(src, 1), (dst, 2)] {
        if let Some(address) = address {
            w.ip(kind(address, v4), address);
        }
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::messages;

    fn entry(src: &str, dst: &str) -> Entry {
        let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let original = Tuple { src: parse(src), dst: parse(dst), protocol: 6, icmp: None };
        let reply = Tuple { src: original.dst, dst: original.src, ..original };
        Entry { original, reply, status: 0, timeout: None, mark: 0, id: Some(7) }
    }

    /// A deletion names the entry as the kernel itself would, so reading it back gives its original direction.
    #[test]
    fn a_deletion_names_the_whole_tuple() {
        for entry in
            [entry("10.244.1.4:41224", "10.96.14.7:8080"), entry("[fd00::4]:41224", "[fd00::7]:8080")]
        {
            let mut writer = Writer::new();
            delete(&mut writer, 1, &entry);
            let message = messages(writer.as_bytes()).next().expect("a message");
            let (_, attributes) = message.split(4).expect("attributes");
            let tuple = attributes.find(TUPLE_ORIGINAL).and_then(|tuple| read_tuple(tuple.nested()));
            assert_eq!(tuple, Some(entry.original));
        }
    }

    #[test]
    fn entries_print_both_ways() {
        let text = entry("10.244.1.4:41224", "10.96.14.7:8080").to_string();
        assert_eq!(
            text,
            "tcp 10.244.1.4:41224 → 10.96.14.7:8080, answers tcp 10.96.14.7:8080 → 10.244.1.4:41224"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let message = Message { kind: NEW, flags: 0, seq: 0, portid: 0, body: &body };
            let _ = Entry::decode(&message);
        }
    }
}
