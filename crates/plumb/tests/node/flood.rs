//! Tens of thousands of connections that say half of something, at each listener of a node and at the API, from as many
//! addresses as a network has: pods are wired, names are answered over TCP, the node is found healthy and the API is
//! listened to meanwhile, and the agent's memory stays what it is.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kernel::Netns;
use rustix::net::{AddressFamily, SocketType};
use serde_json::json;

use crate::stage::{Node, Pod, Stage, wait_for};

/// What an attacker keeps open at a time: the tests of a tier share this process's files.
const HELD: usize = 3_000;
/// A node that serves two hundred pods has less than this to spare for strangers (the flood took 760 MB once).
const ROOM_KIB: u64 = 48 << 10;

const HALF_HTTP: &[u8] = b"GET /metrics HTTP/1.1\r\nHost:";
/// A TLS record of which the rest never comes, and one byte of the length of a DNS query.
const HALF_TLS: &[u8] = &[0x16, 3, 1];
const HALF_DNS: &[u8] = &[0];

/// Connections of these addresses, one after the other, until so many were made.
struct Flood<'a> {
    from: &'a Netns,
    sources: &'a [IpAddr],
    to: SocketAddr,
    head: &'a [u8],
    count: usize,
}

impl Flood<'_> {
    /// Runs `others` again and again for as long as the flood lasts, and once more. Yields how often.
    fn during(&self, mut others: impl FnMut(usize)) -> usize {
        let (made, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut rounds = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.from.run(|| self.pour(&made)).unwrap();
                over.store(true, Ordering::Relaxed);
            });
            wait_for("the flood begins", || (made.load(Ordering::Relaxed) >= self.count / 20).then_some(()));
            while !over.load(Ordering::Relaxed) {
                others(rounds);
                rounds += 1;
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), self.count);
        others(rounds);
        rounds + 1
    }

    fn pour(&self, made: &AtomicUsize) {
        let mut held: VecDeque<OwnedFd> = VecDeque::new();
        for source in self.sources.iter().cycle().take(self.count) {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            rustix::net::bind(&socket, &SocketAddr::new(*source, 0)).unwrap();
            rustix::net::connect(&socket, &self.to).unwrap();
            // Who is refused at once cannot say even that.
            let _ = rustix::net::send(&socket, self.head, rustix::net::SendFlags::NOSIGNAL);
            held.push_back(socket);
            if held.len() > HELD {
                held.pop_front();
            }
            made.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Addresses of one network outside.
fn outsiders(stage: &Stage, count: u8) -> Vec<IpAddr> {
    let add = |number: u8| {
        let address = format!("192.168.1.{}", 100 + number);
        let ip = || {
            let words = ["address", "add", &format!("{address}/24"), "dev", "br0"];
            std::process::Command::new("ip").args(words).output()
        };
        assert!(stage.underlay.run(ip).unwrap().unwrap().status.success());
        address.parse().unwrap()
    };
    (0..count).map(add).collect()
}

/// A pod's question over TCP, whatever the answer: RFC 1035 §4.2.2.
fn asks_over_tcp(pod: &Pod) {
    let ask = || -> std::io::Result<[u8; 4]> {
        let mut stream =
            TcpStream::connect_timeout(&"10.96.0.10:53".parse().unwrap(), Duration::from_secs(20))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let query = b"\0\x1f\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01x\x07cluster\x05local\0\0\x01\0\x01";
        stream.write_all(query)?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    let answer = pod.netns.run(ask).unwrap().unwrap();
    assert_eq!(answer[2..], [0, 7], "the query's number");
}

fn is_healthy(node: &Node) {
    let said = node.http(&node.address, "/healthz").unwrap();
    assert!(said.starts_with("HTTP/1.0 200"), "{said}");
}

/// What has been refused at the agent's HTTP listeners.
fn refused(node: &Node) -> u64 {
    let metrics = node.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix("plumb_connections_refused_total "));
    line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

/// A Service that has its node answer health checks: one more listener.
fn checked(stage: &Stage) -> u16 {
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31999,
        "ports": [{ "port": 80 }],
    });
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "checked", "namespace": "default" }, "spec": spec,
    });
    stage.create("/api/v1/namespaces/default/services", &object);
    let node = &stage.nodes[0];
    wait_for("health checks are answered", || {
        let address = SocketAddr::new(node.address.parse().unwrap(), 31999);
        node.netns.run(|| crate::stage::ask(address, "/")).unwrap().ok()
    });
    31999
}

#[test]
fn half_open_connections_to_an_agents_listeners_cost_nobody_anything() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let (resolver, _) = stage.wired(0, "resolver");
    let sources = outsiders(&stage, 20);
    let checks = checked(&stage);
    let wired = AtomicUsize::new(0);
    let others = |_| {
        asks_over_tcp(&resolver);
        is_healthy(node);
        let number = wired.fetch_add(1, Ordering::Relaxed);
        let (pod, _) = stage.wired(0, &format!("pod{number}"));
        node.del(&pod).unwrap();
    };
    others(0);
    let before = node.resident_kib();
    for (port, count) in [(9475, 20_000), (10256, 5_000), (checks, 5_000)] {
        let to = SocketAddr::new(node.address.parse().unwrap(), port);
        let refused_before = refused(node);
        let flood = Flood { from: &stage.underlay, sources: &sources, to, head: HALF_HTTP, count };
        let rounds = flood.during(others);
        let (now, refused) = (node.resident_kib(), refused(node) - refused_before);
        println!("{to}: {rounds} rounds, {refused} of {count} refused, {before} → {now} KiB");
        assert!(refused > 0 && now < before + ROOM_KIB, "{refused} refused at {to}, {before} → {now} KiB");
    }
    // By a pod at the cluster's DNS address, and by strangers at the node's.
    let (thief, ip) = stage.wired(0, "thief");
    let dns = [(&thief.netns, vec![ip], "10.96.0.10:53"), (&stage.underlay, sources, "192.168.1.10:9476")];
    for (from, sources, to) in dns {
        let to = to.parse().unwrap();
        let rounds = Flood { from, sources: &sources, to, head: HALF_DNS, count: 5_000 }.during(others);
        let now = node.resident_kib();
        println!("{to}: {rounds} rounds, {before} → {now} KiB");
        assert!(now < before + ROOM_KIB, "{to}: {before} → {now} KiB");
    }
}

/// The listener is the one that a lab's API has.
#[test]
fn half_open_connections_to_the_api_keep_no_agent_from_it() {
    let mut stage = Stage::new(1);
    let (thief, ip) = stage.wired(0, "thief");
    let to = crate::stage::API[0].parse().unwrap();
    let sources = [ip];
    let node = &mut stage.nodes[0];
    let flood = Flood { from: &thief.netns, sources: &sources, to, head: HALF_TLS, count: 5_000 };
    // Each begins with handshakes and lists everything.
    flood.during(|_| {
        node.kill();
        node.start();
        node.wait_ready();
    });
}
