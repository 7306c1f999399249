//! Which records of an upstream's message belong to the question (RFC 2181 §5.4.1): what was not asked for is neither
//! kept nor given on, whoever put it there.

use super::Place;
use crate::name::MAX_NAME;
use crate::query::Type;

/// RFC 6672: an alias of all names below one.
const DNAME: Type = Type(39);

/// Follows the question's name through the aliases of the answer. How many records from the front may be kept;
/// `None` when the answer holds one that no alias leads to.
///
/// Records are only ever cut off at the end: names of others may point into them.
pub(super) fn kept(bytes: &[u8], question: usize, records: &[Place]) -> Option<usize> {
    let mut asked = vec![expand(bytes, question)?];
    let mut left: Vec<&Place> = records.iter().take_while(|place| place.section == 0).collect();
    // Each round finds an alias more, or is the last: they come in any order.
    while !left.is_empty() {
        let before = left.len();
        let mut unknown = Vec::new();
        for place in left {
            let owner = expand(bytes, place.start)?;
            let is_asked = match place.kind {
                DNAME => asked.iter().any(|name| is_below(name, &owner)),
                _ => asked.contains(&owner),
            };
            match is_asked {
                true if place.kind == Type::CNAME => asked.push(expand(bytes, place.ttl + 6)?),
                true => {}
                false => unknown.push(place),
            }
        }
        left = unknown;
        if left.len() == before {
            return None;
        }
    }
    let belongs = |place: &&Place| match place.section {
        0 => true,
        1 => {
            let zone = expand(bytes, place.start);
            zone.is_some_and(|zone| asked.iter().any(|name| *name == zone || is_below(name, &zone)))
        }
        // Addresses of others, to save a question: whoever needs them asks.
        _ => false,
    };
    Some(records.iter().take_while(belongs).count())
}

/// The lower-case name at a place, without compression (RFC 1035 §4.1.4). Pointers lead backwards only, so they end.
fn expand(bytes: &[u8], mut at: usize) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(32);
    let mut before = at;
    loop {
        let length = *bytes.get(at)?;
        match length {
            0 => {
                name.push(0);
                return Some(name);
            }
            1..=63 => {
                let end = at + 1 + usize::from(length);
                name.extend(bytes.get(at..end)?.iter().map(u8::to_ascii_lowercase));
                if name.len() >= MAX_NAME {
                    return None;
                }
                at = end;
            }
            0xc0.. => {
                let to = usize::from(u16::from_be_bytes([length & 0x3f, *bytes.get(at + 1)?]));
                if to >= before {
                    return None;
                }
                (before, at) = (to, to);
            }
            _ => return None,
        }
    }
}

/// Label by label: `notexample.com` is not below `example.com`.
fn is_below(mut name: &[u8], zone: &[u8]) -> bool {
    while let Some((length, rest)) = name.split_first().filter(|(length, _)| **length > 0) {
        name = rest.get(usize::from(*length)..).unwrap_or_default();
        if name == zone {
            return true;
        }
    }
    false
}
