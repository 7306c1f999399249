//! Incremental equals whole (law 2), and every plan on the way is safe (law 1).

use std::collections::BTreeSet;

use compile::guard::cause::Cause;
use compile::layout::LOCAL_SLOTS;
use compile::refusal::Refusal;
use compile::{Compiler, whole};
use kstate::nft::build;
use kstate::nft::{ElemData, ElemKey, Op, Ruleset, chains_of, diff, sets_of, target};
use model::{Cluster, Endpoint, EndpointSlice, Event, Key, Kind, Row, Service, ServicePort, SlicePort};
use proptest::prelude::*;
use types::ObjectName;

#[path = "../../trace/tests/battery/world.rs"]
mod world;

use world::{history, settings, start};

/// Everything that rules and elements name is there.
fn assert_nothing_dangles(ruleset: &Ruleset, after: &Op) {
    for table in ruleset.tables.values() {
        for rule in table.chains.values().flat_map(|chain| &chain.rules) {
            for set in sets_of(rule) {
                assert!(table.sets.contains_key(set), "no set {set} after {after:?}");
            }
            for chain in chains_of(rule) {
                assert!(table.chains.contains_key(chain), "no chain {chain} after {after:?}");
            }
        }
        for data in table.sets.values().flat_map(|set| set.elements.values()) {
            if let Some(chain) = target(data) {
                assert!(table.chains.contains_key(chain), "no chain {chain} after {after:?}");
            }
        }
    }
}

/// Whatever a frontend's number leads to has its rules, and a service's draw finds an endpoint in every slot.
fn assert_services_are_whole(ruleset: &Ruleset, after: &Op) {
    for table in ruleset.tables.values() {
        let (Some(ep), Some(leads)) = (table.sets.get("ep"), table.sets.get("leads")) else { continue };
        let frontends = ["front", "frontx"].into_iter().filter_map(|map| table.sets.get(map));
        for (key, data) in frontends.flat_map(|map| &map.elements) {
            let ElemData::Value(number) = data else { panic!("{key:?} has no number after {after:?}") };
            let lead = leads.elements.get(&ElemKey::point(number.clone()));
            let lead = lead.unwrap_or_else(|| panic!("{number:?} leads nowhere after {after:?}"));
            let Some(chain) = target(lead) else { continue };
            assert!(!table.chains[chain].rules.is_empty(), "{chain} is empty after {after:?}");
            if let Some(own) = [("pinned", "svc"), ("pinnedx", "svcx")].into_iter().find(|(c, _)| *c == chain)
            {
                let own = table.sets[own.1].elements.get(key).and_then(target);
                let own = own.unwrap_or_else(|| panic!("{key:?} has no chain of its own after {after:?}"));
                assert!(!table.chains[own].rules.is_empty(), "{own} is empty after {after:?}");
            }
            let letters = chain.trim_end_matches(|c: char| c.is_ascii_digit());
            let Ok(count) = chain[letters.len()..].parse::<u32>() else { continue };
            let first = if letters.starts_with('l') { LOCAL_SLOTS } else { 0 };
            for slot in first..first + count {
                let start = [&slot.to_ne_bytes()[..], key.start()].concat().as_slice().into();
                let key = ElemKey::point(start);
                assert!(ep.elements.contains_key(&key), "slot {slot} of {chain} is empty after {after:?}");
            }
        }
    }
}

/// Performs a plan step by step; a changed value is one step, as its writer promises.
fn perform(ruleset: &mut Ruleset, plan: &kstate::nft::Plan) {
    let mut ops = plan.ops.iter().peekable();
    while let Some(op) = ops.next() {
        let mut part = vec![op.clone()];
        if let Op::DeleteElement { set, key, .. } = op
            && let Some(Op::AddElement { set: next_set, key: next_key, .. }) = ops.peek()
            && (set, key) == (next_set, next_key)
        {
            part.extend(ops.next().cloned());
        }
        ruleset.edit(&kstate::nft::Plan { ops: part });
        assert_nothing_dangles(ruleset, op);
        assert_services_are_whole(ruleset, op);
    }
}

/// A step about an element is written by its set's layout. Known are the layouts of the wanted state, and those of sets that
/// the plan deletes.
fn assert_layouts_are_known(plan: &kstate::nft::Plan, desired: &Ruleset) {
    let deleted = |name| {
        plan.ops.iter().find_map(|op| match op {
            Op::DeleteSet { set, layout, .. } if set == name => Some(layout),
            _ => None,
        })
    };
    for op in &plan.ops {
        if let Op::AddElement { table, set, key, .. } | Op::DeleteElement { table, set, key } = op {
            let known = desired.tables[table].sets.get(set).or_else(|| deleted(set).map(AsRef::as_ref));
            let known = known.unwrap_or_else(|| panic!("the layout of {set} is lost before {op}"));
            assert!(known.interval || key.end().is_none(), "{op}");
        }
    }
}

/// What drops or refuses says why, in a word that metrics have.
fn assert_refusals_say_why(ruleset: &Ruleset) {
    let rules =
        ruleset.tables.values().flat_map(|table| table.chains.values()).flat_map(|chain| &chain.rules);
    for rule in rules.filter(|rule| rule.exprs.contains(&build::counter())) {
        let known =
            Refusal::of_comment(&rule.comment).is_some() || Cause::of_comment(&rule.comment).is_some();
        assert!(known, "no word for {rule}");
    }
}

/// Repeats, relists and squashes what happened, without changing where it ends.
fn disturb(cluster: &Cluster, kind: Kind) -> Vec<Event> {
    let rows: Vec<Event> = match kind {
        Kind::Pod => cluster.pods.values().cloned().map(|r| Event::Upsert(Row::Pod(r))).collect(),
        Kind::Policy => cluster.policies.values().cloned().map(|r| Event::Upsert(Row::Policy(r))).collect(),
        _ => return Vec::new(),
    };
    [Event::Start(kind)].into_iter().chain(rows.into_iter().rev()).chain([Event::Done(kind)]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_as_the_whole(
        history in history(),
        batches in proptest::collection::vec(1..9_usize, 1..30),
        relist in proptest::option::of(0..20_usize),
    ) {
        let mut cluster = Cluster::default();
        let mut compiler = Compiler::new(settings());
        let mut kernel = Ruleset::default();
        let mut findings = BTreeSet::new();
        let mut pending: Vec<Key> = Vec::new();
        let mut sizes = batches.iter().cycle();
        let mut left = 0;
        // What an agent left that went away when it had begun.
        let mut left_behind = None;
        let first = start();
        let warm = first.len();
        for (at, event) in first.into_iter().chain(history).enumerate() {
            pending.extend(cluster.apply(event));
            if relist == Some(at) {
                for kind in [Kind::Pod, Kind::Policy] {
                    for event in disturb(&cluster, kind) {
                        pending.extend(cluster.apply(event));
                    }
                }
            }
            if left > 0 || at + 1 < warm {
                left = usize::saturating_sub(left, 1);
                continue;
            }
            left = *sizes.next().expect("a cycle");
            let synced = cluster.synced().expect("all kinds are done");
            let round = compiler.update(synced, &std::mem::take(&mut pending));
            perform(&mut kernel, &round.nft);
            left_behind.get_or_insert_with(|| kernel.clone());
            prop_assert_eq!(&kernel, compiler.nft());
            assert_layouts_are_known(&round.nft, compiler.nft());
            findings.extend(round.raised);
            for gone in round.cleared {
                prop_assert!(findings.remove(&gone), "cleared what was not raised: {}", gone);
            }
        }
        let synced = cluster.synced().expect("all kinds are done");
        let round = compiler.update(synced, &pending);
        perform(&mut kernel, &round.nft);
        findings.extend(round.raised);
        for gone in &round.cleared {
            findings.remove(gone);
        }
        let whole = whole(synced, settings());
        prop_assert_eq!(&kernel, &whole.nft);
        assert_refusals_say_why(&kernel);
        let mut followed = left_behind.unwrap_or_default();
        let plan = diff(&kernel, &followed);
        perform(&mut followed, &plan);
        prop_assert_eq!(&followed, &kernel);
        prop_assert_eq!(compiler.net(), &whole.net);
        prop_assert_eq!(&findings, &whole.diagnostics);
        prop_assert!(compiler.update(synced, &[]).nft.is_empty());
    }
}

fn service(number: u8) -> Service {
    Service {
        key: ObjectName::new("shop", format!("s{number}")),
        cluster_ips: vec![world::ip(&format!("10.96.0.{}", 100 + number))],
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    }
}

fn slice(number: u8, endpoints: u8) -> Event {
    Event::Upsert(Row::EndpointSlice(EndpointSlice {
        key: ObjectName::new("shop", format!("s{number}-1")),
        service: format!("s{number}"),
        ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
        endpoints: (0..endpoints).map(|last| Endpoint::ready([10, 244, 1, 10 + last])).collect(),
        ..EndpointSlice::default()
    }))
}

/// The kernel goes through all verdicts of a table whenever one of them, or a rule, changes.
#[test]
fn another_number_of_endpoints_changes_no_verdict_and_no_rule() {
    let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(settings()));
    let services = [1, 2, 3, 4].map(|number| Event::Upsert(Row::Service(Box::new(service(number)))));
    let slices = [slice(1, 3), slice(2, 4), slice(3, 4), slice(4, 3)];
    let first = Kind::ALL.map(Event::Done);
    let keys: Vec<Key> =
        first.into_iter().chain(services).chain(slices).flat_map(|event| cluster.apply(event)).collect();
    compiler.update(cluster.synced().expect("all kinds are done"), &keys);
    for endpoints in [4, 3] {
        let keys = cluster.apply(slice(1, endpoints));
        let plan = compiler.update(cluster.synced().expect("still"), &keys).nft;
        assert!(!plan.is_empty());
        for op in &plan.ops {
            let free = match op {
                Op::AddElement { data, .. } => target(data).is_none(),
                Op::DeleteElement { set, .. } => ["front", "ep"].contains(&&**set),
                _ => false,
            };
            assert!(free, "{op}");
        }
    }
}
