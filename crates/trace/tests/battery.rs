//! The battery: for random clusters and packets, running the compiled rules gives exactly the fates that
//! Kubernetes' semantics allow, no more and no fewer (law 7).

use std::collections::BTreeSet;
use std::net::IpAddr;

use compile::whole;
use model::{Attachment, Cluster, Event, HostPort, Row};
use proptest::prelude::*;
use proptest::sample::select;
use trace::eval::{self, End, Kernel};
use trace::packet::{CtState, Packet, Place};
use trace::reference::{Choice, Fate, fates, withheld};
use types::{Family, IfName, Mac, ObjectName, Protocol};

#[path = "battery/world.rs"]
mod world;

use world::{
    NODES, allow_sources, api, dns_ips, external_ip, history, ip, node_ip, node_port, pod_ip, pod_node,
    pod_pools, service_cidrs, service_ip, settings, start, unmasqueraded,
};

/// A further source of some pods, by family.
const FURTHER: [&str; 2] = ["198.18.0.7", "2001:db8:18::7"];

fn place(dns_here: bool) -> Place {
    Place {
        fabric: types::Fabric::default(),
        wiring: types::Wiring::default(),
        node: NODES[0].to_owned(),
        pod_pools: pod_pools(),
        unmasqueraded: unmasqueraded(),
        service_cidrs: service_cidrs(),
        dns_ips: dns_ips(),
        allow_sources: allow_sources(),
        api: api(),
        dns_here,
        of_link: Vec::new(),
        broadcasts: Vec::new(),
    }
}

/// One of two addresses, by family.
fn either(family: Family, v4: &str, v6: &str) -> IpAddr {
    ip(if family == Family::V4 { v4 } else { v6 })
}

/// Where packets come from, with the device they come in by.
fn source(family: Family) -> impl Strategy<Value = (Option<&'static str>, IpAddr)> {
    prop_oneof![
        5 => (0..4_usize).prop_map(move |n| (Some("cni0"), pod_ip(family, n))),
        3 => (4..8_usize).prop_map(move |n| (Some("plumb.1"), pod_ip(family, n))),
        3 => Just((Some("eth0"), either(family, "203.0.113.10", "2001:db8::10"))),
        1 => Just((Some("plumb.1"), either(family, "10.244.2.0", "fd00:10:244:2::"))),
        2 => Just((None, node_ip(family, 0))),
        2 => Just((Some("cni0"), either(family, FURTHER[0], FURTHER[1]))),
    ]
}

fn destination(family: Family) -> impl Strategy<Value = IpAddr> {
    let special = [
        ("10.96.0.10", "fd00:10:96::a"),
        ("10.96.0.99", "fd00:10:96::99"),
        ("192.168.1.11", "fd00:192:168:1::11"),
        ("10.244.1.1", "fd00:10:244:1::1"),
        ("203.0.113.10", "2001:db8::10"),
        ("10.244.9.9", "fd00:10:244:9::9"),
        ("192.0.2.7", "2001:db8:7::7"),
        ("224.0.0.251", "ff05::fb"),
        ("127.0.0.1", "::1"),
        (FURTHER[0], FURTHER[1]),
    ];
    prop_oneof![
        4 => (0..5_usize).prop_map(move |n| service_ip(family, n)),
        4 => (0..8_usize).prop_map(move |n| pod_ip(family, n)),
        4 => (0..8_usize).prop_map(move |n| external_ip(family, n)),
        3 => Just(node_ip(family, 0)),
        1 => select(special.map(|(v4, v6)| either(family, v4, v6)).to_vec()),
    ]
}

fn packet() -> impl Strategy<Value = Packet> {
    let protocol = prop_oneof![8 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)];
    let port = select(vec![53_u16, 53, 80, 80, 81, 81, 8080, 8080, 9476]);
    let ends = select(Family::ALL.to_vec()).prop_flat_map(|family| (source(family), destination(family)));
    let known = vec![CtState::Established, CtState::Established, CtState::Reply, CtState::Related];
    let ct = prop_oneof![30 => Just(CtState::New), 4 => select(known), 1 => Just(CtState::Invalid)];
    (ends, protocol, port, 0..3_u8, ct).prop_map(|(((iif, src), dst), protocol, port, to_node, ct)| {
        // The node is mostly asked for its node ports.
        let own = Family::ALL.iter().any(|family| node_ip(*family, 0) == dst);
        Packet {
            iif: iif.and_then(|name| IfName::new(name).ok()),
            src,
            dst,
            protocol,
            sport: 40000,
            dport: if own && to_node > 0 { node_port(port) } else { port },
            ct,
        }
    })
}

fn cluster_of(events: impl IntoIterator<Item = Event>) -> Cluster {
    let mut cluster = Cluster::default();
    for event in events {
        cluster.apply(event);
    }
    cluster
}

fn fate(path: &eval::Path) -> Fate {
    match path.end {
        End::Local => Fate::Local(path.destination),
        End::Out(_) => Fate::Out { to: path.destination, masquerade: path.masquerade },
        End::Rejected => Fate::Rejected,
        End::Dropped | End::Unreachable => Fate::Dropped,
    }
}

fn check(cluster: &Cluster, packets: &[Packet], dns_here: bool) -> Result<(), TestCaseError> {
    let place = place(dns_here);
    let desired = whole(cluster.synced().expect("all kinds are done"), settings());
    let local = Family::ALL.map(|family| node_ip(family, 0));
    let socket = dns_here.then_some(false);
    let kernel = Kernel { nft: &desired.nft, net: &desired.net, local: &local, socket };
    for packet in packets {
        let paths = eval::all(packet, &kernel);
        let found: BTreeSet<_> = paths.iter().map(fate).collect();
        let right = fates(packet, cluster, &place).into_iter();
        let right: BTreeSet<_> = right.map(|fate| or_dropped(fate, &kernel, &place)).collect();
        prop_assert_eq!(&found, &right, "\n{:?}\n{:#?}", packet, paths);
    }
    Ok(())
}

/// A pod's IPv6 address to which the node has no way of ours is for no other link, whatever routers say.
fn or_dropped(fate: Fate, kernel: &Kernel<'_>, place: &Place) -> Fate {
    let Fate::Out { to, .. } = fate else { return fate };
    let pod = to.is_ipv6() && place.is_pod_address(to.ip());
    let way = eval::route_of(kernel.net, kernel.local, to.ip());
    let astray = pod && way.is_some_and(|way| way.dev.is_none());
    if astray { Fate::Dropped } else { fate }
}

/// One in a million of the random packets is a query of a known flow.
#[test]
fn queries_of_every_flow_are_heard_or_asked_again() {
    let cluster = cluster_of(start());
    let states = [CtState::New, CtState::Established, CtState::Reply, CtState::Related, CtState::Invalid];
    for (ct, protocol) in states.into_iter().flat_map(|ct| [(ct, Protocol::Udp), (ct, Protocol::Tcp)]) {
        for (family, iif) in
            Family::ALL.into_iter().flat_map(|family| [(family, Some("cni0")), (family, None)])
        {
            let src = if iif.is_some() { pod_ip(family, 0) } else { node_ip(family, 0) };
            let dst =
                *settings().dns_ips.iter().find(|ip| Family::of(**ip) == family).expect("one of each family");
            let iif = iif.and_then(|name| IfName::new(name).ok());
            let packet = Packet { iif, src, dst, protocol, sport: 40000, dport: 53, ct };
            for dns_here in [true, false] {
                check(&cluster, std::slice::from_ref(&packet), dns_here)
                    .unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

/// Machines of a control plane have its address in turn: no Node names it.
#[test]
fn no_host_port_takes_an_address_of_the_apis_that_moves_to_its_node() {
    let mut cluster = cluster_of(start());
    let port = |port| HostPort { protocol: Protocol::Tcp, port, container_port: 8080, host_ip: None };
    cluster.apply(Event::Upsert(Row::Attachment(Box::new(Attachment {
        wiring: types::Wiring::default(),
        container: "c/eth0".into(),
        pod: ObjectName::new("a", "p"),
        uid: String::new(),
        ips: Family::ALL.map(|family| pod_ip(family, 0)).into(),
        host_if: IfName::new("veth").expect("a name"),
        mac: Mac::default(),
        host_ports: vec![port(81)],
        withheld: Vec::new(),
    }))));
    let desired = whole(cluster.synced().expect("all kinds are done"), settings());
    for family in Family::ALL {
        let [api, node, outside] =
            [external_ip(family, 3), node_ip(family, 0), either(family, "203.0.113.10", "2001:db8::10")];
        let kernel = Kernel { nft: &desired.nft, net: &desired.net, local: &[api, node], socket: None };
        for iif in [Some("eth0"), None] {
            let to = |dst| {
                let iif = iif.and_then(|name| IfName::new(name).ok());
                let src = if iif.is_some() { outside } else { node };
                let (protocol, ct) = (Protocol::Tcp, CtState::New);
                let packet = Packet { iif, src, dst, protocol, sport: 40000, dport: 81, ct };
                eval::all(&packet, &kernel).iter().map(|path| path.destination.ip()).collect::<Vec<_>>()
            };
            assert_eq!(to(api), [api]);
            assert_eq!(to(node), [pod_ip(family, 0)], "at other addresses it is the pod's");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_rules_do_what_kubernetes_says(
        history in history(),
        packets in proptest::collection::vec(packet(), 1..12),
        dns_here in any::<bool>(),
    ) {
        check(&cluster_of(start().into_iter().chain(history)), &packets, dns_here)?;
    }
}

/// The battery must be able to fail: most packets meet a service or a policy, and all fates occur.
#[test]
fn the_battery_meets_every_fate() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut counts = std::collections::BTreeMap::new();
    let (mut written_out, mut merged) = (0, 0);
    for _ in 0..800 {
        let history = history().new_tree(&mut runner).expect("a history").current();
        let cluster = cluster_of(start().into_iter().chain(history));
        let nft = whole(cluster.synced().expect("all kinds are done"), settings()).nft;
        let has = |kind: &str| nft.tables.values().any(|t| t.sets.keys().any(|set| set.starts_with(kind)));
        written_out += usize::from(has("pods_"));
        merged += usize::from(has("ports_"));
        for _ in 0..60 {
            let packet = packet().new_tree(&mut runner).expect("a packet").current();
            let (place, family) = (place(true), Family::of(packet.dst));
            let withheld = |service: &&model::Service| {
                let wants = service.external_ips.contains(&packet.dst)
                    && service
                        .ports
                        .iter()
                        .any(|port| (port.protocol, port.port) == (packet.protocol, packet.dport));
                wants && withheld::from_the_outside(&packet, service, &cluster, &place).is_some()
            };
            let rivals = cluster.services_at(packet.dst).filter(|service| {
                service.ports.iter().any(|port| (port.protocol, port.port) == (packet.protocol, packet.dport))
            });
            *counts.entry((family, "rivals")).or_insert(0) += usize::from(rivals.count() > 1);
            let checked = withheld::is_health_check(&packet, &cluster, &place);
            *counts.entry((family, "health check")).or_insert(0) += usize::from(checked);
            let refused = cluster.services_at(packet.dst).any(|service| withheld(&service));
            *counts.entry((family, "withheld")).or_insert(0) += usize::from(refused);
            match trace::reference::choose(&packet, &cluster, &place) {
                Choice::Drop { service: Some(_), why } => *counts.entry((family, why)).or_insert(0) += 1,
                Choice::Endpoints { port, .. } if port == "hostPort" => {
                    *counts.entry((family, "host port")).or_insert(0) += 1;
                }
                Choice::Endpoints { .. } if packet.dst == node_ip(family, 0) => {
                    *counts.entry((family, "node port")).or_insert(0) += 1;
                }
                _ => {}
            }
            let further = packet.src == either(family, FURTHER[0], FURTHER[1]);
            let answer = packet.ct == CtState::Reply;
            for fate in fates(&packet, &cluster, &place) {
                match fate {
                    Fate::Out { .. } if further => {
                        *counts.entry((family, "further source")).or_insert(0) += 1
                    }
                    Fate::Dropped if answer => *counts.entry((family, "closed to answers")).or_insert(0) += 1,
                    _ => {}
                }
                let kind = match fate {
                    Fate::Local(_) => "local",
                    Fate::Out { masquerade: true, .. } => "masqueraded",
                    Fate::Out { masquerade: false, to } if to == packet.destination() => "direct",
                    Fate::Out { .. } => "translated",
                    Fate::Rejected => "rejected",
                    Fate::Dropped => "dropped",
                };
                *counts.entry((family, kind)).or_insert(0) += 1;
            }
        }
    }
    let policies = ["internal", "external"]
        .map(|word| format!("none of the Service's endpoints is on this node ({word}TrafficPolicy: Local)"));
    let usual =
        ["local", "masqueraded", "direct", "translated", "rejected", "dropped", "node port", "host port"];
    let shut_out = "the source is not in loadBalancerSourceRanges";
    let contests = ["rivals", "withheld", "health check", "further source", "closed to answers"];
    for kind in usual.into_iter().chain(contests).chain(policies.iter().map(String::as_str)).chain([shut_out])
    {
        for family in Family::ALL {
            assert!(
                counts.get(&(family, kind)).is_some_and(|count| *count > 3),
                "{family} {kind}: {counts:?}"
            );
        }
    }
    assert!(written_out > 20 && merged > 10, "policies of both layouts: {written_out}, {merged}");
    assert_eq!(pod_node(0), NODES[0]);
}
