//! Sets and their elements. A lone field with intervals lives in the kernel's tree, which knows no ranges: an
//! element opens one and an element with the END flag, one past it, closes it. Ranges of concatenations have
//! both ends in one element.
//!
//! ```text
//!   10.0.0.0-10.0.0.255   tree:   10.0.0.0, 10.0.1.0 END          concatenation: key 10.0.0.0, key_end 10.0.0.255
//! ```

use std::collections::BTreeMap;

use kstate::nft::{Bytes, ElemData, ElemKey, Field, Set, SetData};

use super::{DATA_VALUE, DATA_VERDICT, read_verdict, write_verdict};
use crate::message::{Writer, attributes};
use crate::nfnetlink;

const ANONYMOUS: u32 = 0x1;
const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
const DYNAMIC: u32 = 0x20;
const CONCATENATION: u32 = 0x80;
const INTERVAL_END: u32 = 0x1;
/// NFT_DATA_VERDICT.
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// nft numbers its data types in 6 bits each, the first field highest (TYPE_BITS of nft's datatype.h).
const TYPE_BITS: u32 = 6;
const FIELDS: [Field; 7] =
    [Field::Ipv4, Field::Ipv6, Field::Proto, Field::Port, Field::Mark, Field::IfName, Field::Mac];

/// nft's number of the type (enum datatypes, datatype.h).
fn type_number(field: Field) -> u32 {
    match field {
        Field::Ipv4 => 7,
        Field::Ipv6 => 8,
        Field::Mac => 9,
        Field::Proto => 12,
        Field::Port => 13,
        Field::Mark => 19,
        Field::IfName => 41,
    }
}

fn type_of(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| (all << TYPE_BITS) | type_number(*field))
}

/// No fields when one of them is none of ours.
fn fields_of(mut number: u32) -> Vec<Field> {
    let mut fields = Vec::new();
    while number != 0 {
        let one = number & ((1 << TYPE_BITS) - 1);
        match FIELDS.into_iter().find(|field| type_number(*field) == one) {
            Some(field) => fields.insert(0, field),
            None => return Vec::new(),
        }
        number >>= TYPE_BITS;
    }
    fields
}

fn bytes_of(fields: &[Field]) -> u32 {
    let bytes = match fields {
        [field] => field.len(),
        _ => fields.iter().map(|field| field.padded()).sum(),
    };
    bytes as u32
}

fn flags_of(set: &Set) -> u32 {
    let flags = [
        (set.interval, INTERVAL),
        (set.data != SetData::None, MAP),
        (set.timeout_ms.is_some(), TIMEOUT),
        (set.dynamic, DYNAMIC),
        (ranges_in_one(set), CONCATENATION),
    ];
    flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag)
}

/// Whether an element holds both ends of its range.
fn ranges_in_one(set: &Set) -> bool {
    set.interval && set.key.len() > 1
}

/// The attributes of a NEWSET after table and name; `id` must differ within a transaction.
pub fn encode_layout(w: &mut Writer, set: &Set, id: u32) {
    w.be32(3, flags_of(set));
    w.be32(4, type_of(&set.key));
    w.be32(5, bytes_of(&set.key));
    match &set.data {
        SetData::None => {}
        SetData::Verdicts => {
            w.be32(6, VERDICT_TYPE);
            w.be32(7, 0);
        }
        SetData::Values(fields) => {
            w.be32(6, type_of(fields));
            w.be32(7, bytes_of(fields));
        }
    }
    w.be32(10, id);
    if let Some(timeout) = set.timeout_ms {
        w.be64(11, timeout);
    }
    if set.size.is_some() || ranges_in_one(set) {
        w.nest(9, |w| describe(w, set));
    }
    w.bytes(13, &byte_orders(set));
}

/// NFTA_SET_DESC: the size, and the fields where their bounds matter.
fn describe(w: &mut Writer, set: &Set) {
    if let Some(size) = set.size {
        w.be32(1, size);
    }
    if ranges_in_one(set) {
        w.nest(2, |w| {
            for field in &set.key {
                w.nest(1, |w| w.be32(1, field.len() as u32));
            }
        });
    }
}

/// Userdata as nft writes it (type, length, value in host order), for `nft list`: 1 host order, 2 network order.
fn byte_orders(set: &Set) -> Vec<u8> {
    let order = |fields: &[Field]| match fields {
        [Field::Mark | Field::IfName] => 1_u32,
        [_] => 2,
        _ => 0,
    };
    let mut bytes = vec![0, 4];
    bytes.extend(order(&set.key).to_ne_bytes());
    match &set.data {
        SetData::None => {}
        SetData::Verdicts => bytes.extend([1, 4, 0, 0, 0, 0]),
        SetData::Values(fields) => {
            bytes.extend([1, 4]);
            bytes.extend(order(fields).to_ne_bytes());
        }
    }
    bytes
}

/// Whether a NEWSET speaks of a set in braces (`tcp dport { 1, 2 }`), which goes with its rule.
pub fn is_part_of_a_rule(attrs: &[u8]) -> bool {
    nfnetlink::find(attrs, 3).and_then(nfnetlink::be32).unwrap_or(0) & ANONYMOUS != 0
}

/// The set of a NEWSET, without elements. Types that are none of ours leave an empty key: such a set is
/// somebody else's and equals no desired one.
pub fn decode_layout(attrs: &[u8]) -> Option<Set> {
    let number = |kind| nfnetlink::find(attrs, kind).and_then(nfnetlink::be32);
    let flags = number(3).unwrap_or(0);
    let data = match number(6) {
        _ if flags & MAP == 0 => SetData::None,
        Some(VERDICT_TYPE) => SetData::Verdicts,
        other => SetData::Values(fields_of(other.unwrap_or(0))),
    };
    let size = nfnetlink::find(attrs, 9).and_then(|desc| nfnetlink::find(desc, 1)).and_then(nfnetlink::be32);
    Some(Set {
        key: fields_of(number(4)?),
        data,
        interval: flags & INTERVAL != 0,
        dynamic: flags & DYNAMIC != 0,
        timeout_ms: (flags & TIMEOUT != 0)
            .then(|| nfnetlink::find(attrs, 11).and_then(nfnetlink::be64).unwrap_or(0)),
        size,
        elements: BTreeMap::new(),
    })
}

/// The one or two NFTA_LIST_ELEM of an element.
pub fn encode_element(w: &mut Writer, key: &ElemKey, data: &ElemData, shape: Shape) {
    match (key.end(), shape) {
        (Some(end), Shape::Both) => element(w, (key.start(), Some(&**end)), 0, data),
        (_, Shape::Tree) => {
            element(w, (key.start(), None), 0, data);
            if let Some(past) = successor(key.last()) {
                element(w, (&past, None), INTERVAL_END, &ElemData::None);
            }
        }
        _ => element(w, (key.start(), None), 0, data),
    }
}

/// How a range is written. The key alone tells: a lone field fits its [`Field`] exactly, so only sets say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No ranges.
    Single,
    /// Open and close, in a tree.
    Tree,
    /// Both ends in one element.
    Both,
}

impl Shape {
    pub fn of(set: &Set) -> Self {
        match (set.interval, set.key.len()) {
            (false, _) => Self::Single,
            (true, 0 | 1) => Self::Tree,
            (true, _) => Self::Both,
        }
    }

    /// Of a set that nobody knows. A range of 16 bytes may be one address or four fields: then nothing.
    pub fn by_key(key: &ElemKey) -> Option<Self> {
        match (key.end(), key.start().len()) {
            (None, _) => Some(Self::Single),
            (Some(_), 1..=4) => Some(Self::Tree),
            (Some(_), 16) => None,
            (Some(_), _) => Some(Self::Both),
        }
    }
}

fn element(w: &mut Writer, (key, end): (&[u8], Option<&[u8]>), flags: u32, data: &ElemData) {
    w.nest(1, |w| {
        w.nest(1, |w| w.bytes(DATA_VALUE, key));
        if let Some(end) = end {
            w.nest(10, |w| w.bytes(DATA_VALUE, end));
        }
        if flags != 0 {
            w.be32(3, flags);
        }
        match data {
            ElemData::None => {}
            ElemData::Until { timeout_ms, left_ms } => {
                if let Some(timeout) = timeout_ms {
                    w.be64(4, *timeout);
                }
                w.be64(5, *left_ms);
            }
            ElemData::Value(bytes) => w.nest(2, |w| w.bytes(DATA_VALUE, bytes)),
            ElemData::Verdict(verdict) => w.nest(2, |w| write_verdict(w, verdict)),
        }
    });
}

/// The number after this one; none after all ones.
fn successor(bytes: &Bytes) -> Option<Bytes> {
    let mut next = bytes.clone();
    for byte in next.iter_mut().rev() {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            return Some(next);
        }
    }
    None
}

fn predecessor(bytes: &Bytes) -> Option<Bytes> {
    let mut before = bytes.clone();
    for byte in before.iter_mut().rev() {
        let (difference, borrow) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrow {
            return Some(before);
        }
    }
    None
}

/// One element as the kernel dumps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawElement {
    pub key: Bytes,
    pub key_end: Option<Bytes>,
    pub closes: bool,
    pub data: ElemData,
}

/// The elements of a NEWSETELEM's list; catch-all elements and verdicts that are none of ours are left out.
pub fn decode_elements(list: &[u8]) -> impl Iterator<Item = RawElement> {
    attributes(list).filter_map(|attribute| {
        let element = attribute.value;
        let value = |kind| nfnetlink::find(element, kind).and_then(|nest| nfnetlink::find(nest, DATA_VALUE));
        let number = |kind| nfnetlink::find(element, kind).and_then(nfnetlink::be64);
        let data = match nfnetlink::find(element, 2) {
            None => match number(5) {
                None => ElemData::None,
                Some(left_ms) => ElemData::Until { timeout_ms: number(4), left_ms },
            },
            Some(data) => match nfnetlink::find(data, DATA_VERDICT) {
                Some(verdict) => ElemData::Verdict(read_verdict(verdict)?.ok()?),
                None => ElemData::Value(nfnetlink::find(data, DATA_VALUE)?.into()),
            },
        };
        let flags = nfnetlink::find(element, 3).and_then(nfnetlink::be32).unwrap_or(0);
        let closes = flags & INTERVAL_END != 0;
        Some(RawElement { key: value(1)?.into(), key_end: value(10).map(Into::into), closes, data })
    })
}

/// Elements as values; in a tree the ones that open are joined with the ones that close.
pub fn join(mut raw: Vec<RawElement>, shape: Shape) -> BTreeMap<ElemKey, ElemData> {
    let mut elements = BTreeMap::new();
    if shape != Shape::Tree {
        for one in raw {
            let end = one.key_end.or_else(|| (shape == Shape::Both).then(|| one.key.clone()));
            let key = match end {
                Some(end) => ElemKey::range(one.key, end),
                None => ElemKey::point(one.key),
            };
            elements.insert(key, one.data);
        }
        return elements;
    }
    // Where one range closes and the next opens at the same key, the closing comes first.
    raw.sort_by(|a, b| a.key.cmp(&b.key).then(b.closes.cmp(&a.closes)));
    let mut open: Option<RawElement> = None;
    for one in raw {
        if let Some(opened) = open.take()
            && let Some(end) = predecessor(&one.key)
        {
            elements.insert(ElemKey::range(opened.key, end), opened.data);
        }
        if !one.closes {
            open = Some(one);
        }
    }
    if let Some(last) = open {
        let end = vec![0xff; last.key.len()].as_slice().into();
        elements.insert(ElemKey::range(last.key, end), last.data);
    }
    elements
}
