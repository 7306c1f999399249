//! What packets look like on the way, by tcpdump and by nft's own trace.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use super::{Mesh, NS};
use crate::cluster::Checks;
use crate::pcap::{Capture, Packet, TCP, UDP};

pub fn checks(mesh: &Mesh, checks: &mut Checks) {
    checks.check("underlay: no ClusterIP, no pod outside a tunnel, no masquerade inside", || underlay(mesh));
    checks.check("the service's translation comes before encapsulation", || translated_first(mesh));
    checks.check("leaving the cluster: the node's address on the wire", || leaving(mesh));
    checks
        .check("a full-size packet with DF passes everywhere, and nothing is fragmented", || full_size(mesh));
    checks.check("the second packet of a connection passes no NAT rule", || second_packet(mesh));
}

fn is_pod(address: &str) -> bool {
    address.starts_with("10.244.")
}

/// 10.96.0.0/12
fn is_service(address: &str) -> bool {
    let mut parts = address.split('.').map(|part| part.parse::<u8>().unwrap_or_default());
    parts.next() == Some(10) && parts.next().is_some_and(|second| (96..112).contains(&second))
}

fn on<'a>(packets: &'a [Packet], interface: &'a str) -> impl Iterator<Item = &'a Packet> {
    packets.iter().filter(move |packet| packet.interface == interface)
}

/// What runs in the tunnel, as seen on the node's own interface.
fn tunnelled(packets: &[Packet]) -> Vec<&Packet> {
    on(packets, "eth0").filter_map(|packet| packet.inside.as_ref().map(|(_, inside)| &**inside)).collect()
}

fn underlay(mesh: &Mesh) {
    let capture = Capture::start(&mesh.lab, "node1");
    for args in [["get", "http://far"], ["get", "http://echo"], ["udp", "far:53"], ["udp", "echo:9001"]] {
        mesh.ask("echo1", &args);
        mesh.ask("echo4", &args);
    }
    mesh.ask("echo1", &["get", &format!("http://{}:8080", mesh.ip("echo2"))]);
    mesh.ask("echo2", &["get", &format!("http://{}:8080", mesh.ip("echo1"))]);
    let packets = capture.packets();
    for packet in on(&packets, "eth0") {
        for address in [&packet.from, &packet.to] {
            assert!(!is_pod(address) && !is_service(address), "{packet:?}");
        }
    }
    let inside = tunnelled(&packets);
    for packet in &inside {
        assert!(is_pod(&packet.from) && is_pod(&packet.to), "a pod's own address both ways: {packet:?}");
        // Masquerading would put the node's own end of the tunnel there.
        assert!(!packet.from.ends_with(".0") && !packet.from.ends_with(".1"), "{packet:?}");
    }
    for (from, to) in [("echo1", "echo2"), ("echo2", "echo1")] {
        let seen = inside.iter().any(|p| p.from == mesh.ip(from) && p.to == mesh.ip(to) && p.to_port == 8080);
        assert!(seen, "{from} → {to}: {inside:?}");
    }
    let outer: Vec<&Packet> = on(&packets, "eth0").filter(|packet| packet.inside.is_some()).collect();
    for packet in outer {
        assert_eq!(packet.inside.as_ref().map(|(number, _)| *number), Some(1), "VNI 1");
        let ends = [packet.from.as_str(), packet.to.as_str()];
        assert!(
            ends == ["192.168.1.10", "192.168.1.11"] || ends == ["192.168.1.11", "192.168.1.10"],
            "{packet:?}"
        );
    }
}

fn translated_first(mesh: &Mesh) {
    let capture = Capture::start(&mesh.lab, "node1");
    mesh.ask("echo1", &["get", &format!("http://{}", mesh.service("far"))]);
    let packets = capture.packets();
    let syn = |packet: &Packet| packet.protocol == TCP && packet.syn && !packet.ack;
    let at = |what: &str, test: &dyn Fn(&Packet) -> bool| {
        packets.iter().position(test).unwrap_or_else(|| panic!("{what} is not seen: {packets:?}"))
    };
    let called = at("the call to the service", &|p| {
        p.interface == "cni0" && syn(p) && p.to == mesh.service("far") && p.to_port == 80
    });
    let pod =
        |p: &Packet| syn(p) && p.from == mesh.ip("echo1") && p.to == mesh.ip("echo2") && p.to_port == 8080;
    let entered = at("the call to the pod", &|p| p.interface == "plumb.1" && pod(p));
    let wrapped = at("the call in the tunnel", &|p| {
        p.interface == "eth0" && p.inside.as_ref().is_some_and(|(_, inside)| pod(inside))
    });
    assert!(called < entered && entered < wrapped, "{called} {entered} {wrapped}: {packets:?}");
    let answered = at("the answer, as the pod sees it", &|p| {
        p.interface == "cni0" && p.syn && p.ack && p.from == mesh.service("far") && p.to == mesh.ip("echo1")
    });
    assert!(wrapped < answered);
}

fn leaving(mesh: &Mesh) {
    let capture = Capture::start(&mesh.lab, "node1");
    mesh.lab.demo_ok(NS, "echo1", &["get", "http://203.0.113.10/"]);
    let packets = capture.packets();
    let mut seen = 0;
    for packet in on(&packets, "eth0").filter(|p| p.protocol == TCP && p.to == "203.0.113.10") {
        assert_eq!(packet.from, "192.168.1.10", "{packet:?}");
        seen += 1;
    }
    assert!(seen > 0, "{packets:?}");
    let answer = packets.iter().find(|p| p.interface == "cni0" && p.from == "203.0.113.10");
    assert_eq!(answer.map(|packet| packet.to.as_str()), Some(mesh.ip("echo1")));
}

/// 1450 bytes: IPv4 20, UDP 8, and this. A datagram bears DF as long as nobody asked otherwise (udp(7)).
const FULL: usize = 1422;

fn full_size(mesh: &Mesh) {
    let say = "x".repeat(FULL);
    let captures = ["node1", "node2"].map(|node| Capture::start(&mesh.lab, node));
    let pairs = [("echo1", "echo2"), ("echo2", "echo1"), ("echo1", "echo3")];
    for (from, to) in pairs {
        let answer = mesh.ask(from, &["udp", &format!("{}:9001", mesh.ip(to)), "--say", &say]);
        // The server tells how long a long one was.
        assert_eq!(answer.field("said"), FULL.to_string());
    }
    mesh.ask("echo3", &["udp", "far:53", "--say", &say]);
    // Segments as large as the path takes, both ways.
    mesh.lab.demo_ok(NS, "echo1", &["stream", "far:80", "--every", "0", "--lines", "200000"]);
    let [near, far] = captures.map(Capture::packets);
    let full = |p: &&Packet| p.protocol == UDP && p.length == 1450;
    for (from, to) in pairs {
        let (from_node, to_node) = (node_of(from, &near, &far), node_of(to, &near, &far));
        for packets in [from_node, to_node] {
            let on_bridge: Vec<_> = on(packets, "cni0").filter(full).collect();
            let there =
                on_bridge.iter().any(|p| p.from == mesh.ip(from) && p.to == mesh.ip(to) && p.dont_fragment);
            let sender_or_receiver =
                there || tunnelled(packets).iter().any(|p| full(p) && p.to == mesh.ip(to) && p.dont_fragment);
            assert!(sender_or_receiver, "{from} → {to}: {on_bridge:?}");
        }
    }
    for packets in [&near, &far] {
        let wrapped = on(packets, "eth0").filter(|p| p.inside.as_ref().is_some_and(|(_, p)| full(&&**p)));
        let lengths: Vec<u16> = wrapped.map(|p| p.length).collect();
        assert!(!lengths.is_empty() && lengths.iter().all(|length| *length == 1500), "{lengths:?}");
        let cut = on(packets, "eth0").find(|p| p.fragment);
        assert_eq!(cut, None, "no packet of the underlay is a fragment");
    }
}

fn node_of<'a>(pod: &str, near: &'a [Packet], far: &'a [Packet]) -> &'a [Packet] {
    if matches!(pod, "echo1" | "echo3") { near } else { far }
}

const PROBE: &str = "add table ip e2e; add chain ip e2e see { type filter hook prerouting priority -400; }; \
                     add rule ip e2e see ip saddr ADDRESS tcp dport 9000 meta nftrace set 1";

/// nft tells every chain that a packet meets. A chain of type nat is met by the first packet of a connection only.
fn second_packet(mesh: &Mesh) {
    let nft = |args: &[&str]| mesh.lab.node_ok("node1", &[&["nft"], args].concat());
    let chains: serde_json::Value = serde_json::from_str(&nft(&["-j", "list", "chains"])).expect("JSON");
    let chains = chains["nftables"].as_array().expect("a list");
    let of_nat =
        |chain: &&serde_json::Value| chain["chain"]["table"] == "plumb" && chain["chain"]["type"] == "nat";
    let nat: Vec<&str> =
        chains.iter().filter(of_nat).filter_map(|chain| chain["chain"]["name"].as_str()).collect();
    assert!(!nat.is_empty(), "{chains:?}");
    nft(&[&PROBE.replace("ADDRESS", mesh.ip("echo1"))]);
    let lines = traced(mesh);
    nft(&["delete table ip e2e"]);
    let (mut first, mut later) = (0, 0);
    for line in lines.iter().filter(|line| line.contains(" ip plumb ") && line.contains(" packet: ")) {
        let chain =
            line.split_once(" ip plumb ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
        let begins = line.contains("tcp flags == syn");
        if nat.contains(&chain) {
            assert!(begins, "a later packet meets {chain}: {line}");
            first += 1;
        } else if !begins {
            later += 1;
        }
    }
    assert!(first > 0 && later >= 3, "{first} {later}: {lines:#?}");
}

/// What `nft monitor trace` says of one conversation, up to its last packet.
fn traced(mesh: &Mesh) -> Vec<String> {
    let mut child = mesh
        .lab
        .node_command("node1")
        // A rule of no effect makes the monitor speak: then it listens.
        .args(["sh", "-c", "stdbuf -oL nft monitor & read end; kill $!"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("plumb lab exec starts");
    let (send, lines) = std::sync::mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let mut number = 0;
    while lines.recv_timeout(Duration::from_millis(100)).is_err() {
        number += 1;
        assert!(number < 200, "nft monitor does not speak");
        mesh.lab.node_ok("node1", &["nft", &format!("add chain ip e2e poke{number}")]);
    }
    mesh.lab.demo_ok(NS, "echo1", &["tcp", &format!("{}:9000", mesh.service("echo"))]);
    let mut seen = Vec::new();
    // FIN and ACK: the last that the client sends but for one ACK.
    while !seen
        .iter()
        .any(|line: &String| line.contains("ip plumb forward packet:") && line.contains("tcp flags == 0x11"))
    {
        seen.push(lines.recv_timeout(Duration::from_secs(60)).expect("the conversation's end is traced"));
    }
    drop(child.stdin.take());
    child.wait().expect("it ends");
    seen
}
