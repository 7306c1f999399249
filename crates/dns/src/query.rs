//! The question of a query, read once and without copying (RFC 1035 §4.1, RFC 6891 for OPT).

use std::fmt;

use crate::name::wire_length;

/// Bytes of a DNS header.
pub const HEADER: usize = 12;
/// What a client without EDNS accepts over UDP (RFC 1035 §4.2.1).
pub const PLAIN_LIMIT: usize = 512;
/// The most that we send over UDP: no fragment on any path (DNS flag day 2020).
pub const UDP_LIMIT: usize = 1232;
/// An OPT record of ours.
pub const OPT_LENGTH: usize = 11;

/// Record types by number; those we never hold are just numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Type(pub u16);

impl Type {
    pub const A: Self = Self(1);
    pub const NS: Self = Self(2);
    pub const CNAME: Self = Self(5);
    pub const SOA: Self = Self(6);
    pub const PTR: Self = Self(12);
    pub const TXT: Self = Self(16);
    pub const AAAA: Self = Self(28);
    pub const SRV: Self = Self(33);
    pub const OPT: Self = Self(41);
    pub const IXFR: Self = Self(251);
    pub const AXFR: Self = Self(252);
    pub const ANY: Self = Self(255);

    const NAMES: [(Self, &'static str); 9] = [
        (Self::A, "A"),
        (Self::NS, "NS"),
        (Self::CNAME, "CNAME"),
        (Self::SOA, "SOA"),
        (Self::PTR, "PTR"),
        (Self::TXT, "TXT"),
        (Self::AAAA, "AAAA"),
        (Self::SRV, "SRV"),
        (Self::AXFR, "AXFR"),
    ];

    /// `A`, `aaaa`, or `TYPE65` (RFC 3597).
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        let known = Self::NAMES.iter().find(|(_, name)| *name == upper).map(|(kind, _)| *kind);
        known.or_else(|| upper.strip_prefix("TYPE")?.parse().ok().map(Self))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(kind, _)| kind == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Response codes; 16 and above need EDNS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    pub const NOERROR: Self = Self(0);
    pub const FORMERR: Self = Self(1);
    pub const SERVFAIL: Self = Self(2);
    pub const NXDOMAIN: Self = Self(3);
    pub const NOTIMP: Self = Self(4);
    pub const REFUSED: Self = Self(5);
    pub const BADVERS: Self = Self(16);
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NOERROR => "NOERROR",
            Self::FORMERR => "FORMERR",
            Self::SERVFAIL => "SERVFAIL",
            Self::NXDOMAIN => "NXDOMAIN",
            Self::NOTIMP => "NOTIMP",
            Self::REFUSED => "REFUSED",
            Self::BADVERS => "BADVERS",
            Self(other) => return write!(f, "RCODE{other}"),
        })
    }
}

impl fmt::Debug for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a datagram is no query that can be answered from data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Too short for a header, or itself an answer: replying could make two servers talk for ever.
    Drop,
    /// Answer with this code; `question` bytes after the header can be repeated.
    Reply { rcode: Rcode, question: usize },
}

/// A query's question, borrowed from its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    pub bytes: &'a [u8],
    /// The name as it came, case and all.
    pub name: &'a [u8],
    pub kind: Type,
    /// The payload size of the client's OPT, when there is one.
    pub edns: Option<u16>,
}

impl<'a> Query<'a> {
    /// Reads a datagram. Never panics, whatever the bytes.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Err(Fault::Drop) };
        if header[2] & 0x80 != 0 {
            return Err(Fault::Drop);
        }
        if header[2] & 0x78 != 0 {
            return Err(Fault::Reply { rcode: Rcode::NOTIMP, question: 0 });
        }
        let broken = Fault::Reply { rcode: Rcode::FORMERR, question: 0 };
        if header[4..6] != [0, 1] {
            return Err(broken);
        }
        let tail = bytes.get(HEADER..).unwrap_or_default();
        let length = wire_length(tail).ok_or(broken)?;
        let (name, tail) = tail.split_at_checked(length).ok_or(broken)?;
        let (fixed, tail) = tail.split_first_chunk::<4>().ok_or(broken)?;
        let kind = Type(u16::from_be_bytes([fixed[0], fixed[1]]));
        let question = length + 4;
        if fixed[2..4] != [0, 1] || kind == Type::AXFR || kind == Type::IXFR {
            return Err(Fault::Reply { rcode: Rcode::REFUSED, question });
        }
        let edns = if header[6..12] == [0; 6] { None } else { read_opt(header, tail, question)? };
        Ok(Self { bytes, name, kind, edns })
    }

    pub fn id(&self) -> u16 {
        self.bytes.first_chunk::<2>().map_or(0, |id| u16::from_be_bytes(*id))
    }

    pub fn recursion_desired(&self) -> bool {
        self.bytes.get(2).is_some_and(|flags| flags & 1 != 0)
    }

    /// The question section: name, type and class.
    pub fn question(&self) -> &'a [u8] {
        self.bytes.get(HEADER..HEADER + self.name.len() + 4).unwrap_or_default()
    }

    /// The largest answer over UDP, OPT included.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_LIMIT, |size| usize::from(size).clamp(PLAIN_LIMIT, UDP_LIMIT))
    }
}

/// Finds the OPT among what follows the question. Other records (TSIG, an IXFR's SOA) are stepped over.
fn read_opt(header: &[u8; HEADER], mut rest: &[u8], question: usize) -> Result<Option<u16>, Fault> {
    let broken = Fault::Reply { rcode: Rcode::FORMERR, question };
    let count = |at: usize| header.get(at..at + 2).map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]));
    let mut edns = None;
    for _ in 0..count(6) + count(8) + count(10) {
        let name = record_name_length(rest).ok_or(broken)?;
        let fixed = rest.get(name..name + 10).ok_or(broken)?;
        let data = usize::from(fixed[8]) << 8 | usize::from(fixed[9]);
        if fixed[0..2] == [0, 41] {
            if edns.is_some() || name != 1 {
                return Err(broken);
            }
            if fixed[5] != 0 {
                return Err(Fault::Reply { rcode: Rcode::BADVERS, question });
            }
            edns = Some(u16::from_be_bytes([fixed[2], fixed[3]]));
        }
        rest = rest.get(name + 10 + data..).ok_or(broken)?;
    }
    Ok(edns)
}

/// Bytes of a record's owner, which may end in a compression pointer.
pub(crate) fn record_name_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += usize::from(length) + 1,
            192.. => return (bytes.len() >= at + 2).then_some(at + 2),
            _ => return None,
        }
    }
}
