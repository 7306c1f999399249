//! What the kernel tells on its own: who changed the ruleset (group NFNLGRP_NFTABLES), and which rules a traced
//! packet met (group NFNLGRP_NFTRACE).

use kstate::nft::{TableFamily, TableId, Verdict};

use super::{DATA_VERDICT, NEWGEN, TRACE, family_of, read_verdict};
use crate::message::Message;
use crate::nfnetlink;

/// A transaction has changed the ruleset of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub generation: u32,
    /// The socket that did it.
    pub portid: u32,
    /// The thread that did it (of most programs the process), and its name.
    pub pid: u32,
    pub process: String,
}

impl Change {
    /// `None` for other messages. Also reads the answer to [`super::Request::Generation`].
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind != NEWGEN {
            return None;
        }
        let (_, attrs) = nfnetlink::split(message)?;
        let number = |kind| nfnetlink::find(attrs, kind).and_then(nfnetlink::be32);
        let process = nfnetlink::find(attrs, 3).and_then(nfnetlink::text).unwrap_or_default().to_owned();
        Some(Self { generation: number(1)?, portid: message.portid, pid: number(2).unwrap_or(0), process })
    }
}

/// Whether a notice of an object tells of one of these tables; `true` as well where that is in doubt. The notice that
/// ends a transaction tells of none.
///
/// The table is attribute 1 of each kind (include/uapi/linux/netfilter/nf_tables.h): `NFTA_TABLE_NAME`,
/// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`, `NFTA_OBJ_TABLE`,
/// `NFTA_FLOWTABLE_TABLE`.
pub fn touches(message: &Message<'_>, tables: &[TableId]) -> bool {
    if matches!(message.kind, NEWGEN | TRACE) {
        return false;
    }
    let Some((family, attrs)) = nfnetlink::split(message) else { return true };
    // Devices' and ARP's are families that we have no table of.
    let Some(family) = family_of(family) else { return false };
    match nfnetlink::find(attrs, 1).and_then(nfnetlink::text) {
        Some(name) => tables.iter().any(|table| table.family == family && *table.name == *name),
        None => true,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    /// The packet reached the end of a base chain.
    Policy,
    /// It came back from a chain.
    Return,
    /// It matched a rule.
    Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceVerdict {
    Verdict(Verdict),
    /// On with the next rule.
    Continue,
    /// A code of nf_tables or netfilter that we never write (2 is stolen, 3 queued).
    Other(i32),
}

/// One step of a traced packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The same for all steps of one packet since it came in: the kernel hashes the packet's place in memory and
    /// its input interface (`get_trace_id`, nf_tables_trace.c), so each interface and each tunnel begins a new one.
    pub id: u32,
    pub table: TableId,
    pub chain: String,
    pub kind: TraceKind,
    /// The rule, for kinds `Rule` and `Return`.
    pub handle: Option<u64>,
    pub verdict: TraceVerdict,
    /// The packet as it was at this step; only in the first step of each table and hook.
    pub link_header: Vec<u8>,
    pub network_header: Vec<u8>,
    pub transport_header: Vec<u8>,
    /// Interface indices.
    pub iif: Option<u32>,
    pub oif: Option<u32>,
    pub mark: Option<u32>,
}

impl Trace {
    /// `None` for other messages and families.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind != TRACE {
            return None;
        }
        let (family, attrs) = nfnetlink::split(message)?;
        let number = |kind| nfnetlink::find(attrs, kind).and_then(nfnetlink::be32);
        let text = |kind| nfnetlink::find(attrs, kind).and_then(nfnetlink::text).map(str::to_owned);
        let bytes = |kind| nfnetlink::find(attrs, kind).unwrap_or_default().to_vec();
        let family: TableFamily = family_of(family)?;
        let (kind, handle) = match number(4)? {
            1 => (TraceKind::Policy, None),
            2 => (TraceKind::Return, nfnetlink::find(attrs, 3).and_then(nfnetlink::be64)),
            // At the end of a chain the kernel tells of a rule that is none: it has no number.
            3 => (TraceKind::Rule, Some(nfnetlink::find(attrs, 3).and_then(nfnetlink::be64)?)),
            _ => return None,
        };
        Some(Self {
            id: number(6)?,
            table: TableId { family, name: text(1)?.into() },
            chain: text(2)?,
            kind,
            handle,
            verdict: verdict(attrs)?,
            link_header: bytes(7),
            network_header: bytes(8),
            transport_header: bytes(9),
            iif: number(10),
            oif: number(12),
            mark: number(14),
        })
    }
}

/// NFTA_TRACE_VERDICT holds the verdict's attributes itself; a policy comes as its bare code.
fn verdict(attrs: &[u8]) -> Option<TraceVerdict> {
    if let Some(policy) = nfnetlink::find(attrs, 16).and_then(nfnetlink::be32) {
        return Some(TraceVerdict::Verdict(if policy == 0 { Verdict::Drop } else { Verdict::Accept }));
    }
    let value = nfnetlink::find(attrs, 5)?;
    let found = read_verdict(value).or_else(|| read_verdict(nfnetlink::find(value, DATA_VERDICT)?))?;
    Some(match found {
        Ok(verdict) => TraceVerdict::Verdict(verdict),
        Err(-1) => TraceVerdict::Continue,
        Err(code) => TraceVerdict::Other(code),
    })
}
