//! What one object contributes to the ruleset, and the ruleset as the sum of all contributions.
//!
//! ```text
//!   Unit ──compile──> Fragment ─┐   claims: what several units want
//!   Unit ──compile──> Fragment ─┼─> Ruleset (the sum)     a change of one fragment
//!   Unit ──compile──> Fragment ─┘                         yields the plan of that change only
//! ```
//!
//! Each family has a table, and so has the bridge; a composer is for one. Two units may want one thing (a chain `n3`, or an element while an
//! address changes hands). It stays until the last one lets go; where they differ the first unit in order wins, so
//! history plays no part.

mod claims;
mod meanings;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kstate::nft::{Bytes, Chain, ElemData, ElemKey, Op, Plan, Ruleset, Set, Table, TableId};
use types::Family;

use crate::fragment::claims::{Claims, Lone};
use crate::layout::holds_numbers;
use semantics::Diagnostic;
use semantics::meaning::Check;
use semantics::policy::resolve::AddressSet;
use semantics::unit::Unit;

pub use meanings::Meanings;

/// A name of a chain or set; most are constants.
pub type Name = Cow<'static, str>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Sets by name, without elements.
    pub sets: BTreeMap<Name, Set>,
    pub chains: BTreeMap<Name, Chain>,
    /// By set.
    pub elements: BTreeMap<Name, BTreeMap<ElemKey, ElemData>>,
    /// Sets of pod addresses that this fragment's rules look at; pods fill them.
    pub address_sets: BTreeSet<AddressSet>,
    /// Of sets and chains that are named by a hash of what they mean.
    pub meanings: BTreeMap<Name, Check>,
    pub diagnostics: Vec<Diagnostic>,
}

impl Fragment {
    /// Says what a set or chain stands for.
    pub fn mean(&mut self, name: impl Into<Name>, check: Check) {
        self.meanings.insert(name.into(), check);
    }

    pub fn element(&mut self, set: impl Into<Name>, start: Bytes, data: ElemData) {
        self.elements.entry(set.into()).or_default().insert(ElemKey::point(start), data);
    }

    /// Of an interval set; `end` is inclusive.
    pub fn range(&mut self, set: impl Into<Name>, [start, end]: [Bytes; 2], data: ElemData) {
        self.elements.entry(set.into()).or_default().insert(ElemKey::range(start, end), data);
    }

    fn held(&self) -> Held {
        let keys = |elements: &BTreeMap<ElemKey, ElemData>| elements.keys().cloned().collect();
        Held {
            sets: self.sets.keys().cloned().collect(),
            chains: self.chains.keys().cloned().collect(),
            elements: self.elements.iter().map(|(set, elements)| (set.clone(), keys(elements))).collect(),
        }
    }

    /// What it says beside what is in the table: that is for who makes fragments, and goes no further.
    pub fn known(&mut self) -> Known {
        Known {
            address_sets: std::mem::take(&mut self.address_sets),
            meanings: std::mem::take(&mut self.meanings).into_iter().collect(),
            diagnostics: std::mem::take(&mut self.diagnostics),
        }
    }

    /// Of a unit that is gone.
    fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.chains.is_empty() && self.elements.is_empty()
    }
}

/// What is remembered of a fragment where fragments are made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub address_sets: BTreeSet<AddressSet>,
    meanings: Box<[(Name, Check)]>,
    pub diagnostics: Vec<Diagnostic>,
}

/// What is remembered of it where they are composed: of its things the keys, in order, which lead to the rest.
#[derive(Debug, Default)]
struct Held {
    sets: Box<[Name]>,
    chains: Box<[Name]>,
    elements: Box<[(Name, Box<[ElemKey]>)]>,
}

impl Held {
    fn keys_of(&self, set: &Name) -> &[ElemKey] {
        let place = self.elements.binary_search_by(|(name, _)| name.cmp(set)).ok();
        place.and_then(|place| self.elements.get(place)).map_or(&[], |(_, keys)| keys)
    }
}

fn has<T: Ord>(sorted: &[T], key: &T) -> bool {
    sorted.binary_search(key).is_ok()
}

/// The sum of all fragments of one family: its table.
#[derive(Debug)]
pub struct Composer {
    id: TableId,
    held: BTreeMap<Arc<Unit>, Held>,
    sets: Claims<Name, Set>,
    chains: Claims<Name, Chain>,
    /// By set.
    elements: BTreeMap<Name, Claims<ElemKey, ElemData>>,
}

impl Composer {
    pub fn new(family: Family, table: &str) -> Self {
        Self::of(TableId { family: family.into(), name: table.into() })
    }

    pub fn of(id: TableId) -> Self {
        Self {
            id,
            held: BTreeMap::new(),
            sets: Claims::default(),
            chains: Claims::default(),
            elements: BTreeMap::new(),
        }
    }

    /// Puts new fragments (empty: the unit is gone) in the place of those of the same units, and has the ruleset
    /// follow. A unit is named once at most.
    pub fn replace(&mut self, ruleset: &mut Ruleset, fragments: Vec<(Unit, Fragment)>) -> Plan {
        let mut steps = Steps::new(self.id.clone());
        if !ruleset.tables.contains_key(&self.id) {
            steps.create.push(Op::AddTable(self.id.clone()));
        }
        let table = ruleset.tables.entry(self.id.clone()).or_default();
        let mut filled = BTreeSet::new();
        for (unit, new) in fragments {
            self.reclaim(table, &Arc::new(unit), new, &mut filled);
        }
        self.sets.settle(|name, wanted| steps.set(table, name, wanted));
        self.chains.settle(|name, wanted| steps.chain(table, name, wanted));
        for set in &filled {
            let Some(claims) = self.elements.get_mut(set) else { continue };
            let before = count(table, set);
            let name = Arc::from(set.as_ref());
            claims.settle(|key, wanted| steps.element(table, (&name, key), wanted));
            if claims.is_empty() {
                self.elements.remove(set);
            }
            if count(table, set) > 2 * before {
                pack(table, set);
            }
        }
        for name in &steps.gone {
            table.sets.remove(name);
        }
        steps.plan()
    }

    /// Has the unit want what is in the new fragment, and nothing else. `filled`: sets that it has elements in, or had.
    fn reclaim(&mut self, table: &Table, unit: &Arc<Unit>, new: Fragment, filled: &mut BTreeSet<Name>) {
        let old = self.held.remove(unit).unwrap_or_default();
        let kept = (!new.is_empty()).then(|| new.held());
        let others = &self.held;
        let owner = |has: &dyn Fn(&Held) -> bool| {
            others.iter().find(|(_, held)| has(held)).map(|(unit, _)| Arc::clone(unit))
        };
        let sets = Lone {
            now: &|name: &Name| table.sets.get(name.as_ref()).map(|set| Cow::Owned(set.layout())),
            owner: &|name| owner(&|held| has(&held.sets, name)),
        };
        replace(&mut self.sets, unit, (&old.sets, new.sets), &sets);
        let chains = Lone {
            now: &|name: &Name| table.chains.get(name.as_ref()).map(Cow::Borrowed),
            owner: &|name| owner(&|held| has(&held.chains, name)),
        };
        replace(&mut self.chains, unit, (&old.chains, new.chains), &chains);
        let mut elements = new.elements;
        let names: BTreeSet<Name> =
            old.elements.iter().map(|(set, _)| set).chain(elements.keys()).cloned().collect();
        for set in &names {
            let there = table.sets.get(set.as_ref());
            let lone = Lone {
                now: &|key| there.and_then(|set| set.elements.get(key)).map(Cow::Borrowed),
                owner: &|key| owner(&|held| has(held.keys_of(set), key)),
            };
            let both = (old.keys_of(set), elements.remove(set).unwrap_or_default());
            replace(self.elements.entry(set.clone()).or_default(), unit, both, &lone);
        }
        filled.extend(names);
        if let Some(kept) = kept {
            self.held.insert(Arc::clone(unit), kept);
        }
    }
}

fn count(table: &Table, set: &str) -> usize {
    table.sets.get(set).map_or(0, |set| set.elements.len())
}

/// Elements that came in order have left the nodes of their B-tree half empty; a tree made of a list has full ones.
fn pack(table: &mut Table, set: &str) {
    if let Some(set) = table.sets.get_mut(set) {
        set.elements = std::mem::take(&mut set.elements).into_iter().collect();
    }
}

/// Has the unit want what is new, and nothing else of what it wanted before.
fn replace<K: Ord + Clone, V: Clone + PartialEq>(
    claims: &mut Claims<K, V>,
    unit: &Arc<Unit>,
    (old, new): (&[K], BTreeMap<K, V>),
    lone: &Lone<'_, K, V>,
) {
    for key in old.iter().filter(|key| !new.contains_key(*key)) {
        claims.remove(unit, key, lone);
    }
    for (key, wanted) in new {
        claims.insert((unit, has(old, &key)), &key, wanted, lone);
    }
}

/// Steps by the place they must have: every prefix of the finished plan leaves a table in which nothing dangles,
/// every slot that a service can draw is filled, and no isolated pod is open.
struct Steps {
    id: TableId,
    create: Vec<Op>,
    /// Of chains that nothing leads to yet. Before the values: the kernel walks all elements of a map when rules of
    /// another chain come to ask it (nf_tables_bind_set).
    new_rules: Vec<Op>,
    values: Vec<Op>,
    rules: Vec<Op>,
    verdicts: Vec<Op>,
    /// Values that choose among verdicts.
    numbers: Vec<Op>,
    base_rules: Vec<Op>,
    less_numbers: Vec<Op>,
    less_verdicts: Vec<Op>,
    less_values: Vec<Op>,
    less_chains: Vec<Op>,
    less_sets: Vec<Op>,
    /// The names of these.
    gone: BTreeSet<Arc<str>>,
}

impl Steps {
    fn new(id: TableId) -> Self {
        Self {
            id,
            create: Vec::new(),
            new_rules: Vec::new(),
            values: Vec::new(),
            rules: Vec::new(),
            verdicts: Vec::new(),
            numbers: Vec::new(),
            base_rules: Vec::new(),
            less_numbers: Vec::new(),
            less_verdicts: Vec::new(),
            less_values: Vec::new(),
            less_chains: Vec::new(),
            less_sets: Vec::new(),
            gone: BTreeSet::new(),
        }
    }

    fn set(&mut self, table: &mut Table, name: &Name, wanted: Option<&Set>) {
        let (id, set) = (self.id.clone(), Arc::<str>::from(name.as_ref()));
        match wanted {
            Some(layout) if !table.sets.contains_key(&set) => {
                self.create.push(Op::AddSet {
                    table: id,
                    set: set.clone(),
                    layout: Box::new(layout.clone()),
                });
                table.sets.insert(set, layout.clone());
            }
            // A set's name holds a hash of what it is for, its layout with it: two meanings of one name are found before
            // they come here (`meanings.rs`).
            Some(_) => {}
            None => {
                let Some(layout) = table.sets.get(&set).map(Set::layout) else { return };
                self.gone.insert(set.clone());
                self.less_sets.push(Op::DeleteSet { table: id, set, layout: Box::new(layout) });
            }
        }
    }

    fn chain(&mut self, table: &mut Table, name: &Name, wanted: Option<&Chain>) {
        let (id, chain) = (self.id.clone(), name.to_string());
        let Some(wanted) = wanted else {
            if table.chains.remove(&chain).is_some() {
                self.less_chains.push(Op::DeleteChain { table: id, chain });
            }
            return;
        };
        let known = table.chains.get(&chain);
        if known == Some(wanted) {
            return;
        }
        if known.is_none() {
            self.create.push(Op::AddChain { table: id.clone(), chain: chain.clone(), base: wanted.base });
        }
        if known.map_or(!wanted.rules.is_empty(), |known| known.rules != wanted.rules) {
            let place = match (wanted.base, known) {
                (Some(_), _) => &mut self.base_rules,
                (None, Some(_)) => &mut self.rules,
                (None, None) => &mut self.new_rules,
            };
            place.push(Op::SetRules { table: id, chain: chain.clone(), rules: wanted.rules.clone() });
        }
        table.chains.insert(chain, wanted.clone());
    }

    fn element(&mut self, table: &mut Table, (name, key): (&Arc<str>, &ElemKey), wanted: Option<&ElemData>) {
        let Some(set) = table.sets.get_mut(name) else { return };
        let add = |data: &ElemData| Op::AddElement {
            table: self.id.clone(),
            set: Arc::clone(name),
            key: key.clone(),
            data: data.clone(),
        };
        let delete = || Op::DeleteElement { table: self.id.clone(), set: Arc::clone(name), key: key.clone() };
        let known = set.elements.get(key);
        match wanted {
            Some(data) if known == Some(data) => {}
            Some(data) => {
                let steps = match data {
                    ElemData::Verdict(_) => &mut self.verdicts,
                    _ if holds_numbers(name) => &mut self.numbers,
                    _ => &mut self.values,
                };
                if known.is_some() {
                    steps.push(delete());
                }
                steps.push(add(data));
                set.elements.insert(key.clone(), data.clone());
            }
            None => {
                let Some(known) = set.elements.remove(key) else { return };
                // A set takes its elements along. One by one, ten thousand ranges cost the kernel seconds; only
                // verdicts must go before the chains that they lead to, which kernels before Linux 6.5 do not let go of
                // by deleting the set (628bd3e49cba).
                let gone = self.gone.contains(name);
                if gone && !matches!(known, ElemData::Verdict(_)) {
                    return;
                }
                let steps = match known {
                    ElemData::Verdict(_) => &mut self.less_verdicts,
                    _ if holds_numbers(name) => &mut self.less_numbers,
                    _ => &mut self.less_values,
                };
                steps.push(delete());
            }
        }
    }

    fn plan(self) -> Plan {
        let parts = [
            self.create,
            self.new_rules,
            self.values,
            self.rules,
            self.verdicts,
            self.numbers,
            self.base_rules,
            self.less_numbers,
            self.less_verdicts,
            self.less_values,
            self.less_chains,
            self.less_sets,
        ];
        Plan { ops: parts.into_iter().flatten().collect() }
    }
}
