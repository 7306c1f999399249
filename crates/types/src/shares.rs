//! Places that many want: so many in all, and of these each may have so many. What strangers can fill is counted here
//! before anything is spent on them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Clones share their places.
#[derive(Clone, Debug)]
pub struct Shares<K: Eq + Hash>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K: Eq + Hash> {
    all: usize,
    each: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// One place; dropping it gives it back.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    of: Shares<K>,
    who: Option<K>,
}

impl<K: Eq + Hash> Shares<K> {
    pub fn new(all: usize, each: usize) -> Self {
        let taken = Mutex::new(Taken { all: 0, by: HashMap::new() });
        Self(Arc::new(Inner { all, each, taken }))
    }

    /// `None`: all places are taken, or all that this one may have.
    pub fn take(&self, who: K) -> Option<Share<K>>
    where
        K: Clone,
    {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.0.all || taken.by.get(&who).is_some_and(|own| *own >= self.0.each) {
            return None;
        }
        taken.all += 1;
        *taken.by.entry(who.clone()).or_default() += 1;
        Some(Share { of: Self(Arc::clone(&self.0)), who: Some(who) })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl<K: Eq + Hash> Share<K> {
    /// Whose place it is.
    pub fn who(&self) -> Option<&K> {
        self.who.as_ref()
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let Some(who) = self.who.take() else { return };
        let mut taken = self.of.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        let left = taken.by.get_mut(&who).map_or(0, |own| {
            *own = own.saturating_sub(1);
            *own
        });
        // Nobody is remembered who has nothing: callers' addresses are theirs to choose.
        if left == 0 {
            taken.by.remove(&who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gets_its_share_and_others_theirs() {
        let shares = Shares::new(5, 3);
        let greedy: Vec<_> = std::iter::from_fn(|| shares.take("greedy")).collect();
        assert_eq!(greedy.len(), 3);
        let others: Vec<_> = std::iter::from_fn(|| shares.take("other")).collect();
        assert_eq!((others.len(), shares.taken()), (2, 5));
        assert!(shares.take("late").is_none(), "all are taken");
        drop(greedy);
        assert!(shares.take("late").is_some());
    }

    #[test]
    fn who_has_nothing_is_forgotten() {
        let shares = Shares::new(10, 10);
        (0..1000).for_each(|who| drop(shares.take(who)));
        assert_eq!(shares.taken(), 0);
        assert!(shares.0.taken.lock().unwrap().by.is_empty());
    }
}
