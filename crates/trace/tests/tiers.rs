//! Tiers of rules that accept, deny and pass, made by hand: whatever they are, running what is compiled of them judges as
//! their value says, and what drops a packet names the object that it is because of. No sort of policy of today has them
//! all.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use compile::layout::{IN_ISOLATED, OUT_ISOLATED};
use compile::policy::nftables::{attachment_fragment, set_name};
use kstate::net::NetState;
use kstate::nft::build::{self, ct_state, encode, rule};
use kstate::nft::{
    BaseChain, Chain, ChainKind, ElemData, ElemKey, Expr, Field, Hook, Reg, Ruleset, Set, SetData, Table,
    TableId,
};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use semantics::policy::resolve::{AddressSet, Direction, PodPeer, Scope};
use semantics::policy::tier::{Cause, Identity, Judgement, PeerMatch, PortMatch, Rule, Tier, Verdict};
use trace::Packet;
use trace::eval::{self, End, Kernel, Path};
use trace::packet::CtState;
use types::{Family, IfName, IpNet, ObjectName, Protocol, Selector};

/// Pods and the namespaces in which they are; each calls its port 80 `web`.
const PODS: [(u8, &str); 4] = [(1, "a"), (2, "b"), (3, "a"), (9, "c")];
const WEB: u16 = 80;

fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, last))
}

fn is_pod(at: IpAddr, peer: &PodPeer) -> bool {
    let Scope::Own(own) = &peer.namespaces else { return false };
    PODS.iter().any(|(last, namespace)| address(*last) == at && own == namespace)
}

fn peer() -> impl Strategy<Value = PeerMatch> {
    let net = (0..12_u8, 28..=32_u8)
        .prop_map(|(last, length)| IpNet::new(address(last), length).expect("a prefix").trunc());
    let block = (net.clone(), vec(net, 0..3)).prop_map(|(cidr, except)| PeerMatch::Block { cidr, except });
    let pods = select(vec!["a", "b", "none"]).prop_map(|namespace| {
        let namespaces = Scope::Own(namespace.to_owned());
        PeerMatch::Pods(PodPeer { namespaces, pods: Selector::default() })
    });
    prop_oneof![block, pods]
}

fn port() -> impl Strategy<Value = PortMatch> {
    let protocol = || select(vec![Protocol::Tcp, Protocol::Udp]);
    let numbers = (protocol(), 78..84_u16, 0..4_u16).prop_map(|(protocol, from, more)| PortMatch::Numbers {
        protocol,
        from,
        to: from + more,
    });
    prop_oneof![
        6 => numbers,
        1 => protocol().prop_map(|protocol| PortMatch::Numbers { protocol, from: 0, to: u16::MAX }),
        1 => protocol().prop_map(|protocol| PortMatch::Name { protocol, name: "web".to_owned() }),
    ]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    select(vec![Verdict::Accept, Verdict::Deny, Verdict::Pass])
}

/// A tier of so many objects that its runs are short, or long enough to be merged.
fn tier(sort: &'static str) -> impl Strategy<Value = Tier> {
    let some = (option::weighted(0.9, vec(peer(), 1..4)), option::weighted(0.8, vec(port(), 1..6)));
    let run = (verdict(), vec(some, 1..6));
    let names = btree_set(select(vec!["first", "second", "third"]), 1..3);
    (names, vec(run, 0..4), verdict()).prop_map(move |(names, runs, last)| {
        let names: BTreeSet<ObjectName> =
            names.into_iter().map(|name| ObjectName::cluster(format!("{sort}-{name}"))).collect();
        let owner = names.first().cloned().unwrap_or_default();
        let all = runs.into_iter().flat_map(|(verdict, rules)| {
            rules.into_iter().map(move |(peers, ports)| (verdict, peers, ports))
        });
        let rules = all.enumerate().map(|(at, (verdict, peers, ports))| {
            let cause = Cause::Rule(owner.clone(), at + 1);
            Rule { peers, ports, judgement: Judgement { verdict, cause } }
        });
        let default = Judgement { verdict: last, cause: Cause::Objects(names.clone()) };
        Tier { identity: Identity::Objects { sort, names }, rules: rules.collect(), default }
    })
}

fn tiers() -> impl Strategy<Value = Vec<Tier>> {
    (option::of(tier("admin")), option::of(tier("policies")), option::of(tier("baseline")))
        .prop_map(|(admin, policies, baseline)| [admin, policies, baseline].into_iter().flatten().collect())
}

fn packet() -> impl Strategy<Value = Packet> {
    let end = || prop_oneof![3 => select(vec![1, 2, 3, 9_u8]), 1 => 0..16_u8].prop_map(address);
    let protocol = prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)];
    (end(), end(), protocol, 77..89_u16).prop_map(|(src, dst, protocol, dport)| Packet {
        iif: IfName::new("eth0").ok(),
        src,
        dst,
        protocol,
        sport: 40_000,
        dport,
        ct: CtState::New,
    })
}

/// From where packets are kept from conntrack.
const UNTRACKED_PORT: u16 = 40_001;

/// The pod whose tiers are asked, for what it sends and what it gets.
const JUDGED: u8 = 9;

/// The word of the value: what becomes of a packet in a direction, and why.
fn judge(tiers: &[Tier], direction: Direction, packet: &Packet) -> (bool, Option<Cause>) {
    let other = match direction {
        Direction::Ingress => packet.src,
        Direction::Egress => packet.dst,
    };
    let is_peer = |peer: &PeerMatch| match peer {
        PeerMatch::Pods(pods) => is_pod(other, pods),
        PeerMatch::Block { cidr, except } => {
            cidr.contains(&other) && !except.iter().any(|hole| hole.contains(&other))
        }
    };
    let is_port = |port: &PortMatch| match port {
        PortMatch::Numbers { protocol, from, to } => {
            *protocol == packet.protocol && (*from..=*to).contains(&packet.dport)
        }
        PortMatch::Name { protocol, .. } => {
            let pod = PODS.iter().any(|(last, _)| address(*last) == packet.dst);
            *protocol == packet.protocol && pod && packet.dport == WEB
        }
    };
    for tier in tiers {
        let matches = |rule: &&Rule| {
            rule.peers.as_ref().is_none_or(|peers| peers.iter().any(is_peer))
                && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(is_port))
        };
        let first = tier.rules.iter().find(matches).map_or(&tier.default, |rule| &rule.judgement);
        match first.verdict {
            Verdict::Accept => return (true, None),
            Verdict::Deny => return (false, Some(first.cause.clone())),
            Verdict::Pass => {}
        }
    }
    (true, None)
}

/// A table of nothing but the tiers of one pod, and what others have in their sets.
fn compiled(tiers: [&[Tier]; 2]) -> Ruleset {
    let judged_by =
        Direction::ALL.into_iter().zip(tiers).map(|(direction, tiers)| (direction, tiers.to_vec()));
    let fragment = attachment_fragment(&[address(JUDGED)], &judged_by.collect::<Vec<_>>(), Family::V4);
    let mut table = Table::default();
    let maps = [IN_ISOLATED, OUT_ISOLATED].map(|map| (map, Set::new([Field::Ipv4], SetData::Verdicts)));
    let pairs = ("hairpin", Set::new([Field::Ipv4, Field::Ipv4], SetData::None));
    table.sets.extend(maps.into_iter().chain([pairs]).map(|(name, set)| (name.into(), set)));
    table.sets.extend(fragment.sets.into_iter().map(|(name, set)| (name.as_ref().into(), set)));
    table.chains.extend(fragment.chains.into_iter().map(|(name, chain)| (name.as_ref().into(), chain)));
    for (set, elements) in fragment.elements {
        table.sets.get_mut(set.as_ref()).expect("its set").elements.extend(elements);
    }
    for set in fragment.address_sets {
        let members = PODS.iter().map(|(last, _)| address(*last));
        let keys: Vec<ElemKey> = match &set {
            AddressSet::Pods(peers) => members
                .filter(|ip| peers.iter().any(|peer| is_pod(*ip, peer)))
                .map(|ip| ElemKey::point(encode(&[ip.into()])))
                .collect(),
            AddressSet::Port { .. } => {
                members.map(|ip| ElemKey::point(encode(&[ip.into(), WEB.into()]))).collect()
            }
        };
        let elements = keys.into_iter().map(|key| (key, ElemData::None));
        table.sets.get_mut(&*set_name(&set).0).expect("its set").elements.extend(elements);
    }
    let r0 = Reg(0);
    let leads = [
        (build::original_saddr(Family::V4, r0), OUT_ISOLATED),
        (build::reply_saddr(Family::V4, r0), IN_ISOLATED),
    ];
    let leads = leads.map(|(of, map)| rule("", [of, build::vmap(map, r0)]));
    // As layout/forward.rs has it for what is kept from conntrack, which here is what comes from one port.
    let ends = [(build::saddr(Family::V4, r0), OUT_ISOLATED), (build::daddr(Family::V4, r0), IN_ISOLATED)];
    let no_flow = || [build::ct_state(r0)].into_iter().chain(build::has_bits(r0, ct_state::UNTRACKED));
    let alone = ends.map(|(of, map)| rule("", no_flow().chain([of, build::vmap(map, r0)])));
    let rules = alone.into_iter().chain(leads).collect();
    let untracked = [build::th_sport(r0), build::is(r0, UNTRACKED_PORT), build::notrack()];
    let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -300, drop: false };
    table.chains.insert("raw".into(), Chain { base: Some(base), rules: vec![rule("", untracked)] });
    let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Forward, priority: 0, drop: false };
    table.chains.insert("forward".into(), Chain { base: Some(base), rules });
    let id = TableId { family: Family::V4.into(), name: "plumb".into() };
    Ruleset { tables: [(id, table)].into() }
}

fn run(nft: &Ruleset, packet: &Packet) -> Path {
    eval::one(packet, &Kernel { nft, net: &NetState::default(), local: &[], socket: None }, 0)
}

/// What the log of a dropped packet begins with, and the comment of what dropped it.
fn told(nft: &Ruleset, path: &Path) -> (String, String) {
    let last = path.steps.last().expect("a rule dropped it");
    let table = nft.tables.values().next().expect("one table");
    let exprs = &table.chains[&*last.chain].rules[last.rule].exprs;
    let log = exprs.iter().find_map(|expr| match expr {
        Expr::Log { prefix, .. } => Some(prefix.clone()),
        _ => None,
    });
    (log.expect("a drop is logged"), last.comment.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_judges_as_the_tiers_say(
        ingress in tiers(),
        egress in tiers(),
        packets in vec(packet(), 1..60),
    ) {
        let nft = compiled([&ingress, &egress]);
        for packet in &packets {
            let of = |own, tiers, direction| match own == address(JUDGED) {
                true => judge(tiers, direction, packet),
                false => (true, None),
            };
            let sent = of(packet.src, &egress, Direction::Egress);
            let got = of(packet.dst, &ingress, Direction::Ingress);
            let path = run(&nft, packet);
            prop_assert_eq!(path.end != End::Dropped, sent.0 && got.0, "\n{:?}\n{:#?}", packet, path);
            // Of no flow less is known, so that it may be dropped where the same packet of a flow is not.
            let alone = run(&nft, &Packet { sport: UNTRACKED_PORT, ..packet.clone() });
            prop_assert!(alone.end == End::Dropped || sent.0 && got.0, "\n{:?}\n{:#?}", packet, alone);
            let Some(cause) = sent.1.or(got.1) else { continue };
            let (log, comment) = told(&nft, &path);
            for object in cause.objects() {
                prop_assert!(comment.contains(&object.to_string()), "{}: {}", cause, comment);
            }
            prop_assert!(log.starts_with("in_") || log.starts_with("out_"), "{}", log);
        }
    }
}

fn numbers(from: u16, to: u16) -> Option<Vec<PortMatch>> {
    Some(vec![PortMatch::Numbers { protocol: Protocol::Tcp, from, to }])
}

fn judged(verdict: Verdict, object: &str, rule: usize) -> Judgement {
    Judgement { verdict, cause: Cause::Rule(ObjectName::cluster(object), rule) }
}

fn tier_of(sort: &'static str, object: &str, rules: Vec<Rule>, last: Verdict) -> Tier {
    let names = BTreeSet::from([ObjectName::cluster(object)]);
    let default = Judgement { verdict: last, cause: Cause::Objects(names.clone()) };
    Tier { identity: Identity::Objects { sort, names }, rules, default }
}

fn from_outside(dport: u16) -> Packet {
    let (iif, dst) = (IfName::new("eth0").ok(), address(JUDGED));
    let src = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    Packet { iif, src, dst, protocol: Protocol::Tcp, sport: 40_000, dport, ct: CtState::New }
}

/// What an administrator says goes before what a namespace says, and what he leaves to it is its own.
#[test]
fn an_administrator_denies_accepts_and_leaves_the_rest_to_the_next_tier() {
    let rule = |at, from, verdict| Rule {
        peers: None,
        ports: numbers(from, from),
        judgement: judged(verdict, "no-ssh", at),
    };
    let admin = vec![
        rule(1, 22, Verdict::Deny),
        rule(2, 443, Verdict::Accept),
        rule(3, 80, Verdict::Pass),
        rule(4, 80, Verdict::Deny),
    ];
    let admin = tier_of("admin", "no-ssh", admin, Verdict::Pass);
    let open = |at, from| Rule {
        peers: None,
        ports: numbers(from, from),
        judgement: judged(Verdict::Accept, "own", at),
    };
    let own = tier_of("policies", "own", vec![open(1, 22), open(2, 80)], Verdict::Deny);
    let both = compiled([&[admin.clone(), own], &[]]);
    let passes = |nft: &Ruleset, port| run(nft, &from_outside(port)).end != End::Dropped;
    assert_eq!([22, 443, 80, 8080].map(|port| passes(&both, port)), [false, true, true, false]);
    let (log, comment) = told(&both, &run(&both, &from_outside(22)));
    assert_eq!(comment, "deny ingress: no-ssh rule 1");
    assert!(log.starts_with("in_") && log.ends_with(" no-ssh rule 1"), "{log}");
    assert_eq!(told(&both, &run(&both, &from_outside(8080))).1, "deny ingress: own");
    // Where no policy of a namespace isolates the pod, what is passed is let through.
    let alone = compiled([&[admin], &[]]);
    assert_eq!([22, 443, 80, 8080].map(|port| passes(&alone, port)), [false, true, true, true]);
}

/// So many ranges that overlap are kept rule by rule: they still go before what comes after them.
#[test]
fn rules_that_are_kept_apart_stay_in_their_order() {
    let nested = |n: u16| Rule {
        peers: Some(vec![PeerMatch::Block {
            cidr: IpNet::new(IpAddr::from((0xc000_0201 + u32::from(n)).to_be_bytes()), 32).expect("a prefix"),
            except: Vec::new(),
        }]),
        ports: numbers(1 + n, 60_000 - n),
        judgement: judged(Verdict::Deny, "many", usize::from(n) + 1),
    };
    let all = |ports| Rule { peers: None, ports, judgement: judged(Verdict::Accept, "many", 9999) };
    let rules = [all(numbers(7, 7))].into_iter().chain((0..1500).map(nested)).chain([all(None)]);
    let nft = compiled([&[tier_of("admin", "many", rules.collect(), Verdict::Deny)], &[]]);
    // 192.0.2.1 has the first of the ranges.
    let passes = |port| run(&nft, &from_outside(port)).end != End::Dropped;
    assert_eq!([7, 8, 60_000, 60_001].map(passes), [true, false, false, true]);
    assert_eq!(told(&nft, &run(&nft, &from_outside(8))).1, "deny ingress: many rule 1");
}
