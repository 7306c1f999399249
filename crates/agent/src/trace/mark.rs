//! Which packets nft traces: those of flows that are watched, by a table of our own.
//!
//! ```text
//!   table ip (or ip6) plumb_trace: set flows { address . protocol . port }
//!                                           set masqueraded { address . address . protocol . port }
//!     prerouting -350: ip saddr . l4proto . th sport @flows  meta nftrace set 1
//!                      ip daddr . l4proto . th dport @flows  meta nftrace set 1      (the way back)
//!                      ip saddr . ip daddr . l4proto . th dport @masqueraded  meta nftrace set 1
//!                      ip daddr . ip saddr . l4proto . th sport @masqueraded  meta nftrace set 1
//! ```
//!
//! The second set is for a flow that comes to another node under an address of its sender's and a port that is known only
//! afterwards: what is marked beside it is told apart then.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use kernel::nft::Nft;
use kstate::nft::build::{self, Value, encode, rule};
use kstate::nft::key::{Part, address, load};
use kstate::nft::{
    BaseChain, ChainKind, ElemData, ElemKey, Field, Hook, Op, Plan, Reg, Ruleset, Set, SetData, TableId,
};
use trace::exchange::{Flow, Masqueraded};
use types::{Family, Protocol};

/// Our table for marking; taken away when the last flow is no longer watched. Left behind by a killed agent, it is
/// replaced by the next trace, or taken away by `plumb node-cleanup`.
pub const TABLE: &str = types::wire::TRACE_TABLE;
const FLOWS: &str = "flows";
const MASQUERADED: &str = "masqueraded";
const CHAIN: &str = "mark";

/// What is marked now: a family's table is there as long as there is something.
static MARKED: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// One flow's mark: the elements that stand for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub flow: Flow,
    elements: Vec<(&'static str, ElemKey)>,
}

/// Undoes it when it is dropped.
#[derive(Debug)]
pub struct Marked(Mark);

impl Mark {
    pub fn of(flow: Flow, masqueraded: &[Masqueraded]) -> Self {
        // An echo has no port that a Service leads on.
        let with_ports = masqueraded.iter().filter(|_| flow.protocol != Protocol::Icmp);
        let arriving = with_ports.map(|comes| (MASQUERADED, arriving(flow, *comes)));
        Self { flow, elements: std::iter::once((FLOWS, key(flow))).chain(arriving).collect() }
    }

    fn table(&self) -> TableId {
        TableId { family: family(self.flow).into(), name: TABLE.into() }
    }

    /// The elements that none of these has, each once.
    fn alone<'a>(&'a self, others: &'a [Self]) -> impl Iterator<Item = (&'static str, ElemKey)> + 'a {
        let of_family = move |other: &&Self| family(other.flow) == family(self.flow);
        let held =
            move |element| others.iter().filter(of_family).any(|other| other.elements.contains(element));
        let own = self.elements.iter().enumerate();
        let once = own.filter(|(at, element)| !self.elements.iter().take(*at).any(|other| other == *element));
        once.map(|(_, element)| element).filter(move |element| !held(element)).cloned()
    }

    pub fn set(self) -> Result<Marked> {
        let mut marked = MARKED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut nft = Nft::open()?;
        let (table, ours) = (self.table(), family(self.flow));
        if !marked.iter().any(|other| family(other.flow) == ours) {
            let left = nft.observe(std::slice::from_ref(&table))?.ruleset;
            if !left.tables.is_empty() {
                nft.apply(&Plan { ops: vec![Op::DeleteTable(table.clone())] }, &left)?;
            }
            nft.apply(&table_plan(ours), &Ruleset::default())?;
        }
        let known = nft.observe(std::slice::from_ref(&table))?.ruleset;
        let add = |(set, key): (&str, ElemKey)| Op::AddElement {
            table: table.clone(),
            set: set.into(),
            key,
            data: ElemData::None,
        };
        nft.apply(&Plan { ops: self.alone(&marked).map(add).collect() }, &known)?;
        marked.push(self.clone());
        Ok(Marked(self))
    }

    /// What takes it away, when only these are left.
    fn undone(&self, left: &[Self]) -> Vec<Op> {
        let table = self.table();
        if !left.iter().any(|other| family(other.flow) == family(self.flow)) {
            return vec![Op::DeleteTable(table)];
        }
        let delete =
            |(set, key): (&str, ElemKey)| Op::DeleteElement { table: table.clone(), set: set.into(), key };
        self.alone(left).map(delete).collect()
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let mut marked = MARKED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = marked.iter().position(|mark| *mark == self.0) {
            marked.swap_remove(at);
        }
        let ops = self.0.undone(&marked);
        let undo = || -> Result<()> {
            if ops.is_empty() {
                return Ok(());
            }
            let mut nft = Nft::open()?;
            let known = nft.observe(&[self.0.table()])?.ruleset;
            Ok(nft.apply(&Plan { ops }, &known)?)
        };
        if let Err(error) = undo() {
            tracing::warn!(error = format!("{error:#}"), "table {TABLE} stays until the next trace");
        }
    }
}

fn family(flow: Flow) -> Family {
    Family::of(flow.source.ip())
}

fn key(flow: Flow) -> ElemKey {
    let Flow { source, protocol, .. } = flow;
    let number = Value::Proto(protocol.number_in(family(flow)));
    // An echo begins with its type and code; an answer's second word is a checksum, so that no rule is seen for it.
    let first = match protocol {
        Protocol::Icmp => family(flow).pick([8, 128]) << 8,
        _ => source.port(),
    };
    ElemKey::point(encode(&[source.ip().into(), number, first.into()]))
}

/// The first packet of the flow as it comes from the node that masqueraded it.
fn arriving(flow: Flow, comes: Masqueraded) -> ElemKey {
    let number = Value::Proto(flow.protocol.number_in(family(flow)));
    let (from, to) = (comes.source, comes.destination);
    ElemKey::point(encode(&[from.into(), to.ip().into(), number, to.port().into()]))
}

fn table_plan(family: Family) -> Plan {
    let table = || TableId { family: family.into(), name: TABLE.into() };
    let r0 = Reg(0);
    let ends = Set::new([address(family), Field::Proto, Field::Port], SetData::None);
    let fields = [address(family), address(family), Field::Proto, Field::Port];
    let arriving = Set::new(fields, SetData::None);
    let add = |set: &str, layout| Op::AddSet { table: table(), set: set.into(), layout: Box::new(layout) };
    let rules = [
        (FLOWS, &[Part::Saddr, Part::Proto, Part::Sport][..]),
        (FLOWS, &[Part::Daddr, Part::Proto, Part::Dport]),
        (MASQUERADED, &[Part::Saddr, Part::Daddr, Part::Proto, Part::Dport]),
        (MASQUERADED, &[Part::Daddr, Part::Saddr, Part::Proto, Part::Sport]),
    ];
    let rules = rules.map(|(set, parts)| {
        let (key, _) = load(family, r0, parts);
        rule("", key.into_iter().chain([build::lookup(set, r0)]).chain(build::nftrace(r0)))
    });
    // Before conntrack (-200) and raw (-300), so that everything that follows is seen.
    let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -350, drop: false };
    Plan {
        ops: vec![
            Op::AddTable(table()),
            add(FLOWS, ends),
            add(MASQUERADED, arriving),
            Op::AddChain { table: table(), chain: CHAIN.into(), base: Some(base) },
            Op::SetRules { table: table(), chain: CHAIN.into(), rules: rules.into() },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_goes_with_the_last_trace_that_needs_it() {
        let mark = |port: u16| {
            let source = format!("10.244.1.4:{port}").parse().expect("an address");
            let destination = "203.0.113.50:80".parse().expect("an address");
            let flow = Flow { protocol: Protocol::Tcp, source, destination };
            let source = "10.244.1.0".parse().expect("an address");
            let destination = "10.244.2.7:8080".parse().expect("an address");
            Mark::of(flow, &[Masqueraded { source, destination }; 2])
        };
        let (one, two) = (mark(41224), mark(41225));
        let sets = |mark: &Mark, others: &[Mark]| mark.alone(others).map(|(set, _)| set).collect::<Vec<_>>();
        assert_eq!(sets(&one, &[]), [FLOWS, MASQUERADED], "each once");
        assert_eq!(sets(&one, std::slice::from_ref(&two)), [FLOWS], "the other needs the second, too");
        assert!(sets(&one, &[two.clone(), one.clone()]).is_empty());
        assert!(matches!(one.undone(&[two])[..], [Op::DeleteElement { .. }]));
        assert!(matches!(one.undone(&[])[..], [Op::DeleteTable(_)]));
    }
}
