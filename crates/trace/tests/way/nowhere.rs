//! Destinations that nobody has, or that are of many: the packet ends there, and no fault is looked for.

use trace::observed::{Seen, SocketEnd, Way};
use trace::{
    Decision, Fact, Hop, Observed, Outcome, Place, Sighting, Stage, Target, View, compare, departure,
};
use types::Protocol;

use super::ends::both_families;
use super::{desired, dev, name, place, to};

fn hops(protocol: Protocol, destination: &str) -> Vec<Hop> {
    let world = both_families();
    let broadcasts = vec!["192.168.1.255".parse().expect("an address")];
    let mut place = Place { broadcasts, ..place("node1") };
    let net = "fd00:10:244::/48".parse().expect("a prefix");
    place.pod_pools.push(net);
    place.unmasqueraded.push(net);
    let state = desired(&world, "node1");
    let view = View { cluster: &world, nft: &state.nft, net: &state.net, place: &place };
    let target =
        Target { protocol, destination: to(destination), sport: 41224, endpoint: None, answers_to: None };
    departure(&view, &name("shop/web"), &target).expect("wired").hops
}

fn source(destination: &str) -> &'static str {
    if to(destination).is_ipv4() { "10.244.1.4:41224" } else { "[fd00:10:244:1::4]:41224" }
}

fn frame(at: u64, on: &str, direction: Way, (protocol, destination): (Protocol, &str)) -> Sighting {
    let packet = Seen { protocol, source: to(source(destination)), destination: to(destination), bytes: 60 };
    Sighting::Frame { at, dev: dev(on), direction, packet, outer: None }
}

fn sent(destination: &str, end: SocketEnd) -> Sighting {
    Sighting::Sent { at: 1, source: to(source(destination)), destination: to(destination), end }
}

fn rule(hook: &str, chain: &str, verdict: &str, destination: &str) -> Sighting {
    let packet = Seen {
        protocol: Protocol::Tcp,
        source: to(source(destination)),
        destination: to(destination),
        bytes: 60,
    };
    let rule = Decision {
        hook: hook.into(),
        family: "ip6".into(),
        table: "plumb".into(),
        chain: chain.into(),
        verdict: verdict.into(),
        comment: String::new(),
        packet: Some(packet),
        oif: Some(dev("eth0")),
        answer: false,
        guard: false,
    };
    Sighting::Nft { rule }
}

fn agree(hops: &[Hop], sightings: Vec<Sighting>) {
    for result in compare(hops, &[Observed { node: "node1".into(), sightings }]) {
        assert!(matches!(result.outcome, Outcome::Agree { .. }), "{result:#?}");
    }
}

/// Of IPv6 a rule ends it that IPv4 does not need; that it ends is what is expected of both.
#[test]
fn a_pods_address_that_no_node_has_ends_the_same_in_both_families() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        for (destination, astray) in [("10.244.9.9:80", false), ("[fd00:10:244:9::9]:80", true)] {
            let hops = hops(protocol, destination);
            let last = hops.last().expect("hops");
            assert_eq!(last.stage, Stage::Node);
            assert!(last.text.contains("is dropped: no node has pods with such an address"), "{}", last.text);
            let on = |at, link, way| frame(at, link, way, (protocol, destination));
            let mut seen = vec![
                sent(destination, SocketEnd::Silent),
                on(2, "veth1", Way::In),
                on(3, "cni0", Way::In),
                rule("forward", "forward", "accept", destination),
            ];
            match astray {
                true => seen.push(rule("postrouting", "astray", "drop", destination)),
                false => seen.push(on(4, "eth0", Way::Out)),
            }
            agree(&hops, seen.clone());
        }
    }
}

/// The node says so at once, as far as it is not asked too often: the word is that of what came of it.
#[test]
fn an_address_of_the_nodes_own_that_no_pod_has_is_refused_in_the_word_of_what_was_told() {
    for (destination, protocol) in [
        ("10.244.1.250:80", Protocol::Tcp),
        ("10.244.1.250:80", Protocol::Udp),
        ("[fd00:10:244:1::250]:80", Protocol::Tcp),
    ] {
        let hops = hops(protocol, destination);
        assert!(
            hops.last().is_some_and(|hop| hop.text.contains("is rejected: no pod of node1 has")),
            "{hops:#?}"
        );
        for (end, word) in [(SocketEnd::Unreachable, "rejected"), (SocketEnd::Silent, "dropped")] {
            let on = |at, link| frame(at, link, Way::In, (protocol, destination));
            let mut reject = rule("forward", "no_pod", "reject", destination);
            if let Sighting::Nft { rule } = &mut reject {
                rule.comment = "no_such_pod: no pod has this address".into();
                rule.guard = true;
                rule.oif = Some(dev("cni0"));
                rule.oif = Some(dev("cni0"));
            }
            let seen = vec![sent(destination, end), on(2, "veth1"), on(3, "cni0"), reject];
            agree(&hops, seen.clone());
            let last =
                compare(&hops, &[Observed { node: "node1".into(), sightings: seen }]).pop().expect("hops");
            assert_eq!(last.hop.text, format!("{destination} is {word}: no pod of node1 has this address"));
        }
    }
}

/// Of a pod that is there it is a fault, and that of the route.
#[test]
fn what_goes_astray_to_a_pod_is_the_routes_fault() {
    let destination = "[fd00:10:244:2::9]:80";
    let on = |at, link| frame(at, link, Way::In, (Protocol::Tcp, destination));
    let sightings = vec![
        sent(destination, SocketEnd::Silent),
        on(2, "veth1"),
        on(3, "cni0"),
        rule("forward", "forward", "accept", destination),
        rule("postrouting", "astray", "drop", destination),
    ];
    let hops = hops(Protocol::Tcp, destination);
    let results = compare(&hops, &[Observed { node: "node1".into(), sightings }]);
    let broken = results.iter().find(|result| matches!(result.outcome, Outcome::Disagree { .. }));
    assert_eq!(broken.map(|result| result.hop.stage), Some(Stage::Route), "{results:#?}");
}

/// Whatever the socket is told: a pod's own kernel refuses to begin a connection to many.
#[test]
fn what_is_for_many_is_forwarded_by_no_node() {
    for (protocol, destination, stage, what) in [
        (Protocol::Udp, "239.1.2.3:5000", Stage::Veth, "a multicast address"),
        (Protocol::Tcp, "239.1.2.3:5000", Stage::Veth, "a multicast address"),
        (Protocol::Udp, "224.0.0.1:53", Stage::Veth, "a multicast address"),
        (Protocol::Icmp, "224.0.0.1:0", Stage::Veth, "a multicast address"),
        (Protocol::Tcp, "[ff02::1]:80", Stage::Veth, "a multicast address"),
        (Protocol::Tcp, "255.255.255.255:67", Stage::Veth, "the broadcast address"),
        (Protocol::Udp, "192.168.1.255:80", Stage::Route, "the broadcast address"),
    ] {
        let hops = hops(protocol, destination);
        let last = hops.last().expect("hops");
        assert_eq!(last.stage, stage, "{destination}");
        assert!(last.text.contains(what) && last.text.contains("no node forwards"), "{}", last.text);
        assert!(
            !hops.iter().any(|hop| matches!(hop.fact, Fact::Masq { .. } | Fact::Pod { .. })),
            "{hops:#?}"
        );
        for end in [SocketEnd::Silent, SocketEnd::Unreachable] {
            let on = |at, link| frame(at, link, Way::In, (protocol, destination));
            agree(&hops, vec![sent(destination, end), on(2, "veth1"), on(3, "cni0")]);
        }
    }
    let ping = hops(Protocol::Icmp, "[ff02::1]:0");
    let end = SocketEnd::Answered { text: "echo reply".into(), micros: 40 };
    agree(&ping, vec![sent("[ff02::1]:0", end)]);
}

/// The node has lost the address that it is known by.
#[test]
fn another_address_of_the_node_is_no_missing_masquerade() {
    let destination = "[2001:db8::7]:80";
    let hops = hops(Protocol::Tcp, destination);
    let why = |source: &str, lost: Option<&str>| {
        let packet =
            Seen { protocol: Protocol::Tcp, source: to(source), destination: to(destination), bytes: 60 };
        let left = Sighting::Frame { at: 4, dev: dev("eth0"), direction: Way::Out, packet, outer: None };
        let on = |at, link| frame(at, link, Way::In, (Protocol::Tcp, destination));
        let mut sightings = vec![
            sent(destination, SocketEnd::Silent),
            on(2, "veth1"),
            on(3, "cni0"),
            rule("postrouting", "masquerade", "accept", destination),
            left,
        ];
        let drift = |text: &str| Sighting::Drift { stage: Stage::Masq, text: text.to_owned() };
        sightings.extend(lost.map(drift));
        let results = compare(&hops, &[Observed { node: "node1".into(), sightings }]);
        let broken = results.into_iter().find(|result| matches!(result.outcome, Outcome::Disagree { .. }));
        let Some((Stage::Masq, Outcome::Disagree { why })) =
            broken.map(|broken| (broken.hop.stage, broken.outcome))
        else {
            panic!("not hop 7")
        };
        why
    };
    let lost = "node1 has lost fd00:192:168::10";
    let other = "masqueraded as fd00:10:244:1::1, which is not fd00:192:168::10";
    assert_eq!(why("[fd00:10:244:1::1]:41224", None), other);
    assert_eq!(why("[fd00:10:244:1::1]:41224", Some(lost)), format!("{other}: {lost}"));
    let own = why("[fd00:10:244:1::4]:41224", None);
    assert_eq!(own, "it left with source fd00:10:244:1::4, not masqueraded");
}
