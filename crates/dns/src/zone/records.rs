//! Records as bytes that are copied into answers: owner names are pointers into the question.

use std::net::IpAddr;

use crate::name::Name;
use crate::query::{HEADER, Type};

/// A pointer to the name in the question, which is always at the same place.
pub const TO_QUESTION: [u8; 2] = [0xc0, HEADER as u8];

/// What a name has. No set at all: the name exists and every type is NODATA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub sets: Box<[RrSet]>,
    /// The target of its CNAME.
    pub alias: Option<Name>,
}

/// Records of one type, each beginning with [`TO_QUESTION`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RrSet {
    pub kind: Type,
    pub count: usize,
    /// Bytes of each record if all have the same.
    pub size: Option<usize>,
    pub records: Box<[u8]>,
    /// Addresses of SRV targets.
    pub additional: Box<[u8]>,
}

impl Node {
    pub fn of(sets: impl IntoIterator<Item = RrSet>) -> Self {
        Self { sets: sets.into_iter().filter(|set| set.count > 0).collect(), alias: None }
    }

    #[inline]
    pub fn set(&self, kind: Type) -> Option<&RrSet> {
        self.sets.iter().find(|set| set.kind == kind)
    }
}

impl RrSet {
    /// From each record's data.
    pub fn new<D: AsRef<[u8]>>(kind: Type, ttl: u32, data: impl IntoIterator<Item = D>) -> Self {
        let mut records = Vec::new();
        let mut sizes = Vec::new();
        for datum in data {
            let before = records.len();
            push_record(&mut records, &TO_QUESTION, kind, ttl, datum.as_ref());
            sizes.push(records.len() - before);
        }
        let size = sizes.first().copied().filter(|first| sizes.iter().all(|size| size == first));
        Self { kind, count: sizes.len(), size, records: records.into(), additional: Box::default() }
    }

    /// A and AAAA sets of some addresses, in their order.
    pub fn addresses(ttl: u32, addresses: &[IpAddr]) -> [Self; 2] {
        let v4 = addresses.iter().filter_map(|a| if let IpAddr::V4(a) = a { Some(a.octets()) } else { None });
        let v6 = addresses.iter().filter_map(|a| if let IpAddr::V6(a) = a { Some(a.octets()) } else { None });
        [Self::new(Type::A, ttl, v4), Self::new(Type::AAAA, ttl, v6)]
    }

    /// Each record's bytes.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        records(&self.records)
    }
}

/// Splits a run of records whose owners are names without inner pointers or end in one.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let fixed = crate::query::record_name_length(rest)? + 8;
        let length = rest.get(fixed..fixed + 2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1]))?;
        let (record, tail) = rest.split_at_checked(fixed + 2 + length)?;
        rest = tail;
        Some(record)
    })
}

/// Appends a record of class IN.
pub fn push_record(out: &mut Vec<u8>, owner: &[u8], kind: Type, ttl: u32, data: &[u8]) {
    out.extend_from_slice(owner);
    out.extend_from_slice(&kind.0.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// Where the three pointers to the zone's name go in [`soa`]'s bytes.
pub const SOA_POINTERS: [usize; 3] = [0, 12 + 7, 12 + 7 + 2 + 11];

/// `ns.dns.<zone> hostmaster.<zone> <serial> 7200 1800 86400 <ttl>` with the pointers left blank; RFC 2308 takes
/// the lower of the record's TTL and MINIMUM for negative answers.
pub fn soa(serial: u32, ttl: u32) -> Box<[u8]> {
    let mut data = b"\x02ns\x03dns\xc0\0\x0ahostmaster\xc0\0".to_vec();
    for word in [serial, 7200, 1800, 86400, ttl] {
        data.extend_from_slice(&word.to_be_bytes());
    }
    let mut out = Vec::new();
    push_record(&mut out, &[0xc0, 0], Type::SOA, ttl.min(300), &data);
    out.into()
}
