//! Names of kernel objects that stand for a meaning: equal if the meanings are, and only then.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use compile::policy::nftables::chain_name;
use compile::policy::nftables::set_name;
use compile::service::nftables::fragment;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use semantics::meaning::Meaning;
use semantics::policy::lookup::Peers;
use semantics::policy::resolve::{AddressSet, Direction, PodPeer, Scope};
use semantics::policy::tier::Identity;
use semantics::service::cause::Lack;
use semantics::service::plan::{Front, Outcome, PortPlan, ServicePlan, Way};
use types::selector::{Operator, Requirement};
use types::{IpNet, ObjectName, Protocol, Selector};

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

/// A port of a Service with affinity, and with a guard where it has source ranges.
#[derive(Clone, Debug)]
struct Asked {
    service: ObjectName,
    port: (String, Protocol),
    endpoint: SocketAddr,
    /// Others than those inside are led by another way.
    outside: bool,
    sources: Vec<IpNet>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let service = (text(), text()).prop_map(|(namespace, name)| ObjectName::new(namespace, name));
    let endpoint = select(vec!["10.0.0.1:1", "10.0.0.1:11", "10.0.0.11:1", "10.0.0.2:1"]);
    let endpoint = endpoint.prop_map(|text| text.parse().expect("an endpoint"));
    let net = select(vec!["10.0.0.0/8", "10.0.0.0/16", "0.0.0.0/0", "203.0.113.0/24"]);
    let sources = vec(net.prop_map(|text| text.parse().expect("a prefix")), 1..3);
    let port = (text(), select(vec![Protocol::Tcp, Protocol::Udp]));
    (service, port, endpoint, any::<bool>(), sources).prop_map(
        |(service, port, endpoint, outside, sources)| Asked { service, port, endpoint, outside, sources },
    )
}

/// The names of the endpoint's clients, of the chain that looks for them, and of the guard.
fn of_service(asked: &Asked) -> [String; 3] {
    let way = Way { outcome: Outcome::Spread(vec![asked.endpoint]), masquerade: false };
    let outside =
        asked.outside.then_some(Way { outcome: Outcome::Without(Lack::LocalEndpoint), masquerade: false });
    let (address, sources) = ([192, 0, 2, 1].into(), asked.sources.clone());
    let front = Front { address, port: 80, inside: way, outside, sources };
    let (name, protocol) = asked.port.clone();
    let port = PortPlan { name, protocol, fronts: vec![front], affinity: Some(60) };
    let plan = ServicePlan { service: asked.service.clone(), ports: vec![port], ..ServicePlan::default() };
    let fragment = fragment(&plan);
    let one = |is: &dyn Fn(&str) -> bool| {
        let mut found = fragment.meanings.keys().filter(|name| is(name));
        let (first, second) = (found.next(), found.next());
        assert!(second.is_none(), "{:?}", fragment.meanings);
        first.expect("one of each kind").to_string()
    };
    let is_set = |name: &str| fragment.sets.contains_key(name);
    [
        one(&is_set),
        one(&|name| name.starts_with("aff_") && !is_set(name)),
        one(&|name| name.starts_with("guard_")),
    ]
}

fn names() -> impl Strategy<Value = BTreeSet<ObjectName>> {
    let name = (text(), text()).prop_map(|(namespace, name)| ObjectName::new(namespace, name));
    vec(name, 0..4).prop_map(|names| names.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_set_of_pods_or_ports(one in set(), other in set()) {
        prop_assert_eq!(one == other, set_name(&one) == set_name(&other));
        prop_assert_eq!(one == other, set_name(&one).0 == set_name(&other).0);
    }

    #[test]
    fn peers_of_a_class_and_blocks(one in peers(), other in peers()) {
        let class = |peers: &Peers| peers.mean(Meaning::of("class")).digest().0;
        prop_assert_eq!(one == other, class(&one) == class(&other));
        let blocks = |peers: &Peers| peers.mean_ranges(Meaning::of("blocks")).digest().0;
        prop_assert_eq!(one.ranges == other.ranges, blocks(&one) == blocks(&other));
    }

    /// A chain's rules change with its endpoints and their time; it is the port's, by one way. No two ports share clients
    /// or chains, and no two Services a guard.
    #[test]
    fn clients_chains_and_guards_of_services(one in asked(), other in asked()) {
        let ([clients, chain, guard], [clients2, chain2, guard2]) = (of_service(&one), of_service(&other));
        let of = |asked: &Asked| (asked.service.clone(), asked.port.clone());
        let same_port = of(&one) == of(&other);
        prop_assert_eq!(same_port && one.endpoint == other.endpoint, clients == clients2);
        prop_assert_eq!(same_port && one.outside == other.outside, chain == chain2);
        prop_assert_eq!(one.service == other.service && one.sources == other.sources, guard == guard2);
        prop_assert!([clients, chain, guard].iter().all(|name| name.rsplit('_').next().map(str::len) == Some(32)));
    }

    /// The end of a name is for people, and cut: it must not be what tells two apart.
    #[test]
    fn a_chain_of_policies(
        one in (names(), proptest::option::of(text())),
        other in (names(), proptest::option::of(text())),
    ) {
        let hash = |(names, next): &(BTreeSet<ObjectName>, Option<String>), sort, direction| {
            let identity = Identity::Objects { sort, names: names.clone() };
            let (name, check) = chain_name(&identity, next.as_deref(), direction);
            assert!(check.is_some());
            name.split('_').nth(1).expect("in_HASH_…").to_owned()
        };
        let same = hash(&one, "policies", Direction::Ingress) == hash(&other, "policies", Direction::Ingress);
        prop_assert_eq!(one == other, same);
        let own = hash(&one, "policies", Direction::Ingress);
        prop_assert_ne!(&own, &hash(&one, "policies", Direction::Egress));
        prop_assert_ne!(&own, &hash(&one, "admin", Direction::Ingress));
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
        meanings.iter().map(|peer| set_name(&AddressSet::Pods(BTreeSet::from([peer.clone()]))).0).collect();
    assert_eq!(names.len(), meanings.len());
    assert!(names.iter().all(|name| name.len() == "pods_".len() + 32), "128 bits: {names:?}");
}

#[test]
fn each_part_of_a_service_counts() {
    let of = |namespace: &str, name: &str, port: &str, protocol, endpoint: &str, sources: &[&str]| Asked {
        service: ObjectName::new(namespace, name),
        port: (port.to_owned(), protocol),
        endpoint: endpoint.parse().expect("an endpoint"),
        outside: false,
        sources: sources.iter().map(|net| net.parse().expect("a prefix")).collect(),
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let all = [
        of("a", "b", "c", tcp, "10.0.0.1:1", &["10.0.0.0/8"]),
        of("x", "b", "c", tcp, "10.0.0.1:1", &["10.0.0.0/8"]),
        of("a", "x", "c", tcp, "10.0.0.1:1", &["10.0.0.0/8"]),
        of("a", "b", "x", tcp, "10.0.0.1:1", &["10.0.0.0/8"]),
        of("a", "b", "c", udp, "10.0.0.1:1", &["10.0.0.0/8"]),
        of("a", "b", "c", tcp, "10.0.0.2:1", &["10.0.0.0/8"]),
        of("a", "b", "c", tcp, "10.0.0.1:2", &["10.0.0.0/8"]),
        of("a", "b", "c", tcp, "10.0.0.1:1", &["10.0.0.0/9"]),
        of("a", "b", "c", tcp, "10.0.0.1:1", &["10.0.0.0/8", "10.0.0.0/9"]),
    ];
    let names: Vec<[String; 3]> = all.iter().map(of_service).collect();
    let different = |at: usize| names.iter().map(|names| &names[at]).collect::<BTreeSet<_>>().len();
    // Nine, less those that differ only in what the name is not about.
    assert_eq!([different(0), different(1), different(2)], [7, 5, 5]);
}
