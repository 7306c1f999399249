//! Who wants a thing of the ruleset: a chain, a set's layout, an element.
//!
//! ```text
//!   one unit         its fragment has the key, the ruleset what it wants; nothing is kept here
//!   several units    key ─> (unit ─> wanted); the first unit's is in the ruleset
//! ```
//!
//! A node has a hundred thousand elements and more, almost all wanted by one unit: what is kept for each of them is most
//! of the agent's memory. Whose such a thing is must be known only when another unit comes to want it, and is looked up
//! in all fragments then.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Unit;

/// What is known of things that one unit wants.
pub(super) struct Lone<'a, K, V: Clone> {
    /// What the ruleset holds now.
    pub now: &'a dyn Fn(&K) -> Option<Cow<'a, V>>,
    /// Of all units but the one that is being replaced: the first whose fragment has it.
    pub owner: &'a dyn Fn(&K) -> Option<Arc<Unit>>,
}

#[derive(Debug)]
pub(super) struct Claims<K, V> {
    shared: BTreeMap<K, Several<V>>,
    /// Of this round; what was shared is taken from there until it ends.
    touched: BTreeMap<K, Touch<V>>,
}

/// Units that want the same share it.
type Several<V> = BTreeMap<Arc<Unit>, Arc<V>>;

#[derive(Debug)]
enum Touch<V> {
    Nobody,
    One(Arc<Unit>, V),
    Several(Several<V>),
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self { shared: BTreeMap::new(), touched: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Claims<K, V> {
    /// `had`: the unit wanted something of this key before.
    pub(super) fn insert(
        &mut self,
        (unit, had): (&Arc<Unit>, bool),
        key: &K,
        wanted: V,
        lone: &Lone<'_, K, V>,
    ) {
        if !self.wants((unit, had), key, &wanted, lone) {
            self.touch((unit, had), key, lone).insert(unit, wanted);
        }
    }

    /// What the unit wanted before.
    pub(super) fn remove(&mut self, unit: &Arc<Unit>, key: &K, lone: &Lone<'_, K, V>) {
        self.touch((unit, true), key, lone).remove(unit);
    }

    /// Ends a round: each key that somebody's wish for changed, and what counts of it now (`None`: nobody wants it).
    pub(super) fn settle(&mut self, mut step: impl FnMut(&K, Option<&V>)) {
        for (key, touch) in std::mem::take(&mut self.touched) {
            step(&key, touch.first());
            if let Touch::Several(all) = touch
                && all.len() > 1
            {
                self.shared.insert(key, all);
            }
        }
    }

    /// Whether nothing is shared, at the end of a round.
    pub(super) fn is_empty(&self) -> bool {
        self.shared.is_empty()
    }

    /// Whether the unit wants just this already.
    fn wants(&self, (unit, had): (&Arc<Unit>, bool), key: &K, wanted: &V, lone: &Lone<'_, K, V>) -> bool {
        match (self.touched.get(key), self.shared.get(key)) {
            (Some(touch), _) => touch.of(unit) == Some(wanted),
            (None, Some(all)) => all.get(unit).map(Arc::as_ref) == Some(wanted),
            (None, None) => had && (lone.now)(key).as_deref() == Some(wanted),
        }
    }

    fn touch(&mut self, (unit, had): (&Arc<Unit>, bool), key: &K, lone: &Lone<'_, K, V>) -> &mut Touch<V> {
        let shared = &mut self.shared;
        self.touched.entry(key.clone()).or_insert_with(|| {
            if let Some(all) = shared.remove(key) {
                return Touch::Several(all);
            }
            let Some(wanted) = (lone.now)(key) else { return Touch::Nobody };
            let owner = if had { Some(Arc::clone(unit)) } else { (lone.owner)(key) };
            owner.map_or(Touch::Nobody, |owner| Touch::One(owner, wanted.into_owned()))
        })
    }
}

impl<V: Clone + PartialEq> Touch<V> {
    fn of(&self, unit: &Arc<Unit>) -> Option<&V> {
        match self {
            Self::Nobody => None,
            Self::One(one, wanted) => (one == unit).then_some(wanted),
            Self::Several(all) => all.get(unit).map(Arc::as_ref),
        }
    }

    /// Where they differ, the first in order counts, so history plays no part.
    fn first(&self) -> Option<&V> {
        match self {
            Self::Nobody => None,
            Self::One(_, wanted) => Some(wanted),
            Self::Several(all) => all.first_key_value().map(|(_, wanted)| wanted.as_ref()),
        }
    }

    fn insert(&mut self, unit: &Arc<Unit>, wanted: V) {
        *self = match std::mem::replace(self, Self::Nobody) {
            Self::One(one, other) if one != *unit => {
                let mut all = Several::from([(one, Arc::new(other))]);
                put(&mut all, unit, wanted);
                Self::Several(all)
            }
            Self::Nobody | Self::One(..) => Self::One(Arc::clone(unit), wanted),
            Self::Several(mut all) => {
                put(&mut all, unit, wanted);
                Self::Several(all)
            }
        };
    }

    fn remove(&mut self, unit: &Arc<Unit>) {
        match self {
            Self::One(one, _) if one == unit => *self = Self::Nobody,
            Self::Nobody | Self::One(..) => {}
            Self::Several(all) => {
                all.remove(unit);
            }
        }
    }
}

fn put<V: PartialEq>(all: &mut Several<V>, unit: &Arc<Unit>, wanted: V) {
    let same = all.first_key_value().map(|(_, first)| first).filter(|first| ***first == wanted).cloned();
    all.insert(Arc::clone(unit), same.unwrap_or_else(|| Arc::new(wanted)));
}
