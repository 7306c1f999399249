//! Where a way rightly ends beside a Service or a policy: at a port that nobody listens on, at another node's door, at a
//! name that leads out of the cluster.

use std::net::{IpAddr, SocketAddr};

use model::{
    Cluster, Endpoint, EndpointSlice, Event, Node, Row, Service, ServicePort, ServiceType, SlicePort,
    TrafficPolicy,
};
use trace::observed::SocketEnd;
use trace::{Fact, Hop, Observed, Outcome, Sighting, Stage, Target, View, compare, departure};
use types::Protocol;

use super::{cluster, desired, expected, name, place, seen, to};

#[test]
fn a_pod_that_refuses_was_reached() {
    let mut observed = seen();
    let Some(Sighting::Sent { end, .. }) = observed[0].sightings.first_mut() else { panic!("sent") };
    *end = SocketEnd::Refused;
    let mut hops = expected("web");
    for result in compare(&hops, &observed) {
        assert!(matches!(result.outcome, Outcome::Agree { .. }), "{result:#?}");
        if result.hop.stage == Stage::Pod {
            let seen = "reached, and nobody listens on this port".to_owned();
            assert_eq!(result.outcome, Outcome::Agree { seen });
        }
    }
    // Of a datagram an ICMP error says so, which no capture of ports holds.
    for hop in &mut hops {
        if let Fact::Socket { protocol, .. } = &mut hop.fact {
            *protocol = Protocol::Udp;
        }
    }
    for node in &mut observed {
        let is_answer = |sighting: &Sighting| matches!(sighting, Sighting::Frame { packet, .. } if packet.destination.port() == 41224);
        node.sightings.retain(|sighting| !is_answer(sighting));
    }
    let last = compare(&hops, &observed).pop().expect("hops");
    assert!(matches!(last.outcome, Outcome::Agree { .. }), "{last:#?}");
}

/// What node1 expects of node2's port 30080, whose Service has an endpoint on these nodes.
fn at_node2(policy: TrafficPolicy, on: &[&str]) -> Vec<Hop> {
    let mut world = cluster("node1", "web");
    let mut put = |row| drop(world.apply(Event::Upsert(row)));
    let port =
        ServicePort { name: "http".into(), port: 80, node_port: Some(30080), ..ServicePort::default() };
    put(Row::Service(Box::new(Service {
        key: name("shop/door"),
        kind: ServiceType::NodePort,
        cluster_ips: vec![[10, 96, 0, 80].into()],
        external_policy: policy,
        ports: vec![port],
        ..Service::default()
    })));
    let endpoints = on.iter().zip(1..).map(|(node, n)| {
        let ready = Endpoint::ready([10, 244, n, 80]);
        Endpoint { node: Some((*node).into()), ..ready }
    });
    put(Row::EndpointSlice(EndpointSlice {
        key: name("shop/door-1"),
        service: "door".into(),
        ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
        endpoints: endpoints.collect(),
        ..EndpointSlice::default()
    }));
    let (state, place) = (desired(&world, "node1"), place("node1"));
    let view = View { cluster: &world, nft: &state.nft, net: &state.net, place: &place };
    let (protocol, destination) = (Protocol::Tcp, to("192.168.1.11:30080"));
    let target = Target { protocol, destination, sport: 41224, endpoint: None, answers_to: None };
    let start = departure(&view, &name("shop/web"), &target).expect("wired");
    start.hops.into_iter().chain(start.elsewhere).collect()
}

#[test]
fn another_nodes_port_is_its_services() {
    let hops = at_node2(TrafficPolicy::Cluster, &["node1"]);
    let service = hops.iter().find(|hop| hop.stage == Stage::Service).expect("a service hop");
    assert_eq!(
        service.text,
        "none, 192.168.1.11:30080 stays: it is the nodePort of shop/door:http at node2 (externalTrafficPolicy: Cluster)"
    );
    let last = |policy, on: &[&str]| at_node2(policy, on).pop().expect("hops");
    for (policy, on) in [(TrafficPolicy::Cluster, "node1"), (TrafficPolicy::Local, "node2")] {
        assert_eq!(last(policy, &[on]).text, "192.168.1.11:30080 on node2");
    }
    let dropped = last(TrafficPolicy::Local, &["node1"]);
    assert_eq!((dropped.stage, dropped.node.as_str()), (Stage::Node, "node2"));
    assert_eq!(
        dropped.text,
        "192.168.1.11:30080 is dropped: shop/door has no endpoint on node2 (externalTrafficPolicy: Local)"
    );
    assert!(last(TrafficPolicy::Local, &[]).text.contains("is rejected: shop/door has no ready endpoint"));
}

/// Whichever of its addresses is asked for, by whichever protocol, and whatever its policies are.
#[test]
fn a_service_without_endpoints_refuses_and_says_so() {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let local = TrafficPolicy::Local;
    for (protocol, policies) in [
        (Protocol::Tcp, [TrafficPolicy::Cluster; 2]),
        (Protocol::Udp, [TrafficPolicy::Cluster; 2]),
        (Protocol::Tcp, [local; 2]),
        (Protocol::Udp, [local; 2]),
    ] {
        let mut world = both_families();
        let port =
            ServicePort { name: "http".into(), port: 80, protocol, node_port: Some(30080), target: None };
        world.apply(Event::Upsert(Row::Service(Box::new(Service {
            key: name("shop/door"),
            kind: ServiceType::LoadBalancer,
            cluster_ips: vec![address("10.96.0.80"), address("fd00:10:96::80")],
            external_ips: vec![address("203.0.113.50"), address("2001:db8::50")],
            load_balancer_ips: vec![address("203.0.113.51"), address("2001:db8::51")],
            internal_policy: policies[0],
            external_policy: policies[1],
            ports: vec![port],
            ..Service::default()
        }))));
        let mut place = place("node1");
        let net = "fd00:10:244::/56".parse().expect("a prefix");
        place.pod_pools.push(net);
        place.unmasqueraded.push(net);
        place.service_cidrs.push("fd00:10:96::/112".parse().expect("a prefix"));
        let state = desired(&world, "node1");
        let view = View { cluster: &world, nft: &state.nft, net: &state.net, place: &place };
        let last = |destination: SocketAddr| {
            let target = Target { protocol, destination, sport: 41224, endpoint: None, answers_to: None };
            departure(&view, &name("shop/web"), &target).expect("wired").hops.pop().expect("hops")
        };
        for (ip, port, stage) in [
            ("10.96.0.80", 80, Stage::Service),
            ("fd00:10:96::80", 80, Stage::Service),
            ("203.0.113.50", 80, Stage::Service),
            ("2001:db8::50", 80, Stage::Service),
            ("203.0.113.51", 80, Stage::Service),
            ("2001:db8::51", 80, Stage::Service),
            ("192.168.1.10", 30080, Stage::Service),
            ("fd00:192:168::10", 30080, Stage::Service),
            ("192.168.1.11", 30080, Stage::Node),
            ("fd00:192:168::11", 30080, Stage::Node),
        ] {
            let frontend = SocketAddr::new(address(ip), port);
            let hop = last(frontend);
            let told = format!("{frontend} is rejected: shop/door has no ready endpoint");
            assert_eq!((hop.stage, hop.text), (stage, told), "{protocol} {policies:?}");
        }
        for at in ["203.0.113.50:81", "[2001:db8::50]:81", "203.0.113.51:81", "[2001:db8::51]:81"] {
            let hop = last(to(at));
            let told = format!("{at} leaves the cluster: shop/door has no port 81/{protocol}");
            assert_eq!((hop.stage, &hop.text), (Stage::Service, &told));
            // Whatever comes of it there, model and kernel agree.
            let answered = SocketEnd::Answered { text: "connected".into(), micros: 9 };
            for end in [SocketEnd::Silent, SocketEnd::Unreachable, SocketEnd::Refused, answered] {
                let sent = Sighting::Sent { at: 1, source: to("10.244.1.4:41224"), destination: to(at), end };
                let observed = Observed { node: "node1".into(), sightings: vec![sent] };
                let result = compare(std::slice::from_ref(&hop), &[observed]).pop().expect("a hop");
                assert!(matches!(result.outcome, Outcome::Agree { .. }), "{result:#?}");
                assert_eq!(result.hop.text, told);
            }
        }
        let none = last(to("10.96.0.80:81"));
        assert_eq!(none.text, format!("10.96.0.80:81 is rejected: shop/door has no port 81/{protocol}"));
    }
}

/// Its other port has endpoints, or none of them has any port at all.
#[test]
fn a_named_port_that_no_pod_has_is_named() {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let last = |ports: &[&str], ready, destination: &str| {
        let mut world = both_families();
        let port = |name: &str, port, node_port, target: Option<&str>| ServicePort {
            name: name.into(),
            port,
            node_port: Some(node_port),
            target: target.map(Into::into),
            ..ServicePort::default()
        };
        world.apply(Event::Upsert(Row::Service(Box::new(Service {
            key: name("shop/door"),
            kind: ServiceType::NodePort,
            cluster_ips: vec![address("10.96.0.80")],
            ports: vec![port("http", 80, 30080, Some("web")), port("odd", 99, 30099, Some("nosuch"))],
            ..Service::default()
        }))));
        let ports = ports.iter().map(|name| SlicePort {
            name: (*name).into(),
            port: Some(8080),
            ..SlicePort::default()
        });
        world.apply(Event::Upsert(Row::EndpointSlice(EndpointSlice {
            key: name("shop/door-1"),
            service: "door".into(),
            ports: ports.collect(),
            endpoints: vec![Endpoint { ready, ..Endpoint::ready([10, 244, 2, 9]) }],
            ..EndpointSlice::default()
        })));
        let (state, place) = (desired(&world, "node1"), place("node1"));
        let view = View { cluster: &world, nft: &state.nft, net: &state.net, place: &place };
        let (protocol, destination) = (Protocol::Tcp, to(destination));
        let target = Target { protocol, destination, sport: 41224, endpoint: None, answers_to: None };
        departure(&view, &name("shop/web"), &target).expect("wired").hops.pop().expect("hops").text
    };
    let odd = "is rejected: shop/door: no ready pod has a port named nosuch (targetPort of 99)";
    for at in ["10.96.0.80:99", "192.168.1.10:30099", "192.168.1.11:30099"] {
        assert_eq!(last(&["http"], true, at), format!("{at} {odd}"));
        assert_eq!(last(&[], true, at), format!("{at} {odd}"));
        assert_eq!(last(&["http"], false, at), format!("{at} is rejected: shop/door has no ready endpoint"));
    }
    assert!(
        last(&[], true, "10.96.0.80:80").contains("no ready pod has a port named web (targetPort of 80)")
    );
    assert!(!last(&["http"], true, "10.96.0.80:80").contains("rejected"));
}

#[test]
fn another_node_is_not_outside_of_the_cluster() {
    let world = both_families();
    let (state, place) = (desired(&world, "node1"), place("node1"));
    let view = View { cluster: &world, nft: &state.nft, net: &state.net, place: &place };
    for (protocol, destination, whose) in [
        (Protocol::Tcp, "192.168.1.11:9475", "another node"),
        (Protocol::Icmp, "192.168.1.11:0", "another node"),
        (Protocol::Tcp, "203.0.113.10:80", "outside of the cluster"),
    ] {
        let target =
            Target { protocol, destination: to(destination), sport: 41224, endpoint: None, answers_to: None };
        let hops = departure(&view, &name("shop/web"), &target).expect("wired").hops;
        let why = hops.iter().find_map(|hop| match &hop.fact {
            Fact::Masq { masquerade: true, why, .. } => Some(why.as_str()),
            _ => None,
        });
        assert_eq!(why, Some(&*format!("the destination is {whose}")), "{destination}");
    }
}

/// Nodes and the pod have addresses of IPv6 as well.
pub fn both_families() -> Cluster {
    let mut world = cluster("node1", "web");
    let mut nodes: Vec<Node> = world.nodes.values().cloned().collect();
    for (node, n) in nodes.iter_mut().zip(0..) {
        let v6 = |text: String| text.parse().expect("an address");
        node.addresses.push(v6(format!("fd00:192:168::1{n}")));
        node.pod_cidrs.push(format!("fd00:10:244:{}::/64", n + 1).parse().expect("a prefix"));
    }
    let mut wired: Vec<_> = world.attachments.values().cloned().collect();
    for wired in &mut wired {
        wired.ips.push("fd00:10:244:1::4".parse().expect("an address"));
    }
    let rows = nodes.into_iter().map(Row::Node).chain(wired.into_iter().map(Row::Attachment));
    for row in rows {
        world.apply(Event::Upsert(row));
    }
    world
}

#[test]
fn a_name_that_leads_out_of_the_cluster_says_where_to() {
    let fact = Fact::Resolve {
        name: "ext".into(),
        full_name: String::new(),
        addresses: Vec::new(),
        step: 0,
        of: 4,
        upstream: true,
        lacks: None,
        alias: Some("example.com".into()),
        fails: None,
        in_file: false,
        note: None,
    };
    let hop = Hop::new(Stage::Resolve, "node1", fact);
    assert_eq!(hop.text, "ext leads to example.com (ExternalName)");
    let told = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let full_name = "ext.shop.svc.cluster.local".to_owned();
        let resolved = Sighting::Resolved { at: 1, micros: 9, full_name, addresses, step: 1, error: None };
        let observed = Observed { node: "node1".into(), sightings: vec![resolved] };
        match compare(std::slice::from_ref(&hop), &[observed]).pop().map(|result| result.outcome) {
            Some(Outcome::Agree { seen }) => seen,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(&[]), "of which the node's resolvers know no address");
    assert_eq!(told(&["192.0.2.1"]), "of which the node's resolvers know 192.0.2.1");
}

#[test]
fn a_circle_of_aliases_is_what_the_objects_say() {
    let why = "alias circle: a.shop.svc.cluster.local → a.shop.svc.cluster.local; change their externalName";
    let fact = Fact::Resolve {
        name: "a".into(),
        full_name: String::new(),
        addresses: Vec::new(),
        step: 0,
        of: 4,
        upstream: false,
        lacks: None,
        alias: None,
        fails: Some(why.into()),
        in_file: false,
        note: None,
    };
    let hop = Hop::new(Stage::Resolve, "node1", fact);
    assert_eq!(hop.text, format!("a has no end: {why}"));
    let told = |error: &str| {
        let (full_name, error) = ("a.shop.svc.cluster.local".to_owned(), Some(error.to_owned()));
        let resolved =
            Sighting::Resolved { at: 1, micros: 9, full_name, addresses: Vec::new(), step: 1, error };
        let observed = Observed { node: "node1".into(), sightings: vec![resolved] };
        compare(std::slice::from_ref(&hop), &[observed]).pop().expect("a hop").outcome
    };
    let failed = told("a.shop.svc.cluster.local: 10.96.0.10 answers SERVFAIL");
    assert!(matches!(failed, Outcome::Agree { .. }), "{failed:?}");
    let silent = told("a.shop.svc.cluster.local: 10.96.0.10 did not answer within 500ms");
    assert!(matches!(silent, Outcome::Disagree { .. }), "{silent:?}");
}
