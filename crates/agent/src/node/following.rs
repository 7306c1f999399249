//! What changed and the kernel has not all of yet: what comes after the kernel waits for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::Key;
use semantics::due::Round;

/// By rounds of the compiler.
#[derive(Debug, Default)]
pub struct Following {
    rounds: VecDeque<(Round, Vec<Key>)>,
    /// In which round each changed last.
    last: BTreeMap<Key, Round>,
}

/// Whom the kernel has followed now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Each round's, as it was then or later.
    pub keys: Vec<Key>,
    /// Those that have not changed again since: the kernel has just what the cluster has.
    pub exact: Vec<Key>,
    /// The first round is among them.
    pub first: bool,
}

/// The compiler's first round.
const FIRST: Round = 1;

impl Following {
    pub fn add(&mut self, round: Round, keys: Vec<Key>) {
        self.last.extend(keys.iter().map(|key| (key.clone(), round)));
        self.rounds.push_back((round, keys));
    }

    /// Whether something waits for this round or one before.
    pub fn has(&self, through: Round) -> bool {
        self.rounds.front().is_some_and(|(round, _)| *round <= through)
    }

    /// `changed`: of no round yet.
    pub fn through(&mut self, through: Round, changed: &BTreeSet<Key>) -> Followed {
        let mut followed = Followed { first: through >= FIRST && self.has(FIRST), ..Followed::default() };
        while let Some((round, keys)) = self.rounds.pop_front() {
            if round > through {
                self.rounds.push_front((round, keys));
                break;
            }
            followed.keys.extend(keys);
        }
        for key in &followed.keys {
            if self.last.get(key).is_some_and(|last| *last <= through) {
                self.last.remove(key);
                followed.exact.extend((!changed.contains(key)).then(|| key.clone()));
            }
        }
        followed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Kind;
    use types::ObjectName;

    fn keys(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| Key::new(Kind::Service, ObjectName::new("shop", *name))).collect()
    }

    #[test]
    fn what_changed_again_is_followed_at_once_and_exactly_when_it_rests() {
        let mut following = Following::default();
        following.add(1, keys(&["a", "b"]));
        following.add(2, keys(&["b", "c"]));
        assert_eq!(following.through(0, &BTreeSet::new()), Followed::default());
        let first = following.through(1, &BTreeSet::new());
        assert_eq!(first, Followed { keys: keys(&["a", "b"]), exact: keys(&["a"]), first: true });
        let second = following.through(5, &keys(&["c"]).into_iter().collect());
        assert_eq!(second, Followed { keys: keys(&["b", "c"]), exact: keys(&["b"]), first: false });
        following.add(6, keys(&["c"]));
        assert_eq!(following.through(6, &BTreeSet::new()).exact, keys(&["c"]));
    }
}
