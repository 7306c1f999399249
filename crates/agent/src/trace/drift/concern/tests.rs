use std::collections::BTreeSet;

use compile::{Desired, whole};
use kstate::nft::TableId;
use model::{
    Attachment, Cluster, Endpoint, EndpointSlice, Event, HostPort, IntOrName, Kind, Node, Peer as PolicyPeer,
    Pod, Policy, PolicyPort, PolicyRule, Row, Service, ServicePort, SlicePort, Sources, TrafficPolicy,
};
use semantics::Settings;
use trace::expect::Onward;
use trace::{Place, Target, View, arrival, departure};
use types::wire::TABLE;
use types::{Labels, ObjectName, Protocol, Selector};

use super::super::Left;
use super::*;
use crate::datapath::Subsystem;

fn name(text: &str) -> ObjectName {
    let Ok(name) = text.parse();
    name
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Pods of node1: `web` is a client with policies both ways and a further source, `api` and `many` are isolated servers, `host`
/// has a port of the node.
fn pod(number: u8) -> [IpAddr; 2] {
    [
        [10, 244, 1, number].into(),
        std::net::Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, number.into()).into(),
    ]
}

fn far() -> [IpAddr; 2] {
    parsed(&["10.244.2.9", "fd00:10:244:2::9"]).try_into().unwrap()
}

const PODS: [&str; 4] = ["web", "api", "many", "host"];

fn pods(put: &mut impl FnMut(Row)) {
    for (pod_name, number) in PODS.into_iter().zip(4..) {
        let ips = pod(number).to_vec();
        let labels = Labels::from([("app".to_owned(), pod_name.to_owned())]);
        let key = ObjectName::new("shop", pod_name);
        let nets = parsed(&["198.18.0.0/24", "2001:db8:18::/64"]);
        let sources = (pod_name == "web").then(|| Box::new(Sources { created: 1, nets }));
        let ports = vec![model::NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
        let row = Pod {
            key: key.clone(),
            node: Some("node1".into()),
            ips: ips.clone(),
            labels: labels.into(),
            ports,
            sources,
            ..Pod::default()
        };
        put(Row::Pod(Box::new(row)));
        let own = HostPort { protocol: Protocol::Tcp, port: 8081, container_port: 80, host_ip: None };
        let at = HostPort { port: 8082, host_ip: Some([192, 168, 1, 10].into()), ..own.clone() };
        let at6 = HostPort { host_ip: Some("fd00::10".parse().unwrap()), ..at.clone() };
        put(Row::Attachment(Box::new(Attachment {
            wiring: types::Wiring::default(),
            container: pod_name.into(),
            pod: key,
            uid: String::new(),
            ips,
            host_if: IfName::new(&format!("veth{number}")).unwrap(),
            mac: Mac([2, 0, 0, 0, 0, number]),
            host_ports: if pod_name == "host" { vec![own, at, at6] } else { Vec::new() },
            withheld: Vec::new(),
        })));
    }
    let ips = far().to_vec();
    put(Row::Pod(Box::new(Pod { key: name("shop/far"), node: Some("node2".into()), ips, ..Pod::default() })));
}

fn services(put: &mut impl FnMut(Row)) {
    let service = |service: &str, last: u8| Service {
        key: ObjectName::new("shop", service),
        cluster_ips: vec![
            [10, 96, 0, last].into(),
            std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last.into()).into(),
        ],
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    };
    let external = |last: u8| vec![[192, 0, 2, last].into(), format!("2001:db8::{last}").parse().unwrap()];
    put(Row::Service(Box::new(service("plain", 7))));
    put(Row::Service(Box::new(Service { affinity: Some(60), ..service("sticky", 8) })));
    put(Row::Service(Box::new(Service {
        kind: model::ServiceType::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        load_balancer_ips: external(1),
        source_ranges: parsed(&["10.244.0.0/16", "fd00:10:244::/48"]),
        health_check_port: Some(30999),
        ..service("fenced", 9)
    })));
    for of in ["plain", "sticky", "fenced"] {
        for (family, at) in [("4", [pod(5)[0], far()[0]]), ("6", [pod(5)[1], far()[1]])] {
            let on = ["node1", "node2"];
            let endpoints = at.iter().zip(on);
            let endpoints =
                endpoints.map(|(ip, on)| Endpoint { node: Some(on.into()), ..Endpoint::ready(*ip) });
            put(Row::EndpointSlice(EndpointSlice {
                key: ObjectName::new("shop", format!("{of}-{family}")),
                service: of.into(),
                ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
                endpoints: endpoints.collect(),
                ..EndpointSlice::default()
            }));
        }
    }
    put(Row::Service(Box::new(service("nobody", 11))));
}

fn policies(put: &mut impl FnMut(Row)) {
    let of = |app: &str| Selector::from_labels(&Labels::from([("app".to_owned(), app.to_owned())]));
    let from = |app: &str| PolicyPeer::Pods { namespaces: None, pods: Some(of(app)) };
    let port = |port: IntOrName, end_port| PolicyPort { protocol: Protocol::Tcp, port: Some(port), end_port };
    let named = || port(IntOrName::Name("http".into()), None);
    let number = |n: u16| port(IntOrName::Number(n), None);
    let block = |text: &str| PolicyPeer::Block { cidr: text.parse().unwrap(), except: Vec::new() };
    let blocks: Vec<_> = (0..8).map(|n| block(&format!("203.0.{n}.0/25"))).collect();
    let blocks6: Vec<_> = (0..8).map(|n| block(&format!("2001:db8:{n}::/65"))).collect();
    let policy = |key: &str, app: &str| Policy { key: name(key), pods: of(app), ..Policy::default() };
    let everybody = || PolicyRule { peers: Vec::new(), ports: vec![named()] };
    let to_all = vec![PolicyRule::default()];
    put(Row::Policy(Box::new(Policy {
        ingress: Some(vec![]),
        egress: Some(to_all),
        ..policy("shop/web", "web")
    })));
    let rule = PolicyRule { peers: vec![from("web")], ports: vec![] };
    put(Row::Policy(Box::new(Policy {
        ingress: Some(vec![rule, everybody()]),
        ..policy("shop/api", "api")
    })));
    let peers: Vec<_> = blocks.into_iter().chain(blocks6).chain([from("web")]).collect();
    let rules = (0..12).map(|n| {
        let ports = vec![number(8000 + n), number(9000 + 2 * n), named()];
        PolicyRule { peers: peers.iter().skip(usize::from(n) % 3).cloned().collect(), ports }
    });
    put(Row::Policy(Box::new(Policy { ingress: Some(rules.collect()), ..policy("shop/many", "many") })));
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    let mut put = |row| drop(cluster.apply(Event::Upsert(row)));
    for n in 1..=2_u8 {
        put(Row::Node(Node {
            name: format!("node{n}"),
            addresses: vec![[192, 168, 1, 9 + n].into(), format!("fd00::{}", 9 + n).parse().unwrap()],
            pod_cidrs: vec![
                format!("10.244.{n}.0/24").parse().unwrap(),
                format!("fd00:10:244:{n}::/64").parse().unwrap(),
            ],
            announced: model::Announced {
                vtep_mac: Some(compile::fabric::vxlan::vtep_mac(&format!("node{n}"))),
            },
            ..Node::default()
        }));
    }
    let namespace = model::Namespace { name: "shop".into(), ..model::Namespace::default() };
    put(Row::Namespace(namespace));
    pods(&mut put);
    services(&mut put);
    policies(&mut put);
    for kind in Kind::ALL {
        cluster.apply(Event::Done(kind));
    }
    cluster
}

fn settings() -> Settings {
    Settings {
        service_cidrs: parsed(&["10.96.0.0/12", "fd00:10:96::/112"]),
        dns_ips: parsed(&["10.96.0.10", "fd00:10:96::a"]),
        allow_sources: parsed(&["198.18.0.0/15", "2001:db8:18::/48"]),
        uplinks: BTreeSet::from([IfName::new("eth0").unwrap()]),
        ..Settings::new("node1", parsed(&["10.244.0.0/16", "fd00:10:244::/48"]), 1450)
    }
}

/// What many packets touch: from `web` to all kinds of places, and from the other node to the isolated pods.
fn ways(cluster: &Cluster, desired: &Desired) -> Vec<Vec<Hop>> {
    let Settings { node, pod_pools, unmasqueraded, service_cidrs, dns_ips, allow_sources, api, .. } =
        settings();
    let of_link = Vec::new();
    let place = Place {
        fabric: types::Fabric::default(),
        wiring: types::Wiring::default(),
        node,
        pod_pools,
        unmasqueraded,
        service_cidrs,
        dns_ips,
        allow_sources,
        api,
        dns_here: true,
        of_link,
        broadcasts: Vec::new(),
    };
    let view = View { cluster, nft: &desired.nft, net: &desired.net, place: &place };
    let to = [
        "10.96.0.7:80",
        "10.96.0.8:80",
        "10.96.0.9:80",
        "192.0.2.1:80",
        "10.96.0.11:80",
        "192.168.1.10:8081",
        "192.168.1.10:8082",
        "192.168.1.10:30999",
        "10.244.1.5:8080",
        "10.244.1.6:8000",
        "10.244.2.9:80",
        "203.0.113.9:80",
        "10.244.1.4:80",
        "[fd00:10:96::7]:80",
        "[fd00:10:96::8]:80",
        "[fd00:10:96::9]:80",
        "[2001:db8::1]:80",
        "[fd00:10:96::b]:80",
        "[fd00::10]:8081",
        "[fd00::10]:8082",
        "[fd00::10]:30999",
        "[fd00:10:244:1::5]:8080",
        "[fd00:10:244:1::6]:8000",
        "[fd00:10:244:2::9]:80",
        "[2001:db8:ffff::9]:80",
    ];
    let mut ways = Vec::new();
    for (client, to) in PODS.into_iter().flat_map(|client| to.map(|to| (client, to))) {
        for endpoint in [None, Some(pod(5)), Some(far())] {
            let destination: SocketAddr = to.parse().unwrap();
            let endpoint = endpoint.map(|ips| SocketAddr::new(ips[usize::from(destination.is_ipv6())], 8080));
            let target =
                Target { protocol: Protocol::Tcp, destination, sport: 40_000, endpoint, answers_to: None };
            ways.extend(departure(&view, &ObjectName::new("shop", client), &target).map(|e| e.hops));
        }
    }
    for (number, family) in (4..8).flat_map(|number| [(number, 0), (number, 1)]) {
        let source = SocketAddr::new(far()[family], 40_000);
        let destination = SocketAddr::new(pod(number)[family], 8080);
        let onward = Onward { node: "node2".into(), protocol: Protocol::Tcp, source, destination };
        ways.push(arrival(&view, &onward, None).hops);
    }
    ways
}

/// Whatever a node should hold, its loss is led to a hop of some packet: rules, elements, links, routes, neighbours, sysctls.
#[test]
fn each_object_that_a_node_should_hold_breaks_some_packets_way() {
    let cluster = cluster();
    let desired = whole(cluster.synced().unwrap(), settings());
    let ways = ways(&cluster, &desired);
    let concerns: Vec<_> = ways
        .iter()
        .map(|hops| {
            let arrives = hops.iter().find_map(|hop| match &hop.fact {
                Fact::Pod { destination, .. } => Some(destination.is_ipv6()),
                _ => None,
            });
            let sent = hops.iter().any(|hop| matches!(hop.fact, Fact::Socket { .. }));
            let client = arrives.filter(|_| !sent).map(|six| far()[usize::from(six)]);
            let view = (&desired.net, &desired.nft);
            Concern::new(view, hops, client)
        })
        .collect();
    let missing = kstate::nft::diff(&desired.nft, &kstate::nft::Ruleset::default());
    let (mut nowhere, mut roles) = (BTreeSet::new(), BTreeSet::new());
    for op in &missing.ops {
        let role = concerns[0].met(op).map(|(role, _)| role);
        roles.extend(role);
        // What decides nothing, and what no packet of a pod meets.
        let unmet = matches!(role, Some(Role::Count | Role::Own));
        let found = concerns.iter().any(|concern| !concern.nft_in(op, &missing.ops).is_empty());
        if found == unmet {
            nowhere.insert(format!("{op}, {role:?}"));
        }
    }
    let missing = kstate::net::diff(&desired.net, &NetState::default());
    let ops = missing.ops();
    nowhere.extend(ops.filter(|op| concerns.iter().all(|c| c.net(op).is_none())).map(ToString::to_string));
    assert_eq!(nowhere, BTreeSet::new());
    assert!(roles.len() > 18, "the cluster has something of each role: {roles:?}");
}

#[test]
fn elements_of_the_frontend_concern_it_in_both_families() {
    for (frontend, other) in [("10.96.0.7:80", "10.96.0.7:81"), ("[fd00:10:96::7]:80", "[fd00:10:96::8]:80")]
    {
        let [frontend, other]: [SocketAddr; 2] = [frontend, other].map(|text| text.parse().unwrap());
        let concern = Concern { frontend: Some(frontend), ..Concern::default() };
        let key = |slot: Option<u32>, at: SocketAddr| {
            let at = [at.ip().into(), types::Protocol::Tcp.into(), at.port().into()];
            let values: Vec<_> = slot.map(Into::into).into_iter().chain(at).collect();
            ElemKey::point(encode(&values))
        };
        assert_eq!(concern.of_element(Role::Frontend, &key(None, frontend)), Some(Stage::Service));
        assert_eq!(concern.of_element(Role::Endpoint, &key(Some(3), frontend)), Some(Stage::Service));
        assert_eq!(concern.of_element(Role::Frontend, &key(None, other)), None);
    }
}

/// A tier passes to the next one, which judges the packet as the first does.
#[test]
fn the_chain_of_the_next_tier_concerns_who_is_passed_to_it() {
    let chain = |rules| kstate::nft::Chain { base: None, rules };
    let goto = |to: &str| kstate::nft::build::rule("", [kstate::nft::build::goto(to)]);
    let id = TableId { family: TableFamily::Ip, name: TABLE.into() };
    let mut nft = Ruleset::default();
    let table = nft.tables.entry(id.clone()).or_default();
    let chains =
        [("in_1_admin", vec![goto("in_2_own")]), ("in_2_own", Vec::new()), ("in_3_others", Vec::new())];
    table.chains.extend(chains.map(|(name, rules)| (name.into(), chain(rules))));
    let policies = BTreeMap::from([(Direction::Ingress, with_next(&nft, "in_1_admin"))]);
    let concern = Concern { ingress: true, policies, ..Concern::default() };
    let lost = |chain: &str| NftOp::DeleteChain { table: id.clone(), chain: chain.into() };
    let stages = ["in_1_admin", "in_2_own", "in_3_others"].map(|chain| concern.nft(&lost(chain)));
    assert_eq!(stages, [Some(Stage::Ingress), Some(Stage::Ingress), None]);
}

/// A tunnel by IPv6 brings IPv4, so of the other family's table only what is outside of it counts.
#[test]
fn of_the_other_familys_table_only_tunnels_concern_a_packet() {
    let arrived = Concern {
        family: Some(Family::V4),
        bridge_hop: Some(Stage::Node),
        arrives_by_tunnel: true,
        ..Concern::default()
    };
    let emptied = |family: Family, chain: &str| NftOp::SetRules {
        table: TableId { family: family.into(), name: TABLE.into() },
        chain: chain.into(),
        rules: Vec::new(),
    };
    for chain in ["from_pods", "onward", "no_pod", "forward"] {
        assert_eq!(arrived.nft(&emptied(Family::V6, chain)), None, "{chain}");
        assert!(arrived.nft(&emptied(Family::V4, chain)).is_some(), "{chain}");
    }
    for (chain, family) in
        ["inner", "to_tunnel", "input"].into_iter().flat_map(|c| Family::ALL.map(|f| (c, f)))
    {
        assert_eq!(arrived.nft(&emptied(family, chain)), Some(Stage::Node), "{family} {chain}");
    }
    let near = Concern { arrives_by_tunnel: false, ..arrived };
    assert_eq!(near.nft(&emptied(Family::V6, "inner")), None);
}

/// Whoever takes a table away takes what is in it, and nothing else.
#[test]
fn a_missing_table_is_missed_where_the_packet_meets_what_it_holds() {
    let cluster = cluster();
    let desired = whole(cluster.synced().unwrap(), settings());
    let hops = &ways(&cluster, &desired)[0];
    let concern = Concern::new((&desired.net, &desired.nft), hops, None);
    let met = |family: TableFamily| {
        let table = TableId { family, name: TABLE.into() };
        let mut actual = desired.nft.clone();
        assert!(actual.tables.remove(&table).is_some());
        let plan = kstate::nft::diff(&desired.nft, &actual).ops;
        concern.nft_in(&NftOp::AddTable(table), &plan)
    };
    assert_eq!(met(TableFamily::Bridge), BTreeSet::from([Stage::Veth]));
    let own = met(TableFamily::Ip);
    assert!([Stage::Service, Stage::Masq].iter().all(|stage| own.contains(stage)), "{own:?}");
    assert!(!met(TableFamily::Ip6).contains(&Stage::Service));
}

/// A difference is one line of words, whoever mends it: kind, table and name, and nothing of nft's own language.
#[test]
fn what_differs_is_told_in_words() {
    let cluster = cluster();
    let desired = whole(cluster.synced().unwrap(), settings()).nft;
    let nothing = Ruleset::default();
    for (desired, actual) in [(&desired, &nothing), (&nothing, &desired)] {
        for op in &kstate::nft::diff(desired, actual).ops {
            let text = kstate::nft::Difference { op, desired, actual }.to_string();
            assert!(!text.contains(['{', '}', '\n']), "{text}");
            assert!(text.contains(" plumb"), "{text}");
        }
    }
    let gone = NftOp::DeleteTable(TableId { family: TableFamily::Ip, name: TABLE.into() });
    let text = kstate::nft::Difference { op: &gone, desired: &nothing, actual: &desired }.to_string();
    assert_eq!(text, "table ip plumb should not be there");
}

/// A person who looks at a broken hop wants to know why nobody mends it.
#[test]
fn what_stays_different_says_why() {
    let refused = |subsystem| (subsystem == Subsystem::Net).then(|| "it did not take net".to_owned());
    let left = |paused| Left::because(paused, refused);
    assert_eq!((left(false).net.as_str(), left(false).nft.as_str()), ("; it did not take net", ""));
    assert_eq!(left(true).net, "; the agent is paused and leaves it so");
    assert_eq!(left(true).nft, left(true).net);
}
