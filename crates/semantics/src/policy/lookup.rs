//! A tier's rules in the form that a datapath can look up: those of one verdict that follow each other are one *run*.
//!
//! ```text
//!   few rules    as they are written: one match per peer and port, each named after its rule
//!   many rules   by port first, then one lookup for all peers of that port (NP-47):
//!
//!       tcp  80 ────────┐            class 0: peers of every rule that has 80
//!       tcp  443-500 ───┴─> class ─> one set of pods, one set of address ranges
//! ```
//!
//! However many rules there are, a packet meets a fixed number of lookups, but where rules overlap so much that what comes
//! of them by port would be far more than they say themselves:
//!
//!   rule by rule  a set of its ports, one of its peers; as large as the policy is
//!
//! Nobody's policy takes more of a node than its own size a few times over. Address ranges are resolved here: an
//! `except` is a hole in its own block only (NP-30), overlapping blocks become one range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::{Family, IpNet, ObjectName, Protocol, number};

use super::resolve::PodPeer;
use super::tier::{PeerMatch, PortMatch, Rule, Verdict};
use crate::meaning::Meaning;

mod apart;

pub use apart::{Apart, Ports};

/// So many matches are written out one by one, which reads better.
const FEW: usize = 8;
/// What is merged by port holds at most so many peers, and so many times what the rules say: with very many ranges of ports
/// that all overlap it would grow with their square.
const MERGED: usize = 1 << 14;
const TIMES: usize = 4;

/// What one after the other says, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    pub verdict: Verdict,
    /// It has a rule for everybody on every port, so it decides of each packet.
    pub of_all: bool,
    pub form: Form<'a>,
}

/// Rules of one verdict: which of them matches makes no difference to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form<'a> {
    Few(Vec<&'a Rule>),
    Many(Merged),
    /// Many, too, and kept apart.
    Apart(Vec<Apart<'a>>),
}

/// Everybody whom some rules are about.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peers {
    pub everybody: bool,
    pub pods: BTreeSet<PodPeer>,
    /// Disjoint, sorted, both ends inclusive.
    pub ranges: Vec<(IpAddr, IpAddr)>,
}

/// All rules of a run by port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Of the objects that have the rules.
    pub objects: BTreeSet<ObjectName>,
    /// On every port of every protocol.
    pub all_ports: Peers,
    pub named: BTreeMap<(Protocol, String), Peers>,
    /// Disjoint ranges of ports, sorted, with the index of their class.
    pub numbers: BTreeMap<Protocol, Vec<(u16, u16, usize)>>,
    pub classes: Vec<Peers>,
}

/// A tier's rules, cut where the verdict changes.
pub fn runs(rules: &[Rule], family: Family) -> Vec<Run<'_>> {
    let same = |one: &Rule, next: &Rule| one.judgement.verdict == next.judgement.verdict;
    let of_all = |run: &[Rule]| run.iter().any(|rule| rule.peers.is_none() && rule.ports.is_none());
    let runs = rules.chunk_by(same).filter_map(|run| Some((run.first()?.judgement.verdict, run)));
    runs.map(|(verdict, run)| Run { verdict, of_all: of_all(run), form: Form::of(run, family) }).collect()
}

impl<'a> Form<'a> {
    fn of(rules: &'a [Rule], family: Family) -> Self {
        if rules.iter().map(Rule::matches).fold(0, usize::saturating_add) <= FEW {
            return Self::Few(rules.iter().collect());
        }
        match Merged::of(rules, family) {
            Some(merged) => Self::Many(merged),
            None => Self::Apart(rules.iter().map(|rule| Apart::of(rule, family)).collect()),
        }
    }
}

impl Peers {
    fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>, family: Family) -> Self {
        let mut all = Self::default();
        let mut ranges = Vec::new();
        for rule in rules {
            let Some(peers) = &rule.peers else {
                all.everybody = true;
                continue;
            };
            for peer in peers {
                match peer {
                    PeerMatch::Pods(pods) => {
                        all.pods.insert(pods.clone());
                    }
                    PeerMatch::Block { cidr, except } => ranges.extend(without(cidr, except)),
                }
            }
        }
        if all.everybody {
            return Self { everybody: true, ..Self::default() };
        }
        all.ranges =
            joined(ranges).into_iter().map(|(from, to)| (family.address(from), family.address(to))).collect();
        all
    }

    /// Adds all that they say.
    pub fn mean(&self, meaning: Meaning) -> Meaning {
        let meaning = meaning.text(if self.everybody { "everybody" } else { "some" }).count(self.pods.len());
        self.mean_ranges(self.pods.iter().fold(meaning, |meaning, peer| peer.mean(meaning)))
    }

    /// Adds the ranges alone.
    pub fn mean_ranges(&self, meaning: Meaning) -> Meaning {
        let meaning = meaning.count(self.ranges.len());
        self.ranges.iter().fold(meaning, |meaning, (from, to)| meaning.shown(from).shown(to))
    }
}

impl Merged {
    /// `None` when the ports overlap so much that what comes of it is far more than the rules.
    fn of(rules: &[Rule], family: Family) -> Option<Self> {
        let mut merged = Self {
            objects: rules.iter().flat_map(|rule| rule.judgement.cause.objects()).collect(),
            all_ports: Peers::of(rules.iter().filter(|rule| rule.ports.is_none()), family),
            ..Self::default()
        };
        let mut named: BTreeMap<(Protocol, String), Vec<&Rule>> = BTreeMap::new();
        let mut numbers: BTreeMap<Protocol, Vec<(u16, u16, usize)>> = BTreeMap::new();
        for (at, rule) in rules.iter().enumerate() {
            for port in rule.ports.iter().flatten() {
                match port {
                    PortMatch::Name { protocol, name } => {
                        named.entry((*protocol, name.clone())).or_default().push(rule);
                    }
                    PortMatch::Numbers { protocol, from, to } => {
                        numbers.entry(*protocol).or_default().push((*from, *to, at));
                    }
                }
            }
        }
        let weight = |at: usize| rules.get(at).map_or(0, |rule| 1 + rule.peers());
        let mut budget = (0..rules.len()).map(weight).fold(0, usize::saturating_add);
        budget = budget.saturating_mul(TIMES).saturating_add(MERGED);
        for rules in named.values() {
            budget = budget.checked_sub(rules.iter().map(|rule| 1 + rule.peers()).sum())?;
        }
        merged.named = named.into_iter().map(|(port, rules)| (port, Peers::of(rules, family))).collect();
        let mut classes = BTreeMap::new();
        for (protocol, ranges) in numbers {
            let pieces = pieces(&ranges, &weight, &mut budget)?;
            let mut known: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
            let mut found: Vec<(u16, u16, usize)> = Vec::new();
            for (from, to, covering) in pieces {
                let class = *known.entry(covering).or_insert_with_key(|covering| {
                    let peers = Peers::of(covering.iter().filter_map(|at| rules.get(*at)), family);
                    let next = classes.len();
                    *classes.entry(peers).or_insert(next)
                });
                match found.last_mut() {
                    Some(last) if last.2 == class && last.1.checked_add(1) == Some(from) => last.1 = to,
                    _ => found.push((from, to, class)),
                }
            }
            merged.numbers.insert(protocol, found);
        }
        let mut classes: Vec<_> = classes.into_iter().collect();
        classes.sort_unstable_by_key(|(_, index)| *index);
        merged.classes = classes.into_iter().map(|(peers, _)| peers).collect();
        Some(merged)
    }
}

/// Cuts overlapping ranges into pieces, each with all that cover it. A rule of many ports is there once for each.
fn pieces(
    ranges: &[(u16, u16, usize)],
    weight: &dyn Fn(usize) -> usize,
    budget: &mut usize,
) -> Option<Vec<(u16, u16, Vec<usize>)>> {
    // One past the highest port needs a wider number.
    let mut turns: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (from, to, at) in ranges {
        turns.entry(u32::from(*from)).or_default().0.push(*at);
        turns.entry(u32::from(*to) + 1).or_default().1.push(*at);
    }
    let mut open: BTreeMap<usize, usize> = BTreeMap::new();
    let mut known: BTreeSet<Vec<usize>> = BTreeSet::new();
    let mut found = Vec::new();
    let mut turns = turns.into_iter().peekable();
    while let Some((from, (begin, end))) = turns.next() {
        for at in begin {
            *open.entry(at).or_default() += 1;
        }
        for at in end {
            if let Some(count) = open.get_mut(&at) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&at);
                }
            }
        }
        let Some((next, _)) = turns.peek().filter(|_| !open.is_empty()) else { continue };
        let covering: Vec<usize> = open.keys().copied().collect();
        // Pieces that the same rules cover share a class.
        let of_class = || covering.iter().copied().map(weight).sum();
        let cost = if known.contains(&covering) { covering.len() } else { of_class() };
        *budget = budget.checked_sub(cost)?;
        known.insert(covering.clone());
        found.push((from as u16, (next - 1) as u16, covering));
    }
    Some(found)
}

/// A block less its holes, as ranges.
fn without(cidr: &IpNet, except: &[IpNet]) -> Vec<(u128, u128)> {
    let bounds = |net: &IpNet| (number(net.network()), number(net.broadcast()));
    let (mut from, last) = bounds(cidr);
    let mut found = Vec::new();
    for (hole, end) in joined(except.iter().map(bounds).collect()) {
        if end < from {
            continue;
        }
        if hole > last {
            break;
        }
        if hole > from {
            found.push((from, hole - 1));
        }
        match end.checked_add(1).filter(|next| *next <= last) {
            Some(next) => from = next,
            None => return found,
        }
    }
    found.push((from, last));
    found
}

/// The same numbers in as few ranges as can be, sorted.
fn joined(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut found: Vec<(u128, u128)> = Vec::new();
    for (from, to) in ranges {
        match found.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => found.push((from, to)),
        }
    }
    found
}

#[cfg(test)]
mod tests;
