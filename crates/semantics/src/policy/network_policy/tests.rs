use model::{Event, Row};

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block { cidr: net(cidr), except: except.iter().map(|hole| net(hole)).collect() }
}

fn tier_of(rule: PolicyRule, direction: Direction, family: Family) -> Tier {
    let key = ObjectName::new("shop", "one");
    let rules = Some(vec![rule]);
    let policy = Policy { key: key.clone(), ingress: rules.clone(), egress: rules, ..Policy::default() };
    let mut cluster = Cluster::default();
    cluster.apply(Event::Upsert(Row::Policy(Box::new(policy))));
    combination(&cluster, BTreeSet::from([key]), direction, family)
}

#[test]
fn np_33_a_block_is_of_one_family() {
    let rule =
        PolicyRule { peers: vec![block("::/0", &["fd00::/8"]), block("0.0.0.0/0", &[])], ports: vec![] };
    for (family, cidr) in [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")] {
        let tier = tier_of(rule.clone(), Direction::Egress, family);
        let [Rule { peers: Some(peers), .. }] = &tier.rules[..] else { panic!("{tier:?}") };
        let [PeerMatch::Block { cidr: found, .. }] = &peers[..] else { panic!("{peers:?}") };
        assert_eq!(*found, net(cidr));
    }
}

/// A rule whose peers are all of the other family lets nobody pass, least of all everybody.
#[test]
fn np_33_a_rule_without_peers_of_the_family_is_nothing() {
    let rule = PolicyRule { peers: vec![block("::/0", &[])], ports: vec![] };
    assert_eq!(tier_of(rule, Direction::Ingress, Family::V4).rules, []);
}

/// Policies can only allow: whatever no rule accepts is denied, and each verdict says by whom.
#[test]
fn each_rule_accepts_and_the_default_denies() {
    let tier = tier_of(PolicyRule::default(), Direction::Ingress, Family::V4);
    let key = ObjectName::new("shop", "one");
    let of = |judgement: &Judgement| (judgement.verdict, judgement.cause.clone());
    assert_eq!(of(&tier.rules[0].judgement), (Verdict::Accept, Cause::Rule(key.clone(), 1)));
    assert_eq!(of(&tier.default), (Verdict::Deny, Cause::Objects(BTreeSet::from([key]))));
}
