//! What one object contributes to the ruleset, and the ruleset as the sum of all contributions.
//!
//! ```text
//!   Unit ──compile──> Fragment ─┐   claims: element → units that want it
//!   Unit ──compile──> Fragment ─┼─> Ruleset (the sum)     a change of one fragment
//!   Unit ──compile──> Fragment ─┘                         yields the plan of that change only
//! ```
//!
//! Each family has a table, and a composer for it. Two units may want one thing (a chain `n3`, or an element while an address changes hands). It stays until the
//! last one lets go; where they differ the first unit in order wins, so history plays no part.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kstate::nft::{Chain, ElemData, ElemKey, Op, Plan, Ruleset, Set, Table, TableId};
use types::{Family, ObjectName};

use crate::diagnostic::Diagnostic;
use crate::policy::resolve::AddressSet;

/// A name of a chain or set; most are constants.
pub type Name = Cow<'static, str>;

/// What is compiled as one piece.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// The layout itself: what depends on nodes and settings only.
    Base,
    Service(ObjectName),
    Attachment(String),
    /// A pod anywhere in the cluster, as somebody's peer.
    Pod(ObjectName),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Sets by name, without elements.
    pub sets: BTreeMap<Name, Set>,
    pub chains: BTreeMap<Name, Chain>,
    pub elements: BTreeMap<(Name, ElemKey), ElemData>,
    /// Sets of pod addresses that this fragment's rules look at; pods fill them.
    pub address_sets: BTreeSet<AddressSet>,
    pub diagnostics: Vec<Diagnostic>,
}

impl Fragment {
    pub fn element(&mut self, set: impl Into<Name>, key: Box<[u8]>, data: ElemData) {
        self.elements.insert((set.into(), ElemKey { start: key, end: None }), data);
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Who wants what, by name or key.
type Claims<K> = BTreeMap<K, Claimants>;

/// Almost always one: a set for each of a hundred thousand elements would be most of the node's memory.
#[derive(Debug)]
enum Claimants {
    One(Arc<Unit>),
    /// Two or more.
    Several(BTreeSet<Arc<Unit>>),
}

impl Claimants {
    /// Whose thing counts where they differ.
    fn first(&self) -> Option<&Unit> {
        match self {
            Self::One(unit) => Some(unit),
            Self::Several(units) => units.first().map(Arc::as_ref),
        }
    }

    fn insert(&mut self, unit: &Arc<Unit>) {
        match self {
            Self::One(one) => {
                let both = BTreeSet::from([Arc::clone(one), Arc::clone(unit)]);
                if both.len() > 1 {
                    *self = Self::Several(both);
                }
            }
            Self::Several(units) => {
                units.insert(Arc::clone(unit));
            }
        }
    }

    /// Whether nobody is left.
    fn remove(&mut self, unit: &Arc<Unit>) -> bool {
        match self {
            Self::One(one) => *one == *unit,
            Self::Several(units) => {
                units.remove(unit);
                if units.len() == 1
                    && let Some(one) = units.pop_first()
                {
                    *self = Self::One(one);
                }
                false
            }
        }
    }
}

/// What a round of replacements touched.
#[derive(Default)]
struct Touched {
    sets: BTreeSet<Name>,
    chains: BTreeSet<Name>,
    elements: BTreeSet<(Name, ElemKey)>,
}

/// The sum of all fragments of one family: its table.
#[derive(Debug)]
pub struct Composer {
    id: TableId,
    fragments: BTreeMap<Arc<Unit>, Fragment>,
    sets: Claims<Name>,
    chains: Claims<Name>,
    elements: Claims<(Name, ElemKey)>,
}

impl Composer {
    pub fn new(family: Family, table: &str) -> Self {
        Self {
            id: TableId { family: family.into(), name: table.to_owned() },
            fragments: BTreeMap::new(),
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            elements: BTreeMap::new(),
        }
    }

    pub fn fragments(&self) -> &BTreeMap<Arc<Unit>, Fragment> {
        &self.fragments
    }

    /// Puts new fragments (empty: the unit is gone) in the place of those of the same units, and has the ruleset
    /// follow.
    pub fn replace(&mut self, ruleset: &mut Ruleset, fragments: Vec<(Unit, Fragment)>) -> Plan {
        let mut touched = Touched::default();
        for (unit, new) in fragments {
            let unit = Arc::new(unit);
            let old = self.fragments.remove(&unit).unwrap_or_default();
            reclaim(&mut self.sets, &mut touched.sets, &unit, (&old.sets, &new.sets));
            reclaim(&mut self.chains, &mut touched.chains, &unit, (&old.chains, &new.chains));
            reclaim(&mut self.elements, &mut touched.elements, &unit, (&old.elements, &new.elements));
            if !new.is_empty() {
                self.fragments.insert(unit, new);
            }
        }
        self.plan(ruleset, &touched)
    }

    fn plan(&self, ruleset: &mut Ruleset, touched: &Touched) -> Plan {
        let mut steps = Steps::new(self.id.clone());
        if !ruleset.tables.contains_key(&self.id) {
            steps.create.push(Op::AddTable(self.id.clone()));
        }
        let table = ruleset.tables.entry(self.id.clone()).or_default();
        for name in &touched.sets {
            let wanted = winner(&self.sets, &self.fragments, name).and_then(|f| f.sets.get(name));
            steps.set(table, name, wanted);
        }
        for name in &touched.chains {
            let wanted = winner(&self.chains, &self.fragments, name).and_then(|f| f.chains.get(name));
            steps.chain(table, name, wanted);
        }
        for key in &touched.elements {
            let wanted = winner(&self.elements, &self.fragments, key).and_then(|f| f.elements.get(key));
            steps.element(table, key, wanted);
        }
        for name in &steps.gone {
            table.sets.remove(name);
        }
        steps.plan()
    }
}

fn reclaim<K: Ord + Clone, V: PartialEq>(
    claims: &mut Claims<K>,
    touched: &mut BTreeSet<K>,
    unit: &Arc<Unit>,
    (old, new): (&BTreeMap<K, V>, &BTreeMap<K, V>),
) {
    for key in old.keys().filter(|key| !new.contains_key(key)) {
        if claims.get_mut(key).is_some_and(|units| units.remove(unit)) {
            claims.remove(key);
        }
        touched.insert(key.clone());
    }
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            Some(_) => {
                touched.insert(key.clone());
            }
            None => {
                match claims.entry(key.clone()) {
                    Entry::Vacant(free) => {
                        free.insert(Claimants::One(Arc::clone(unit)));
                    }
                    Entry::Occupied(mut taken) => taken.get_mut().insert(unit),
                }
                touched.insert(key.clone());
            }
        }
    }
}

fn winner<'a, K: Ord>(
    claims: &Claims<K>,
    fragments: &'a BTreeMap<Arc<Unit>, Fragment>,
    key: &K,
) -> Option<&'a Fragment> {
    fragments.get(claims.get(key)?.first()?)
}

/// Steps by the place they must have: every prefix of the finished plan leaves a table in which nothing dangles,
/// every slot that a service can draw is filled, and no isolated pod is open.
struct Steps {
    id: TableId,
    create: Vec<Op>,
    values: Vec<Op>,
    rules: Vec<Op>,
    verdicts: Vec<Op>,
    base_rules: Vec<Op>,
    less_verdicts: Vec<Op>,
    less_values: Vec<Op>,
    less_chains: Vec<Op>,
    less_sets: Vec<Op>,
    /// The names of these.
    gone: BTreeSet<String>,
}

impl Steps {
    fn new(id: TableId) -> Self {
        Self {
            id,
            create: Vec::new(),
            values: Vec::new(),
            rules: Vec::new(),
            verdicts: Vec::new(),
            base_rules: Vec::new(),
            less_verdicts: Vec::new(),
            less_values: Vec::new(),
            less_chains: Vec::new(),
            less_sets: Vec::new(),
            gone: BTreeSet::new(),
        }
    }

    fn set(&mut self, table: &mut Table, name: &Name, wanted: Option<&Set>) {
        let (id, set) = (self.id.clone(), name.to_string());
        match wanted {
            Some(layout) if !table.sets.contains_key(&set) => {
                self.create.push(Op::AddSet {
                    table: id,
                    set: set.clone(),
                    layout: Box::new(layout.clone()),
                });
                table.sets.insert(set, layout.clone());
            }
            // A set's name holds a hash of what it is for, so its layout never changes.
            Some(_) => {}
            None => {
                self.gone.insert(set.clone());
                self.less_sets.push(Op::DeleteSet { table: id, set });
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
            let place = if wanted.base.is_some() { &mut self.base_rules } else { &mut self.rules };
            place.push(Op::SetRules { table: id, chain: chain.clone(), rules: wanted.rules.clone() });
        }
        table.chains.insert(chain, wanted.clone());
    }

    fn element(&mut self, table: &mut Table, (name, key): &(Name, ElemKey), wanted: Option<&ElemData>) {
        let Some(set) = table.sets.get_mut(name.as_ref()) else { return };
        let add = |data: &ElemData| Op::AddElement {
            table: self.id.clone(),
            set: name.to_string(),
            key: key.clone(),
            data: data.clone(),
        };
        let delete = || Op::DeleteElement { table: self.id.clone(), set: name.to_string(), key: key.clone() };
        let known = set.elements.get(key);
        match wanted {
            Some(data) if known == Some(data) => {}
            Some(data) => {
                let steps =
                    if matches!(data, ElemData::Verdict(_)) { &mut self.verdicts } else { &mut self.values };
                if known.is_some() {
                    steps.push(delete());
                }
                steps.push(add(data));
                set.elements.insert(key.clone(), data.clone());
            }
            None => {
                let Some(known) = set.elements.remove(key) else { return };
                // A set takes its elements along. One by one, ten thousand ranges cost the kernel seconds; only
                // verdicts must go before the chains that they lead to.
                let gone = self.gone.contains(name.as_ref());
                if gone && !matches!(known, ElemData::Verdict(_)) {
                    return;
                }
                let verdict = matches!(known, ElemData::Verdict(_));
                if verdict { &mut self.less_verdicts } else { &mut self.less_values }.push(delete());
            }
        }
    }

    fn plan(self) -> Plan {
        let parts = [
            self.create,
            self.values,
            self.rules,
            self.verdicts,
            self.base_rules,
            self.less_verdicts,
            self.less_values,
            self.less_chains,
            self.less_sets,
        ];
        Plan { ops: parts.into_iter().flatten().collect() }
    }
}
