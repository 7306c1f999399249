//! Services as callers from outside, pods and the node itself meet them, told by the source address that servers see.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use kernel::Netns;
use serde_json::{Value, json};

use crate::stage::{self, PATIENCE, Pod, Stage, wait_for, within};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// A pod that listens on 8080.
pub struct Server {
    pub pod: Pod,
    pub ip: IpAddr,
    node: String,
    listener: TcpListener,
}

impl Server {
    pub fn new(pod: Pod, ip: IpAddr, node: &str) -> Self {
        let listener = crate::stage::listen(&pod, 8080);
        listener.set_nonblocking(true).unwrap();
        Self { pod, ip, node: node.to_owned(), listener }
    }
}

fn server(stage: &Stage, node: usize, name: &str) -> Server {
    let (pod, ip) = stage.wired(node, name);
    Server::new(pod, ip, &stage.nodes[node].name)
}

fn service(stage: &Stage, spec: &Value) -> Value {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec,
    });
    stage.create(SERVICES, &object)
}

fn endpoints(servers: &[&Server]) -> Value {
    let endpoints =
        servers.iter().map(|s| json!({ "addresses": [s.ip], "nodeName": s.node, "conditions": {} }));
    json!(endpoints.collect::<Vec<_>>())
}

fn slice(stage: &Stage, servers: &[&Server]) {
    slice_of(stage, "TCP", &endpoints(servers));
}

fn slice_of(stage: &Stage, protocol: &str, endpoints: &Value) {
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "web-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "web" },
        },
        "ports": [{ "name": "", "port": 8080, "protocol": protocol }],
        "endpoints": endpoints,
    });
    stage.create(SLICES, &object);
}

fn move_to(stage: &Stage, servers: &[&Server]) {
    stage.patch(&format!("{SLICES}/web-1"), &json!({ "endpoints": endpoints(servers) }));
}

/// What a caller learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server at this place in the list, which sees the caller as this.
    From(usize, IpAddr),
    Refused,
    Silence,
}

pub fn call(from: &Netns, to: SocketAddr, servers: &[&Server]) -> Answer {
    let patience = Duration::from_millis(600);
    match from.run(|| TcpStream::connect_timeout(&to, patience)).unwrap() {
        // A policy that comes between the server's SYN and the caller's ACK lets no server accept.
        Ok(_stream) => within(PATIENCE / 10, || {
            let accepted = servers.iter().map(|server| server.listener.accept());
            let (at, (_, peer)) = accepted.enumerate().find_map(|(at, got)| Some((at, got.ok()?)))?;
            Some(Answer::From(at, peer.ip().to_canonical()))
        })
        .unwrap_or(Answer::Silence),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Err(_) => Answer::Silence,
    }
}

/// Calls until the answers are these and, for as many calls, no others.
pub fn settle(from: &Netns, to: SocketAddr, servers: &[&Server], expected: &[Answer]) {
    let name = |answer: &Answer| format!("{answer:?}");
    let expected: BTreeSet<_> = expected.iter().map(name).collect();
    wait_for(&format!("{to} answers {expected:?}"), || {
        let calls = if expected.len() == 1 { 3 } else { 24 };
        let seen: BTreeSet<_> = (0..calls).map(|_| name(&call(from, to, servers))).collect();
        (seen == expected).then_some(())
    });
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub const OUTSIDE: &str = "192.168.1.2";

fn node_port(service: &Value) -> u16 {
    u16::try_from(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap()
}

#[test]
fn v_06_a_node_port_reaches_every_endpoint_and_hides_the_caller() {
    let stage = Stage::new(2);
    let (near, far) = (server(&stage, 0, "near"), server(&stage, 1, "far"));
    let servers = [&near, &far];
    let (client, client_ip) = stage.wired(0, "client");
    let made =
        service(&stage, &json!({ "type": "NodePort", "clusterIP": "10.96.14.7", "ports": [{ "port": 80 }] }));
    slice(&stage, &servers);
    let at_node = SocketAddr::new(ip("192.168.1.10"), node_port(&made));
    let hidden = [Answer::From(0, ip("10.244.1.1")), Answer::From(1, ip("10.244.1.0"))];
    settle(&stage.underlay, at_node, &servers, &hidden);
    settle(&client.netns, at_node, &servers, &hidden);
    settle(&stage.nodes[0].netns, at_node, &servers, &hidden);
    // M-03: not so at the ClusterIP.
    let plain = [Answer::From(0, client_ip), Answer::From(1, client_ip)];
    settle(&client.netns, "10.96.14.7:80".parse().unwrap(), &servers, &plain);
    // N-05: another node's port.
    let elsewhere = SocketAddr::new(ip("192.168.1.11"), node_port(&made));
    let hidden = [Answer::From(0, ip("10.244.2.0")), Answer::From(1, ip("10.244.2.1"))];
    settle(&client.netns, elsewhere, &servers, &hidden);
    // V-02, and SVC-07 both ways.
    move_to(&stage, &[]);
    settle(&stage.underlay, at_node, &servers, &[Answer::Refused]);
    move_to(&stage, &[&near]);
    settle(&stage.underlay, at_node, &servers, &hidden_near());
    stage.patch(&format!("{SERVICES}/web"), &json!({ "spec": { "type": "ClusterIP" } }));
    wait_for("the node port is closed", || {
        (!stage.nodes[0].run("nft list map ip plumb front").contains("192.168.1.10")).then_some(())
    });
    settle(&stage.underlay, at_node, &servers, &[Answer::Refused]);
}

fn hidden_near() -> [Answer; 1] {
    [Answer::From(0, ip("10.244.1.1"))]
}

#[test]
fn v_03_v_04_external_policy_local_keeps_the_caller_and_the_node() {
    let stage = Stage::new(2);
    let (near, far) = (server(&stage, 0, "near"), server(&stage, 1, "far"));
    let servers = [&near, &far];
    let (client, client_ip) = stage.wired(0, "client");
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.14.7", "ports": [{ "port": 80 }],
        "loadBalancerSourceRanges": ["192.168.1.2/32", "10.244.0.0/16"],
    });
    let made = service(&stage, &spec);
    slice(&stage, &servers);
    let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "198.51.100.7" }] } } });
    stage.patch(&format!("{SERVICES}/web/status"), &status);
    stage
        .underlay
        .run(|| {
            std::process::Command::new("ip")
                .args(["route", "add", "198.51.100.7", "via", "192.168.1.10"])
                .status()
        })
        .unwrap()
        .unwrap();
    let (at_node, balanced) =
        (SocketAddr::new(ip("192.168.1.10"), node_port(&made)), "198.51.100.7:80".parse().unwrap());
    for to in [at_node, balanced] {
        settle(&stage.underlay, to, &servers, &[Answer::From(0, ip(OUTSIDE))]);
        settle(&client.netns, to, &servers, &[Answer::From(0, client_ip), Answer::From(1, client_ip)]);
    }
    let node = &stage.nodes[0].netns;
    settle(node, at_node, &servers, &[Answer::From(0, ip("10.244.1.1")), Answer::From(1, ip("10.244.1.0"))]);
    // L-02: the node's own address is on no list.
    settle(node, balanced, &servers, &[Answer::Silence]);
    // V-03: somebody there, but not here.
    move_to(&stage, &[&far]);
    settle(&stage.underlay, at_node, &servers, &[Answer::Silence]);
    settle(&client.netns, at_node, &servers, &[Answer::From(1, client_ip)]);
    move_to(&stage, &[]);
    settle(&stage.underlay, at_node, &servers, &[Answer::Refused]);
}

#[test]
fn v_05_internal_policy_local_does_not_leave_the_node() {
    let stage = Stage::new(2);
    let (near, far) = (server(&stage, 0, "near"), server(&stage, 1, "far"));
    let servers = [&near, &far];
    let spec =
        json!({ "internalTrafficPolicy": "Local", "clusterIP": "10.96.14.7", "ports": [{ "port": 80 }] });
    service(&stage, &spec);
    slice(&stage, &servers);
    let (client, client_ip) = stage.wired(0, "client");
    let to = "10.96.14.7:80".parse().unwrap();
    settle(&client.netns, to, &servers, &[Answer::From(0, client_ip)]);
    move_to(&stage, &[&far]);
    settle(&client.netns, to, &servers, &[Answer::Silence]);
}

/// The server that answers now.
fn who(from: &Netns, to: SocketAddr, servers: &[&Server]) -> Option<usize> {
    match call(from, to, servers) {
        Answer::From(at, _) => Some(at),
        Answer::Refused | Answer::Silence => None,
    }
}

#[test]
fn a_client_returns_to_its_endpoint_while_affinity_lasts() {
    let mut stage = Stage::new(1);
    let servers = ["one", "two", "three"].map(|name| server(&stage, 0, name));
    let servers = servers.each_ref();
    let (client, _) = stage.wired(0, "client");
    let spec = json!({
        "type": "NodePort", "sessionAffinity": "ClientIP", "clusterIP": "10.96.14.7", "ports": [{ "port": 80 }],
    });
    let made = service(&stage, &spec);
    slice(&stage, &servers);
    let to: SocketAddr = "10.96.14.7:80".parse().unwrap();
    let at_node = SocketAddr::new(ip("192.168.1.10"), node_port(&made));
    let first = wait_for("the service answers", || who(&client.netns, to, &servers));
    let pinned = |stage: &Stage| {
        let said: BTreeSet<_> = (0..12).map(|_| who(&client.netns, to, &servers)).collect();
        assert_eq!(said, BTreeSet::from([Some(first)]), "{}", stage.nodes[0].run("nft list table ip plumb"));
    };
    pinned(&stage);
    // one table for all addresses of the port, by the caller's own address although that is hidden.
    let said: BTreeSet<_> = (0..12).map(|_| who(&client.netns, at_node, &servers)).collect();
    assert_eq!(said, BTreeSet::from([Some(first)]));
    // an agent that was killed and came back has forgotten nobody.
    stage.nodes[0].kill();
    stage.nodes[0].start();
    stage.nodes[0].wait_ready();
    pinned(&stage);
    // the endpoint leaves and comes back; meanwhile another one was chosen, and that stays.
    let others: Vec<_> = servers.iter().enumerate().filter(|(at, _)| *at != first).map(|(_, s)| *s).collect();
    move_to(&stage, &others);
    let second = wait_for("another endpoint", || who(&client.netns, to, &servers).filter(|at| *at != first));
    move_to(&stage, &servers);
    let chains = || stage.nodes[0].run("nft list chains ip");
    wait_for("all three are back", || {
        (stage.nodes[0].run("nft list table ip plumb").matches("dnat to 10.244.1").count() >= 12)
            .then_some(())
    });
    let said: BTreeSet<_> = (0..12).map(|_| who(&client.netns, to, &servers)).collect();
    assert_eq!(said, BTreeSet::from([Some(second)]));
    //
    stage.patch(&format!("{SERVICES}/web"), &json!({ "spec": { "sessionAffinity": "None" } }));
    wait_for("affinity is gone", || (!chains().contains("aff_")).then_some(()));
    assert!(!stage.nodes[0].run("nft list sets ip").contains("aff_"));
    wait_for("calls are spread", || {
        let said: BTreeSet<_> = (0..24).map(|_| who(&client.netns, to, &servers)).collect();
        (said.len() == 3).then_some(())
    });
}

/// C-01, C-04: a caller from outside that keeps its port, at a node port that was nobody's, then one pod's, then
/// another's.
#[test]
fn c_04_a_udp_caller_of_a_node_port_follows_its_endpoints() {
    let stage = Stage::new(1);
    let [(old, old_ip), (new, new_ip)] = ["old", "new"].map(|pod| stage.wired(0, pod));
    let bind = |netns: &Netns, port: u16| {
        let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    };
    let (from, at_old, at_new) =
        (bind(&stage.underlay, 40_000), bind(&old.netns, 8080), bind(&new.netns, 8080));
    // The connection is known before the port is a Service's.
    let _ = from.send_to(b"early", "192.168.1.10:30999");
    let spec = json!({
        "type": "NodePort", "clusterIP": "10.96.14.8",
        "ports": [{ "port": 5060, "protocol": "UDP", "nodePort": 30999 }],
    });
    service(&stage, &spec);
    let endpoints = |ip: IpAddr| json!([{ "addresses": [ip], "conditions": {} }]);
    slice_of(&stage, "UDP", &endpoints(old_ip));
    let arrives = |at: &UdpSocket| {
        from.send_to(b"hello", "192.168.1.10:30999").is_ok() && at.recv(&mut [0; 16]).is_ok()
    };
    wait_for("the first endpoint hears", || arrives(&at_old).then_some(()));
    stage.patch(&format!("{SLICES}/web-1"), &json!({ "endpoints": endpoints(new_ip) }));
    wait_for("the second endpoint hears", || arrives(&at_new).then_some(()));
}

/// What a load balancer learns: the status line and the body.
fn check(from: &Netns, to: SocketAddr) -> Option<(String, Value)> {
    use std::io::{Read, Write};
    let mut stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20))).unwrap().ok()?;
    stream.write_all(b"GET /any/path HTTP/1.1\r\nHost: node\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), serde_json::from_str(body).ok()?))
}

#[test]
fn l_05_a_load_balancer_learns_which_nodes_have_endpoints() {
    let stage = Stage::new(2);
    let near = server(&stage, 0, "near");
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.14.9", "ports": [{ "port": 80 }],
    });
    let made = service(&stage, &spec);
    slice(&stage, &[&near]);
    let number = made["spec"]["healthCheckNodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap();
    let says = |node: usize, status: &str, count: usize| {
        let to = SocketAddr::new(ip(&stage.nodes[node].address), number);
        let expected = json!({
            "service": { "namespace": "default", "name": "web" }, "localEndpoints": count, "serviceProxyHealthy": true,
        });
        wait_for(&format!("{to} says {status}, {count}"), || {
            let (line, body) = check(&stage.underlay, to)?;
            (line.contains(status) && body == expected).then_some(())
        });
    };
    says(0, "200 OK", 1);
    says(1, "503 Service Unavailable", 0);
    move_to(&stage, &[]);
    says(0, "503 Service Unavailable", 0);
    stage.patch(&format!("{SERVICES}/web"), &json!({ "spec": { "externalTrafficPolicy": "Cluster" } }));
    let to = SocketAddr::new(ip(&stage.nodes[0].address), number);
    wait_for("nobody answers any more", || check(&stage.underlay, to).is_none().then_some(()));
}

/// What clouds' load balancers ask kube-proxy, over real sockets of the node.
#[test]
fn kube_proxys_health_ports_are_answered() {
    let stage = Stage::of(1, types::Families::Dual);
    let node = &stage.nodes[0];
    let ask = |ip: &str, port: u16, path: &str| {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        node.netns.run(|| stage::ask(address, path)).unwrap()
    };
    let status = |ip: &str, path: &str| {
        let said = ask(ip, 10256, path).unwrap_or_default();
        said.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    for ip in [node.address.as_str(), "127.0.0.1", "fd00:192:168:1::10"] {
        wait_for("the node is healthy", || (status(ip, "/healthz") == "200").then_some(()));
        assert_eq!(status(ip, "/livez"), "200");
    }
    let said = ask(&node.address, 10256, "/healthz").unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    for part in ["content-type: application/json", "x-content-type-options: nosniff"] {
        assert!(head.contains(part), "{said}");
    }
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(true)), "{body}");
    for family in ["IPv4", "IPv6"] {
        assert_eq!(body["status"][family]["healthy"], true, "{body}");
    }
    let mode = ask("127.0.0.1", 10249, "/proxyMode").unwrap();
    assert!(
        mode.contains("content-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff"),
        "{mode}"
    );
    assert!(mode.ends_with("\r\n\r\nnftables"), "{mode}");
    assert!(ask(&node.address, 10249, "/proxyMode").is_err(), "for the node's own programs only");
    let taint = json!({ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" });
    stage.patch("/api/v1/nodes/node1", &json!({ "spec": { "taints": [taint] } }));
    wait_for("no new connections", || (status(&node.address, "/healthz") == "503").then_some(()));
    assert_eq!(status(&node.address, "/livez"), "200", "it still serves");
}
