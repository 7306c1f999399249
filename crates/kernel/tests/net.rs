//! Whole node states against the real kernel, in namespaces of their own.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::net::{Change, Changes, Scope, apply, observe};
use kernel::veth::{self, PodVeth, Port};
use kernel::{Netns, Rtnl};
use kstate::net::{
    BridgePort, Forward, Link, LinkKind, NetState, Op, Plan, PortOptions, Route, RouteKey, RouteKind, Told,
    contradicting, diff,
};
use netlink::route::Lookup;
use types::{IfName, IpNet, Mac, Vni};

fn name(text: &str) -> IfName {
    IfName::new(text).expect("a good name")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn node(text: &str) -> Forward {
    Forward::Node(ip(text))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn link(kind: LinkKind, mac: &str) -> Link {
    Link { kind, mac: mac.parse().ok(), mtu: Some(1450), up: true, port: None }
}

fn via(dev: &str, gateway: &str) -> Route {
    let (dev, via) = (Some(name(dev)), Some(ip(gateway)));
    Route { dev, via, onlink: true, src: None, kind: RouteKind::Unicast }
}

/// Node `n` of the lab with one peer `m`, as the agent wants it.
fn node_state(n: u8, m: u8) -> NetState {
    let mut state = NetState::default();
    let vtep_mac = |n| Mac([0x0e, 0, 0, 0, 0, n]);
    let local = ip(&format!("192.168.1.{n}"));
    let tunnel = LinkKind::Vxlan { vni: Vni(1), local, port: 8472 };
    state.links.insert(name("cni0"), link(LinkKind::Bridge, &format!("0a:58:0a:f4:{n:02x}:01")));
    state.links.insert(name("plumb.1"), link(tunnel, &vtep_mac(n).to_string()));
    let gateway = (name("cni0"), net(&format!("10.244.{n}.1/24")));
    state.subnets.insert(gateway.clone());
    state.addresses.insert(gateway);
    state.addresses.insert((name("plumb.1"), net(&format!("10.244.{n}.0/32"))));
    state.addresses.insert((name("lo"), net("10.96.0.10/32")));
    state.neighbours.insert((name("plumb.1"), ip(&format!("10.244.{m}.0"))), vtep_mac(m));
    state.fdb.insert((name("plumb.1"), vtep_mac(m)), node(&format!("192.168.1.{m}")));
    let key = RouteKey { dst: net(&format!("10.244.{m}.0/24")), table: 254 };
    state.routes.insert(key, via("plumb.1", &format!("10.244.{m}.0")));
    for (path, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/cni0/send_redirects", "0")] {
        state.sysctls.insert(path.into(), value.into());
    }
    state
}

/// Makes it so, inside the calling thread's namespace, and shows that it is so.
fn make_so(desired: &NetState) {
    let mut rtnl = Rtnl::open().expect("open");
    let scope = Scope::of(desired);
    let actual = observe(&mut rtnl, &scope).expect("observe");
    let plan = diff(desired, &actual);
    let failures = apply(&mut rtnl, &plan).expect("apply");
    assert!(failures.is_empty(), "{failures:?}");
    let after = observe(&mut rtnl, &scope).expect("observe");
    assert_eq!(diff(desired, &after), Plan::default(), "after\n{plan}");
    assert_eq!(&after, desired);
}

#[test]
fn what_is_applied_is_observed_and_nothing_is_left_to_do() {
    Netns::fresh().expect("fresh").run(|| make_so(&node_state(1, 2))).expect("run");
}

#[test]
fn everything_goes_when_nothing_is_desired() {
    let work = || {
        let mut rtnl = Rtnl::open().expect("open");
        let before = rtnl.links().expect("links").len();
        let desired = node_state(1, 2);
        make_so(&desired);
        let scope = Scope::of(&desired);
        let actual = observe(&mut rtnl, &scope).expect("observe");
        let failures = apply(&mut rtnl, &diff(&NetState::default(), &actual)).expect("apply");
        assert!(failures.is_empty(), "{failures:?}");
        let mut after = observe(&mut rtnl, &scope).expect("observe");
        after.sysctls.clear();
        assert_eq!((after, rtnl.links().expect("links").len()), (NetState::default(), before));
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

#[test]
fn ipv6_and_unreachable_routes_are_observed_as_applied() {
    let work = || {
        let mut desired = NetState::default();
        let tunnel = LinkKind::Vxlan { vni: Vni(7), local: ip("fd00::1"), port: 4789 };
        desired.links.insert(name("plumb6"), link(tunnel, "0e:00:00:00:00:06"));
        desired.links.insert(name("br6"), link(LinkKind::Bridge, "0a:58:00:00:00:06"));
        desired.addresses.insert((name("br6"), net("fd00:1::1/64")));
        desired.subnets.insert((name("br6"), net("fd00:1::1/64")));
        desired.neighbours.insert((name("plumb6"), ip("fd00:2::")), Mac([2; 6]));
        desired.fdb.insert((name("plumb6"), Mac([2; 6])), node("fd00::2"));
        let route = |text| RouteKey { dst: net(text), table: 254 };
        desired.routes.insert(route("fd00:2::/64"), via("plumb6", "fd00:2::"));
        let kind = RouteKind::Unreachable;
        let unreachable = Route { dev: None, via: None, onlink: false, src: None, kind };
        desired.routes.insert(route("fd00:1::/48"), unreachable.clone());
        desired.routes.insert(RouteKey { dst: net("10.1.0.0/16"), table: 1000 }, unreachable);
        make_so(&desired);
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// Each planted fault is seen by the listener, found by the diff and mended.
#[test]
fn faults_are_heard_and_mended() {
    let work = || {
        let desired = node_state(1, 2);
        make_so(&desired);
        let mut changes = Changes::listen(Scope::of(&desired)).expect("listen");
        let mut rtnl = Rtnl::open().expect("open");
        let mut other = node_state(1, 2);
        let device = other.links.get_mut(&name("plumb.1")).expect("a device");
        device.kind = LinkKind::Vxlan { vni: Vni(2), local: ip("192.168.1.1"), port: 8472 };
        let device = device.clone();
        let moved = via("cni0", "10.244.1.9");
        let key = RouteKey { dst: net("10.244.2.0/24"), table: 254 };
        let mac = Mac([0x0e, 0, 0, 0, 0, 2]);
        let mut bridge = desired.links.get(&name("cni0")).expect("a bridge").clone();
        (bridge.up, bridge.mtu) = (false, Some(1400));
        let mut other_mac = desired.links.get(&name("plumb.1")).expect("a tunnel").clone();
        other_mac.mac = Some(Mac([2; 6]));
        let faults = [
            vec![Op::DeleteFdb { link: name("plumb.1"), mac, to: node("192.168.1.2") }],
            vec![Op::SetFdb { link: name("plumb.1"), mac, to: node("192.168.1.99") }],
            vec![Op::DeleteNeighbour { link: name("plumb.1"), ip: ip("10.244.2.0") }],
            vec![Op::SetNeighbour { link: name("plumb.1"), ip: ip("10.244.2.0"), mac: Mac([2; 6]) }],
            vec![Op::DeleteRoute { key: key.clone() }],
            vec![Op::SetRoute { key, route: moved }],
            vec![Op::DeleteAddress { link: name("lo"), address: net("10.96.0.10/32") }],
            vec![Op::ChangeLink { name: name("cni0"), link: bridge }],
            vec![Op::ChangeLink { name: name("plumb.1"), link: other_mac }],
            vec![Op::DeleteLink { name: name("plumb.1") }],
            vec![Op::SetSysctl { path: "net/ipv4/ip_forward".into(), value: "0".into() }],
            vec![
                Op::DeleteLink { name: name("plumb.1") },
                Op::AddLink { name: name("plumb.1"), link: device },
            ],
        ];
        for fault in faults {
            while changes.hear().expect("drain").is_some() {}
            let plan = Plan { grow: fault, shrink: Vec::new() };
            assert!(apply(&mut rtnl, &plan).expect("apply").is_empty(), "{plan}");
            assert!(heard(&mut changes, &desired), "nothing was heard of {plan}");
            let actual = observe(&mut rtnl, &Scope::of(&desired)).expect("observe");
            assert_ne!(diff(&desired, &actual), Plan::default(), "{plan}");
            let mut predicted = desired.clone();
            predicted.edit(&plan);
            assert_eq!(actual, predicted, "the kernel's side effects are not ours: {plan}");
            make_so(&desired);
        }
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// What keeps a pod in its place, on a node that has wired it: each thing that somebody takes away is heard, and told
/// by the diff as the kernel has it then.
#[test]
fn what_keeps_a_pod_in_its_place_is_heard_and_mended() {
    let work = || {
        let mut desired = node_state(1, 2);
        make_so(&desired);
        let (mut rtnl, pod) = (Rtnl::open().expect("open"), Netns::fresh().expect("fresh"));
        let (host, bridge, mac) = (name("veth1"), name("cni0"), Mac([0x0a, 0x58, 10, 244, 1, 4]));
        let veth = PodVeth {
            host: &host,
            host_mac: None,
            netns: &pod,
            interface: &name("eth0"),
            mac: Some(mac),
            mtu: Some(1450),
            addresses: &[],
            routes: &[],
            bridge: Some(Port { bridge: &bridge, options: PortOptions::OF_POD }),
            loopback: false,
        };
        veth::create(&mut rtnl, &veth).expect("create");
        let port = |options| Some(BridgePort::new(bridge.clone(), options));
        let link = |port| Link { kind: LinkKind::Veth, mac: None, mtu: Some(1450), up: true, port };
        desired.links.insert(host.clone(), link(port(PortOptions::OF_POD)));
        desired.fdb.insert((host.clone(), mac), Forward::Port);
        for address in ["10.244.1.4", "fe80::858:aff:fef4:104"] {
            desired.neighbours.insert((bridge.clone(), ip(address)), mac);
        }
        let mut scope = Scope::of(&desired);
        scope.links.insert(host.clone());
        let observe = |rtnl: &mut Rtnl| observe(rtnl, &scope).expect("observe");
        let differ = |rtnl: &mut Rtnl| diff(&desired, &observe(rtnl));
        let mend = |rtnl: &mut Rtnl| {
            let plan = differ(rtnl);
            assert!(apply(rtnl, &plan).expect("apply").is_empty(), "{plan}");
            assert_eq!(differ(rtnl), Plan::default(), "after {plan}");
        };
        let at_first = differ(&mut rtnl).to_string();
        assert_eq!(
            at_first,
            "+ neighbour 10.244.1.4 0a:58:0a:f4:01:04 dev cni0\n\
             + neighbour fe80::858:aff:fef4:104 0a:58:0a:f4:01:04 dev cni0\n",
            "the port itself is made as a whole"
        );
        mend(&mut rtnl);
        let mut changes = Changes::listen(scope.clone()).expect("listen");
        let mut down = desired.links.get(&bridge).expect("a bridge").clone();
        down.up = false;
        let (at, set) = (bridge.clone(), ip("10.244.1.4"));
        let without = |option| PortOptions::OF_POD.without(option);
        let mut faults = vec![
            Op::DeleteFdb { link: host.clone(), mac, to: Forward::Port },
            Op::SetFdb { link: host.clone(), mac: Mac([2; 6]), to: Forward::Port },
            Op::DeleteNeighbour { link: at.clone(), ip: set },
            Op::SetNeighbour { link: at.clone(), ip: set, mac: Mac([2; 6]) },
            Op::SetNeighbour { link: at.clone(), ip: ip("10.244.1.9"), mac },
            Op::ChangeLink { name: host.clone(), link: link(None) },
            Op::ChangeLink { name: at, link: down },
        ];
        let learning =
            [PortOptions::LEARNING, PortOptions::FLOOD, PortOptions::MCAST_FLOOD, PortOptions::BCAST_FLOOD];
        let options = learning.map(|option| PortOptions::OF_POD.and(option)).into_iter();
        let ours =
            [PortOptions::ISOLATED, PortOptions::LOCKED, PortOptions::GROUP_FWD, PortOptions::CHECKSUMS];
        // An ordinary user can have no program.
        let ours = ours
            .into_iter()
            .filter(|option| *option != PortOptions::CHECKSUMS || kernel::checksums::program().is_ok());
        let options = options.chain(ours.map(without));
        faults
            .extend(options.map(|options| Op::ChangeLink { name: host.clone(), link: link(port(options)) }));
        for fault in faults {
            while changes.hear().expect("drain").is_some() {}
            let plan = Plan { grow: vec![fault], shrink: Vec::new() };
            let mut predicted = observe(&mut rtnl);
            assert!(apply(&mut rtnl, &plan).expect("apply").is_empty(), "{plan}");
            assert!(heard(&mut changes, &desired), "nothing was heard of {plan}");
            predicted.edit(&plan);
            assert_eq!(observe(&mut rtnl), predicted, "the kernel's side effects are not ours: {plan}");
            assert_ne!(differ(&mut rtnl), Plan::default(), "{plan}");
            mend(&mut rtnl);
        }
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// What pods have the bridge and the node learn is nobody's wish: whoever makes much of it keeps no agent looking.
#[test]
fn what_is_learned_on_the_bridge_is_not_heard() {
    let work = || {
        let desired = node_state(1, 2);
        make_so(&desired);
        let mut changes = Changes::listen(Scope::of(&desired)).expect("listen");
        let mut rtnl = Rtnl::open().expect("open");
        // Nobody has this address: the question and its failure are told by the kernel.
        let asks = UdpSocket::bind("10.244.1.1:0").expect("bind");
        asks.send_to(b"?", "10.244.1.77:9").expect("send");
        let link = rtnl.index(&name("cni0")).expect("an index");
        let asked = |row: &netlink::route::NeighbourRow| row.ip == Some(ip("10.244.1.77"));
        assert!(rtnl.neighbours(link).expect("neighbours").iter().any(asked));
        // And one of ours, which is heard, comes after it.
        let mac = Mac([2; 6]);
        let ours = Op::SetNeighbour { link: name("plumb.1"), ip: ip("10.244.9.0"), mac };
        let plan = Plan { grow: vec![ours], shrink: Vec::new() };
        assert!(apply(&mut rtnl, &plan).expect("apply").is_empty());
        let mut all = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(5);
        while all.is_empty() && Instant::now() < deadline {
            all.extend(changes.hear().expect("hear").into_iter().flatten());
        }
        let of = |change: &Change| match change {
            Change::Ours(Told::Neighbour(_, ip, _)) => Some(*ip),
            _ => None,
        };
        assert_eq!(all.iter().map(of).collect::<Vec<_>>(), [Some(ip("10.244.9.0"))]);
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// More entries than one datagram and its acknowledgements can carry.
#[test]
fn hundreds_of_peers_fit() {
    let work = || {
        let mut desired = node_state(1, 2);
        let device = name("plumb.1");
        for n in 0..500_u16 {
            let [high, low] = (n + 3).to_be_bytes();
            let (vtep, mac) = (IpAddr::from([10, 128 + high, low, 0]), Mac([0x0e, 0, 0, 1, high, low]));
            desired.neighbours.insert((device.clone(), vtep), mac);
            desired.fdb.insert((device.clone(), mac), Forward::Node([172, 16, high, low].into()));
            let key = RouteKey { dst: IpNet::new(vtep, 24).expect("a network"), table: 254 };
            desired.routes.insert(key, via("plumb.1", &vtep.to_string()));
        }
        let start = Instant::now();
        make_so(&desired);
        println!("500 peers: applied and observed in {:?}", start.elapsed());
        let mut rtnl = Rtnl::open().expect("open");
        let actual = observe(&mut rtnl, &Scope::of(&desired)).expect("observe");
        let few = node_state(1, 2);
        assert!(apply(&mut rtnl, &diff(&few, &actual)).expect("apply").is_empty());
        assert_eq!(observe(&mut rtnl, &Scope::of(&few)).expect("observe"), few);
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// Another hand puts a route of its own in the place of ours, which our protocol number does not mark.
#[test]
fn a_foreign_route_in_our_place_is_heard_and_replaced() {
    let work = || {
        let desired = node_state(1, 2);
        make_so(&desired);
        let mut changes = Changes::listen(Scope::of(&desired)).expect("listen");
        let mut rtnl = Rtnl::open().expect("open");
        let index = rtnl.index(&name("cni0"));
        let key = RouteKey { dst: net("10.244.2.0/24"), table: 254 };
        let mut batch = rtnl.socket_mut().batch();
        let foreign = via("cni0", "10.244.1.9");
        batch.add(|writer, seq| netlink::route::add_static_route(writer, seq, &key, &foreign, index));
        assert_eq!(rtnl.socket_mut().run(batch).expect("run"), []);
        assert!(heard(&mut changes, &desired));
        make_so(&desired);
        let at_key = rtnl.all_routes(types::Family::V4).expect("routes").into_iter();
        let protocols: Vec<u8> = at_key.filter(|row| row.key == key).map(|row| row.protocol).collect();
        assert_eq!(protocols, [kstate::net::ROUTE_PROTOCOL]);
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// What takes the place of ours without a word of its end: it is heard, seen as missing, and mended.
#[test]
fn what_takes_the_place_of_ours_is_heard_and_mended() {
    let work = || {
        let desired = node_state(1, 2);
        make_so(&desired);
        let ((tunnel, mac), _) = desired.fdb.first_key_value().expect("an entry");
        let entry = format!("bridge fdb replace {mac} dev {tunnel} self");
        let ((_, vtep), _) = desired.neighbours.first_key_value().expect("a neighbour");
        let commands = [
            "ip route replace blackhole 10.244.2.0/24",
            "ip route replace prohibit 10.244.2.0/24",
            "ip route replace unreachable 10.244.2.0/24",
            "ip route replace throw 10.244.2.0/24",
            "ip route replace 10.244.2.0/24 dev cni0",
            "ip route replace 10.244.2.0/24 nexthop via 10.244.1.8 dev cni0 nexthop via 10.244.1.9 dev cni0",
            "ip route replace blackhole 10.244.1.0/24",
            &format!("{entry} dst 172.16.9.9"),
            &format!("{entry} dst 192.168.1.2 port 9999"),
            &format!("{entry} dst 192.168.1.2 vni 77"),
            &format!("ip neigh replace {vtep} lladdr 02:00:00:00:00:09 dev {tunnel} nud permanent"),
            &format!("ip neigh replace {vtep} lladdr 02:00:00:00:00:09 dev {tunnel} nud reachable"),
        ];
        for command in commands {
            let mut changes = Changes::listen(Scope::of(&desired)).expect("listen");
            let mut words = command.split(' ');
            let done = std::process::Command::new(words.next().expect("a word")).args(words).status();
            assert!(done.expect("run").success(), "{command}");
            assert!(heard(&mut changes, &desired), "{command} is not heard");
            let mut rtnl = Rtnl::open().expect("open");
            let actual = observe(&mut rtnl, &Scope::of(&desired)).expect("observe");
            assert!(!diff(&desired, &actual).is_empty(), "{command} is not seen");
            make_so(&desired);
        }
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// The kernel makes it with the address, and nobody makes it again.
#[test]
fn a_route_to_the_pods_that_is_gone_is_heard_and_made_again() {
    let work = || {
        let mut desired = node_state(1, 2);
        for own in ["10.244.1.1/24", "fd00:1::1/64"] {
            desired.addresses.insert((name("cni0"), net(own)));
            desired.subnets.insert((name("cni0"), net(own)));
        }
        make_so(&desired);
        let mut changes = Changes::listen(Scope::of(&desired)).expect("listen");
        let mut rtnl = Rtnl::open().expect("open");
        for (family, gone) in [("-4", "10.244.1.0/24"), ("-6", "fd00:1::/64")] {
            while changes.hear().expect("drain").is_some() {}
            let deleted =
                std::process::Command::new("ip").args([family, "route", "del", gone, "dev", "cni0"]).status();
            assert!(deleted.expect("ip runs").success());
            assert!(heard(&mut changes, &desired), "nothing was heard of {gone}");
            let actual = observe(&mut rtnl, &Scope::of(&desired)).expect("observe");
            let plan = diff(&desired, &actual).to_string();
            assert_eq!(plan, format!("+ route {gone} dev cni0 proto kernel\n"));
            make_so(&desired);
        }
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// Whether something that is not known comes within five seconds.
fn heard(changes: &mut Changes, known: &NetState) -> bool {
    let mut told = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        while let Some(batch) = changes.hear().expect("hear") {
            told.extend(batch.into_iter().filter_map(|change| match change {
                Change::Ours(told) => Some(told),
                _ => None,
            }));
            if !contradicting(&told, known).is_empty() {
                return true;
            }
        }
        let mut fds =
            [rustix::event::PollFd::from_borrowed_fd(changes.as_fd(), rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut fds, Some(&second));
    }
    false
}

#[test]
fn a_refusal_names_the_object_and_the_rest_goes_on() {
    let work = || {
        let mut rtnl = Rtnl::open().expect("open");
        let mut desired = node_state(1, 2);
        let key = RouteKey { dst: net("10.9.0.0/16"), table: 254 };
        let (dev, via) = (None, Some(ip("203.0.113.1")));
        let route = Route { dev, via, onlink: false, src: None, kind: RouteKind::Unicast };
        desired.routes.insert(key, route);
        let failures = apply(&mut rtnl, &diff(&desired, &NetState::default())).expect("apply");
        let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(
            texts.iter().all(|t| t.starts_with("set the route 10.9.0.0/16 via 203.0.113.1: ")),
            "{texts:?}"
        );
        desired.routes.retain(|key, _| key.dst != net("10.9.0.0/16"));
        let after = observe(&mut rtnl, &Scope::of(&desired)).expect("observe");
        assert_eq!(after, desired);
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

#[test]
fn a_pods_port_is_mended_but_a_lost_veth_is_not_made() {
    let work = || {
        let mut desired = node_state(1, 2);
        make_so(&desired);
        let mut rtnl = Rtnl::open().expect("open");
        let pod = Netns::fresh().expect("fresh");
        let (host, interface) = (name("veth1"), name("eth0"));
        let veth = PodVeth {
            host: &host,
            host_mac: None,
            netns: &pod,
            interface: &interface,
            mac: None,
            mtu: Some(1450),
            addresses: &[],
            routes: &[],
            bridge: None,
            loopback: false,
        };
        veth::create(&mut rtnl, &veth).expect("create");
        let port = Some(BridgePort::new(name("cni0"), PortOptions::OF_POD));
        let wanted = Link { kind: LinkKind::Veth, mac: None, mtu: None, up: true, port };
        desired.links.insert(host, wanted.clone());
        desired.links.insert(name("veth2"), wanted.clone());
        let mut scope = Scope::of(&desired);
        scope.veth_prefix = Some("veth".into());
        let actual = observe(&mut rtnl, &scope).expect("observe");
        let plan = diff(&desired, &actual);
        assert_eq!(
            plan.to_string(),
            "~ link veth1 veth up port of cni0, isolated locked group_fwd checksums\n"
        );
        assert!(apply(&mut rtnl, &plan).expect("apply").is_empty());
        let actual = observe(&mut rtnl, &scope).expect("observe");
        let mended = actual.links.get(&name("veth1")).expect("veth1");
        assert!(wanted.is_met_by(mended), "{mended}");
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}

/// Two nodes on an underlay, joined by what `node_state` says: the bridges' addresses reach each other.
#[test]
fn two_nodes_exchange_datagrams_over_the_tunnel() {
    let nodes = [Netns::fresh().expect("fresh"), Netns::fresh().expect("fresh")];
    let [one, two] = &nodes;
    let connect = || {
        let mut rtnl = Rtnl::open().expect("open");
        let veth = PodVeth {
            host: &name("eth0"),
            host_mac: None,
            netns: two,
            interface: &name("eth0"),
            mac: None,
            mtu: Some(1500),
            addresses: &[net("192.168.1.2/24")],
            routes: &[],
            bridge: None,
            loopback: true,
        };
        veth::create(&mut rtnl, &veth).expect("create");
        let underlay = Op::AddAddress { link: name("eth0"), address: net("192.168.1.1/24") };
        let plan = Plan { grow: vec![underlay], shrink: Vec::new() };
        assert!(apply(&mut rtnl, &plan).expect("apply").is_empty());
    };
    one.run(connect).expect("run");
    one.run(|| make_so(&node_state(1, 2))).expect("run");
    two.run(|| make_so(&node_state(2, 1))).expect("run");
    let server = two.run(|| UdpSocket::bind("10.244.2.1:9")).expect("run").expect("bind");
    let client = one.run(|| UdpSocket::bind("10.244.1.1:0")).expect("run").expect("bind");
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    }
    // The largest datagram that the tunnel carries in one piece: 1450 less the IP and UDP headers.
    client.send_to(&[7; 1422], "10.244.2.1:9").expect("send");
    let mut buffer = [0; 2000];
    let (length, from) = server.recv_from(&mut buffer).expect("receive");
    assert_eq!((length, from.ip()), (1422, ip("10.244.1.1")));
    server.send_to(b"back", from).expect("answer");
    assert_eq!(client.recv_from(&mut buffer).expect("receive").1.ip(), ip("10.244.2.1"));
}

/// What drops a packet at the routing decision is told as such.
#[test]
fn a_route_is_looked_up_as_the_kernel_would_for_a_packet() {
    let work = || {
        make_so(&node_state(1, 2));
        let mut rtnl = Rtnl::open().expect("open");
        let [bridge, tunnel] = ["cni0", "plumb.1"].map(|link| rtnl.index(&name(link)).expect("a link"));
        let from_pod = |to| Lookup { from: Some(ip("10.244.1.5")), to: ip(to), iif: Some(bridge) };
        let mut way = |lookup: &Lookup| rtnl.way(lookup).map(|way| way.link).map_err(|error| error.errno());
        assert_eq!(way(&from_pod("10.244.2.9")), Ok(tunnel));
        assert_eq!(way(&from_pod("10.244.1.9")), Ok(bridge));
        assert_eq!(way(&Lookup { from: None, to: ip("10.244.1.9"), iif: None }), Ok(bridge));
        assert_eq!(way(&from_pod("203.0.113.10")), Err(Some(libc::ENETUNREACH)));
        std::fs::write("/proc/sys/net/ipv4/conf/cni0/rp_filter", "1").expect("ask for the source's way");
        let forged = Lookup { from: Some(ip("10.244.2.5")), ..from_pod("10.244.1.9") };
        let refused = way(&forged);
        assert!(matches!(refused, Err(Some(libc::EINVAL | libc::EXDEV))), "{refused:?}");
        std::fs::write("/proc/sys/net/ipv4/conf/cni0/forwarding", "0").expect("forward nothing");
        assert_eq!(way(&from_pod("10.244.2.9")), Err(Some(libc::EHOSTUNREACH)));
    };
    Netns::fresh().expect("fresh").run(work).expect("run");
}
