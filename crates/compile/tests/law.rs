//! Incremental equals whole (law 2), and every plan on the way is safe (law 1).

use std::collections::BTreeSet;

use compile::guard::cause::Cause;
use compile::layout::LOCAL_SLOTS;
use compile::refusal::Refusal;
use compile::whole;
use kstate::nft::build;
use kstate::nft::{ElemData, ElemKey, Expr, Op, Rule, Ruleset, chains_of, diff, sets_of, target};
use model::{Cluster, Endpoint, EndpointSlice, Event, Key, Kind, Row, Service, ServicePort, SlicePort};
use proptest::prelude::*;
use semantics::policy::resolve::Direction;
use semantics::service::cause::{self as service, Lack};
use types::ObjectName;

#[path = "made/made.rs"]
mod made;
#[path = "../../trace/tests/battery/world.rs"]
mod world;

use made::Made;
use world::{history, settings, start};

/// Everything that rules and elements name is there, as it was before this step.
fn assert_nothing_dangles(ruleset: &Ruleset, after: &Op) {
    let Some(table) = ruleset.tables.get(after.table()) else { return };
    let set = |set: &str| assert!(table.sets.contains_key(set), "no set {set} after {after:?}");
    let chain = |chain: &str| assert!(table.chains.contains_key(chain), "no chain {chain} after {after:?}");
    let of_rules = |rules: &[Rule]| {
        rules.iter().flat_map(sets_of).for_each(set);
        rules.iter().flat_map(chains_of).for_each(chain);
    };
    match after {
        Op::SetRules { rules, .. } => of_rules(rules),
        Op::AddElement { data, .. } => target(data).into_iter().for_each(chain),
        Op::DeleteSet { .. } | Op::DeleteChain { .. } => {
            table.chains.values().for_each(|chain| of_rules(&chain.rules));
            let elements = table.sets.values().flat_map(|set| set.elements.values());
            elements.filter_map(target).for_each(chain);
        }
        _ => {}
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
            if letters.len() == chain.len() {
                continue;
            }
            // What is drawn last is there always; what is drawn before may have to be drawn again.
            let first = if letters.starts_with('l') { LOCAL_SLOTS } else { 0 };
            let draws = table.chains[chain].rules.iter().flat_map(|rule| &rule.exprs);
            let draws: Vec<u32> = draws
                .filter_map(|expr| match expr {
                    Expr::Numgen { modulus, offset, .. } if *offset == first => Some(*modulus),
                    _ => None,
                })
                .collect();
            let ([sure, 1] | [_, .., sure, 1]) = draws[..] else { panic!("{chain} draws {draws:?}") };
            for slot in first..first + sure {
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
        assert_is_logged(rule);
    }
}

/// What a policy or a Service refuses is logged with an id that leads to it: for policies the chain, for Services the word.
fn assert_is_logged(rule: &Rule) {
    let Some(refusal) = Refusal::of_comment(&rule.comment) else { return };
    let of_policy = Direction::ALL.map(Refusal::of_policy).contains(&refusal);
    let services = [Lack::Endpoint, Lack::LocalEndpoint].map(service::Cause::Lack);
    let of_service = services.into_iter().chain([service::Cause::SourceRange]);
    let of_service = of_service.map(Refusal::of_service).any(|known| known == refusal);
    let log = rule.exprs.iter().find_map(|expr| match expr {
        Expr::Log { prefix, .. } => Some(&**prefix),
        _ => None,
    });
    match log {
        Some(id) if of_policy => assert!(id.starts_with("in_") || id.starts_with("out_"), "{rule}"),
        Some(id) if of_service => assert_eq!(id.split(' ').next(), Some(refusal.word()), "{rule}"),
        log => assert!(log.is_none() && !of_policy && !of_service, "{rule}"),
    }
    if let (Some((_, object)), Some(id)) = (rule.comment.split_once(": "), log.filter(|_| of_service)) {
        assert!(id.ends_with(object), "{rule}");
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
        let mut compiler = Made::new(settings());
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
            let (plan, round) = compiler.update(synced, &std::mem::take(&mut pending));
            perform(&mut kernel, &plan);
            left_behind.get_or_insert_with(|| kernel.clone());
            prop_assert_eq!(&kernel, compiler.nft());
            assert_layouts_are_known(&plan, compiler.nft());
            findings.extend(round.raised);
            for gone in round.cleared {
                prop_assert!(findings.remove(&gone), "cleared what was not raised: {}", gone);
            }
        }
        let synced = cluster.synced().expect("all kinds are done");
        let (plan, round) = compiler.update(synced, &pending);
        perform(&mut kernel, &plan);
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
        prop_assert_eq!(compiler.compiler.net(), &whole.net);
        prop_assert_eq!(&findings, &whole.diagnostics);
        prop_assert!(compiler.update(synced, &[]).0.is_empty());
    }
}

fn service() -> Service {
    Service {
        key: ObjectName::new("shop", "grows"),
        cluster_ips: vec![world::ip("10.96.0.100")],
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    }
}

fn slice(endpoints: u8) -> Event {
    Event::Upsert(Row::EndpointSlice(EndpointSlice {
        key: ObjectName::new("shop", "grows-1"),
        service: "grows".into(),
        ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
        endpoints: (0..endpoints).map(|last| Endpoint::ready([10, 244, 1, 10 + last])).collect(),
        ..EndpointSlice::default()
    }))
}

/// The kernel goes through all verdicts of a table whenever one of them, or a rule, changes; and through all endpoints when
/// a chain comes that asks for them.
#[test]
fn another_number_of_endpoints_changes_no_verdict_and_no_rule() {
    let (mut cluster, mut compiler) = (Cluster::default(), Made::new(settings()));
    let service = Event::Upsert(Row::Service(Box::new(service())));
    let first = Kind::ALL.map(Event::Done).into_iter().chain([service, slice(1)]);
    let keys: Vec<Key> = first.flat_map(|event| cluster.apply(event)).collect();
    compiler.update(cluster.synced().expect("all kinds are done"), &keys);
    for endpoints in (2..=64).chain([63, 40, 12, 1]) {
        let keys = cluster.apply(slice(endpoints));
        let plan = compiler.update(cluster.synced().expect("still"), &keys).0;
        assert!(!plan.is_empty());
        for op in &plan.ops {
            let set = match op {
                Op::AddElement { set, .. } | Op::DeleteElement { set, .. } => set,
                _ => panic!("{op}"),
            };
            assert!(["front", "ep"].contains(&&**set), "{op}");
        }
    }
}
