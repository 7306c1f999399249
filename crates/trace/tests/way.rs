//! The expected way of a packet reads as the example does, and comparing it with what was seen names the
//! hop at fault.

use std::net::SocketAddr;

use compile::{Desired, Settings, whole};
use model::{
    Attachment, Cluster, Endpoint, EndpointSlice, Event, Kind, Node, Peer, Pod, Policy, PolicyRule, Row,
    Service, ServicePort, SlicePort,
};
use trace::observed::{Outer, Seen, SocketEnd, Tuple, Way};
use trace::{Hop, Observed, Outcome, Place, Sighting, Stage, Target, View, arrival, compare, departure};
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
            vtep_mac: Some(compile::vtep_mac(&format!("node{n}"))),
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
            labels: labels(app),
            ..Pod::default()
        };
        put(Row::Pod(Box::new(row)));
        if on == node {
            put(Row::Attachment(Box::new(Attachment {
                container: pod.into(),
                pod: name(pod),
                uid: String::new(),
                ips: vec![ip.into()],
                host_if: dev("veth1"),
                mac: Mac::default(),
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
        endpoints: vec![Endpoint {
            address: [10, 244, 2, 9].into(),
            node: Some("node2".into()),
            hostname: None,
            ready: true,
            serving: true,
            terminating: false,
            pod: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        }],
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
        node: node.into(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a prefix")],
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a prefix")],
        dns_ip: None,
        dns_here: true,
    }
}

fn desired(cluster: &Cluster, node: &str) -> Desired {
    let Place { node, cluster_cidrs, service_cidrs, dns_ip, .. } = place(node);
    whole(
        cluster.synced().expect("synced"),
        Settings { node, cluster_cidrs, service_cidrs, dns_ip, mtu: 1450 },
    )
}

/// Both nodes' parts of web → payments.
fn expected(allowed: &str) -> Vec<Hop> {
    let (here, there) = (cluster("node1", allowed), cluster("node2", allowed));
    let (state, peer) = (desired(&here, "node1"), desired(&there, "node2"));
    let (place1, place2) = (place("node1"), place("node2"));
    let view = View { cluster: &here, nft: &state.nft, net: &state.net, place: &place1 };
    let target =
        Target { protocol: Protocol::Tcp, destination: to("10.96.14.7:8080"), sport: 41224, endpoint: None };
    let start = departure(&view, &name("shop/web"), &target).expect("the pod is wired here");
    let view = View { cluster: &there, nft: &peer.nft, net: &peer.net, place: &place2 };
    let end = arrival(&view, &start.onward.expect("a peer node"));
    start.hops.into_iter().chain(end.hops).collect()
}

#[test]
fn the_way_reads_as_it_should() {
    let lines: Vec<_> =
        expected("web").iter().map(|hop| format!("{} {} {}", hop.n, hop.stage.word(), hop.text)).collect();
    assert_eq!(
        lines,
        [
            "2 socket tcp 10.244.1.4 → 10.96.14.7:8080",
            "3 veth eth0 → veth1 on cni0",
            "4 service shop/payments:http → 10.244.2.9:8080, the only one",
            "5 route 10.244.2.0/24 via 10.244.2.0 dev plumb.1 onlink",
            "6 policy egress: no policy selects shop/web, allowed",
            "7 masq no, the destination is a pod",
            "8 tunnel VXLAN 1, 192.168.1.10 → 192.168.1.11:8472, 50 bytes more",
            "9 node plumb.1 → cni0 → veth1",
            "10 policy ingress: shop/payments-from, rule 1, allowed",
            "11 pod shop/pay, 10.244.2.9:8080",
        ]
    );
    let denied = expected("api");
    let last = denied.last().expect("hops");
    assert_eq!(last.stage, Stage::Ingress);
    assert!(
        last.text.contains("shop/payments-from rule 1: shop/web (10.244.1.4) is not among its peers"),
        "{}",
        last.text
    );
}

/// What both nodes see when all is well.
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
    let (front, endpoint) = ("10.96.14.7:8080", "10.244.2.9:8080");
    let outer = Outer {
        source: to("192.168.1.10:52113"),
        destination: to("192.168.1.11:8472"),
        vni: 1,
        inner_mac: compile::vtep_mac("node2"),
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
    ];
    let there =
        vec![frame(6, "plumb.1", Way::In, endpoint, None), frame(7, "veth1", Way::Out, endpoint, None)];
    vec![
        Observed { node: "node1".into(), sightings: here },
        Observed { node: "node2".into(), sightings: there },
    ]
}

/// The stage that disagrees; all before it agree and all after it are not judged.
fn fault(observed: &[Observed]) -> Option<Stage> {
    let results = compare(&expected("web"), observed);
    let at = results.iter().position(|r| matches!(r.outcome, Outcome::Disagree { .. }))?;
    assert!(results[..at].iter().all(|r| matches!(r.outcome, Outcome::Agree { .. })), "{results:#?}");
    assert!(results[at + 1..].iter().all(|r| r.outcome == Outcome::NotReached), "{results:#?}");
    Some(results[at].hop.stage)
}

#[test]
fn a_fault_is_named_at_its_hop() {
    assert_eq!(fault(&seen()), None);

    let without = |node: usize, at: usize| {
        let mut observed = seen();
        observed[node].sightings.remove(at);
        observed
    };
    assert_eq!(fault(&without(0, 2)), Some(Stage::Veth), "not on the bridge");
    assert_eq!(fault(&without(0, 5)), Some(Stage::Tunnel), "no forwarding entry");
    assert_eq!(fault(&without(1, 1)), Some(Stage::Node), "not out of the peer's bridge");

    let mut stale = seen();
    if let Some(Sighting::Conntrack { reply, .. }) = stale[0].sightings.get_mut(3) {
        reply.source = to("10.244.2.77:8080");
    }
    assert_eq!(fault(&stale), Some(Stage::Service));

    let mut drifted = seen();
    drifted[0].sightings.push(Sighting::Drift { stage: Stage::Route, text: "the route is gone".into() });
    assert_eq!(fault(&drifted), Some(Stage::Route));
}
