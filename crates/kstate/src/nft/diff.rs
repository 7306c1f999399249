//! What turns one ruleset into another, in an order of which every prefix is safe:
//!
//! ```text
//!   make way   what cannot change in place goes first (a set's layout, a chain's hook), with what names it
//!   grow       tables, sets, chains, rules of new chains, elements of new sets, then those of known sets: values,
//!              verdicts that lead to them, numbers
//!   switch     rules of known chains, hooks of new ones, changed values, changed verdicts, changed numbers
//!   shrink     numbers, verdicts, values, hooks, then chains and sets that nothing names any more
//! ```
//!
//! Numbers are values by which a rule asks a verdict map.
//!
//! So a packet in flight finds, between any two steps, either the old way or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Chain, ElemData, ElemKey, Op, Plan, Rule, Ruleset, Set, Table, TableId, sets_of, targets};
use super::{Expr, SetData};

/// `edit(actual, diff(desired, actual)) == desired`; empty when they are equal.
pub fn diff(desired: &Ruleset, actual: &Ruleset) -> Plan {
    let mut ops = Vec::new();
    for (id, table) in &desired.tables {
        match actual.tables.get(id) {
            Some(old) => diff_table(id, table, old, &mut ops),
            None => {
                ops.push(Op::AddTable(id.clone()));
                diff_table(id, table, &Table::default(), &mut ops);
            }
        }
    }
    for id in actual.tables.keys().filter(|id| !desired.tables.contains_key(id)) {
        ops.push(Op::DeleteTable(id.clone()));
    }
    Plan { ops }
}

fn diff_table(id: &TableId, desired: &Table, actual: &Table, ops: &mut Vec<Op>) {
    let rules = desired.chains.values().flat_map(|chain| &chain.rules);
    let numbers = rules.filter_map(number_map).collect::<BTreeSet<_>>();
    let numbers = &numbers;
    let way = make_way(id, desired, actual);
    if way.is_empty() {
        return Step { id, desired, actual, ops, numbers, early: BTreeSet::new() }.all();
    }
    let mut cleared = Ruleset { tables: BTreeMap::from([(id.clone(), actual.clone())]) };
    let way = Plan { ops: way };
    cleared.edit(&way);
    ops.extend(way.ops);
    if let Some(actual) = cleared.tables.get(id) {
        Step { id, desired, actual, ops, numbers, early: BTreeSet::new() }.all();
    }
}

/// Removes sets and chains that cannot change in place, and first every rule and element that names them.
fn make_way(id: &TableId, desired: &Table, actual: &Table) -> Vec<Op> {
    let chains: BTreeSet<&str> = names_that(&actual.chains, &desired.chains, |a, b| a.base != b.base);
    let sets: BTreeSet<&str> = names_that(&actual.sets, &desired.sets, |a, b| !a.same_layout(b));
    let mut ops = Vec::new();
    if chains.is_empty() && sets.is_empty() {
        return ops;
    }
    let in_the_way = |rule: &Rule| {
        sets_of(rule).iter().any(|s| sets.contains(s)) || chains_of(rule).any(|c| chains.contains(c))
    };
    for (name, chain) in &actual.chains {
        if chain.rules.iter().any(in_the_way) {
            let rules = chain.rules.iter().filter(|rule| !in_the_way(rule)).cloned().collect();
            ops.push(Op::SetRules { table: id.clone(), chain: name.clone(), rules });
        }
    }
    for (name, set) in actual.sets.iter().filter(|(name, _)| !sets.contains(name.as_ref())) {
        for (key, _) in
            set.elements.iter().filter(|(_, data)| target(data).is_some_and(|c| chains.contains(c)))
        {
            ops.push(Op::DeleteElement { table: id.clone(), set: name.clone(), key: key.clone() });
        }
    }
    for (name, set) in actual.sets.iter().filter(|(name, _)| sets.contains(name.as_ref())) {
        let layout = Box::new(set.layout());
        ops.push(Op::DeleteSet { table: id.clone(), set: name.clone(), layout });
    }
    ops.extend(chains.iter().map(|chain| Op::DeleteChain { table: id.clone(), chain: (*chain).to_owned() }));
    ops
}

fn names_that<'a, N: Ord + AsRef<str>, T>(
    actual: &'a BTreeMap<N, T>,
    desired: &BTreeMap<N, T>,
    differ: impl Fn(&T, &T) -> bool,
) -> BTreeSet<&'a str> {
    let differs = |(name, old): &(&N, &T)| desired.get(*name).is_some_and(|new| differ(old, new));
    actual.iter().filter(differs).map(|(name, _)| name.as_ref()).collect()
}

/// The chains a rule leads to.
pub fn chains_of(rule: &Rule) -> impl Iterator<Item = &str> {
    rule.exprs.iter().filter_map(|expr| match expr {
        Expr::Verdict(verdict) => targets(verdict),
        _ => None,
    })
}

/// The chain an element leads to.
pub fn target(data: &ElemData) -> Option<&str> {
    match data {
        ElemData::Verdict(verdict) => targets(verdict),
        ElemData::None | ElemData::Value(_) | ElemData::Until { .. } => None,
    }
}

/// The map in which the rule finds what it asks a verdict map for.
fn number_map(rule: &Rule) -> Option<&str> {
    let led = rule.exprs.iter().rposition(|expr| matches!(expr, Expr::LookupVerdict { .. }))?;
    rule.exprs.iter().take(led).find_map(|expr| match expr {
        Expr::LookupMap { set, .. } => Some(set.as_str()),
        _ => None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Values,
    Verdicts,
    Numbers,
}

struct Step<'a> {
    id: &'a TableId,
    desired: &'a Table,
    actual: &'a Table,
    ops: &'a mut Vec<Op>,
    /// Maps of numbers.
    numbers: &'a BTreeSet<&'a str>,
    /// Elements of interval sets that went while growing, to make room.
    early: BTreeSet<(&'a str, &'a ElemKey)>,
}

impl<'a> Step<'a> {
    fn all(mut self) {
        self.new_sets();
        self.new_chains();
        let kinds = [Kind::Values, Kind::Verdicts, Kind::Numbers];
        for new in [true, false] {
            kinds.into_iter().for_each(|kind| self.grow(kind, new));
        }
        self.changed_rules();
        self.hooks();
        kinds.into_iter().for_each(|kind| self.switch(kind));
        kinds.into_iter().rev().for_each(|kind| self.shrink(kind));
        self.dead();
    }

    fn is_new_chain(&self, name: &str) -> bool {
        !self.actual.chains.contains_key(name)
    }

    fn new_sets(&mut self) {
        for (name, set) in self.desired.sets.iter().filter(|(name, _)| !self.actual.sets.contains_key(*name))
        {
            let layout = Box::new(set.layout());
            self.ops.push(Op::AddSet { table: self.id.clone(), set: name.clone(), layout });
        }
    }

    /// Regular chains, all before the first rule: rules lead from one to another.
    fn new_chains(&mut self) {
        let new = || {
            self.desired.chains.iter().filter(|(name, chain)| chain.base.is_none() && self.is_new_chain(name))
        };
        let (table, mut ops) = (self.id, Vec::new());
        for (name, _) in new() {
            ops.push(Op::AddChain { table: table.clone(), chain: name.clone(), base: None });
        }
        for (name, chain) in new().filter(|(_, chain)| !chain.rules.is_empty()) {
            ops.push(self.set_rules(name, &chain.rules));
        }
        self.ops.append(&mut ops);
    }

    fn set_rules(&self, chain: &str, rules: &[Rule]) -> Op {
        Op::SetRules { table: self.id.clone(), chain: chain.to_owned(), rules: rules.to_vec() }
    }

    fn sets(&self, kind: Kind) -> impl Iterator<Item = (&'a Arc<str>, &'a Set, Option<&'a Set>)> + use<'a> {
        let (old, numbers) = (&self.actual.sets, self.numbers);
        let kind_of = move |name: &str, set: &Set| match set.data {
            SetData::Verdicts => Kind::Verdicts,
            _ if numbers.contains(name) => Kind::Numbers,
            _ => Kind::Values,
        };
        self.desired
            .sets
            .iter()
            .map(move |(name, set)| (name, set, old.get(name)))
            .filter(move |(name, set, _)| kind_of(name, set) == kind)
    }

    /// New elements of new or of known sets. Intervals must not overlap, so an old one that does goes right before the
    /// new one.
    fn grow(&mut self, kind: Kind, new: bool) {
        for (name, set, old) in self.sets(kind).filter(|(.., old)| old.is_none() == new) {
            let known = |key: &ElemKey| old.is_some_and(|old| old.elements.contains_key(key));
            let stale: Vec<&'a ElemKey> = match old {
                Some(old) if set.interval => {
                    old.elements.keys().filter(|k| !set.elements.contains_key(*k)).collect()
                }
                _ => Vec::new(),
            };
            for (key, data) in set.elements.iter().filter(|(key, _)| !known(key)) {
                for stale in stale.iter().filter(|stale| overlap(stale, key)) {
                    if self.early.insert((name, stale)) {
                        self.delete_element(name, stale);
                    }
                }
                self.add_element(name, key, data);
            }
        }
    }

    fn changed_rules(&mut self) {
        for (name, chain) in &self.desired.chains {
            if self.actual.chains.get(name).is_some_and(|old| old.rules != chain.rules) {
                self.ops.push(self.set_rules(name, &chain.rules));
            }
        }
    }

    /// New base chains come when all they lead to is there.
    fn hooks(&mut self) {
        for (name, chain) in self.desired.chains.iter().filter(|(_, chain)| chain.base.is_some()) {
            if self.is_new_chain(name) {
                let (table, chain_name) = (self.id.clone(), name.clone());
                self.ops.push(Op::AddChain { table, chain: chain_name, base: chain.base });
                if !chain.rules.is_empty() {
                    self.ops.push(self.set_rules(name, &chain.rules));
                }
            }
        }
    }

    fn switch(&mut self, kind: Kind) {
        for (name, set, old) in self.sets(kind) {
            let Some(old) = old else { continue };
            for (key, data) in &set.elements {
                if old.elements.get(key).is_some_and(|before| before != data) {
                    self.delete_element(name, key);
                    self.add_element(name, key, data);
                }
            }
        }
    }

    fn shrink(&mut self, kind: Kind) {
        for (name, set, old) in self.sets(kind) {
            let Some(old) = old else { continue };
            for key in old.elements.keys().filter(|key| !set.elements.contains_key(*key)) {
                if !self.early.contains(&(name, key)) {
                    self.delete_element(name, key);
                }
            }
        }
    }

    /// What nothing that stays names any more: hooks first, then the rules of dead chains (they name each other
    /// and dead sets), then sets (their elements name dead chains), then the chains.
    fn dead(&mut self) {
        let chains = |base: bool| {
            let (desired, actual) = (&self.desired.chains, &self.actual.chains);
            actual
                .iter()
                .filter(move |(name, chain)| !desired.contains_key(*name) && chain.base.is_some() == base)
        };
        let delete = |name: &String| Op::DeleteChain { table: self.id.clone(), chain: name.clone() };
        let names = |chain: &Chain| {
            chain.rules.iter().any(|r| !sets_of(r).is_empty() || chains_of(r).next().is_some())
        };
        let mut ops: Vec<Op> = chains(true).map(|(name, _)| delete(name)).collect();
        ops.extend(
            chains(false).filter(|(_, chain)| names(chain)).map(|(name, _)| self.set_rules(name, &[])),
        );
        for (name, set) in self.actual.sets.iter().filter(|(name, _)| !self.desired.sets.contains_key(*name))
        {
            let table = || self.id.clone();
            // A kernel without 628bd3e49cba (Linux 6.5) lets go of the chains of a map's elements only when all is done.
            let leads = set.elements.iter().filter(|(_, data)| target(data).is_some());
            ops.extend(leads.map(|(key, _)| Op::DeleteElement {
                table: table(),
                set: name.clone(),
                key: key.clone(),
            }));
            ops.push(Op::DeleteSet { table: table(), set: name.clone(), layout: Box::new(set.layout()) });
        }
        ops.extend(chains(false).map(|(name, _)| delete(name)));
        self.ops.append(&mut ops);
    }

    fn add_element(&mut self, set: &Arc<str>, key: &ElemKey, data: &ElemData) {
        let (table, set) = (self.id.clone(), Arc::clone(set));
        self.ops.push(Op::AddElement { table, set, key: key.clone(), data: data.clone() });
    }

    fn delete_element(&mut self, set: &Arc<str>, key: &ElemKey) {
        let (table, set) = (self.id.clone(), Arc::clone(set));
        self.ops.push(Op::DeleteElement { table, set, key: key.clone() });
    }
}

/// Whether two ranges of a lone field share a value. Of a concatenation this compares the whole key as one
/// number, which may call apart ranges overlapping: then the old one only goes a little earlier.
fn overlap(a: &ElemKey, b: &ElemKey) -> bool {
    a.start() <= b.last() && b.start() <= a.last()
}
