//! The expected way of a packet reads as a person would tell it, and comparing it with what was seen names the hop at
//! fault.

mod doors;
mod elsewhere;
mod ends;
mod link;
mod masked;
mod nowhere;

use std::net::SocketAddr;

use compile::{Desired, whole};
use model::{
    Attachment, Cluster, Endpoint, EndpointSlice, Event, Kind, Node, Peer, Pod, Policy, PolicyRule, Row,
    Service, ServicePort, SlicePort,
};
use semantics::Settings;
use trace::observed::{Outer, Seen, SocketEnd, Tuple, Way};
use trace::{
    Expected, Hop, Observed, Outcome, Place, Sighting, Stage, Target, View, arrival, compare, departure,
    way_back,
};
use types::{IfName, Labels, Mac, ObjectName, Protocol, Selector};

fn name(text: &str) -> ObjectName {
    let Ok(name) = text.parse();
    name
}

fn labels(app: &str) -> Labels {
    Labels::from([("app".to_owned(), app.to_owned())])
}

fn to(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

fn dev(text: &str) -> IfName {
    IfName::new(text).expect("a name")
}

/// web on node1, payments on node2; `policy` selects payments and lets `allowed` in.
fn cluster(node: &str, allowed: &str) -> Cluster {
    let mut cluster = Cluster::default();
    let mut put = |row| drop(cluster.apply(Event::Upsert(row)));
    for n in 1..=2_u8 {
        put(Row::Node(Node {
            name: format!("node{n}"),
            addresses: vec![[192, 168, 1, 9 + n].into()],
            pod_cidrs: vec![format!("10.244.{n}.0/24").parse().expect("a prefix")],
            announced: model::Announced {
                vtep_mac: Some(compile::fabric::vxlan::vtep_mac(&format!("node{n}"))),
            },
            ..Node::default()
        }));
    }
    for (pod, app, on, ip) in
        [("shop/web", "web", "node1", [10, 244, 1, 4]), ("shop/pay", "payments", "node2", [10, 244, 2, 9])]
    {
        let row = Pod {
            key: name(pod),
            node: Some(on.into()),
            ips: vec![ip.into()],
            labels: labels(app).into(),
            ..Pod::default()
        };
        put(Row::Pod(Box::new(row)));
        if on == node {
            put(Row::Attachment(Box::new(Attachment {
                wiring: types::Wiring::default(),
                container: pod.into(),
                pod: name(pod),
                uid: String::new(),
                ips: vec![ip.into()],
                host_if: dev("veth1"),
                mac: Mac::default(),
                host_ports: Vec::new(),
                withheld: Vec::new(),
            })));
        }
    }
    let port = ServicePort { name: "http".into(), port: 8080, ..ServicePort::default() };
    put(Row::Service(Box::new(Service {
        key: name("shop/payments"),
        cluster_ips: vec![[10, 96, 14, 7].into()],
        ports: vec![port],
        ..Service::default()
    })));
    put(Row::EndpointSlice(EndpointSlice {
        key: name("shop/payments-1"),
        service: "payments".into(),
        ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
        endpoints: vec![Endpoint { node: Some("node2".into()), ..Endpoint::ready([10, 244, 2, 9]) }],
        ..EndpointSlice::default()
    }));
    let peers = vec![Peer::Pods { namespaces: None, pods: Some(Selector::from_labels(&labels(allowed))) }];
    put(Row::Policy(Box::new(Policy {
        key: name("shop/payments-from"),
        pods: Selector::from_labels(&labels("payments")),
        ingress: Some(vec![PolicyRule { peers, ports: Vec::new() }]),
        ..Policy::default()
    })));
    for kind in Kind::ALL {
        cluster.apply(Event::Done(kind));
    }
    cluster
}

fn place(node: &str) -> Place {
    Place {
        fabric: types::Fabric::default(),
        wiring: types::Wiring::default(),
        node: node.into(),
        pod_pools: vec!["10.244.0.0/16".parse().expect("a prefix")],
        unmasqueraded: vec!["10.244.0.0/16".parse().expect("a prefix")],
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a prefix")],
        dns_ips: Vec::new(),
        allow_sources: Vec::new(),
        api: Vec::new(),
        dns_here: true,
        of_link: vec!["fe80::858:aff:fef4:101".parse().expect("an address")],
        broadcasts: Vec::new(),
    }
}

fn desired(cluster: &Cluster, node: &str) -> Desired {
    let Place { node, pod_pools, unmasqueraded, service_cidrs, dns_ips, allow_sources, api, .. } =
        place(node);
    whole(
        cluster.synced().expect("synced"),
        Settings {
            node,
            pod_pools,
            unmasqueraded,
            service_cidrs,
            dns_ips,
            allow_sources,
            api,
            backend: types::Backend::default(),
            fabric: types::Fabric::default(),
            wiring: types::Wiring::default(),
            mtu: 1450,
            uplinks: Default::default(),
        },
    )
}

/// web → payments, as node1 knows it.
fn start(allowed: &str) -> Expected {
    let here = cluster("node1", allowed);
    let (state, place) = (desired(&here, "node1"), place("node1"));
    let view = View { cluster: &here, nft: &state.nft, net: &state.net, place: &place };
    let target = Target {
        protocol: Protocol::Tcp,
        destination: to("10.96.14.7:8080"),
        sport: 41224,
        endpoint: None,
        answers_to: None,
    };
    departure(&view, &name("shop/web"), &target).expect("the pod is wired here")
}

/// Both nodes' parts of it.
fn expected(allowed: &str) -> Vec<Hop> {
    let start = start(allowed);
    let there = cluster("node2", allowed);
    let (peer, place) = (desired(&there, "node2"), place("node2"));
    let view = View { cluster: &there, nft: &peer.nft, net: &peer.net, place: &place };
    let end = arrival(&view, &start.onward.expect("a peer node"), None);
    let mut hops: Vec<Hop> = start.hops.into_iter().chain(end.hops).collect();
    hops.extend(way_back(&hops));
    hops
}

#[test]
fn the_way_reads_as_it_should() {
    let lines: Vec<_> =
        expected("web").iter().map(|hop| format!("{} {} {}", hop.n, hop.stage.word(), hop.text)).collect();
    assert_eq!(
        lines,
        [
            "2 socket 10.244.1.4 → 10.96.14.7:8080",
            "3 veth eth0 → veth1 on cni0",
            "4 service shop/payments:http → 10.244.2.9:8080",
            "5 route 10.244.2.0/24 via 10.244.2.0 dev plumb.1 onlink",
            "6 policy egress: no policy selects shop/web, allowed",
            "7 masq no, the destination is a pod",
            "8 tunnel VXLAN 1, 192.168.1.10 → 192.168.1.11:8472",
            "9 node plumb.1 → cni0 → veth1",
            "10 policy ingress: shop/payments-from, rule 1, allowed",
            "11 pod shop/pay",
            "12 return the same way, shown as 10.96.14.7:8080",
        ]
    );
    let denied = expected("api");
    let last = denied.last().expect("hops");
    assert_eq!(last.stage, Stage::Ingress);
    let misses: Vec<String> = last.fact.misses().iter().map(ToString::to_string).collect();
    assert_eq!(misses, ["shop/payments-from rule 1: shop/web (10.244.1.4) is not among its peers"]);
}

/// What both nodes see of the packet and its answer when all is well; the answer from index 6 and 3 on.
fn seen() -> Vec<Observed> {
    let packet = |destination| Seen {
        protocol: Protocol::Tcp,
        source: to("10.244.1.4:41224"),
        destination,
        bytes: 60,
    };
    let frame = |at, on: &str, direction, destination, outer| Sighting::Frame {
        at,
        dev: dev(on),
        direction,
        packet: packet(to(destination)),
        outer,
    };
    let answer = |at, on: &str, direction, source, outer| Sighting::Frame {
        at,
        dev: dev(on),
        direction,
        packet: Seen { source: to(source), ..packet(to("10.244.1.4:41224")) },
        outer,
    };
    let (front, endpoint) = ("10.96.14.7:8080", "10.244.2.9:8080");
    let outer = Outer {
        source: to("192.168.1.10:52113"),
        destination: to("192.168.1.11:8472"),
        vni: 1,
        inner_mac: compile::fabric::vxlan::vtep_mac("node2"),
    };
    let here = vec![
        Sighting::Sent {
            at: 1,
            source: to("10.244.1.4:41224"),
            destination: to(front),
            end: SocketEnd::Answered { text: "HTTP 200".into(), micros: 900 },
        },
        frame(2, "veth1", Way::In, front, None),
        frame(3, "cni0", Way::In, front, None),
        Sighting::Conntrack {
            original: Tuple { source: to("10.244.1.4:41224"), destination: to(front) },
            reply: Tuple { source: to(endpoint), destination: to("10.244.1.4:41224") },
        },
        frame(4, "plumb.1", Way::Out, endpoint, None),
        frame(5, "eth0", Way::Out, endpoint, Some(outer)),
        answer(11, "eth0", Way::In, endpoint, Some(outer)),
        answer(12, "plumb.1", Way::In, endpoint, None),
        answer(13, "cni0", Way::Out, front, None),
        answer(14, "veth1", Way::Out, front, None),
    ];
    let there = vec![
        frame(6, "plumb.1", Way::In, endpoint, None),
        frame(7, "veth1", Way::Out, endpoint, None),
        answer(8, "veth1", Way::In, endpoint, None),
        answer(9, "plumb.1", Way::Out, endpoint, None),
        answer(10, "eth0", Way::Out, endpoint, Some(outer)),
    ];
    vec![
        Observed { node: "node1".into(), sightings: here },
        Observed { node: "node2".into(), sightings: there },
    ]
}

/// The same, unanswered.
fn silent(mut observed: Vec<Observed>) -> Vec<Observed> {
    if let Some(Sighting::Sent { end, .. }) = observed[0].sightings.first_mut() {
        *end = SocketEnd::Silent;
    }
    observed
}

/// The stage that disagrees; all before it agree, and all after it do too or are not judged.
fn fault(observed: &[Observed]) -> Option<Stage> {
    let results = compare(&expected("web"), observed);
    let at = results.iter().position(|r| matches!(r.outcome, Outcome::Disagree { .. }))?;
    assert!(results[..at].iter().all(|r| matches!(r.outcome, Outcome::Agree { .. })), "{results:#?}");
    let after = results[at + 1..].iter().filter(|r| matches!(r.outcome, Outcome::Disagree { .. })).count();
    assert_eq!(after, 0, "{results:#?}");
    Some(results[at].hop.stage)
}

#[test]
fn a_fault_is_named_at_its_hop() {
    assert_eq!(fault(&seen()), None);

    let without = |node: usize, at: usize| {
        let mut observed = seen();
        observed[node].sightings.remove(at);
        silent(observed)
    };
    assert_eq!(fault(&without(0, 2)), Some(Stage::Veth), "not on the bridge");
    assert_eq!(fault(&without(0, 5)), Some(Stage::Tunnel), "no forwarding entry");
    assert_eq!(fault(&without(1, 1)), Some(Stage::Node), "not out of the peer's bridge");
    assert_eq!(fault(&without(1, 3)), Some(Stage::Return), "the answer is not sent into the tunnel");
    assert_eq!(fault(&without(0, 8)), Some(Stage::Return), "the answer does not come out of the bridge");

    let mut stale = seen();
    if let Some(Sighting::Conntrack { reply, .. }) = stale[0].sightings.get_mut(3) {
        reply.source = to("10.244.2.77:8080");
    }
    assert_eq!(fault(&stale), Some(Stage::Service));

    let mut drifted = seen();
    drifted[0].sightings.push(Sighting::Drift { stage: Stage::Route, text: "the route is gone".into() });
    assert_eq!(fault(&drifted), Some(Stage::Route));
}

/// Of the way back as of the way there: a fault is its own node's, whichever the hop is at.
#[test]
fn a_fault_on_the_way_back_is_that_of_the_node_that_has_it() {
    let last = |observed: &[Observed]| {
        let last = compare(&expected("web"), observed).pop().expect("hops");
        assert_eq!((last.hop.stage, last.hop.node.as_str()), (Stage::Return, "node1"));
        let Outcome::Disagree { why } = last.outcome else { panic!("{:?}", last.outcome) };
        (last.wrong_on, why)
    };
    let there = || Some("node2".to_owned());
    let drift = |text: &str| Sighting::Drift { stage: Stage::Return, text: text.to_owned() };
    let mut observed = silent(seen());
    observed[1].sightings.push(drift("the route is missing"));
    assert_eq!(last(&observed), (there(), "on node2: the route is missing".to_owned()));
    // The answer comes to node2 first.
    observed[0].sightings.push(drift("the neighbour is missing"));
    assert_eq!(last(&observed).0, there());
    observed[1].sightings.pop();
    assert_eq!(last(&observed), (None, "on node1: the neighbour is missing".to_owned()));

    let mut lost = silent(seen());
    lost[0].sightings.truncate(6);
    lost[1].sightings.truncate(3);
    let (on, why) = last(&lost);
    assert_eq!(on, there(), "{why}");

    let mut dropped = silent(seen());
    let rule = trace::Decision {
        hook: "forward".into(),
        family: "ip".into(),
        table: "stranger".into(),
        chain: "stop".into(),
        verdict: "drop".into(),
        comment: String::new(),
        packet: None,
        oif: None,
        answer: true,
        guard: false,
    };
    dropped[1].sightings.push(Sighting::Nft { rule });
    let (on, why) = last(&dropped);
    assert_eq!(on, there());
    assert!(why.starts_with("on node2: drop in chain stop"), "{why}");
}

/// What is not as it should be at two hops is told of both, where the packet passed both, and of the first where it did not.
#[test]
fn a_hop_that_was_passed_was_reached() {
    let drift = |stage| Sighting::Drift { stage, text: format!("{stage:?} is not as it should be") };
    let outcomes = |observed: &[Observed]| -> Vec<(Stage, Outcome)> {
        let results = compare(&expected("web"), observed);
        results.into_iter().map(|result| (result.hop.stage, result.outcome)).collect()
    };
    let both = |mut observed: Vec<Observed>| {
        observed[0].sightings.extend([drift(Stage::Veth), drift(Stage::Tunnel)]);
        observed
    };
    for (stage, outcome) in outcomes(&both(seen())) {
        match stage {
            Stage::Veth | Stage::Tunnel => {
                let why = format!("{stage:?} is not as it should be");
                assert_eq!(outcome, Outcome::Disagree { why });
            }
            _ => assert!(matches!(outcome, Outcome::Agree { .. }), "{stage:?}: {outcome:?}"),
        }
    }
    // Nobody listens: whatever was passed on the way there is told; what the pod says itself is no fault.
    let mut closed = both(seen());
    let Some(Sighting::Sent { end, .. }) = closed[0].sightings.first_mut() else { panic!("sent") };
    *end = SocketEnd::Refused;
    let found = outcomes(&closed);
    let wrong: Vec<Stage> = found
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Disagree { .. }))
        .map(|(stage, _)| *stage)
        .collect();
    assert_eq!(wrong, [Stage::Veth, Stage::Tunnel], "{found:#?}");
    assert!(!found[..8].iter().any(|(_, outcome)| *outcome == Outcome::NotReached), "{found:#?}");
    let mut lost = both(silent(seen()));
    lost[0].sightings.retain(|sighting| !matches!(sighting, Sighting::Frame { .. }));
    lost[1].sightings.clear();
    let found = outcomes(&lost);
    assert!(found.contains(&(Stage::Tunnel, Outcome::NotReached)), "{found:#?}");
    let disagree = found.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Disagree { .. })).count();
    assert_eq!(disagree, 1, "{found:#?}");
}

/// A name is asked for over the same veth: when nothing comes out of that, the name is not at fault.
#[test]
fn a_dead_veth_is_blamed_before_the_resolver() {
    let name = Hop::new(
        Stage::Resolve,
        "node1",
        trace::Fact::Resolve {
            name: "payments".into(),
            full_name: "payments.shop.svc.cluster.local".into(),
            addresses: vec![to("10.96.14.7:1").ip()],
            step: 1,
            of: 4,
            upstream: false,
            lacks: None,
            alias: None,
            fails: None,
            in_file: false,
            note: None,
        },
    );
    let hops: Vec<Hop> = std::iter::once(name).chain(expected("web")).collect();
    let mut observed = silent(seen());
    observed[0].sightings.retain(|sighting| !matches!(sighting, Sighting::Frame { .. }));
    observed[1].sightings.clear();
    observed[0].sightings.push(Sighting::Resolved {
        at: 0,
        micros: 700_000,
        full_name: "payments.shop.svc.cluster.local".into(),
        addresses: Vec::new(),
        step: 1,
        error: Some("10.96.0.10 did not answer".into()),
    });
    let results = compare(&hops, &observed);
    assert_eq!(results[0].outcome, Outcome::NotReached);
    assert!(matches!(results[2].outcome, Outcome::Disagree { .. }), "{results:#?}");
}

/// What left as one packet of full size and came on only in smaller ones met too small an MTU.
#[test]
fn full_size_packets_that_do_not_pass_are_missed() {
    let mut observed = seen();
    let big = |sighting: &Sighting| match sighting.clone() {
        Sighting::Frame { at, dev, direction, packet, outer } => {
            Sighting::Frame { at, dev, direction, packet: Seen { bytes: 1450, ..packet }, outer }
        }
        other => other,
    };
    for at in 1..4 {
        let more = big(&observed[0].sightings[at]);
        observed[0].sightings.push(more);
    }
    assert_eq!(fault(&observed), Some(Stage::Tunnel));
}

/// What a guard's counter says was dropped meanwhile is this packet only where it was lost just there.
#[test]
fn a_guard_that_counted_is_named_where_the_packet_was_lost() {
    let counted = |family: &str, chain: &str, comment: &str| Sighting::Nft {
        rule: trace::Decision {
            hook: trace::observed::COUNTED.into(),
            family: family.into(),
            table: "plumb".into(),
            chain: chain.into(),
            verdict: "drop of 2 packets meanwhile".into(),
            comment: comment.into(),
            packet: None,
            oif: None,
            answer: false,
            guard: true,
        },
    };
    let port = counted("bridge", "ipv4_frames", "ipv4_source: not the pod's");
    let tunnel = counted("ip", "tunnel", "inner_source: not the node's");
    let mut others = seen();
    others[0].sightings.push(port.clone());
    others[1].sightings.push(tunnel.clone());
    assert_eq!(fault(&others), None, "of other packets");

    let why = |observed: &[Observed], stage: Stage| {
        let results = compare(&expected("web"), observed);
        let broken = results.iter().find(|result| matches!(result.outcome, Outcome::Disagree { .. }));
        let broken = broken.expect("a fault");
        assert_eq!(broken.hop.stage, stage, "{results:#?}");
        match &broken.outcome {
            Outcome::Disagree { why } => why.clone(),
            other => panic!("{other:?}"),
        }
    };
    let mut lost = silent(seen());
    lost[0].sightings.truncate(2);
    lost[0].sightings.push(port);
    lost[1].sightings.clear();
    assert_eq!(
        why(&lost, Stage::Veth),
        "drop of 2 packets meanwhile in chain ipv4_frames of table bridge plumb (ipv4_source: not the pod's)"
    );
    let mut lost = silent(seen());
    let Sighting::Frame { direction, .. } = &mut lost[0].sightings[5] else { panic!("the tunnelled frame") };
    *direction = Way::In;
    let came = lost[0].sightings[5].clone();
    let Sighting::Frame { direction, .. } = &mut lost[0].sightings[5] else { panic!("the tunnelled frame") };
    *direction = Way::Out;
    lost[1].sightings = vec![came, tunnel];
    assert!(why(&lost, Stage::Node).contains("table ip plumb (inner_source: not the node's)"));
}

/// Nodes are heard at the tunnel's port and nobody else, by whatever address or Service.
#[test]
fn a_pod_is_expected_to_be_refused_at_the_tunnels_port() {
    let cluster = cluster("node1", "web");
    let (state, place) = (desired(&cluster, "node1"), place("node1"));
    let view = View { cluster: &cluster, nft: &state.nft, net: &state.net, place: &place };
    let last = |destination: &str, protocol| {
        let target =
            Target { protocol, destination: to(destination), sport: 41224, endpoint: None, answers_to: None };
        departure(&view, &name("shop/web"), &target).expect("wired").hops.pop().expect("hops").text
    };
    for node in ["192.168.1.10:8472", "192.168.1.11:8472", "10.244.1.1:8472", "203.0.113.9:8472"] {
        assert!(last(node, Protocol::Udp).contains("nodes alone are heard"), "{node}");
        assert!(!last(node, Protocol::Tcp).contains("nodes alone are heard"), "{node}");
    }
    assert!(!last("10.244.2.9:8472", Protocol::Udp).contains("nodes alone"), "a pod's port is the pod's");
}
