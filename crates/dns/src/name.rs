//! Names in wire form (RFC 1035 §3.1), folded to lower case, because the zone compares them without case.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use thiserror::Error;

/// The longest name in wire form, its closing zero byte included.
pub const MAX_NAME: usize = 255;
/// The longest label.
pub const MAX_LABEL: usize = 63;

/// A whole lower-case name in wire form, ending in the zero byte of the root. Clones share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not a DNS name: {why}; write labels of 1 to 63 bytes with dots between, 253 in all")]
pub struct NameError {
    pub text: String,
    pub why: &'static str,
}

impl Name {
    /// Reads `a.b.c` or `a.b.c.`; the empty text and `.` are the root.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError { text: text.to_owned(), why };
        let mut wire = Vec::with_capacity(text.len() + 2);
        let trimmed = text.strip_suffix('.').unwrap_or(text);
        for label in trimmed.split('.').filter(|_| !trimmed.is_empty()) {
            push_label(&mut wire, label.as_bytes()).map_err(bad)?;
        }
        wire.push(0);
        if wire.len() > MAX_NAME { Err(bad("it is too long")) } else { Ok(Self(wire.into())) }
    }

    /// Puts a label in front.
    pub fn child(&self, label: &str) -> Result<Self, NameError> {
        let bad = |why| NameError { text: format!("{label}.{self}"), why };
        let mut wire = Vec::with_capacity(self.0.len() + label.len() + 1);
        push_label(&mut wire, label.as_bytes()).map_err(bad)?;
        wire.extend_from_slice(&self.0);
        if wire.len() > MAX_NAME { Err(bad("it is too long")) } else { Ok(Self(wire.into())) }
    }

    /// From wire bytes without compression pointers; `None` when they are no whole name.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        let length = wire_length(wire)?;
        (length == wire.len()).then(|| Self(wire.to_ascii_lowercase().into()))
    }

    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The labels from left to right, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        labels(&self.0)
    }

    /// Whether it lies at or below `zone`, with the byte offset at which the zone's name begins.
    pub fn offset_of(&self, zone: &Self) -> Option<usize> {
        suffix_offset(&self.0, &zone.0)
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Without the closing dot; the root is `.`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return f.write_str(".");
        }
        for (index, label) in self.labels().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), &'static str> {
    match label.len() {
        0 => Err("it has an empty label"),
        length @ 1..=MAX_LABEL => {
            wire.push(length as u8);
            wire.extend(label.iter().map(u8::to_ascii_lowercase));
            Ok(())
        }
        _ => Err("a label is too long"),
    }
}

/// How many bytes the uncompressed name at the start of `bytes` takes, its root included. `None` for
/// compression pointers, which a query's name has nothing to point at, and for names cut short or too long.
#[inline]
pub fn wire_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0 => return (at < MAX_NAME).then_some(at + 1),
            length if length as usize <= MAX_LABEL => at += length as usize + 1,
            _ => return None,
        }
    }
}

/// The labels of a name in wire form, without the root.
pub fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let (&length, tail) = rest.split_first()?;
        let (label, tail) = tail.split_at_checked(usize::from(length)).filter(|_| length > 0)?;
        rest = tail;
        Some(label)
    })
}

/// Where `zone` begins in `name` when `name` lies at or below it, at a border between labels.
pub fn suffix_offset(name: &[u8], zone: &[u8]) -> Option<usize> {
    let offset = name.len().checked_sub(zone.len())?;
    if name.get(offset..)? != zone {
        return None;
    }
    let mut at = 0;
    while at < offset {
        at += usize::from(*name.get(at)?) + 1;
    }
    (at == offset).then_some(offset)
}

/// Folds ASCII case of a wire name into `out`. Length bytes (at most 63) lie below `A`, so the whole name can be
/// folded blindly.
#[inline]
pub fn fold<'a>(wire: &[u8], out: &'a mut [u8; MAX_NAME + 1]) -> &'a [u8] {
    let length = wire.len().min(MAX_NAME);
    for (to, from) in out.iter_mut().zip(wire) {
        *to = from.to_ascii_lowercase();
    }
    out.get(..length).unwrap_or_default()
}

/// Keyed hash of folded names: 16 bytes a step by folded multiplication. Keys come from the API, never from
/// queries, and the seed keeps even those from steering collisions.
#[derive(Clone, Copy, Debug)]
pub struct NameHash(pub u64);

impl BuildHasher for NameHash {
    type Hasher = NameHasher;

    fn build_hasher(&self) -> NameHasher {
        NameHasher(self.0)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct NameHasher(u64);

fn mix(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        mix(self.0 ^ 0xe703_7ed1_a0b4_28db, 0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word = word.first_chunk().map_or(0, |w| u64::from_le_bytes(*w));
            self.0 = mix(self.0 ^ word, 0xa076_1d64_78bd_642f);
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(words.remainder()) {
            *to = *from;
        }
        self.0 = mix(self.0 ^ u64::from_le_bytes(last), 0xd6e8_feb8_6659_fd93 ^ bytes.len() as u64);
    }

    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_they_parse_in_lower_case() {
        for (text, printed) in
            [("a.B.c.", "a.b.c"), ("a", "a"), ("", "."), (".", "."), ("_http._tcp.x", "_http._tcp.x")]
        {
            assert_eq!(Name::parse(text).map(|n| n.to_string()), Ok(printed.to_owned()));
        }
        for bad in ["a..b", "..", ".a", &"a".repeat(64), &["a"; 128].join(".")] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_zone_ends_at_a_label_border() {
        let zone = Name::parse("cluster.local").unwrap();
        assert_eq!(Name::parse("x.cluster.local").unwrap().offset_of(&zone), Some(2));
        assert_eq!(zone.offset_of(&zone), Some(0));
        assert_eq!(Name::parse("xcluster.local").unwrap().offset_of(&zone), None);
        // The bytes of the zone inside a label: \7 is a legal byte of a label.
        let tricky = b"\x09x\x07cluster\x05local\0";
        assert_eq!(suffix_offset(tricky, zone.wire()), None);
    }
}
