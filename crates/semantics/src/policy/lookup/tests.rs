use std::net::IpAddr;

use model::{Cluster, Event, IntOrName, Peer, Policy, PolicyPort, PolicyRule, Row};
use proptest::prelude::*;
use types::ObjectName;

use super::*;
use crate::policy::network_policy::combination;
use crate::policy::resolve::Direction;
use crate::policy::tier::{Cause, Judgement};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block { cidr: net(cidr), except: except.iter().map(|hole| net(hole)).collect() }
}

fn port(port: u16, end_port: Option<u16>) -> PolicyPort {
    PolicyPort { protocol: Protocol::Tcp, port: Some(IntOrName::Number(port)), end_port }
}

/// The rules of a policy that has these in both directions.
fn rules(rules: Vec<PolicyRule>, direction: Direction) -> Vec<Rule> {
    let key = ObjectName::new("shop", "big");
    let policy =
        Policy { key: key.clone(), ingress: Some(rules.clone()), egress: Some(rules), ..Policy::default() };
    let mut cluster = Cluster::default();
    cluster.apply(Event::Upsert(Row::Policy(Box::new(policy))));
    combination(&cluster, BTreeSet::from([key]), direction, Family::V4).rules
}

fn form(rules: &[Rule]) -> Form<'_> {
    let mut runs = runs(rules, Family::V4);
    assert_eq!(runs.len(), 1, "all of them accept");
    runs.remove(0).form
}

fn merged(policy: Vec<PolicyRule>, direction: Direction) -> Merged {
    match form(&rules(policy, direction)) {
        Form::Many(merged) => merged,
        Form::Few(few) => panic!("only {}", few.len()),
        Form::Apart(apart) => panic!("{} kept apart", apart.len()),
    }
}

fn texts(peers: &Peers) -> Vec<String> {
    peers.ranges.iter().map(|(from, to)| format!("{from}-{to}")).collect()
}

#[test]
fn np_30_an_exception_is_a_hole_in_its_own_block_only() {
    let holes: Vec<String> = (0..10).map(|n| format!("10.0.{n}.0/24")).collect();
    let holes: Vec<&str> = holes.iter().map(String::as_str).collect();
    let first = PolicyRule { peers: vec![block("10.0.0.0/8", &holes)], ports: vec![] };
    let found = merged(vec![first.clone()], Direction::Ingress);
    assert_eq!(texts(&found.all_ports), ["10.0.10.0-10.255.255.255"]);
    // Another rule allows a part of the hole.
    let second = PolicyRule { peers: vec![block("10.0.3.0/25", &[])], ports: vec![] };
    let found = merged(vec![first, second], Direction::Ingress);
    assert_eq!(texts(&found.all_ports), ["10.0.3.0-10.0.3.127", "10.0.10.0-10.255.255.255"]);
}

#[test]
fn np_21_a_block_has_no_named_ports_for_egress() {
    let named =
        PolicyPort { protocol: Protocol::Tcp, port: Some(IntOrName::Name("web".into())), end_port: None };
    let pods = Peer::Pods { namespaces: None, pods: None };
    let rule = |ports| PolicyRule { peers: vec![pods.clone(), block("10.0.0.0/8", &[])], ports };
    let many = (0..8).map(|n| port(80 + n, None));
    let policy = vec![rule(many.chain([named.clone()]).collect())];
    let egress = merged(policy.clone(), Direction::Egress);
    let ports = (Protocol::Tcp, "web".to_owned());
    assert!(egress.named[&ports].ranges.is_empty() && egress.named[&ports].pods.len() == 1);
    assert_eq!((egress.classes.len(), egress.classes[0].ranges.len()), (1, 1));
    assert_eq!(merged(policy, Direction::Ingress).named[&ports].ranges.len(), 1);
    let policy = vec![PolicyRule { peers: vec![block("10.0.0.0/8", &[])], ports: vec![named] }];
    assert_eq!(rules(policy, Direction::Egress), []);
}

#[test]
fn np_23_overlapping_ranges_of_ports_are_cut_into_classes() {
    let rule =
        |cidr, from, to| PolicyRule { peers: vec![block(cidr, &[])], ports: vec![port(from, Some(to))] };
    let mut rules = vec![rule("10.0.1.0/24", 80, 90), rule("10.0.2.0/24", 85, 65535)];
    rules.extend((0..8).map(|_| rule("10.0.1.0/24", 80, 80)));
    let found = merged(rules, Direction::Ingress);
    assert_eq!(found.numbers[&Protocol::Tcp], [(80, 84, 0), (85, 90, 1), (91, 65535, 2)]);
    let peers: Vec<_> = found.classes.iter().map(texts).collect();
    assert_eq!(peers[1], ["10.0.1.0-10.0.2.255"]);
    assert_eq!(peers[2], ["10.0.2.0-10.0.2.255"]);
}

#[test]
fn np_47_ten_thousand_rules_are_two_lookups() {
    let rule = |n: u32| PolicyRule {
        peers: vec![Peer::Block {
            cidr: IpNet::new(IpAddr::from((0x0b00_0000 + n * 512).to_be_bytes()), 32).expect("a prefix"),
            except: vec![],
        }],
        ports: vec![port(80, None), port(443, None), port(10_000 + (n % 5000) as u16, None)],
    };
    let found = merged((0..10_000).map(rule).collect(), Direction::Ingress);
    // 80 and 443 share a class; each of the others has its two peers.
    assert_eq!(found.classes.len(), 5001);
    assert_eq!(found.classes[0].ranges.len(), 10_000);
    assert!(found.classes[1..].iter().all(|peers| peers.ranges.len() == 2));
}

/// However rules overlap, what becomes of a policy stays in proportion to it: whoever may write one shares a node.
#[test]
fn rules_that_would_grow_beyond_their_size_are_kept_apart() {
    let net32 = |n: u32| block(&format!("{}/32", IpAddr::from((0x0b00_0000 + n * 2).to_be_bytes())), &[]);
    let nested = |n: u16, blocks: u32| PolicyRule {
        peers: (0..blocks).map(|k| net32(u32::from(n) * blocks + k)).collect(),
        ports: vec![port(1 + n, Some(60_000 - n))],
    };
    // Few ranges of ports, each with many peers: merged they would be millions.
    for (count, blocks) in [(1500, 1), (400, 100)] {
        let rules = rules((0..count).map(|n| nested(n, blocks)).collect(), Direction::Ingress);
        let Form::Apart(apart) = form(&rules) else { panic!("{count} rules of {blocks} blocks are merged") };
        assert_eq!(apart.len(), usize::from(count));
        assert!(apart.iter().all(|rule| rule.peers.ranges.len() == blocks as usize));
    }
    let called = |n: u32| PolicyPort {
        protocol: Protocol::Tcp,
        port: Some(IntOrName::Name(format!("p{n}"))),
        end_port: None,
    };
    let called = PolicyRule { peers: (0..2000).map(net32).collect(), ports: (0..2000).map(called).collect() };
    let called = rules(vec![called], Direction::Ingress);
    assert!(matches!(form(&called), Form::Apart(_)), "2000 named ports, each with 2000 peers, are merged");
    // Beside such ones a rule of many peers and ports, which written out would be their product.
    let wide = PolicyRule {
        peers: (0..2000).map(|n| net32(1_000_000 + n)).collect(),
        ports: (0..2000).map(|n| port(2 * n, None)).collect(),
    };
    let rules = rules((0..1500).map(|n| nested(n, 1)).chain([wide]).collect(), Direction::Ingress);
    let Form::Apart(apart) = form(&rules) else { panic!("merged") };
    let last = apart.last().expect("the wide one");
    let numbers = &last.ports.as_ref().expect("ports").numbers[&Protocol::Tcp];
    assert_eq!((last.peers.ranges.len(), numbers.len()), (2000, 2000));
}

proptest! {
    /// Whatever the blocks, the merged ranges hold exactly the addresses that one of them holds.
    #[test]
    fn np_30_ranges_hold_what_the_blocks_hold(
        blocks in proptest::collection::vec(
            ((0..8_u32, 24..=32_u8), proptest::collection::vec((0..8_u32, 24..=32_u8), 0..4)), 1..6),
        probes in proptest::collection::vec(0..8_u32, 1..40),
    ) {
        // Addresses 10.0.0.0 to .7 and the like: everything collides.
        let net = |(low, length): (u32, u8)| {
            IpNet::new(IpAddr::from((0x0a00_0000 + low * 37).to_be_bytes()), length).expect("a prefix").trunc()
        };
        let blocks: Vec<(IpNet, Vec<IpNet>)> =
            blocks.into_iter().map(|(cidr, holes)| (net(cidr), holes.into_iter().map(net).collect())).collect();
        let policy = blocks.iter().map(|(cidr, except)| PolicyRule {
            peers: vec![Peer::Block { cidr: *cidr, except: except.clone() }],
            ports: (0..9).map(|n| port(n, None)).collect(),
        });
        let merged = merged(policy.collect(), Direction::Ingress);
        prop_assert_eq!(merged.classes.len(), 1);
        for low in probes {
            for around in 0..3 {
                let address = IpAddr::from((0x0a00_0000 + low * 37 + around).to_be_bytes());
                let held = blocks.iter().any(|(cidr, holes)| {
                    cidr.contains(&address) && !holes.iter().any(|hole| hole.contains(&address))
                });
                let found = merged.classes[0].ranges.iter().any(|(from, to)| (*from..=*to).contains(&address));
                prop_assert_eq!(found, held, "{}", address);
            }
        }
    }
}

/// Rules of one verdict may be merged, as whichever matches says the same; over one of another verdict none may be moved.
#[test]
fn rules_are_merged_only_where_no_other_verdict_is_between_them() {
    let of = |verdict, n: usize| Rule {
        peers: None,
        ports: Some(vec![PortMatch::Numbers { protocol: Protocol::Tcp, from: n as u16, to: n as u16 }]),
        judgement: Judgement { verdict, cause: Cause::Rule(ObjectName::cluster("admin"), n) },
    };
    use Verdict::{Accept, Deny, Pass};
    let all = [Accept, Accept, Deny, Accept, Pass, Pass];
    let all: Vec<Rule> = all.into_iter().enumerate().map(|(at, verdict)| of(verdict, at)).collect();
    let found: Vec<_> = runs(&all, Family::V4)
        .into_iter()
        .map(|run| match run.form {
            Form::Few(few) => (run.verdict, few.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found, [(Accept, 2), (Deny, 1), (Accept, 1), (Pass, 2)]);
    // Whose they were is still known of those that are one match.
    let many: Vec<Rule> = (0..20).map(|n| of(Deny, n)).collect();
    let Form::Many(merged) = form(&many) else { panic!("20 are few") };
    assert_eq!(merged.objects, BTreeSet::from([ObjectName::cluster("admin")]));
}
