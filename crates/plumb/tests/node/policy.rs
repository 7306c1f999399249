//! NetworkPolicies meet real packets: connections that exist, large policies, ranges, every protocol.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use types::IpNet;

use crate::stage::{Node, Pod, Stage, connects, connects_at_once, listen, wait_for};

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";

fn policy(stage: &Stage, name: &str, spec: Value) {
    let metadata = json!({ "name": name, "namespace": "default" });
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec,
    });
    stage.create(POLICIES, &object);
}

/// Packets that the rules with this comment have counted.
fn counted(node: &Node, comment: &str) -> u64 {
    let rules = node.run("nft list table ip plumb");
    let lines = rules.lines().filter(|line| line.contains(comment));
    let packets =
        lines.filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
    packets.sum()
}

/// Waits until a policy is in the kernel.
fn isolates(node: &Node, policy: &str) {
    wait_for(policy, || node.run("nft list map ip plumb in_iso").contains(policy).then_some(()));
}

/// A server that says back what it hears.
fn echo(pod: &Pod, port: u16) {
    let listener = pod.netns.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
}

#[test]
fn np_41_a_policy_cuts_what_it_no_longer_allows_and_gives_it_back() {
    let stage = Stage::new(2);
    let (near, _) = stage.wired(0, "near");
    let (server, ip) = stage.wired(0, "server");
    let (far, _) = stage.wired(1, "far");
    for (client, port) in [(&near, 8001), (&far, 8002)] {
        echo(&server, port);
        let to = SocketAddr::new(ip, port);
        let mut stream = wait_for("the connection", || {
            let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
            client.netns.run(connect).unwrap().ok()
        });
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut answered = |byte: u8| {
            let _ = stream.write_all(&[byte]);
            let mut got = [0; 64];
            stream.read(&mut got).is_ok_and(|length| got[..length].contains(&byte))
        };
        wait_for("an echo", || answered(1).then_some(()));
        let name = format!("closed-{port}");
        policy(&stage, &name, json!({ "podSelector": { "matchLabels": { "app": "server" } } }));
        let node = &stage.nodes[0];
        let comment = format!("deny ingress: default/{name}");
        wait_for("a packet of the connection is denied", || {
            let answered = answered(2);
            (!answered && counted(node, &comment) > 0).then_some(())
        });
        // The way from the server to its client is closed with it: nothing comes back for what is never heard.
        assert!(!answered(3), "the connection is cut");
        stage.delete(&format!("{POLICIES}/{name}"));
        wait_for("the connection goes on", || answered(4).then_some(()));
    }
}

/// NP-10: a policy for what comes in does not touch the answers to what goes out, before or after it.
#[test]
fn np_10_answers_pass_whatever_the_clients_policies_say() {
    let stage = Stage::new(1);
    let (client, _) = stage.wired(0, "client");
    let (server, ip) = stage.wired(0, "server");
    let _server = listen(&server, 8080);
    let closed = json!({ "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Ingress"] });
    policy(&stage, "closed", closed);
    isolates(&stage.nodes[0], "default.closed");
    for _ in 0..20 {
        assert!(connects(&client.netns, SocketAddr::new(ip, 8080)));
    }
}

#[test]
fn np_47_ten_thousand_blocks_are_two_lookups_in_the_kernel() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let (web, web_ip) = stage.wired(0, "web");
    let (other, _) = stage.wired(0, "other");
    let (api, ip) = stage.wired(0, "api");
    let _servers = [80, 443, 8080, 8099, 8100].map(|port| listen(&api, port));
    let block = |n: u32| json!({ "ipBlock": { "cidr": format!("11.{}.{}.{}/31", n >> 12, n >> 4 & 255, n << 4 & 255) } });
    let subnet = IpNet::new(web_ip, 24).unwrap().trunc();
    let own = json!({ "ipBlock": { "cidr": subnet.to_string(), "except": [format!("{web_ip}/32")] } });
    let ports = |list: &[Value]| list.to_vec();
    let many: Vec<Value> = (0..10_000).map(block).chain([own]).collect();
    let spec = json!({
        "podSelector": { "matchLabels": { "app": "api" } },
        "ingress": [
            { "from": many, "ports": ports(&[json!({ "port": 80 }), json!({ "port": 8000, "endPort": 8099 })]) },
            { "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }], "ports": ports(&[json!({ "port": 443 })]) },
        ],
    });
    policy(&stage, "big", spec);
    let to = |port| SocketAddr::new(ip, port);
    isolates(node, "default.big");
    assert!(!connects_at_once(&web.netns, to(80)));
    assert!(
        connects(&other.netns, to(80))
            && connects(&other.netns, to(8080))
            && connects(&other.netns, to(8099))
    );
    assert!(connects(&web.netns, to(443)), "the other rule allows it");
    assert!(!connects_at_once(&other.netns, to(8100)) && !connects_at_once(&other.netns, to(443)));
    let rules = node.run("nft -t list table ip plumb");
    let longest =
        rules.split("chain in_").skip(1).map(|chain| chain.split('}').next().unwrap().lines().count());
    assert!(longest.max().unwrap() < 10, "{rules}");
    // What the kernel holds reads back as what it should hold.
    let before = node.run("nft -s list table ip plumb");
    node.run("nft flush chain ip plumb postrouting");
    wait_for("the chain is mended", || (node.run("nft -s list table ip plumb") == before).then_some(()));
    let told = wait_for("an Event says so", || Some(stage.events("DriftMended")).filter(|e| !e.is_empty()));
    assert!(
        !told.iter().any(|message| message.contains("blocks_") || message.contains("ports_")),
        "{told:#?}"
    );
    stage.delete(&format!("{POLICIES}/big"));
    wait_for("its sets are gone", || {
        let rules = node.run("nft -t list table ip plumb");
        (!rules.contains("blocks_") && !rules.contains("ports_") && !rules.contains("chain in_"))
            .then_some(())
    });
    assert!(connects(&web.netns, to(80)));
}

/// A datagram from one pod to another; whether it is heard.
fn hears(from: &Pod, at: &UdpSocket, to: SocketAddr) -> bool {
    let sender = from.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    (0..3).any(|_| sender.send_to(b"x", to).is_ok() && at.recv(&mut [0; 8]).is_ok())
}

/// NP-24: a port of one protocol is no port of another. UDP and TCP here; SCTP in the battery.
#[test]
fn np_24_udp_and_tcp_are_told_apart() {
    let stage = Stage::new(1);
    let (web, _) = stage.wired(0, "web");
    let (api, ip) = stage.wired(0, "api");
    let _tcp = [53, 80].map(|port| listen(&api, port));
    let udp = |port: u16| {
        let socket = api.netns.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    };
    let (dns, http) = (udp(53), udp(80));
    let to = |ip: IpAddr, port| SocketAddr::new(ip, port);
    let ports = json!([{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 80 }]);
    policy(&stage, "ports", json!({ "podSelector": {}, "ingress": [{ "ports": ports }] }));
    isolates(&stage.nodes[0], "default.ports");
    assert!(!connects_at_once(&web.netns, to(ip, 53)));
    assert!(connects(&web.netns, to(ip, 80)));
    wait_for("UDP 53 passes", || hears(&web, &dns, to(ip, 53)).then_some(()));
    assert!(!hears(&web, &http, to(ip, 80)));
}
