//! Names of kernel objects that stand for a meaning: equal if the meanings are, and only then.

use std::collections::BTreeSet;

use compile::meaning::Meaning;
use compile::policy::allow::Peers;
use compile::policy::nftables::chain_name;
use compile::policy::resolve::{AddressSet, Direction, PodPeer, Scope};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use types::selector::{Operator, Requirement};
use types::{ObjectName, Protocol, Selector};

/// Few texts, most of them made of what a text form would separate its parts by.
fn text() -> impl Strategy<Value = String> {
    let texts =
        ["", "a", "b", "a,b", "a|b", "a/[b]", "[a]/[b]", "a=b", "!a", "a in (b)", "]/[", "a, b", "tcp"];
    select(texts.map(str::to_owned).to_vec())
}

fn selector() -> impl Strategy<Value = Selector> {
    let operator = prop_oneof![
        vec(text(), 0..3).prop_map(Operator::In),
        vec(text(), 0..3).prop_map(Operator::NotIn),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist),
    ];
    let requirement = (text(), operator).prop_map(|(key, operator)| Requirement { key, operator });
    vec(requirement, 0..3).prop_map(|requirements| Selector { requirements })
}

fn pods() -> impl Strategy<Value = BTreeSet<PodPeer>> {
    let scope = prop_oneof![text().prop_map(Scope::Own), selector().prop_map(Scope::Labelled)];
    let peer = (scope, selector()).prop_map(|(namespaces, pods)| PodPeer { namespaces, pods });
    vec(peer, 0..3).prop_map(|peers| peers.into_iter().collect())
}

fn set() -> impl Strategy<Value = AddressSet> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
    prop_oneof![
        3 => pods().prop_map(AddressSet::Pods),
        1 => (text(), protocol).prop_map(|(name, protocol)| AddressSet::Port { name, protocol }),
    ]
}

fn peers() -> impl Strategy<Value = Peers> {
    let address = select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.12", "fd00::1"]);
    let address = address.prop_map(|text| text.parse().expect("an address"));
    let ranges = vec((address.clone(), address), 0..3);
    (any::<bool>(), pods(), ranges).prop_map(|(everybody, pods, ranges)| Peers { everybody, pods, ranges })
}

fn names() -> impl Strategy<Value = BTreeSet<ObjectName>> {
    let name = (text(), text()).prop_map(|(namespace, name)| ObjectName::new(namespace, name));
    vec(name, 0..4).prop_map(|names| names.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_set_of_pods_or_ports(one in set(), other in set()) {
        prop_assert_eq!(one == other, one.name() == other.name());
        prop_assert_eq!(one == other, one.name().0 == other.name().0);
    }

    #[test]
    fn peers_of_a_class_and_blocks(one in peers(), other in peers()) {
        let class = |peers: &Peers| peers.mean(Meaning::of("class")).digest().0;
        prop_assert_eq!(one == other, class(&one) == class(&other));
        let blocks = |peers: &Peers| peers.mean_ranges(Meaning::of("blocks")).digest().0;
        prop_assert_eq!(one.ranges == other.ranges, blocks(&one) == blocks(&other));
    }

    /// The end of a name is for people, and cut: it must not be what tells two apart.
    #[test]
    fn a_chain_of_policies(one in names(), other in names()) {
        let hash = |names: &BTreeSet<ObjectName>, direction| {
            chain_name(names, direction).0.split('_').nth(1).expect("in_HASH_…").to_owned()
        };
        let same = hash(&one, Direction::Ingress) == hash(&other, Direction::Ingress);
        prop_assert_eq!(one == other, same);
        prop_assert_ne!(hash(&one, Direction::Ingress), hash(&one, Direction::Egress));
    }
}

/// Each part alone changes the name: the property above would rarely meet two that differ in one.
#[test]
fn each_part_of_a_peer_counts() {
    let requirement = |key: &str, operator| Requirement { key: key.into(), operator };
    let of = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
    let selectors = [
        vec![],
        vec![requirement("role", Operator::In(of(&["friend"])))],
        vec![requirement("role", Operator::In(of(&["friend", "foe"])))],
        vec![requirement("role", Operator::NotIn(of(&["friend"])))],
        vec![requirement("rule", Operator::In(of(&["friend"])))],
        vec![requirement("role", Operator::Exists)],
        vec![requirement("role", Operator::DoesNotExist)],
        vec![requirement("role", Operator::Exists), requirement("role", Operator::Exists)],
    ]
    .map(|requirements| Selector { requirements });
    let mut meanings = Vec::new();
    for pods in &selectors {
        let scopes = [Scope::Own("vic".into()), Scope::Own("atk".into())];
        let scopes = scopes.into_iter().chain(selectors.iter().cloned().map(Scope::Labelled));
        meanings.extend(scopes.map(|namespaces| PodPeer { namespaces, pods: pods.clone() }));
    }
    let names: BTreeSet<String> =
        meanings.iter().map(|peer| AddressSet::Pods(BTreeSet::from([peer.clone()])).name().0).collect();
    assert_eq!(names.len(), meanings.len());
    assert!(names.iter().all(|name| name.len() == "pods_".len() + 32), "128 bits: {names:?}");
}
