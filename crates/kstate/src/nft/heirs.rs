//! Sets that go on under another name. What the packet path has put into a dynamic set is no part of the value, so a
//! diff would begin the new set empty; whoever applies the plan can carry over what the old one remembers.
//!
//! ```text
//!   actual    @svc { KEY : goto a }   chain a: lookup @old, update @old, dnat 10.244.1.4
//!   desired   @svc { KEY : goto b }   chain b: lookup @new, update @new, dnat 10.244.1.4    @new is the heir of @old
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Chain, ElemData, ElemKey, Expr, Op, Plan, Rule, Ruleset, Table, TableId, target};

/// A dynamic set that comes in the place of one that goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heir {
    pub table: TableId,
    pub set: Arc<str>,
    /// The one that goes.
    pub of: Arc<str>,
}

/// The dynamic sets that [`super::diff`] of the same states adds in the place of others: the same key of the same map
/// leads to both, by rules that differ in no more than the sets' names and for how long a key is kept.
pub fn heirs(desired: &Ruleset, actual: &Ruleset) -> Vec<Heir> {
    let of_table = |(id, new): (&TableId, &Table)| {
        let old = actual.tables.get(id)?;
        let found = in_table(new, old).into_iter();
        Some(found.map(|(set, of)| Heir { table: id.clone(), set, of }).collect::<Vec<_>>())
    };
    desired.tables.iter().filter_map(of_table).flatten().collect()
}

fn in_table(new: &Table, old: &Table) -> BTreeMap<Arc<str>, Arc<str>> {
    let comes = |name: &str| {
        let (name, set) = new.sets.get_key_value(name)?;
        (set.dynamic && !old.sets.contains_key(name)).then_some((name, set))
    };
    let mut found = BTreeMap::new();
    if !new.sets.keys().any(|name| comes(name).is_some()) {
        return found;
    }
    for (from, to) in turned(new, old) {
        let known: BTreeMap<Vec<Expr>, &str> = from.rules.iter().filter_map(remembering).collect();
        for (rule, name) in to.rules.iter().filter_map(remembering) {
            let Some((name, set)) = comes(name) else { continue };
            let Some((of, gone)) = known.get(&rule).and_then(|of| old.sets.get_key_value(*of)) else {
                continue;
            };
            if gone.same_layout(set) && !new.sets.contains_key(of) {
                found.entry(Arc::clone(name)).or_insert_with(|| Arc::clone(of));
            }
        }
    }
    found
}

/// Chains from which a key of a map leads away, and where it leads then.
fn turned<'a>(new: &'a Table, old: &'a Table) -> Vec<(&'a Chain, &'a Chain)> {
    let mut names = BTreeSet::new();
    for (name, set) in &new.sets {
        let Some(before) = old.sets.get(name) else { continue };
        for (key, data) in &set.elements {
            let Some(to) = target(data) else { continue };
            names.extend(before.elements.get(key).and_then(target).map(|from| (from, to)));
        }
    }
    let chains = |(from, to): (&str, &str)| Some((old.chains.get(from)?, new.chains.get(to)?));
    names.into_iter().filter_map(chains).collect()
}

/// A rule that looks a key up, and in which set; without that name, so that it compares.
fn remembering(rule: &Rule) -> Option<(Vec<Expr>, &str)> {
    let name = rule.exprs.iter().find_map(|expr| match expr {
        Expr::Lookup { set, invert: false, .. } => Some(set.as_str()),
        _ => None,
    })?;
    let mut exprs = rule.exprs.clone();
    for expr in &mut exprs {
        match expr {
            Expr::Lookup { set, .. } if set == name => set.clear(),
            Expr::Update { set, timeout_ms, .. } if set == name => {
                set.clear();
                *timeout_ms = 0;
            }
            _ => {}
        }
    }
    Some((exprs, name))
}

impl Plan {
    /// Has the sets that the plan adds begin with these elements.
    pub fn begin_with(&mut self, mut found: BTreeMap<(TableId, Arc<str>), BTreeMap<ElemKey, ElemData>>) {
        if found.is_empty() {
            return;
        }
        let mut ops = Vec::with_capacity(self.ops.len());
        for op in std::mem::take(&mut self.ops) {
            let added = match &op {
                Op::AddSet { table, set, .. } => Some((table.clone(), Arc::clone(set))),
                _ => None,
            };
            ops.push(op);
            let Some((table, set)) = added else { continue };
            for (key, data) in found.remove(&(table.clone(), Arc::clone(&set))).into_iter().flatten() {
                ops.push(Op::AddElement { table: table.clone(), set: Arc::clone(&set), key, data });
            }
        }
        self.ops = ops;
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::{immediate, lookup, update};
    use super::super::{Field, Reg, Set, SetData, TableFamily, Verdict, diff};
    use super::*;

    fn id() -> TableId {
        TableId { family: TableFamily::Ip, name: "plumb".into() }
    }

    /// Keys 1.. of a map lead to chains, whose rules each look into a set and then have a value.
    fn ruleset(chains: &[(&str, &[(&str, u8)])], seconds: u64) -> Ruleset {
        let mut table = Table::default();
        let mut map = Set::new([Field::Proto], SetData::Verdicts);
        for (key, (name, rules)) in (1_u8..).zip(chains) {
            let rule = |(set, value): &(&str, u8)| Rule {
                exprs: vec![
                    lookup(*set, Reg(0)),
                    update(*set, Reg(0), seconds * 1000),
                    immediate(Reg(0), [*value]),
                ],
                comment: String::new(),
            };
            let rules: Vec<Rule> = rules.iter().map(rule).collect();
            table.chains.insert((*name).to_owned(), Chain { base: None, rules });
            let verdict = Verdict::Goto((*name).to_owned());
            map.elements.insert(ElemKey::point([key].into()), ElemData::Verdict(verdict));
        }
        for (set, _) in chains.iter().flat_map(|(_, rules)| rules.iter()) {
            let dynamic = Set { dynamic: true, ..Set::new([Field::Ipv4], SetData::None) };
            table.sets.insert((*set).into(), dynamic);
        }
        table.sets.insert("svc".into(), map);
        Ruleset { tables: [(id(), table)].into() }
    }

    fn found(desired: &Ruleset, actual: &Ruleset) -> Vec<(String, String)> {
        heirs(desired, actual).into_iter().map(|heir| (heir.set.to_string(), heir.of.to_string())).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn a_set_inherits_by_the_key_that_leads_to_it_and_by_what_its_rule_does() {
        // Two Services with the same endpoints: only the key tells their chains apart.
        let actual = ruleset(&[("a", &[("old1", 1), ("old2", 2)]), ("b", &[("old3", 1)])], 60);
        let desired = ruleset(&[("c", &[("new2", 2), ("new1", 1)]), ("d", &[("new3", 1)])], 30);
        let right = pairs(&[("new1", "old1"), ("new2", "old2"), ("new3", "old3")]);
        assert_eq!(found(&desired, &actual), right);
        // The same chain with other sets.
        let desired = ruleset(&[("a", &[("new1", 1)]), ("b", &[("old3", 1)])], 60);
        assert_eq!(found(&desired, &actual), pairs(&[("new1", "old1")]));
    }

    #[test]
    fn nobody_inherits_from_a_set_that_stays_or_leads_elsewhere_or_is_of_another_kind() {
        let actual = ruleset(&[("a", &[("old1", 1), ("old2", 2)])], 60);
        assert_eq!(found(&actual, &actual), []);
        let other_value = ruleset(&[("c", &[("new", 3)])], 60);
        assert_eq!(found(&other_value, &actual), []);
        let stays = ruleset(&[("c", &[("new", 1), ("old1", 2)])], 60);
        assert_eq!(found(&stays, &actual), []);
        let mut wider = ruleset(&[("c", &[("new1", 1)])], 60);
        let table = wider.tables.get_mut(&id()).expect("a table");
        table.sets.insert("new1".into(), Set { dynamic: true, ..Set::new([Field::Ipv6], SetData::None) });
        assert_eq!(found(&wider, &actual), []);
        assert_eq!(found(&actual, &Ruleset::default()), []);
    }

    #[test]
    fn a_plan_fills_the_new_set_before_anything_leads_to_it() {
        let actual = ruleset(&[("a", &[("old1", 1)])], 60);
        let desired = ruleset(&[("c", &[("new1", 1)])], 60);
        let mut plan = diff(&desired, &actual);
        let client = ElemKey::point([10, 0, 0, 1].into());
        let data = ElemData::Until { timeout_ms: Some(60_000), left_ms: 500 };
        plan.begin_with([((id(), "new1".into()), [(client.clone(), data)].into())].into());
        let text: Vec<String> = plan.ops.iter().map(ToString::to_string).collect();
        assert!(text[0].starts_with("add set") && text[0].contains("new1"), "{text:#?}");
        assert_eq!(text[1], "add element ip plumb new1 { 0x0a000001 timeout 1m expires 500ms }", "{text:#?}");
        let mut state = actual;
        state.edit(&plan);
        let set = &state.tables[&id()].sets["new1"];
        assert!(set.elements.contains_key(&client));
    }
}
