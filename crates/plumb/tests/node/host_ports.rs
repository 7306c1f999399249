//! Ports of the node that lead to a pod, told by the source address that the pod sees.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use kernel::Netns;
use serde_json::{Value, json};
use types::Families;

use crate::services::{Answer, OUTSIDE, Server, call, ip, settle};
use crate::stage::{Pod, Stage, wait_for};

const GATEWAY: &str = "10.244.1.1";

fn mapped(mappings: Value) -> Value {
    let mut config = crate::stage::config();
    config["runtimeConfig"] = json!({ "portMappings": mappings });
    config
}

/// A pod of the first node that is wired with host ports, and its address.
fn wired(stage: &Stage, name: &str, mappings: Value) -> (Pod, IpAddr) {
    let (pod, addresses) = wired_at(stage, name, mappings);
    (pod, addresses[0])
}

/// The same, with the addresses of all families.
pub fn wired_at(stage: &Stage, name: &str, mappings: Value) -> (Pod, Vec<IpAddr>) {
    let pod = stage.pod(0, name);
    let result = stage.nodes[0].cni("ADD", &pod, &mapped(mappings)).unwrap();
    let addresses = result["ips"].as_array().unwrap().iter();
    let addresses = addresses.map(|it| ip(it["address"].as_str().unwrap().split('/').next().unwrap()));
    (pod, addresses.collect())
}

fn everywhere(port: u16) -> Value {
    json!([{ "hostPort": port, "containerPort": 8080, "protocol": "tcp", "hostIP": "" }])
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_host_port_leads_to_its_pod_and_ends_with_it() {
    let mut stage = Stage::new(1);
    let mappings = json!([
        { "hostPort": 8081, "containerPort": 8080, "protocol": "tcp", "hostIP": "" },
        { "hostPort": 8082, "containerPort": 8080, "protocol": "tcp", "hostIP": GATEWAY },
        { "hostPort": 8083, "containerPort": 8080, "protocol": "tcp", "hostIP": "127.0.0.1" },
    ]);
    let (pod, address) = wired(&stage, "web", mappings);
    let web = Server::new(pod, address, "node1");
    let (client, client_ip) = stage.wired(0, "client");
    let sees = |stage: &Stage, from: &Netns, to: &str, whom: IpAddr| {
        settle(from, at(to), &[&web], &[Answer::From(0, whom)]);
        // Whoever calls, the pod's own port is not opened beside it.
        assert_eq!(call(&stage.underlay, at("192.168.1.10:8080"), &[&web]), Answer::Refused);
    };
    let reached = |stage: &Stage| {
        sees(stage, &stage.underlay, "192.168.1.10:8081", ip(OUTSIDE));
        sees(stage, &client.netns, "192.168.1.10:8081", client_ip);
        sees(stage, &client.netns, "10.244.1.1:8081", client_ip);
        for to in ["192.168.1.10:8081", "10.244.1.1:8081", "127.0.0.1:8081", "127.0.0.1:8083"] {
            sees(stage, &stage.nodes[0].netns, to, ip(GATEWAY));
        }
        // M-01: by itself.
        sees(stage, &web.pod.netns, "192.168.1.10:8081", ip(GATEWAY));
        // One address of the node is that one only.
        sees(stage, &client.netns, "10.244.1.1:8082", client_ip);
    };
    reached(&stage);
    for to in ["192.168.1.10:8082", "192.168.1.10:8083"] {
        assert_eq!(call(&stage.underlay, at(to), &[&web]), Answer::Refused, "{to}");
    }
    // The datapath stands without the agent, and the next one knows whose the ports are.
    stage.nodes[0].kill();
    sees(&stage, &stage.underlay, "192.168.1.10:8081", ip(OUTSIDE));
    stage.nodes[0].start();
    stage.nodes[0].wait_ready();
    reached(&stage);
    stage.nodes[0].del(&web.pod).unwrap();
    for to in ["192.168.1.10:8081", "10.244.1.1:8082"] {
        settle(&stage.nodes[0].netns, at(to), &[&web], &[Answer::Refused]);
    }
    settle(&stage.underlay, at("192.168.1.10:8081"), &[&web], &[Answer::Refused]);
}

/// All but the node's own `::1`, from which the kernel lets nothing out.
#[test]
fn a_host_port_of_ipv6_leads_to_its_pod_and_ends_with_it() {
    let stage = Stage::of(1, Families::Dual);
    let mappings = json!([
        { "hostPort": 8081, "containerPort": 8080, "protocol": "tcp", "hostIP": "" },
        { "hostPort": 8082, "containerPort": 8080, "protocol": "tcp", "hostIP": "fd00:192:168:1::10" },
        { "hostPort": 8083, "containerPort": 8080, "protocol": "tcp", "hostIP": "192.168.1.10" },
    ]);
    let (pod, addresses) = wired_at(&stage, "web", mappings);
    let web = Server::new(pod, addresses[0], "node1");
    let (client, client_ips) = wired_at(&stage, "client", json!([]));
    let (outside, gateway) = (ip("fd00:192:168:1::2"), ip("fd00:10:244:1::1"));
    let sees = |from: &Netns, to: &str, whom: IpAddr| {
        settle(from, at(to), &[&web], &[Answer::From(0, whom)]);
    };
    for port in [8081, 8082] {
        let to = format!("[fd00:192:168:1::10]:{port}");
        sees(&stage.underlay, &to, outside);
        sees(&client.netns, &to, client_ips[1]);
        sees(&stage.nodes[0].netns, &to, gateway);
        sees(&web.pod.netns, &to, gateway);
    }
    sees(&client.netns, "[fd00:10:244:1::1]:8081", client_ips[1]);
    // The families stand beside each other.
    sees(&stage.underlay, "192.168.1.10:8081", ip(OUTSIDE));
    sees(&stage.underlay, "192.168.1.10:8083", ip(OUTSIDE));
    let closed = |to: &str| settle(&stage.underlay, at(to), &[&web], &[Answer::Refused]);
    ["[fd00:192:168:1::10]:8083", "[fd00:192:168:1::10]:8080", "192.168.1.10:8082"]
        .into_iter()
        .for_each(closed);
    settle(&stage.nodes[0].netns, at("[::1]:8081"), &[&web], &[Answer::Refused]);
    stage.nodes[0].del(&web.pod).unwrap();
    ["[fd00:192:168:1::10]:8081", "[fd00:192:168:1::10]:8082", "192.168.1.10:8081"]
        .into_iter()
        .for_each(closed);
}

#[test]
fn garbage_collection_takes_host_ports_along() {
    let mut stage = Stage::new(1);
    let (pod, address) = wired(&stage, "web", everywhere(8081));
    let web = Server::new(pod, address, "node1");
    settle(&stage.underlay, at("192.168.1.10:8081"), &[&web], &[Answer::From(0, ip(OUTSIDE))]);
    let mut config = crate::stage::config();
    config["cni.dev/valid-attachments"] = json!([]);
    // What this very process has just made it leaves alone: the runtime may not have written it down yet.
    stage.nodes[0].kill();
    stage.nodes[0].start();
    stage.nodes[0].wait_ready();
    stage.nodes[0].cni("GC", &web.pod, &config).unwrap();
    settle(&stage.underlay, at("192.168.1.10:8081"), &[&web], &[Answer::Refused]);
}

#[test]
fn a_host_port_that_is_taken_names_both_pods() {
    let stage = Stage::new(1);
    let (_first, _) = wired(&stage, "first", everywhere(8081));
    let second = stage.pod(0, "second");
    let error = stage.nodes[0].cni("ADD", &second, &mapped(everywhere(8081))).unwrap_err();
    assert_eq!(error["code"], 105, "{error}");
    let said = error["msg"].as_str().unwrap();
    for part in ["default/first", "default/second", "8081/tcp"] {
        assert!(said.contains(part), "{said}");
    }
    // Nothing of it is left: the address went back, and another port works.
    stage.nodes[0].cni("ADD", &second, &mapped(everywhere(8082))).unwrap();
}

#[test]
fn a_policy_judges_what_came_through_a_host_port() {
    let stage = Stage::new(1);
    let (pod, address) = wired(&stage, "web", everywhere(8081));
    let web = Server::new(pod, address, "node1");
    let to = at("192.168.1.10:8081");
    let (friend, friend_ip) = stage.wired(0, "friend");
    settle(&stage.underlay, to, &[&web], &[Answer::From(0, ip(OUTSIDE))]);
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "friends", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            // The pod's port, not the node's.
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": "friend" } } }], "ports": [{ "port": 8080 }],
            }],
        },
    });
    stage.create("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", &policy);
    settle(&stage.underlay, to, &[&web], &[Answer::Silence]);
    settle(&friend.netns, to, &[&web], &[Answer::From(0, friend_ip)]);
    // NP-12
    settle(&stage.nodes[0].netns, to, &[&web], &[Answer::From(0, ip(GATEWAY))]);
}

/// `route_localnet` opens the node's loopback addresses to the bridge, and the layout's chain `raw` closes them.
#[test]
fn a_pod_does_not_reach_the_nodes_loopback() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let (client, _) = wired(&stage, "client", everywhere(8081));
    assert_eq!(node.run("cat /proc/sys/net/ipv4/conf/cni0/route_localnet").trim(), "1");
    let _private = node.netns.run(|| std::net::TcpListener::bind("127.0.0.1:7777")).unwrap().unwrap();
    let route = ["route", "add", "127.0.0.1/32", "via", GATEWAY, "dev", "eth0"];
    let added = client.netns.run(|| Command::new("ip").args(route).status()).unwrap().unwrap();
    assert!(added.success());
    // The first frames may meet a port of the bridge that does not forward yet.
    wait_for("the packets were there and were dropped", || {
        assert_eq!(call(&client.netns, at("127.0.0.1:7777"), &[]), Answer::Silence);
        let seen = node.run("nft list chain ip plumb raw");
        let mut lines = seen.lines();
        lines.any(|line| line.contains("daddr 127.0.0.0/8") && !line.contains("packets 0 ")).then_some(())
    });
    node.del(&client).unwrap();
    wait_for("route_localnet is off", || {
        let now = node.run("cat /proc/sys/net/ipv4/conf/cni0/route_localnet");
        (now.trim() == "0").then_some(())
    });
}

#[test]
fn a_udp_client_that_keeps_its_port_follows_the_host_port() {
    let stage = Stage::new(1);
    let bind = |netns: &Netns, port: u16| {
        let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    };
    let mappings = || json!([{ "hostPort": 5060, "containerPort": 8080, "protocol": "udp", "hostIP": "" }]);
    let from = bind(&stage.underlay, 40_000);
    let arrives =
        |at: &UdpSocket| from.send_to(b"hello", "192.168.1.10:5060").is_ok() && at.recv(&mut [0; 16]).is_ok();
    // The flow is known before the port is anybody's.
    let _ = from.send_to(b"early", "192.168.1.10:5060");
    let (old, _) = wired(&stage, "old", mappings());
    let at_old = bind(&old.netns, 8080);
    wait_for("the first pod hears", || arrives(&at_old).then_some(()));
    stage.nodes[0].del(&old).unwrap();
    let (new, _) = wired(&stage, "new", mappings());
    let at_new = bind(&new.netns, 8080);
    wait_for("the second pod hears", || arrives(&at_new).then_some(()));
}
