//! What is asked for at another node's own address: that node itself, or by its port of a Service an endpoint behind it.

use std::net::SocketAddr;

use model::{
    Cluster, Endpoint, EndpointSlice, Event, Key, Kind, Row, Service, ServicePort, ServiceType, SlicePort,
};
use trace::observed::{Decision, Seen, SocketEnd, Tuple, Way};
use trace::{
    Expected, Fact, Hop, HopResult, Observed, Outcome, Sighting, Stage, Target, View, arrival, compare,
    departure, way_back,
};
use types::Protocol;

use super::{cluster, desired, dev, name, place, to};

const DOOR: &str = "192.168.1.11:30080";
const LEAVES_AS: &str = "192.168.1.10:13624";

/// The nodePort 30080 leads to shop/pay.
fn world(node: &str, allowed: &str) -> Cluster {
    let mut world = cluster(node, allowed);
    let port =
        ServicePort { name: "http".into(), port: 80, node_port: Some(30080), ..ServicePort::default() };
    world.apply(Event::Upsert(Row::Service(Box::new(Service {
        key: name("shop/door"),
        kind: ServiceType::NodePort,
        cluster_ips: vec![[10, 96, 0, 80].into()],
        ports: vec![port],
        ..Service::default()
    }))));
    world.apply(Event::Upsert(Row::EndpointSlice(EndpointSlice {
        key: name("shop/door-1"),
        service: "door".into(),
        ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
        endpoints: vec![Endpoint { node: Some("node2".into()), ..Endpoint::ready([10, 244, 2, 9]) }],
        ..EndpointSlice::default()
    })));
    world
}

fn leaves(destination: &str, answers_to: Option<&str>) -> Expected {
    let (here, place) = (world("node1", "web"), place("node1"));
    let state = desired(&here, "node1");
    let view = View { cluster: &here, nft: &state.nft, net: &state.net, place: &place };
    let (protocol, destination) = (Protocol::Tcp, to(destination));
    let answers_to = answers_to.map(to);
    let target = Target { protocol, destination, sport: 41224, endpoint: None, answers_to };
    departure(&view, &name("shop/web"), &target).expect("wired")
}

/// Both nodes' parts.
fn whole(start: Expected, node: &str, allowed: &str) -> Vec<Hop> {
    let (there, place) = (world(node, allowed), place("node2"));
    let state = desired(&there, "node2");
    let view = View { cluster: &there, nft: &state.nft, net: &state.net, place: &place };
    let end = arrival(&view, &start.onward.expect("goes on"), Some(to("10.244.2.9:8080")));
    let mut hops: Vec<Hop> = start.hops.into_iter().chain(end.hops).collect();
    hops.extend(way_back(&hops));
    hops
}

fn lines(hops: &[Hop]) -> Vec<String> {
    hops.iter().map(|hop| format!("{} {} {}", hop.n, hop.node, hop.text)).collect()
}

fn frame(at: u64, on: &str, direction: Way, (source, destination): (&str, &str)) -> Sighting {
    let packet =
        Seen { protocol: Protocol::Tcp, source: to(source), destination: to(destination), bytes: 60 };
    Sighting::Frame { at, dev: dev(on), direction, packet, outer: None }
}

fn rule(hook: &str, chain: &str, verdict: &str, packet: Option<(&str, &str)>) -> Sighting {
    let seen = |(source, destination)| {
        Some(Seen { protocol: Protocol::Tcp, source: to(source), destination: to(destination), bytes: 60 })
    };
    Sighting::Nft {
        rule: Decision {
            hook: hook.into(),
            family: "ip".into(),
            table: "plumb".into(),
            chain: chain.into(),
            verdict: verdict.into(),
            comment: String::new(),
            packet: packet.and_then(seen),
            oif: None,
            answer: false,
            guard: false,
        },
    }
}

/// What node1 sees of the question at a node port, and of its answer if there is one.
fn sender(end: SocketEnd) -> Observed {
    let pod = "10.244.1.4:41224";
    let (source, destination) = (to(pod), to(DOOR));
    let answered = end != SocketEnd::Silent;
    let mut sightings = vec![
        Sighting::Sent { at: 1, source, destination, end },
        frame(2, "veth1", Way::In, (pod, DOOR)),
        frame(3, "cni0", Way::In, (pod, DOOR)),
        rule("postrouting", "postrouting", "accept", None),
        frame(4, "eth0", Way::Out, (LEAVES_AS, DOOR)),
        Sighting::Conntrack {
            original: Tuple { source, destination },
            reply: Tuple { source: destination, destination: to(LEAVES_AS) },
        },
    ];
    if answered {
        sightings.extend([frame(8, "cni0", Way::Out, (DOOR, pod)), frame(9, "veth1", Way::Out, (DOOR, pod))]);
    }
    Observed { node: "node1".into(), sightings }
}

fn on_node2(sightings: Vec<Sighting>) -> Observed {
    Observed { node: "node2".into(), sightings }
}

fn all_agree(results: &[HopResult]) {
    for result in results {
        assert!(matches!(result.outcome, Outcome::Agree { .. }), "{result:#?}");
    }
}

fn broken(results: &[HopResult]) -> (Stage, String, String) {
    let found = results.iter().find_map(|result| match &result.outcome {
        Outcome::Disagree { why } => Some((result.hop.stage, result.hop.node.clone(), why.clone())),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{results:#?}"))
}

#[test]
fn a_policy_behind_another_nodes_port_is_named() {
    let hops = whole(leaves(DOOR, Some(LEAVES_AS)), "node2", "web");
    let told = lines(&hops).split_off(6);
    assert_eq!(
        told,
        [
            "9 node2 shop/door:http → 10.244.2.9:8080",
            "10 node2 ingress: denied, shop/pay is isolated by shop/payments-from",
        ],
        "policies there see the node"
    );
    let misses: Vec<String> =
        hops.last().into_iter().flat_map(|hop| hop.fact.misses()).map(ToString::to_string).collect();
    assert_eq!(misses, ["shop/payments-from rule 1: 192.168.1.10 is not among its peers"]);
    let dropped = vec![
        frame(5, "eth0", Way::In, (LEAVES_AS, DOOR)),
        rule("forward", "in_1", "drop", Some((LEAVES_AS, "10.244.2.9:8080"))),
    ];
    all_agree(&compare(&hops, &[sender(SocketEnd::Silent), on_node2(dropped.clone())]));
    // A stranger's table stops it before.
    let mut strange = dropped;
    strange.truncate(1);
    let Sighting::Nft { mut rule } = rule("prerouting", "their", "drop", None) else { return };
    rule.table = "firewall".into();
    strange.push(Sighting::Nft { rule });
    let results = compare(&hops, &[sender(SocketEnd::Silent), on_node2(strange)]);
    let (stage, node, why) = broken(&results);
    assert_eq!((stage, node.as_str()), (Stage::Node, "node2"), "{why}");
    assert!(why.contains("firewall"), "{why}");
    // It never came there.
    let (stage, node, why) = broken(&compare(&hops, &[sender(SocketEnd::Silent), on_node2(Vec::new())]));
    assert_eq!((stage, node.as_str()), (Stage::Node, "node2"), "{why}");
    assert!(why.contains("did not come to the node"), "{why}");
}

#[test]
fn the_way_through_another_nodes_port_is_followed() {
    let mut open = world("node2", "web");
    open.apply(Event::Delete(Key::new(Kind::Policy, name("shop/payments-from"))));
    let (state, place) = (desired(&open, "node2"), place("node2"));
    let view = View { cluster: &open, nft: &state.nft, net: &state.net, place: &place };
    let start = leaves(DOOR, Some(LEAVES_AS));
    let end = arrival(&view, start.onward.as_ref().expect("goes on"), None);
    let mut hops: Vec<Hop> = start.hops.into_iter().chain(end.hops).collect();
    hops.extend(way_back(&hops));
    assert_eq!(
        lines(&hops).split_off(6),
        [
            "9 node2 shop/door:http → 10.244.2.9:8080",
            "10 node2 ingress: no policy selects shop/pay, allowed",
            "11 node2 shop/pay",
            "12 node1 the same way from 192.168.1.11:30080",
        ]
    );
    let passed = vec![
        frame(5, "eth0", Way::In, (LEAVES_AS, DOOR)),
        Sighting::Conntrack {
            original: Tuple { source: to(LEAVES_AS), destination: to(DOOR) },
            reply: Tuple { source: to("10.244.2.9:8080"), destination: to("10.244.2.1:13624") },
        },
        frame(6, "veth1", Way::Out, ("10.244.2.1:13624", "10.244.2.9:8080")),
        frame(7, "veth1", Way::In, ("10.244.2.9:8080", "10.244.2.1:13624")),
    ];
    let answered = SocketEnd::Answered { text: "HTTP 200".into(), micros: 900 };
    for end in [answered, SocketEnd::Refused] {
        all_agree(&compare(&hops, &[sender(end), on_node2(passed.clone())]));
    }
}

#[test]
fn a_further_nodes_policy_is_told_by_the_objects() {
    // The door is node2's, and for this the pod's place is none of its own.
    let hops = whole(leaves(DOOR, Some(LEAVES_AS)), "node3", "web");
    let last = hops.last().expect("hops");
    assert!(matches!(last.fact, Fact::Policy { allowed: false, .. }), "{:#?}", lines(&hops));
    assert!(last.fact.misses()[0].why.contains("10.244.2.0 is not among"), "{:?}", last.fact.misses());
}

#[test]
fn another_nodes_own_address_on_the_pod_network_is_that_node() {
    let gateway = "10.244.2.1:9475";
    for address in [gateway, "10.244.2.0:9475"] {
        let start = leaves(address, None);
        let elsewhere = lines(&start.elsewhere);
        assert_eq!(elsewhere, [format!("11 node2 {address} on node2")]);
        let hops = whole(start, "node2", "web");
        let ip = to(address).ip();
        assert_eq!(
            lines(&hops).split_off(5),
            [
                "7 node1 no, the destination is node2's own on the pod network".to_owned(),
                "8 node1 VXLAN 1, 192.168.1.10 → 192.168.1.11:8472".to_owned(),
                format!("9 node2 {ip} is the node itself"),
                format!("11 node2 {address} on node2"),
                format!("12 node1 the same way from {address}"),
            ]
        );
    }
    let hops = whole(leaves(gateway, None), "node2", "web");
    let of_node2 = |end, sightings: Vec<Sighting>| {
        let [here, _] = super::seen().try_into().expect("two nodes");
        let observed = [moved(here, to(gateway), end), on_node2(sightings)];
        compare(&hops, &observed)
    };
    let came = frame(6, "plumb.1", Way::In, ("10.244.1.4:41224", gateway));
    for end in [SocketEnd::Answered { text: "HTTP 200".into(), micros: 900 }, SocketEnd::Refused] {
        all_agree(&of_node2(end, vec![came.clone()]));
    }
    let stopped = vec![came, rule("input", "input", "drop", None)];
    assert_eq!(broken(&of_node2(SocketEnd::Silent, stopped)).0, Stage::Node);
    let (stage, _, why) = broken(&of_node2(SocketEnd::Silent, Vec::new()));
    assert!(stage == Stage::Node && why.contains("did not come to the node"), "{why}");
}

/// What the sender saw, of another destination.
fn moved(mut observed: Observed, to: SocketAddr, ended: SocketEnd) -> Observed {
    let silent = ended == SocketEnd::Silent;
    let is_answer = |sighting: &Sighting| matches!(sighting, Sighting::Frame { packet, .. } if packet.destination.port() == 41224);
    observed.sightings.retain(|sighting| !silent || !is_answer(sighting));
    for sighting in &mut observed.sightings {
        match sighting {
            Sighting::Sent { destination, end, .. } => (*destination, *end) = (to, ended.clone()),
            Sighting::Frame { packet, .. } if packet.source.port() == 41224 => packet.destination = to,
            Sighting::Frame { packet, .. } => packet.source = to,
            Sighting::Conntrack { original, reply } => (original.destination, reply.source) = (to, to),
            _ => {}
        }
    }
    observed
}

/// A Service that guards its load balancer's address is drawn for by the same chain as one that does not.
#[test]
fn the_chain_that_draws_is_named_where_a_guard_stands_before_it() {
    let chain = |sources: &[&str]| {
        let mut here = world("node1", "web");
        here.apply(Event::Upsert(Row::Service(Box::new(Service {
            key: name("shop/door"),
            kind: ServiceType::LoadBalancer,
            cluster_ips: vec![[10, 96, 0, 80].into()],
            load_balancer_ips: vec![[203, 0, 113, 7].into()],
            source_ranges: sources.iter().map(|net| net.parse().expect("a prefix")).collect(),
            ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
            ..Service::default()
        }))));
        let (state, place) = (desired(&here, "node1"), place("node1"));
        let view = View { cluster: &here, nft: &state.nft, net: &state.net, place: &place };
        let destination = to("203.0.113.7:80");
        let target =
            Target { protocol: Protocol::Tcp, destination, sport: 41224, endpoint: None, answers_to: None };
        let hops = departure(&view, &name("shop/web"), &target).expect("wired").hops;
        let chain = hops.iter().find_map(|hop| match &hop.fact {
            Fact::Service { chain, .. } => Some(chain.clone()),
            _ => None,
        });
        chain.expect("a Service")
    };
    let open = chain(&[]);
    assert!(open.starts_with("plumb/") && !open.contains("guard"), "{open}");
    assert_eq!(chain(&["10.244.0.0/16"]), open);
}

/// At this node's hop, and at another's port.
#[test]
fn what_affinity_keeps_is_not_by_chance() {
    let mut there = world("node2", "web");
    let mut put = |row| drop(there.apply(Event::Upsert(row)));
    let port =
        ServicePort { name: "http".into(), port: 80, node_port: Some(30080), ..ServicePort::default() };
    let service = |affinity| {
        Row::Service(Box::new(Service {
            key: name("shop/door"),
            kind: ServiceType::NodePort,
            cluster_ips: vec![[10, 96, 0, 80].into()],
            ports: vec![port.clone()],
            affinity,
            ..Service::default()
        }))
    };
    put(Row::EndpointSlice(EndpointSlice {
        key: name("shop/door-2"),
        service: "door".into(),
        ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
        endpoints: vec![Endpoint { node: Some("node2".into()), ..Endpoint::ready([10, 244, 2, 10]) }],
        ..EndpointSlice::default()
    }));
    let mut told = |affinity, pod: Option<&str>| {
        there.apply(Event::Upsert(service(affinity)));
        let (state, place) = (desired(&there, "node2"), place("node2"));
        let view = View { cluster: &there, nft: &state.nft, net: &state.net, place: &place };
        let hops = match pod {
            Some(pod) => {
                let (protocol, destination) = (Protocol::Tcp, to("10.96.0.80:80"));
                let target = Target { protocol, destination, sport: 41224, endpoint: None, answers_to: None };
                departure(&view, &name(pod), &target).expect("wired").hops
            }
            None => arrival(&view, &leaves(DOOR, None).onward.expect("goes on"), None).hops,
        };
        let service = hops.iter().find(|hop| matches!(hop.fact, Fact::Service { .. }));
        service.expect("a Service").fact.detail()
    };
    for pod in [Some("shop/pay"), None] {
        let kept = told(Some(10_800), pod);
        assert!(kept.starts_with("1 of 2, kept by sessionAffinity ClientIP (10800 s)"), "{kept}");
        assert!(told(None, pod).starts_with("1 of 2, random"));
    }
}
