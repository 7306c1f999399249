//! The laws of diff and edit, on rulesets of few names so that everything collides: names come, go, change their
//! layout or hook, and refer to one another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kstate::nft::build::{accept, drop, goto, jump, lookup, vmap};
use kstate::nft::{
    BaseChain, Chain, ChainKind, ElemData, ElemKey, Field, Hook, Op, Plan, Reg, Rule, Ruleset, Set, SetData,
    Table, TableFamily, TableId, Verdict, chains_of, diff, sets_of, target,
};
use proptest::prelude::*;

const CHAINS: [&str; 5] = ["a", "b", "c", "d", "e"];
const SETS: [&str; 4] = ["s", "t", "u", "v"];

fn name(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(names).prop_map(str::to_owned)
}

fn rule() -> impl Strategy<Value = Rule> {
    let expr = prop_oneof![
        name(&CHAINS).prop_map(jump),
        name(&CHAINS).prop_map(goto),
        name(&SETS).prop_map(|set| lookup(set, Reg(0))),
        name(&SETS).prop_map(|set| vmap(set, Reg(0))),
        Just(accept()),
        Just(drop()),
    ];
    prop::collection::vec(expr, 1..3).prop_map(|exprs| Rule { exprs, comment: String::new() })
}

fn chain() -> impl Strategy<Value = Chain> {
    let base = prop::option::weighted(
        0.3,
        (0..2_i32, any::<bool>()).prop_map(|(priority, drop)| BaseChain {
            kind: ChainKind::Filter,
            hook: Hook::Forward,
            priority,
            drop,
        }),
    );
    (base, prop::collection::vec(rule(), 0..3)).prop_map(|(base, rules)| Chain { base, rules })
}

/// Ranges that do not overlap: each lies in a decade of its own or spans two.
fn set() -> impl Strategy<Value = Set> {
    let data =
        prop_oneof![Just(SetData::None), Just(SetData::Verdicts), Just(SetData::Values(vec![Field::Port]))];
    let elements = prop::collection::btree_map(0..6_u8, (0..4_u8, name(&CHAINS), 1..4_u8), 0..6);
    (data, elements, any::<bool>(), prop::option::of(1..3_u32)).prop_map(|(data, raw, interval, size)| {
        let mut elements = BTreeMap::new();
        let mut free = 0;
        for (key, (value, chain, width)) in raw {
            let start = key * 10;
            if interval && start < free {
                continue;
            }
            let key = match interval {
                true => ElemKey::range([start].into(), [start + width * 5].into()),
                false => ElemKey::point([start].into()),
            };
            free = start + width * 5 + 1;
            let data = match data {
                SetData::None => ElemData::None,
                SetData::Verdicts if value == 0 => ElemData::Verdict(Verdict::Accept),
                SetData::Verdicts => ElemData::Verdict(Verdict::Goto(chain)),
                SetData::Values(_) => ElemData::Value([0, value].into()),
            };
            elements.insert(key, data);
        }
        Set { interval, size, elements, ..Set::new([Field::Proto], data) }
    })
}

fn table() -> impl Strategy<Value = Table> {
    let chains = prop::collection::btree_map(name(&CHAINS), chain(), 0..5);
    let sets = prop::collection::btree_map(name(&SETS).prop_map(Arc::from), set(), 0..4);
    (chains, sets).prop_map(|(chains, sets)| whole(Table { chains, sets }))
}

/// Leaves out what refers to nothing: such a table no kernel holds.
fn whole(mut table: Table) -> Table {
    let regular: BTreeSet<String> =
        table.chains.iter().filter(|(_, chain)| chain.base.is_none()).map(|(name, _)| name.clone()).collect();
    let sets: BTreeSet<Arc<str>> = table.sets.keys().cloned().collect();
    for chain in table.chains.values_mut() {
        chain.rules.retain(|rule| {
            chains_of(rule).all(|chain| regular.contains(chain))
                && sets_of(rule).iter().all(|set| sets.contains(*set))
        });
    }
    for set in table.sets.values_mut() {
        set.elements.retain(|_, data| target(data).is_none_or(|chain| regular.contains(chain)));
    }
    table
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    let id = prop::sample::select(vec!["one", "two"])
        .prop_map(|name| TableId { family: TableFamily::Ip, name: name.into() });
    prop::collection::btree_map(id, table(), 0..3).prop_map(|tables| Ruleset { tables })
}

/// What the kernel would refuse about a step.
fn refusal(state: &Ruleset, op: &Op) -> Option<&'static str> {
    if let Op::AddTable(id) = op {
        return state.tables.contains_key(id).then_some("the table is there");
    }
    let Some(table) = state.tables.get(op.table()) else { return Some("no such table") };
    let names_set = |name: &str| {
        table.chains.values().flat_map(|chain| &chain.rules).any(|rule| sets_of(rule).contains(name))
    };
    let others_name_chain = |name: &str| {
        table
            .chains
            .iter()
            .filter(|(other, _)| *other != name)
            .flat_map(|(_, chain)| &chain.rules)
            .any(|rule| chains_of(rule).any(|chain| chain == name))
            || table
                .sets
                .values()
                .flat_map(|set| set.elements.values())
                .any(|data| target(data) == Some(name))
    };
    let bad = |bad: bool, why| bad.then_some(why);
    match op {
        Op::AddTable(_) | Op::DeleteTable(_) => None,
        Op::AddChain { chain, .. } => bad(table.chains.contains_key(chain), "the chain is there"),
        Op::DeleteChain { chain, .. } => bad(!table.chains.contains_key(chain), "no such chain")
            .or(bad(others_name_chain(chain), "the chain is in use")),
        Op::SetRules { chain, rules, .. } => {
            bad(!table.chains.contains_key(chain), "no such chain").or_else(|| {
                let chain_missing =
                    |name: &str| table.chains.get(name).is_none_or(|chain| chain.base.is_some());
                let missing = rules.iter().any(|rule| {
                    chains_of(rule).any(chain_missing)
                        || sets_of(rule).iter().any(|set| !table.sets.contains_key(*set))
                });
                bad(missing, "a rule names what is not there")
            })
        }
        Op::AddSet { set, .. } => bad(table.sets.contains_key(set), "the set is there"),
        Op::DeleteSet { set, .. } => {
            bad(!table.sets.contains_key(set), "no such set").or(bad(names_set(set), "the set is in use"))
        }
        Op::AddElement { set, key, data, .. } => {
            let Some(set) = table.sets.get(set) else { return Some("no such set") };
            let chain_missing = target(data)
                .is_some_and(|name| table.chains.get(name).is_none_or(|chain| chain.base.is_some()));
            bad(chain_missing, "an element names what is not there").or(bad(
                set.elements.keys().any(|other| overlap(other, key)),
                "the element is there, or overlaps",
            ))
        }
        Op::DeleteElement { set, key, .. } => {
            bad(table.sets.get(set).is_none_or(|set| !set.elements.contains_key(key)), "no such element")
        }
    }
}

fn overlap(a: &ElemKey, b: &ElemKey) -> bool {
    a.start() <= b.last() && b.start() <= a.last()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_diff_leads_to_what_is_desired(desired in ruleset(), actual in ruleset()) {
        let mut state = actual.clone();
        state.edit(&diff(&desired, &actual));
        prop_assert_eq!(state, desired);
    }

    #[test]
    fn no_difference_is_no_plan(ruleset in ruleset()) {
        prop_assert!(diff(&ruleset, &ruleset).is_empty());
    }

    /// Every prefix of a plan is a state that the kernel accepts: no step names what is not there, adds what is
    /// there, or removes what is in use.
    #[test]
    fn every_prefix_is_whole(desired in ruleset(), actual in ruleset()) {
        let plan = diff(&desired, &actual);
        let mut state = actual.clone();
        for op in &plan.ops {
            let why = refusal(&state, op);
            prop_assert!(why.is_none(), "{}: {}\nin the plan\n{}\nto\n{}", why.unwrap_or_default(), op, plan, state);
            state.edit(&Plan { ops: vec![op.clone()] });
        }
    }

    /// A changed element never goes without coming back at once.
    #[test]
    fn a_changed_element_stays_together(desired in ruleset(), actual in ruleset()) {
        let plan = diff(&desired, &actual);
        let stays = |table: &TableId, set: &str, key: &ElemKey| {
            let of = |ruleset: &Ruleset| ruleset.tables.get(table).and_then(|table| table.sets.get(set)).cloned();
            let chain = |ruleset: &Ruleset, data: &ElemData| target(data).and_then(|name| ruleset.tables.get(table)?.chains.get(name).cloned());
            match (of(&desired), of(&actual)) {
                (Some(new), Some(old)) => {
                    // Of a set or chain that is made anew, elements go early.
                    let led_to = old.elements.get(key).and_then(|data| chain(&actual, data).map(|old| (data, old)));
                    let replaced = led_to.is_some_and(|(data, old)| chain(&desired, data).is_some_and(|new| new.base != old.base));
                    new.same_layout(&old) && new.elements.contains_key(key) && !replaced
                }
                _ => false,
            }
        };
        for (at, op) in plan.ops.iter().enumerate() {
            if let Op::DeleteElement { table, set, key } = op && stays(table, set, key) {
                let next = plan.ops.get(at + 1);
                let back = matches!(next, Some(Op::AddElement { table: t, set: s, key: k, .. }) if (t, s, k) == (table, set, key));
                prop_assert!(back, "{op} in\n{plan}");
            }
        }
    }

    /// Printing never fails, whatever the registers hold.
    #[test]
    fn everything_prints(ruleset in ruleset(), other in ruleset()) {
        let plan = diff(&ruleset, &other);
        prop_assert_eq!(plan.is_empty(), plan.to_string().is_empty());
        prop_assert_eq!(plan.show(&ruleset).to_string().lines().count() >= plan.ops.len(), true);
    }
}
