//! The guard: what a pod and a node that joins bring, in all its tables.

use compile::guard::cause::Cause;
use compile::guard::{Guard, links};
use compile::refusal::Refusal;
use kstate::nft::{Expr, Op, Rule, TableFamily, Verdict, chains_of};
use model::{Attachment, Cluster, Event, Key, Kind, Node, Pod, Row, Service, Sources};
use semantics::Settings;
use types::{Family, IfName, Mac, ObjectName};

#[path = "made/made.rs"]
mod made;

use made::Made;

fn settings() -> Settings {
    let nets = |nets: [&str; 2]| nets.map(|net| net.parse().unwrap()).to_vec();
    Settings {
        service_cidrs: nets(["10.96.0.0/12", "fd00:10:96::/112"]),
        allow_sources: nets(["198.18.0.0/15", "2001:db8::/32"]),
        ..Settings::new("node1", nets(["10.244.0.0/16", "fd00:10:244::/48"]), 1450)
    }
}

fn node(number: u8) -> Event {
    Event::Upsert(Row::Node(Node {
        name: format!("node{number}"),
        addresses: vec![[192, 168, 1, number].into(), format!("fd00::{number}").parse().unwrap()],
        pod_cidrs: [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
            .map(|net| net.parse().unwrap())
            .into(),
        ..Node::default()
    }))
}

fn pod() -> Event {
    Event::Upsert(Row::Attachment(Box::new(Attachment {
        wiring: types::Wiring::default(),
        container: "c/eth0".into(),
        pod: ObjectName::new("a", "p"),
        uid: String::new(),
        ips: vec!["10.244.1.4".parse().unwrap(), "fd00:10:244:1::4".parse().unwrap()],
        host_if: IfName::new("veth1").unwrap(),
        mac: Mac([0x0a, 0x58, 10, 244, 1, 4]),
        host_ports: Vec::new(),
        withheld: Vec::new(),
    })))
}

/// Beside what Services and policies have in the same tables.
fn of_links(op: &Op) -> bool {
    match op {
        Op::AddSet { set, .. }
        | Op::DeleteSet { set, .. }
        | Op::AddElement { set, .. }
        | Op::DeleteElement { set, .. } => {
            let named = [links::LINKS, links::PODS, links::NODES].contains(&&**set);
            named
                || set.starts_with("inside")
                || ["further4_", "further6_"].iter().any(|f| set.starts_with(f))
        }
        Op::SetRules { chain, .. } => links::is_own(chain),
        _ => false,
    }
}

/// The steps that an event costs in the guard, in words.
fn cost(cluster: &mut Cluster, compiler: &mut Made, event: Event) -> Vec<String> {
    let keys = cluster.apply(event);
    let mut plan = compiler.update(cluster.synced().unwrap(), &keys).0;
    let bridges = Guard::Ports.tables();
    plan.ops.retain(|op| bridges.contains(op.table()) || of_links(op));
    plan.show(compiler.nft()).to_string().lines().map(str::to_owned).collect()
}

fn begun() -> (Cluster, Made) {
    let (mut cluster, mut compiler) = (Cluster::default(), Made::new(settings()));
    Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Done(kind))));
    cluster.apply(node(1));
    cluster.apply(node(2));
    compiler.update(cluster.synced().unwrap(), &[]);
    (cluster, compiler)
}

#[test]
fn a_pod_is_elements_and_goes_with_them() {
    let (mut cluster, mut compiler) = begun();
    let before = compiler.nft().clone();
    let said = cost(&mut cluster, &mut compiler, pod());
    assert_eq!(said.len(), 9, "{said:#?}");
    for words in [
        "senders4 { \"veth1\" . 0a:58:0a:f4:01:04 . 10.244.1.4 }",
        "senders6 { \"veth1\" . 0a:58:0a:f4:01:04 . fd00:10:244:1::4 }",
        "link6 { \"veth1\" . 0a:58:0a:f4:01:04 . fe80::858:aff:fef4:104 }",
        "link6 { \"veth1\" . 0a:58:0a:f4:01:04 . :: }",
        "ports { \"veth1\" }",
        "ip plumb links { \"veth1\" : goto from_port }",
        "ip6 plumb links { \"veth1\" : goto from_port }",
        "ip plumb pods { 10.244.1.4 }",
        "ip6 plumb pods { fd00:10:244:1::4 }",
    ] {
        assert!(said.iter().any(|step| step.ends_with(words)), "{words}: {said:#?}");
    }
    let key = Key::new(Kind::Attachment, ObjectName::cluster("c/eth0"));
    cost(&mut cluster, &mut compiler, Event::Delete(key));
    assert_eq!(*compiler.nft(), before);
}

#[test]
fn a_node_that_joins_is_elements_of_its_own_sources() {
    let (mut cluster, mut compiler) = begun();
    let said = cost(&mut cluster, &mut compiler, node(3));
    assert!(said.iter().all(|step| step.starts_with("add element ip")), "{said:#?}");
    assert_eq!(said.len(), 6, "nothing but its addresses and its pods' networks: {said:#?}");
    for words in [
        "ip plumb nodes { 192.168.1.3 }",
        "ip6 plumb nodes { fd00::3 }",
        "ip plumb inside4_24 { 192.168.1.3 . 10.244.3.0 }",
        "ip plumb inside6_64 { 192.168.1.3 . fd00:10:244:3:: }",
        "ip6 plumb inside4_24 { fd00::3 . 10.244.3.0 }",
        "ip6 plumb inside6_64 { fd00::3 . fd00:10:244:3:: }",
    ] {
        assert!(said.iter().any(|step| step.ends_with(words)), "{words}: {said:#?}");
    }
}

/// The pod's row, which asks for these.
fn asks(nets: &[&str]) -> Event {
    let nets: Vec<_> = nets.iter().map(|net| net.parse().unwrap()).collect();
    let sources = (!nets.is_empty()).then(|| Box::new(Sources { created: 1, nets }));
    Event::Upsert(Row::Pod(Box::new(Pod { key: ObjectName::new("a", "p"), sources, ..Pod::default() })))
}

/// Live, both ways; and what comes to be somebody else's is lost at once, as a whole.
#[test]
fn further_sources_come_and_go_with_the_annotation_and_with_whom_they_belong_to() {
    let (mut cluster, mut compiler) = begun();
    cost(&mut cluster, &mut compiler, pod());
    cost(&mut cluster, &mut compiler, asks(&[]));
    let before = compiler.nft().clone();
    let said =
        cost(&mut cluster, &mut compiler, asks(&["198.18.7.0/24", "2001:db8:7::/48", "203.0.113.1/32"]));
    let has = |said: &[String], words: &str| said.iter().any(|step| step.contains(words));
    for words in [
        "further4 { \"veth1\" : goto further4_veth1 }",
        "further6 { \"veth1\" : goto further6_veth1 }",
        "further_arp { \"veth1\" : goto further_arp_veth1 }",
        "198.18.7.0-198.18.7.255",
        "ether saddr 0a:58:0a:f4:01:04 ip saddr 198.18.7.0/24 accept",
    ] {
        assert!(has(&said, words), "{words}: {said:#?}");
    }
    assert!(!has(&said, "203.0.113.1"), "{said:#?}");
    let of_pods = compiler.compiler.diagnostics().filter(|found| found.object.kind == Kind::Pod);
    let why: Vec<_> = of_pods.map(ToString::to_string).collect();
    assert!(
        why.len() == 1 && why[0].contains("203.0.113.1/32, which does not lie within --allow-sources"),
        "{why:?}"
    );
    // Another prefix than before: no two ranges of one set ever overlap.
    let wider = cost(&mut cluster, &mut compiler, asks(&["198.18.0.0/16"]));
    assert!(
        has(&wider, "198.18.0.0-198.18.255.255") && has(&wider, "delete set ip plumb further4_"),
        "{wider:#?}"
    );
    // What the node withholds for a while is no source, and no fault either.
    let withholds = |net: Option<&str>| {
        let Event::Upsert(Row::Attachment(mut row)) = pod() else { panic!("an attachment") };
        row.withheld = net.map(|net| net.parse().unwrap()).into_iter().collect();
        Event::Upsert(Row::Attachment(row))
    };
    let found: Vec<_> = compiler.compiler.diagnostics().cloned().collect();
    let less = cost(&mut cluster, &mut compiler, withholds(Some("198.18.128.0/17")));
    assert!(has(&less, "198.18.0.0-198.18.127.255") && !has(&less, "198.18.255.255"), "{less:#?}");
    assert!(compiler.compiler.diagnostics().eq(&found));
    let all = cost(&mut cluster, &mut compiler, withholds(None));
    assert!(has(&all, "198.18.0.0-198.18.255.255"), "{all:#?}");
    let service = Service {
        key: ObjectName::new("b", "s"),
        external_ips: vec!["198.18.9.9".parse().unwrap()],
        ..Service::default()
    };
    cost(&mut cluster, &mut compiler, Event::Upsert(Row::Service(Box::new(service))));
    assert_eq!(*compiler.nft(), before, "a Service has one of them");
    cost(&mut cluster, &mut compiler, asks(&["198.18.7.0/24"]));
    assert_ne!(*compiler.nft(), before);
    let key = Key::new(Kind::Pod, ObjectName::new("a", "p"));
    cost(&mut cluster, &mut compiler, Event::Delete(key));
    assert_eq!(*compiler.nft(), before);
}

#[test]
fn whatever_a_guard_drops_is_counted_under_its_cause() {
    let (_, compiler) = begun();
    let mut found = std::collections::BTreeSet::new();
    for (guard, id) in
        Guard::ALL.into_iter().flat_map(|guard| guard.tables().into_iter().map(move |t| (guard, t)))
    {
        let table = &compiler.nft().tables[&id];
        for (chain, rule) in
            table.chains.iter().flat_map(|(name, chain)| chain.rules.iter().map(move |r| (name, r)))
        {
            let ends = |expr: &Expr| matches!(expr, Expr::Verdict(Verdict::Drop) | Expr::Reject(_));
            let cause = Cause::of_comment(&rule.comment);
            let known = cause.is_some() || Refusal::of_comment(&rule.comment).is_some();
            let silent = chain == "redirects";
            assert!(!rule.exprs.iter().any(ends) || known || silent, "{chain}: {rule}");
            let Some(cause) = cause else { continue };
            // Where the counters are read.
            let its_own = guard == Guard::Ports || links::dropping().any(|own| own == *chain);
            assert!(rule.exprs.contains(&Expr::Counter) && cause.guard() == Some(guard) && its_own, "{rule}");
            found.insert((id.clone(), cause));
        }
        assert!(table.chains.values().all(|chain| chain.base.is_none_or(|base| !base.drop)));
    }
    let all = Cause::ALL.iter().flat_map(|cause| cause.tables().into_iter().map(|table| (table, *cause)));
    assert_eq!(found, all.collect());
}

/// A full set ends the rule that would add to it: what drops must be another one.
#[test]
fn no_rule_that_remembers_a_sender_decides_anything() {
    let (_, compiler) = begun();
    let remembers = |rule: &&Rule| rule.exprs.iter().any(|expr| matches!(expr, Expr::Update { .. }));
    let mut sets = std::collections::BTreeSet::new();
    for id in Guard::ALL.into_iter().flat_map(Guard::tables) {
        let table = &compiler.nft().tables[&id];
        for rule in table.chains.values().flat_map(|chain| &chain.rules).filter(remembers) {
            let decides = |expr: &Expr| matches!(expr, Expr::Verdict(_) | Expr::Reject(_));
            assert!(!rule.exprs.iter().any(decides), "{rule}");
            let of_rule = kstate::nft::sets_of(rule).into_iter();
            sets.extend(of_rule.map(|set| (id.clone(), set.to_owned())));
        }
        for (name, set) in &table.sets {
            assert_eq!(
                set.dynamic,
                Cause::ALL.iter().any(|cause| cause.sets().iter().any(|(t, of)| *t == id && **of == **name))
            );
        }
    }
    for (id, name) in Cause::ALL.iter().flat_map(|cause| cause.sets()) {
        assert!(sets.contains(&(id.clone(), name.to_string())), "{name} of {id} is filled by no rule");
    }
}

/// The kernel has both families, whatever pods have.
#[test]
fn a_family_that_pods_have_not_is_guarded_and_nothing_dangles() {
    for family in Family::ALL {
        let mut settings = settings();
        settings.pod_pools.retain(|net| Family::of_net(net) == family);
        settings.service_cidrs.retain(|net| Family::of_net(net) == family);
        let (mut cluster, _) = begun();
        cluster.apply(pod());
        let mut compiler = Made::new(settings);
        compiler.update(cluster.synced().unwrap(), &[]);
        for id in Guard::ALL.into_iter().flat_map(Guard::tables) {
            let table = &compiler.nft().tables[&id];
            for rule in table.chains.values().flat_map(|chain| &chain.rules) {
                assert!(
                    kstate::nft::sets_of(rule).iter().all(|set| table.sets.contains_key(*set)),
                    "{id}: {rule}"
                );
                assert!(chains_of(rule).all(|chain| table.chains.contains_key(chain)), "{id}: {rule}");
            }
        }
        let other = family.pick([TableFamily::Ip6, TableFamily::Ip]);
        let other = compiler.nft().tables.iter().find(|(id, _)| id.family == other).unwrap().1;
        assert!(
            other.chains["raw"].rules.iter().any(|rule| chains_of(rule).any(|chain| chain == "from_pods"))
        );
        assert!(!other.chains.contains_key("services") && !other.sets.contains_key("front"));
        assert!(other.sets["links"].elements.len() == 2 && !other.sets["nodes"].elements.is_empty());
    }
}
