//! An agent whose names of sets and chains are others than those in the kernel (a newer version's), or whose frontends lead to
//! chains in another way, goes over to its own without a moment in which anything is decided differently: neither between two
//! steps of its plan, nor for a packet that is on its way while the kernel performs a transaction.

use std::collections::BTreeSet;
use std::sync::Arc;

use compile::{Desired, whole};
use kstate::nft::{
    ElemData, ElemKey, Expr, MetaKey, Op, Plan, Reg, Rule, Ruleset, Table, Verdict, build, diff, target,
};
use model::{Cluster, Event};
use netlink::nft::{STOCK_LIMIT, Transactions};
use proptest::prelude::*;
use trace::eval::{self, Kernel};
use trace::packet::{CtState, Packet};
use types::{Family, IfName, Protocol};

#[path = "../../trace/tests/battery/world.rs"]
mod world;

use world::{external_ip, history, node_ip, pod_ip, service_ip, settings, start};

/// The name in version 0.1.0: a hash of 16 digits where there are 32 now.
fn former(name: &str) -> String {
    let hash = |part: &&str| part.len() == 32 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts = name.split('_').map(|part| if hash(&part) { &part[..16] } else { part });
    parts.collect::<Vec<_>>().join("_")
}

fn former_verdict(verdict: &Verdict) -> Verdict {
    match verdict {
        Verdict::Jump(chain) => Verdict::Jump(former(chain)),
        Verdict::Goto(chain) => Verdict::Goto(former(chain)),
        other => other.clone(),
    }
}

fn former_rule(rule: &Rule) -> Rule {
    let mut rule = rule.clone();
    for expr in &mut rule.exprs {
        match expr {
            Expr::Lookup { set, .. }
            | Expr::LookupMap { set, .. }
            | Expr::LookupVerdict { set, .. }
            | Expr::Update { set, .. } => *set = former(set),
            Expr::Verdict(verdict) => *verdict = former_verdict(verdict),
            _ => {}
        }
    }
    rule
}

fn former_ruleset(now: &Ruleset) -> Ruleset {
    let mut all = now.clone();
    for table in all.tables.values_mut() {
        table.chains = std::mem::take(&mut table.chains)
            .into_iter()
            .map(|(name, mut chain)| {
                chain.rules = chain.rules.iter().map(former_rule).collect();
                (former(&name), chain)
            })
            .collect();
        table.sets = std::mem::take(&mut table.sets)
            .into_iter()
            .map(|(name, mut set)| {
                for data in set.elements.values_mut() {
                    if let ElemData::Verdict(verdict) = data {
                        *verdict = former_verdict(verdict);
                    }
                }
                (Arc::from(former(&name)), set)
            })
            .collect();
        without_numbers(table);
    }
    all
}

/// As before frontends had numbers: their elements in `svc` and `svcx` led to chains themselves.
fn without_numbers(table: &mut Table) {
    let Some(leads) = table.sets.remove("leads") else { return };
    let known = table.sets.clone();
    for (numbers, map) in [("front", "svc"), ("frontx", "svcx")] {
        let verdict = |(key, data): (ElemKey, ElemData)| {
            let ElemData::Value(number) = data else { panic!("{key:?} has no number") };
            let lead = leads.elements[&ElemKey::point(number)].clone();
            let own = match target(&lead) {
                Some("pinned") => known["svc"].elements[&key].clone(),
                Some("pinnedx") => known["svcx"].elements[&key].clone(),
                _ => lead,
            };
            (key, own)
        };
        let elements = table.sets.remove(numbers).expect("the map").elements.into_iter().map(verdict);
        table.sets.get_mut(map).expect("the map").elements = elements.collect();
        for rule in table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
            if kstate::nft::sets_of(rule).contains(numbers) {
                let by_mark = |expr: &Expr| {
                    matches!(
                        expr,
                        Expr::Meta { key: MetaKey::Mark, .. } | Expr::MetaSet { .. } | Expr::LookupMap { .. }
                    )
                };
                rule.exprs.retain(|expr| !by_mark(expr));
                rule.exprs.pop();
                rule.exprs.push(build::vmap(map, Reg(0)));
                rule.comment.clear();
            }
        }
    }
    table.chains.retain(|name, _| !name.starts_with("pinned"));
}

/// Many ways through policies and Services, of both families.
fn packets() -> Vec<Packet> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let outside = if family == Family::V4 { "203.0.113.10" } else { "2001:db8::10" };
        let sources = [
            (Some("cni0"), pod_ip(family, 0)),
            (Some("cni0"), pod_ip(family, 1)),
            (Some("plumb.1"), pod_ip(family, 4)),
            (Some("eth0"), world::ip(outside)),
            (None, node_ip(family, 0)),
        ];
        let destinations = [
            pod_ip(family, 1),
            pod_ip(family, 2),
            pod_ip(family, 5),
            service_ip(family, 0),
            service_ip(family, 1),
            external_ip(family, 1),
        ];
        for (iif, src) in sources {
            for (dst, dport) in destinations.iter().flat_map(|dst| [(*dst, 80), (*dst, 53)]) {
                let iif = iif.map(|name| IfName::new(name).expect("a name"));
                let (protocol, ct) = (Protocol::Tcp, CtState::New);
                found.push(Packet { iif, src, dst, protocol, sport: 40000, dport, ct });
            }
        }
    }
    found
}

/// The steps, those together that change one value.
fn steps(plan: &Plan) -> Vec<Vec<Op>> {
    let mut steps: Vec<Vec<Op>> = Vec::new();
    for op in &plan.ops {
        if let (Op::AddElement { set, key, .. }, Some([Op::DeleteElement { set: last, key: gone, .. }])) =
            (op, steps.last().map(Vec::as_slice))
            && (set, key) == (last, gone)
        {
            steps.last_mut().expect("one").push(op.clone());
            continue;
        }
        steps.push(vec![op.clone()]);
    }
    steps
}

/// Whether some rule might notice: not of elements in a set that none asks.
fn is_asked(kernel: &Ruleset, op: &Op) -> bool {
    let (Op::AddElement { table, set, .. } | Op::DeleteElement { table, set, .. }) = op else { return true };
    let table = kernel.tables.get(table).into_iter().flat_map(|table| table.chains.values());
    table.flat_map(|chain| &chain.rules).any(|rule| kstate::nft::sets_of(rule).contains(&**set))
}

/// What a packet may meet that is on its way during a transaction: it took its rules when it began, elements come and go
/// under it, and ranges show what they hold last of all.
fn meanwhile(before: &Ruleset, after: &Ruleset) -> Vec<Ruleset> {
    let state = |old_rules: bool, old_ranges: bool| {
        let mut all = after.clone();
        for (id, table) in &mut all.tables {
            let Some(old) = before.tables.get(id) else { continue };
            for (name, chain) in old.chains.iter().filter(|_| old_rules) {
                table.chains.insert(name.clone(), chain.clone());
            }
            let new = |name: &String| old_rules && !old.chains.contains_key(name);
            for (_, chain) in table.chains.iter_mut().filter(|(name, _)| new(name)) {
                chain.rules.clear();
            }
            for (name, set) in &old.sets {
                let now = table.sets.entry(name.clone()).or_insert_with(|| set.clone());
                if old_ranges && now.interval {
                    now.elements.clone_from(&set.elements);
                }
            }
            let new = |name: &Arc<str>| !old.sets.contains_key(name);
            for (_, set) in
                table.sets.iter_mut().filter(|(name, set)| old_ranges && set.interval && new(name))
            {
                set.elements.clear();
            }
        }
        all
    };
    vec![state(true, false), state(false, true), state(true, true)]
}

/// An agent that is about to go over to `desired`, and what becomes of each packet then.
struct Begun {
    desired: Desired,
    kernel: Ruleset,
    plan: Plan,
    right: Vec<BTreeSet<String>>,
    packets: Vec<Packet>,
}

impl Begun {
    fn after(history: Vec<Event>) -> Self {
        let mut cluster = Cluster::default();
        start().into_iter().chain(history).for_each(|event| _ = cluster.apply(event));
        let desired = whole(cluster.synced().expect("all kinds are done"), settings());
        let kernel = former_ruleset(&desired.nft);
        let plan = diff(&desired.nft, &kernel);
        let mut begun = Self { desired, kernel, plan, right: Vec::new(), packets: packets() };
        begun.right = begun.fates(&begun.desired.nft);
        begun
    }

    fn fates(&self, nft: &Ruleset) -> Vec<BTreeSet<String>> {
        let local = Family::ALL.map(|family| node_ip(family, 0));
        let kernel = Kernel { nft, net: &self.desired.net, local: &local, socket: Some(false) };
        let fate = |path: &eval::Path| format!("{:?} {} {}", path.end, path.destination, path.masquerade);
        self.packets.iter().map(|packet| eval::all(packet, &kernel).iter().map(fate).collect()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_step_to_other_names_changes_what_becomes_of_a_packet(history in history()) {
        let begun = Begun::after(history);
        let mut kernel = begun.kernel.clone();
        prop_assert_eq!(&begun.fates(&kernel), &begun.right);
        for step in steps(&begun.plan) {
            let said = format!("{step:?}");
            let seen = step.iter().any(|op| is_asked(&kernel, op));
            kernel.edit(&Plan { ops: step });
            if !seen {
                continue;
            }
            prop_assert_eq!(&begun.fates(&kernel), &begun.right, "after {}", said);
        }
        prop_assert_eq!(&kernel, &begun.desired.nft);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_on_its_way_during_a_transaction_meets_anything_else(
        history in history(),
        // A big plan is cut anywhere: at the size of a datagram.
        limit in prop_oneof![1 => Just(STOCK_LIMIT), 5 => 500..8_000_usize],
    ) {
        let begun = Begun::after(history);
        let mut kernel = begun.kernel.clone();
        for transaction in Transactions::new(&begun.plan, &begun.kernel, 1, limit) {
            let before = kernel.clone();
            let ops = begun.plan.ops[transaction.expect("it is written").ops].to_vec();
            let said = format!("{ops:?}");
            kernel.edit(&Plan { ops });
            for state in meanwhile(&before, &kernel) {
                prop_assert_eq!(&begun.fates(&state), &begun.right, "during {}", said);
            }
        }
        prop_assert_eq!(&kernel, &begun.desired.nft);
    }
}
