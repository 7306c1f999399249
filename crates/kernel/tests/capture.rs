//! Captures of real packets in namespaces of their own.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use kernel::capture::{Capture, Direction, Filter};
use kernel::net::apply;
use kernel::veth::{self, PodVeth};
use kernel::{Netns, Rtnl};
use kstate::net::{Forward, Link, LinkKind, Op, Plan};
use netlink::packet::{Frame, Packet};
use types::{IfName, IpNet, Mac, Vni};

fn name(text: &str) -> IfName {
    IfName::new(text).expect("a good name")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// Two namespaces joined by a pair, 192.168.1.1 and 192.168.1.2, and a tunnel between them, 10.244.0.1 and .2.
fn two_nodes() -> [Netns; 2] {
    let nodes = [Netns::fresh().expect("fresh"), Netns::fresh().expect("fresh")];
    let [one, two] = &nodes;
    let pair = || {
        let eth0 = name("eth0");
        let veth = PodVeth {
            host: &eth0,
            host_mac: None,
            netns: two,
            interface: &eth0,
            mac: None,
            mtu: None,
            addresses: &[net("192.168.1.2/24")],
            routes: &[],
            bridge: None,
            loopback: false,
        };
        veth::create(&mut Rtnl::open().expect("open"), &veth).expect("create");
        let address = net("192.168.1.1/24");
        run(vec![Op::AddAddress { link: eth0, address }]);
    };
    one.run(pair).expect("run");
    for (node, n) in nodes.iter().zip([1, 2]) {
        node.run(|| run(tunnel(n))).expect("run");
    }
    nodes
}

fn run(grow: Vec<Op>) {
    let plan = Plan { grow, shrink: Vec::new() };
    let failures = apply(&mut Rtnl::open().expect("open"), &plan).expect("apply");
    assert!(failures.is_empty(), "{failures:?}");
}

fn tunnel(n: u8) -> Vec<Op> {
    let (link, peer) = (name("plumb.1"), 3 - n);
    let mac = |n| Mac([0x0e, 0, 0, 0, 0, n]);
    let kind = LinkKind::Vxlan { vni: Vni(1), local: [192, 168, 1, n].into(), port: 8472 };
    let device = Link { kind, mac: Some(mac(n)), mtu: Some(1450), up: true, port: None };
    vec![
        Op::AddLink { name: link.clone(), link: device },
        Op::AddAddress { link: link.clone(), address: net(&format!("10.244.0.{n}/24")) },
        Op::SetNeighbour { link: link.clone(), ip: [10, 244, 0, peer].into(), mac: mac(peer) },
        Op::SetFdb { link, mac: mac(peer), to: Forward::Node([192, 168, 1, peer].into()) },
    ]
}

/// What is captured until `last` says so, at most for half a minute: direction and text.
fn until(capture: &mut Capture, last: impl Fn(&str) -> bool) -> Vec<(Direction, u32, String)> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut seen = Vec::new();
    while Instant::now() < deadline {
        while let Some(captured) = capture.receive().expect("receive") {
            let age = SystemTime::now().duration_since(captured.at).unwrap_or_default();
            assert!(age < Duration::from_secs(60), "a wrong time: {age:?}");
            let Some(packet) = Frame::parse(captured.frame).and_then(|frame| frame.packet()) else {
                continue;
            };
            let text = describe(&packet);
            let is_last = last(&text);
            seen.push((captured.direction, captured.interface, text));
            if is_last {
                return seen;
            }
        }
        wait(capture);
    }
    panic!("the last packet did not come; before it: {seen:?}");
}

fn describe(packet: &Packet<'_>) -> String {
    match packet.vxlan(8472) {
        Some((vni, inner)) => {
            let inner = inner.packet().map(|inner| inner.to_string());
            format!("vxlan {} from {}: {}", vni.0, packet.src, inner.unwrap_or_default())
        }
        None => packet.to_string(),
    }
}

#[test]
fn a_capture_on_all_interfaces_follows_a_packet_into_the_tunnel() {
    let [one, two] = two_nodes();
    let filter = Filter {
        addresses: vec![Ipv4Addr::new(10, 244, 0, 2).into()],
        ports: vec![9],
        protocol: Some(17),
        tunnel: Some(8472),
    };
    let mut capture = Capture::open_in(&one, None, &filter).expect("open");
    let server = two.run(|| UdpSocket::bind("10.244.0.2:9")).expect("run").expect("bind");
    let client = one.run(|| UdpSocket::bind("10.244.0.1:5000")).expect("run").expect("bind");
    let other = two.run(|| UdpSocket::bind("10.244.0.2:10")).expect("run").expect("bind");
    // Packets that the filter refuses: another port in the tunnel, and one outside of it.
    client.send_to(b"another port", "10.244.0.2:10").expect("send");
    other.recv_from(&mut [0; 16]).expect("receive");
    client.send_to(b"ping", "10.244.0.2:9").expect("send");
    let from = server.recv_from(&mut [0; 16]).expect("receive").1;
    server.send_to(b"answer", from).expect("answer");
    let seen = until(&mut capture, |text| text == "udp 10.244.0.2:9 → 10.244.0.1:5000 6 bytes");
    let index = |device: &str| Rtnl::open_in(&one).expect("open").index(&name(device)).expect("index");
    let (tunnel, eth0) = (index("plumb.1"), index("eth0"));
    let ping = "udp 10.244.0.1:5000 → 10.244.0.2:9 4 bytes";
    let answer = "udp 10.244.0.2:9 → 10.244.0.1:5000 6 bytes";
    let expected = [
        (Direction::Out, tunnel, ping.to_owned()),
        (Direction::Out, eth0, format!("vxlan 1 from 192.168.1.1: {ping}")),
        (Direction::In, eth0, format!("vxlan 1 from 192.168.1.2: {answer}")),
        (Direction::In, tunnel, answer.to_owned()),
    ];
    assert_eq!(seen, expected);
    assert_eq!(capture.lost().expect("counters"), 0);
}

#[test]
fn a_capture_on_one_interface_sees_only_that_and_errors_about_the_flow() {
    let [one, two] = two_nodes();
    let filter = Filter { protocol: Some(17), ports: vec![7], ..Filter::default() };
    let mut capture = Capture::open_in(&two, Some(&name("eth0")), &filter).expect("open");
    let client = one.run(|| UdpSocket::bind("192.168.1.1:5000")).expect("run").expect("bind");
    client.send_to(b"x", "192.168.1.2:7").expect("send");
    let seen = until(&mut capture, |text| text.starts_with("icmp 192.168.1.2"));
    // All ICMP is captured, for errors about the flow: what a fresh interface asks of its own accord (RFC 4862) too.
    let texts = seen.iter().map(|(_, _, text)| text.as_str());
    let texts: Vec<&str> =
        texts.filter(|text| !text.starts_with("icmp ::") && !text.starts_with("icmp fe80:")).collect();
    let sent = "udp 192.168.1.1:5000 → 192.168.1.2:7 1 bytes";
    let error = format!("icmp 192.168.1.2 → 192.168.1.1 type 3 code 3 about {sent}");
    assert_eq!(texts, [sent, error.as_str()]);
}

#[test]
fn a_capture_on_nothing_says_so() {
    let ns = Netns::fresh().expect("fresh");
    let error = Capture::open_in(&ns, Some(&name("nothere")), &Filter::default()).expect_err("no device");
    assert!(error.to_string().starts_with("capture on nothere: No such device"), "{error}");
    let filter = Filter { ports: vec![1; 101], ..Filter::default() };
    assert!(Capture::open_in(&ns, None, &filter).is_err());
}

#[test]
fn a_frame_that_is_sent_leaves_by_the_interface_as_it_is() {
    let [one, two] = two_nodes();
    let filter = Filter { ports: vec![9], protocol: Some(17), ..Filter::default() };
    let eth0 = name("eth0");
    let here = Capture::open_in(&one, Some(&eth0), &filter).expect("open");
    let mut there = Capture::open_in(&two, Some(&eth0), &filter).expect("open");
    let client = one.run(|| UdpSocket::bind("192.168.1.1:5000")).expect("run").expect("bind");
    client.send_to(b"ping", "192.168.1.2:9").expect("send");
    let mut frame = arrival(&mut there);
    // Nothing but the frame says whose it is.
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
    here.send(&frame).expect("send");
    assert_eq!(arrival(&mut there), frame);
}

/// The next frame that comes in.
fn arrival(capture: &mut Capture) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        while let Some(captured) = capture.receive().expect("receive") {
            if captured.direction == Direction::In {
                return captured.frame.to_vec();
            }
        }
        wait(capture);
    }
    panic!("no frame came");
}

/// For a second, or until there is something to receive.
fn wait(capture: &Capture) {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(capture.as_fd(), rustix::event::PollFlags::IN)];
    let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut fds, Some(&second));
}
