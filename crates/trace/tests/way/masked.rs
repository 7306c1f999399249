//! A Service asked at an address for callers from anywhere: its answers must come back through the sender's node, which puts
//! an address and a port of its own in place of the pod's.

use std::net::{IpAddr, SocketAddr};

use model::{Attachment, Cluster, Endpoint, EndpointSlice, Event, Row, Service, ServicePort, SlicePort};
use trace::observed::{Outer, Seen, SocketEnd, Tuple, Way};
use trace::{
    Expected, Fact, Hop, Observed, Outcome, Place, Sighting, Stage, Target, View, arrival, compare,
    departure, way_back,
};
use types::{Mac, Protocol};

use super::{cluster, desired, dev, name, place, to};

/// What differs between the families, and where the endpoint is.
struct Case {
    pod: &'static str,
    frontend: &'static str,
    endpoint: &'static str,
    /// As what the packet leaves the sender's rules.
    leaves_as: &'static str,
    across: bool,
}

const CASES: [Case; 4] = [
    Case {
        pod: "10.244.1.4:41224",
        frontend: "203.0.113.50:80",
        endpoint: "10.244.2.7:8080",
        leaves_as: "10.244.1.0:13624",
        across: true,
    },
    Case {
        pod: "10.244.1.4:41224",
        frontend: "203.0.113.50:80",
        endpoint: "10.244.1.7:8080",
        leaves_as: "10.244.1.1:13624",
        across: false,
    },
    Case {
        pod: "[fd00:10:1::4]:41224",
        frontend: "[2001:db8::50]:80",
        endpoint: "[fd00:10:2::7]:8080",
        leaves_as: "[fd00:10:1::]:13624",
        across: true,
    },
    Case {
        pod: "[fd00:10:1::4]:41224",
        frontend: "[2001:db8::50]:80",
        endpoint: "[fd00:10:1::7]:8080",
        leaves_as: "[fd00:10:1::1]:13624",
        across: false,
    },
];

/// Of both families, with a Service `lb` whose one endpoint is at the address.
fn world(node: &str, case: &Case) -> Cluster {
    let mut world = cluster(node, "nobody");
    let mut put = |row| drop(world.apply(Event::Upsert(row)));
    for n in 1..=2_u8 {
        put(Row::Node(model::Node {
            name: format!("node{n}"),
            addresses: vec![[192, 168, 1, 9 + n].into(), format!("fd00:1::{n}").parse().expect("an address")],
            pod_cidrs: [format!("10.244.{n}.0/24"), format!("fd00:10:{n}::/64")]
                .map(|net| net.parse().expect("a prefix"))
                .into(),
            announced: model::Announced {
                vtep_mac: Some(compile::fabric::vxlan::vtep_mac(&format!("node{n}"))),
            },
            ..model::Node::default()
        }));
    }
    let endpoint = to(case.endpoint);
    let holder = if case.across { "node2" } else { "node1" };
    let mut wired = vec![("node1", "shop/web", "veth1", vec!["10.244.1.4", "fd00:10:1::4"])];
    let address = endpoint.ip().to_string();
    wired.push((holder, "shop/server", "veth7", vec![address.as_str()]));
    for (_, pod, host_if, ips) in wired.into_iter().filter(|(on, ..)| *on == node) {
        put(Row::Attachment(Box::new(Attachment {
            wiring: types::Wiring::default(),
            container: pod.into(),
            pod: name(pod),
            uid: String::new(),
            ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
            host_if: dev(host_if),
            mac: Mac::default(),
            host_ports: Vec::new(),
            withheld: Vec::new(),
        })));
    }
    put(Row::Pod(Box::new(model::Pod {
        key: name("shop/server"),
        node: Some(holder.into()),
        ips: vec![endpoint.ip()],
        ..model::Pod::default()
    })));
    let inside: IpAddr =
        if endpoint.is_ipv4() { [10, 96, 0, 50].into() } else { "fd00:96::50".parse().unwrap() };
    put(Row::Service(Box::new(Service {
        key: name("shop/lb"),
        cluster_ips: vec![inside],
        external_ips: vec![to(case.frontend).ip()],
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    })));
    put(Row::EndpointSlice(EndpointSlice {
        key: name("shop/lb-1"),
        service: "lb".into(),
        ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
        endpoints: vec![Endpoint {
            node: Some(holder.into()),
            address: endpoint.ip(),
            ..Endpoint::ready([0; 4])
        }],
        ..EndpointSlice::default()
    }));
    world
}

fn at(node: &str) -> Place {
    let mut at = place(node);
    let net = "fd00:10::/32".parse().expect("a prefix");
    at.pod_pools.push(net);
    at.unmasqueraded.push(net);
    at.service_cidrs.push("fd00:96::/112".parse().expect("a prefix"));
    at
}

fn parts(case: &Case) -> (Expected, Option<Expected>) {
    let view_of = |node: &str| (world(node, case), at(node));
    let (here, place) = view_of("node1");
    let state = desired(&here, "node1");
    let view = View { cluster: &here, nft: &state.nft, net: &state.net, place: &place };
    let target = Target {
        protocol: Protocol::Tcp,
        destination: to(case.frontend),
        sport: 41224,
        endpoint: None,
        answers_to: Some(to(case.leaves_as)),
    };
    let start = departure(&view, &name("shop/web"), &target).expect("wired");
    let end = start.onward.as_ref().map(|onward| {
        let (there, place) = view_of("node2");
        let state = desired(&there, "node2");
        arrival(&View { cluster: &there, nft: &state.nft, net: &state.net, place: &place }, onward, None)
    });
    (start, end)
}

fn frame(at: u64, on: &str, direction: Way, ends: [&str; 2], outer: Option<Outer>) -> Sighting {
    let packet = Seen { protocol: Protocol::Tcp, source: to(ends[0]), destination: to(ends[1]), bytes: 60 };
    Sighting::Frame { at, dev: dev(on), direction, packet, outer }
}

/// There and back, with the addresses that each device sees.
fn seen(case: &Case) -> Vec<Observed> {
    let Case { pod, frontend, endpoint, leaves_as, across } = *case;
    let (asked, moved) = ([pod, frontend], [leaves_as, endpoint]);
    let (answer, given) = ([endpoint, leaves_as], [frontend, pod]);
    let outer = Outer {
        source: to("192.168.1.10:52113"),
        destination: to("192.168.1.11:8472"),
        vni: 1,
        inner_mac: compile::fabric::vxlan::vtep_mac("node2"),
    };
    let end = SocketEnd::Answered { text: "HTTP 200".into(), micros: 900 };
    let tuple = |[source, destination]: [&str; 2]| Tuple { source: to(source), destination: to(destination) };
    let mut here = vec![
        Sighting::Sent { at: 1, source: to(pod), destination: to(frontend), end },
        frame(2, "veth1", Way::In, asked, None),
        frame(3, "cni0", Way::In, asked, None),
        Sighting::Conntrack { original: tuple(asked), reply: tuple(answer) },
    ];
    let back = [frame(13, "cni0", Way::Out, given, None), frame(14, "veth1", Way::Out, given, None)];
    if !across {
        here.extend([
            frame(4, "cni0", Way::Out, moved, None),
            frame(5, "veth7", Way::Out, moved, None),
            frame(6, "veth7", Way::In, answer, None),
        ]);
        here.extend(back);
        return vec![Observed { node: "node1".into(), sightings: here }];
    }
    here.extend([
        frame(4, "plumb.1", Way::Out, moved, None),
        frame(5, "eth0", Way::Out, moved, Some(outer)),
        frame(11, "eth0", Way::In, answer, Some(outer)),
        frame(12, "plumb.1", Way::In, answer, None),
    ]);
    here.extend(back);
    let there = vec![
        frame(6, "plumb.1", Way::In, moved, None),
        frame(7, "veth7", Way::Out, moved, None),
        frame(8, "veth7", Way::In, answer, None),
        frame(9, "plumb.1", Way::Out, answer, None),
        frame(10, "eth0", Way::Out, answer, Some(outer)),
    ];
    vec![
        Observed { node: "node1".into(), sightings: here },
        Observed { node: "node2".into(), sightings: there },
    ]
}

#[test]
fn the_whole_way_is_found_under_another_source() {
    for case in &CASES {
        let (start, end) = parts(case);
        let onward = start.onward.as_ref().map(|onward| onward.source);
        assert_eq!(onward, case.across.then(|| to(case.leaves_as)), "the next node looks for that");
        let mut hops: Vec<Hop> =
            start.hops.into_iter().chain(end.into_iter().flat_map(|end| end.hops)).collect();
        hops.extend(way_back(&hops));
        assert_eq!(hops.last().map(|hop| hop.stage), Some(Stage::Return), "{hops:#?}");
        let results = compare(&hops, &seen(case));
        for result in results {
            assert!(matches!(result.outcome, Outcome::Agree { .. }), "{}: {result:#?}", case.endpoint);
        }
    }
}

/// The policies of another node's pod meet the address that the packet comes with, which is no pod's.
#[test]
fn policies_elsewhere_see_the_node() {
    let masked = |to: SocketAddr| trace::expect::Onward {
        node: "node2".into(),
        protocol: Protocol::Tcp,
        source: "10.244.1.0:13624".parse().expect("an address"),
        destination: to,
    };
    let there = cluster("node2", "web");
    let (state, place) = (desired(&there, "node2"), place("node2"));
    let view = View { cluster: &there, nft: &state.nft, net: &state.net, place: &place };
    let last = arrival(&view, &masked(to("10.244.2.9:8080")), None).hops.pop().expect("hops");
    assert!(matches!(last.fact, Fact::Policy { allowed: false, .. }), "{last:#?}");
    assert!(last.fact.misses().iter().any(|miss| miss.why.contains("10.244.1.0")), "{last:#?}");
}
