//! What the kernel has counted: packets that a rule met, and those of each element that the packet path keeps. No part of
//! a ruleset's value, and so not in [`super::Dump`].

use kstate::nft::{Bytes, TableId};

use super::encode::decode_comment;
use super::{DATA_VALUE, NEWRULE, NEWSETELEM, family_of};
use crate::message::{Message, attributes};
use crate::nfnetlink::{self, find};

/// A rule with a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedRule {
    pub table: TableId,
    pub chain: String,
    /// The kernel's number of the rule, which no other of the table gets.
    pub handle: u64,
    pub comment: String,
    pub packets: u64,
}

/// The rule of a NEWRULE, if it counts.
pub fn counted_rule(message: &Message<'_>) -> Option<CountedRule> {
    if message.kind != NEWRULE {
        return None;
    }
    let (family, attrs) = nfnetlink::split(message)?;
    let text = |kind| find(attrs, kind).and_then(nfnetlink::text);
    let packets = attributes(find(attrs, 4)?).find_map(|expr| packets(expr.value))?;
    Some(CountedRule {
        table: TableId { family: family_of(family)?, name: text(1)?.into() },
        chain: text(2)?.to_owned(),
        handle: find(attrs, 3).and_then(nfnetlink::be64)?,
        comment: find(attrs, 7).and_then(decode_comment).unwrap_or_default(),
        packets,
    })
}

/// The keys of a NEWSETELEM whose elements count, with their packets.
pub fn counted_elements(message: &Message<'_>) -> Vec<(Bytes, u64)> {
    let list = || {
        let (_, attrs) = nfnetlink::split(message).filter(|_| message.kind == NEWSETELEM)?;
        find(attrs, 3)
    };
    let counted = |element: &[u8]| {
        let key = find(find(element, 1)?, DATA_VALUE)?;
        Some((key.into(), packets(find(element, 7)?)?))
    };
    attributes(list().unwrap_or_default()).filter_map(|element| counted(element.value)).collect()
}

/// Of one expression, if it is a counter: NFTA_COUNTER_PACKETS.
fn packets(expr: &[u8]) -> Option<u64> {
    let counter = nfnetlink::text(find(expr, 1)?)? == "counter";
    find(find(expr, 2).filter(|_| counter)?, 2).and_then(nfnetlink::be64)
}
