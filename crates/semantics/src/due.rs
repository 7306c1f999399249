//! Which units are to be made anew, and in which order: those that the wiring of pods waits for before all others.
//!
//! ```text
//!   urgent   what is there once, other nodes, pods of this node     all of it at once: it is little
//!   rest     Services, pods elsewhere                               so many at a time, first come, first served
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::unit::{Unit, Units};

/// Counts rounds of changes; 0: none was.
pub type Round = u64;

#[derive(Debug, Default)]
pub struct Due {
    urgent: BTreeSet<Unit>,
    /// By the round in which each changed first.
    rest: BTreeSet<(Round, Unit)>,
    since: BTreeMap<Unit, Round>,
    round: Round,
}

impl Due {
    /// A round in which these changed.
    pub fn add(&mut self, concerned: BTreeSet<Unit>, units: &Units) {
        self.round += 1;
        for unit in concerned {
            if units.is_urgent(&unit) {
                self.urgent.insert(unit);
            } else if !self.since.contains_key(&unit) {
                self.since.insert(unit.clone(), self.round);
                self.rest.insert((self.round, unit));
            }
        }
    }

    /// What pods wait for.
    pub fn take_urgent(&mut self) -> BTreeSet<Unit> {
        std::mem::take(&mut self.urgent)
    }

    /// So many of the rest.
    pub fn take(&mut self, most: usize) -> BTreeSet<Unit> {
        let mut taken = BTreeSet::new();
        while taken.len() < most
            && let Some((_, unit)) = self.rest.pop_first()
        {
            self.since.remove(&unit);
            taken.insert(unit);
        }
        taken
    }

    /// Whether something is left.
    pub fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.rest.is_empty()
    }

    /// The last round that was begun.
    pub fn round(&self) -> Round {
        self.round
    }

    /// All that changed in this round and before has been taken.
    pub fn through(&self) -> Round {
        match self.rest.first() {
            Some((first, _)) => first - 1,
            None => self.round,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::ObjectName;

    fn service(name: &str) -> Unit {
        Unit::Service(ObjectName::new("shop", name))
    }

    /// However much of the rest there is, and however often it changes.
    #[test]
    fn pods_come_first_and_the_rest_in_the_order_in_which_it_changed() {
        let (mut due, units) = (Due::default(), Units::default());
        assert!(due.is_empty() && due.through() == 0);
        due.add((0..100).map(|n| service(&format!("s{n:02}"))).collect(), &units);
        assert_eq!(due.take(40).len(), 40);
        let pod = Unit::Attachment("c/eth0".into());
        due.add([pod.clone(), service("a"), service("s99")].into(), &units);
        assert_eq!(due.take_urgent(), [pod].into());
        assert_eq!((due.round(), due.through()), (2, 0));
        let left = due.take(60);
        assert!(left.contains(&service("s99")) && !left.contains(&service("a")), "{left:?}");
        assert_eq!(due.through(), 1);
        assert_eq!(due.take(60), [service("a")].into());
        assert!(due.is_empty() && due.through() == 2);
    }
}
