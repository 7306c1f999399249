//! Which names stand for two things. Nobody can make two meanings of one name as long as SHA-256 holds; if somebody does
//! all the same, whatever a policy allows by that name could be what another allows. So nothing is: the set is empty,
//! the chain drops, and both owners hear of it.

use std::collections::{BTreeMap, BTreeSet};

use kstate::nft::build::{self, rule};
use model::Key;

use super::{Fragment, Held, Name};
use crate::diagnostic::{Diagnostic, Severity};
use crate::meaning::Check;

/// What the names of one table stand for, with how many fragments say so.
#[derive(Debug, Default)]
pub struct Meanings {
    /// Hardly ever more than one.
    known: BTreeMap<Name, Vec<(Check, usize)>>,
    contested: BTreeSet<Name>,
}

impl Meanings {
    /// Takes a unit's fragment in the place of the one before. Yields whether a name is contested now that was not, or
    /// the reverse: then what others made of that name must be made anew.
    pub fn learn(&mut self, old: Option<&Held>, new: &Fragment) -> bool {
        let before = self.contested.len();
        let mut turned = false;
        for (name, check) in &new.meanings {
            let all = self.known.entry(name.clone()).or_default();
            match all.iter_mut().find(|(known, _)| known == check) {
                Some((_, count)) => *count += 1,
                None => all.push((*check, 1)),
            }
            turned |= all.len() > 1 && self.contested.insert(name.clone());
        }
        for (name, check) in old.iter().flat_map(|old| &old.meanings) {
            let Some(all) = self.known.get_mut(name) else { continue };
            if let Some((_, count)) = all.iter_mut().find(|(known, _)| known == check) {
                *count = count.saturating_sub(1);
            }
            all.retain(|(_, count)| *count > 0);
            let left = all.len();
            if left == 0 {
                self.known.remove(name);
            }
            turned |= left < 2 && self.contested.remove(name);
        }
        turned || before != self.contested.len()
    }

    /// Takes from a fragment what it has under contested names. `owner`: the object that it is made of.
    pub fn withhold(&self, fragment: &mut Fragment, owner: impl Fn() -> Option<Key>) {
        for name in &self.contested {
            fragment.elements.remove(name);
            if let Some(chain) = fragment.chains.get_mut(name) {
                chain.rules = vec![rule("two meanings under one name", [build::counter(), build::drop()])];
            }
            if let Some(object) = owner().filter(|_| fragment.meanings.contains_key(name)) {
                fragment.diagnostics.push(finding(object, name));
            }
        }
    }
}

fn finding(object: Key, name: &Name) -> Diagnostic {
    Diagnostic {
        object,
        field: "the kernel's names".to_owned(),
        severity: Severity::Error,
        message: format!(
            "{name} would stand for two different things (a collision of hashes): nothing is allowed by it"
        ),
        next_step: "look for who else has this message, change a selector or name of either, and report it"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kstate::nft::{Chain, ElemData};
    use model::Kind;
    use types::ObjectName;

    fn fragment(check: u8) -> Fragment {
        let mut fragment = Fragment::default();
        fragment.mean("pods_1", [check; 16]);
        fragment.mean("in_1", [check; 16]);
        fragment.element("pods_1", [10, 244, 1, check].as_slice().into(), ElemData::None);
        fragment.element("svc", [10, 96, 0, check].as_slice().into(), ElemData::None);
        fragment
            .chains
            .insert("in_1".into(), Chain { base: None, rules: vec![rule("allow", [build::ret()])] });
        fragment
    }

    #[test]
    fn two_meanings_under_one_name_allow_nothing_and_both_owners_hear_of_it() {
        let mut meanings = Meanings::default();
        let (one, other) = (fragment(1), fragment(2));
        assert!(!meanings.learn(None, &one));
        assert!(!meanings.learn(None, &one), "two units of one meaning share it");
        assert!(meanings.learn(None, &other));
        for fragment in [&one, &other] {
            let mut withheld = fragment.clone();
            let owner = Key::new(Kind::Pod, ObjectName::new("shop", "web"));
            meanings.withhold(&mut withheld, || Some(owner.clone()));
            assert_eq!(withheld.elements.keys().collect::<Vec<_>>(), ["svc"]);
            let rules = &withheld.chains["in_1"].rules;
            assert!(rules.len() == 1 && rules[0].exprs.contains(&build::drop()), "{rules:?}");
            let said: Vec<_> = withheld.diagnostics.iter().map(ToString::to_string).collect();
            assert!(said.len() == 2 && said[1].contains("pods_1"), "{said:?}");
        }
        // It is over when one of them goes; that the others are made anew is the caller's.
        assert!(meanings.learn(Some(&other.held()), &Fragment::default()));
        let mut whole = one.clone();
        meanings.withhold(&mut whole, || None);
        assert_eq!(whole, one);
        assert!(!meanings.learn(Some(&one.held()), &one));
    }
}
