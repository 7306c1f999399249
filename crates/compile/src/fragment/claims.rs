//! Who wants a thing of the ruleset: a chain, a set's layout, an element.
//!
//! ```text
//!   key ─> One(unit)                 what it wants is in the ruleset, and nowhere else
//!       ─> Several(unit ─> wanted)   the first unit's is in the ruleset
//! ```
//!
//! A node has a hundred thousand elements and more, almost all wanted by one unit: what is kept for each of them is most
//! of the agent's memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Unit;

/// What the ruleset holds now.
pub(super) type Now<'a, K, V> = dyn Fn(&K) -> Option<Cow<'a, V>> + 'a;

#[derive(Debug)]
pub(super) struct Claims<K, V> {
    held: BTreeMap<K, Claim<V>>,
    /// Of this round, taken out of `held` until it ends.
    touched: BTreeMap<K, Touch<V>>,
}

#[derive(Debug)]
enum Claim<V> {
    One(Arc<Unit>),
    Several(Several<V>),
}

/// Units that want the same share it.
type Several<V> = Box<BTreeMap<Arc<Unit>, Arc<V>>>;

#[derive(Debug)]
enum Touch<V> {
    Nobody,
    One(Arc<Unit>, V),
    Several(Several<V>),
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), touched: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Claims<K, V> {
    pub(super) fn insert(&mut self, unit: &Arc<Unit>, key: &K, wanted: V, now: &Now<'_, K, V>) {
        if !self.wants(unit, key, &wanted, now) {
            self.touch(key, now).insert(unit, wanted);
        }
    }

    pub(super) fn remove(&mut self, unit: &Arc<Unit>, key: &K, now: &Now<'_, K, V>) {
        self.touch(key, now).remove(unit);
    }

    /// Ends a round: each key that somebody's wish for changed, and what counts of it now (`None`: nobody wants it).
    pub(super) fn settle(&mut self, mut step: impl FnMut(&K, Option<&V>)) {
        for (key, touch) in std::mem::take(&mut self.touched) {
            step(&key, touch.first());
            if let Some(claim) = touch.settle() {
                self.held.insert(key, claim);
            }
        }
    }

    /// Whether nobody wants anything, at the end of a round.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether the unit wants just this already.
    fn wants(&self, unit: &Arc<Unit>, key: &K, wanted: &V, now: &Now<'_, K, V>) -> bool {
        match (self.touched.get(key), self.held.get(key)) {
            (Some(touch), _) => touch.of(unit) == Some(wanted),
            (None, Some(Claim::One(one))) => one == unit && now(key).as_deref() == Some(wanted),
            (None, Some(Claim::Several(all))) => all.get(unit).map(Arc::as_ref) == Some(wanted),
            (None, None) => false,
        }
    }

    fn touch(&mut self, key: &K, now: &Now<'_, K, V>) -> &mut Touch<V> {
        let held = &mut self.held;
        self.touched.entry(key.clone()).or_insert_with(|| match held.remove(key) {
            Some(Claim::One(unit)) => now(key).map_or(Touch::Nobody, |v| Touch::One(unit, v.into_owned())),
            Some(Claim::Several(all)) => Touch::Several(all),
            None => Touch::Nobody,
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
                let mut all = Several::default();
                all.insert(one, Arc::new(other));
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

    fn settle(self) -> Option<Claim<V>> {
        match self {
            Self::Nobody => None,
            Self::One(unit, _) => Some(Claim::One(unit)),
            Self::Several(mut all) if all.len() <= 1 => all.pop_first().map(|(unit, _)| Claim::One(unit)),
            Self::Several(all) => Some(Claim::Several(all)),
        }
    }
}

fn put<V: PartialEq>(all: &mut Several<V>, unit: &Arc<Unit>, wanted: V) {
    let same = all.first_key_value().map(|(_, first)| first).filter(|first| ***first == wanted).cloned();
    all.insert(Arc::clone(unit), same.unwrap_or_else(|| Arc::new(wanted)));
}
