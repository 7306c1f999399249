//! Real sockets in a network namespace of the test's own. Needs root (or CAP_SYS_ADMIN) and dig (Debian: dnsutils).

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dns::{Name, Settings, Type, message};
use kernel::Netns;
use model::{
    Cluster, Endpoint, EndpointSlice, Event, Kind, Namespace, Node, Row, Service, ServiceType, SlicePort,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::ObjectName;

use super::*;

mod crowd;

const VIP: &str = "10.96.0.10:53";

/// Runs a test on a thread inside a fresh namespace whose loopback is up, with a runtime of its own.
pub(crate) fn inside(test: impl AsyncFnOnce() + Send) {
    let ns = Netns::fresh().expect("a network namespace: run the tests as root");
    ns.run(|| {
        let ip = |args: &str| {
            assert!(
                Command::new("ip").args(args.split(' ')).status().expect("ip (Debian: iproute2)").success()
            );
        };
        ip("link set lo up");
        // The cluster's DNS addresses; this node; another node, a pod, and somebody else.
        for address in ["10.96.0.10", "192.168.1.10", "192.168.1.11", "10.244.2.7", "203.0.113.10"] {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        ip("addr add fd00:10:96::a/128 dev lo nodad");
        // One thread: threads of a larger runtime would start in this namespace too, but need no test.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    })
    .unwrap();
}

fn service(name: &str, kind: ServiceType, ips: &[&str]) -> Row {
    Row::Service(Box::new(Service {
        key: ObjectName::new("shop", name),
        kind,
        headless: ips.is_empty() && kind == ServiceType::ClusterIp,
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        external_name: (kind == ServiceType::ExternalName).then(|| "www.outside.test".to_owned()),
        ..Service::default()
    }))
}

/// `payments` with a ClusterIP, `crowd` with 200 endpoints, `away` with an external name.
fn cluster() -> (Cluster, Vec<Key>) {
    let mut cluster = Cluster::default();
    let endpoints = (0..200u8).map(|n| Endpoint::ready([10, 244, 1, n]));
    let rows = vec![
        Row::Namespace(Namespace { name: "shop".into(), ..Namespace::default() }),
        Row::Node(Node {
            name: "node2".into(),
            addresses: vec![[192, 168, 1, 11].into()],
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            ..Node::default()
        }),
        service("payments", ServiceType::ClusterIp, &["10.96.14.7"]),
        service("crowd", ServiceType::ClusterIp, &[]),
        service("away", ServiceType::ExternalName, &[]),
        Row::EndpointSlice(EndpointSlice {
            key: ObjectName::new("shop", "crowd-1"),
            service: "crowd".into(),
            ports: Vec::<SlicePort>::new(),
            endpoints: endpoints.collect(),
            ..EndpointSlice::default()
        }),
    ];
    let mut keys = Vec::new();
    let lists = Kind::ALL.map(Event::Start).into_iter().chain(rows.into_iter().map(Event::Upsert));
    for event in lists.chain(Kind::ALL.map(Event::Done)) {
        keys.extend(cluster.apply(event));
    }
    (cluster, keys)
}

fn settings() -> Settings {
    let ranges = ["10.244.0.0/16", "10.96.0.0/12", "fd00:10:244::/56", "fd00:10:96::/112"];
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    Settings { ranges, ..Settings::new("cluster.local").unwrap() }
}

fn shared() -> SharedZone {
    let zone = SharedZone::new(settings());
    let (cluster, keys) = cluster();
    assert!(zone.update(&cluster, &keys));
    zone
}

/// A resolv.conf that goes away with the test.
struct Conf(PathBuf);

impl Conf {
    fn new(servers: &[&str]) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plumb-dns-{}-{number}", std::process::id()));
        let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        Self(path)
    }

    fn config(&self) -> DnsConfig {
        DnsConfig { resolv_conf: self.0.clone(), ..DnsConfig::new(vec![VIP.parse().unwrap()]) }
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// dig off the runtime's thread but in its namespace.
async fn dig(args: &str) -> String {
    let words: Vec<String> = args.split(' ').map(str::to_owned).collect();
    let server = if args.contains('@') { "+tries=1" } else { "@10.96.0.10" };
    let out = tokio::process::Command::new("dig")
        .args([server, "+tries=1", "+timeout=6", "+noidnin"])
        .args(words)
        .output()
        .await
        .expect("dig (Debian: dnsutils)");
    // dig aligns columns by the length of the name.
    let said = String::from_utf8_lossy(&out.stdout);
    said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// How an upstream of the tests behaves.
#[derive(Clone, Copy)]
enum Upstream {
    Answers,
    Refuses,
    /// 100 records, cut over UDP.
    Big,
    Silent,
}

/// An upstream at this address; counts what it was asked.
fn upstream(address: &str, how: Upstream) -> Arc<AtomicU64> {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let address: SocketAddr = format!("{address}:53").parse().unwrap();
    let reply = move |query: &[u8], whole: bool| -> Option<Vec<u8>> {
        let addresses: Vec<IpAddr> = match how {
            Upstream::Answers => vec![IpAddr::from([192, 0, 2, 1])],
            Upstream::Big if whole => (0..100).map(|n| IpAddr::from([192, 0, 2, n])).collect(),
            Upstream::Big | Upstream::Refuses => Vec::new(),
            Upstream::Silent => return None,
        };
        let mut bytes = message::address_reply(query, 60, &addresses)?;
        match how {
            Upstream::Refuses => bytes[3] |= 5,
            Upstream::Big if !whole => bytes[2] |= 2,
            _ => {}
        }
        Some(bytes)
    };
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::Relaxed);
            if let Some(reply) = reply(&buffer[..length], false) {
                let _ = socket.send_to(&reply, peer).await;
            }
        }
    });
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let Ok(length) = stream.read_u16().await else { continue };
            let mut query = vec![0; usize::from(length)];
            if stream.read_exact(&mut query).await.is_ok()
                && let Some(reply) = reply(&query, true)
            {
                let _ = stream.write_u16(reply.len() as u16).await;
                let _ = stream.write_all(&reply).await;
            }
        }
    });
    asked
}

#[test]
fn dig_sees_the_cluster_over_both_transports() {
    inside(async || {
        let conf = Conf::new(&[]);
        let server = serve(conf.config(), shared()).unwrap();
        assert_eq!(server.addresses(), [VIP.parse().unwrap()]);
        for transport in ["+notcp", "+tcp"] {
            let name = "PaYmEnTs.shop.svc.cluster.local";
            let said = dig(&format!("{transport} {name} A")).await;
            assert!(said.contains("status: NOERROR") && said.contains("10.96.14.7"), "{said}");
            assert!(said.contains(&format!("{name}. 5 IN")), "DNS-08: {said}");
            assert!(said.contains("flags: qr aa rd ra"), "{said}");
            let said = dig(&format!("{transport} {name} AAAA")).await;
            assert!(said.contains("status: NOERROR") && said.contains("IN SOA"), "DNS-02: {said}");
            let said = dig(&format!("{transport} nobody.shop.svc.cluster.local A")).await;
            assert!(said.contains("status: NXDOMAIN") && said.contains("IN SOA"), "{said}");
        }
        let said = dig("+short +notcp crowd.shop.svc.cluster.local A").await;
        assert_eq!(
            said.lines().filter(|line| line.starts_with("10.244.1.")).count(),
            200,
            "TC, then TCP: {said}"
        );
        let cut = dig("+ignore +bufsize=512 crowd.shop.svc.cluster.local A").await;
        assert!(cut.contains("flags: qr aa tc rd ra"), "DNS-26: {cut}");
        assert!(server.counters.get(Count::TcpQueries) >= 4);
        assert!(server.counters.get(Count::NxDomain) == 2 && server.counters.get(Count::Truncated) == 2);
    });
}

#[test]
fn dns_23_servfail_until_synced_then_answers_at_once() {
    inside(async || {
        let conf = Conf::new(&[]);
        let zone = SharedZone::new(settings());
        let _server = serve(conf.config(), zone.clone()).unwrap();
        let said = dig("payments.shop.svc.cluster.local A").await;
        assert!(said.contains("status: SERVFAIL"), "{said}");
        let (cluster, keys) = cluster();
        zone.update(&cluster, &keys);
        let said = dig("payments.shop.svc.cluster.local A").await;
        assert!(said.contains("10.96.14.7"), "{said}");
    });
}

#[test]
fn other_names_go_upstream_once_and_aliases_are_followed() {
    inside(async || {
        let asked = upstream("127.0.0.2", Upstream::Answers);
        let conf = Conf::new(&["127.0.0.2"]);
        let server = serve(conf.config(), shared()).unwrap();
        for _ in 0..3 {
            let said = dig("Www.Outside.test A").await;
            assert!(said.contains(";Www.Outside.test. IN A") && said.contains("192.0.2.1"), "{said}");
            assert!(said.contains("flags: qr rd ra;"), "not ours, so no AA: {said}");
        }
        assert_eq!((asked.load(Ordering::Relaxed), server.counters.get(Count::CacheHits)), (1, 2));
        let said = dig("+tcp www.outside.test A").await;
        assert!(said.contains("192.0.2.1"), "{said}");
        let said = dig("away.shop.svc.cluster.local A").await;
        assert!(said.contains("CNAME www.outside.test.") && said.contains("192.0.2.1"), "DNS-07: {said}");
        assert_eq!(asked.load(Ordering::Relaxed), 1, "the alias is in the cache");
    });
}

#[test]
fn dns_28_the_next_upstream_answers_for_a_silent_and_a_refusing_one() {
    inside(async || {
        let silent = upstream("127.0.0.2", Upstream::Silent);
        let refusing = upstream("127.0.0.3", Upstream::Refuses);
        upstream("127.0.0.4", Upstream::Answers);
        let conf = Conf::new(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
        let server = serve(conf.config(), shared()).unwrap();
        let said = dig("one.outside.test A").await;
        assert!(said.contains("192.0.2.1"), "{said}");
        let said = dig("two.outside.test A").await;
        assert!(said.contains("192.0.2.1"), "{said}");
        assert_eq!((silent.load(Ordering::Relaxed), refusing.load(Ordering::Relaxed)), (1, 1));
        assert_eq!(server.counters.get(Count::UpstreamTimeouts), 1);
    });
}

#[test]
fn a_cut_answer_is_fetched_over_tcp_and_no_upstream_is_servfail() {
    inside(async || {
        upstream("127.0.0.2", Upstream::Big);
        let conf = Conf::new(&["127.0.0.2"]);
        let server = serve(conf.config(), shared()).unwrap();
        let said = dig("+short +tcp big.outside.test A").await;
        assert_eq!(said.lines().filter(|line| line.starts_with("192.0.2.")).count(), 100, "{said}");
        assert_eq!(server.counters.get(Count::UpstreamTcp), 1);
        server.stop().await;
        // Only ourselves in resolv.conf: never asked, so no loop (DNS-29).
        let conf = Conf::new(&["10.96.0.10"]);
        let _server = free(&conf).await;
        let said = dig("www.outside.test A").await;
        assert!(said.contains("status: SERVFAIL"), "{said}");
    });
}

/// DNS-34: the node's own address is reachable from outside, and the cluster's by whoever has a route.
#[test]
fn dns_34_only_nodes_and_pods_are_answered() {
    inside(async || {
        let conf = Conf::new(&[]);
        let peers = vec!["192.168.1.10:9476".parse().unwrap()];
        let server = serve(DnsConfig { peers, ..conf.config() }, shared()).unwrap();
        for from in ["192.168.1.11", "10.244.2.7"] {
            for transport in ["+notcp", "+tcp"] {
                let ask = format!(
                    "@192.168.1.10 -p 9476 -b {from} {transport} +short payments.shop.svc.cluster.local A"
                );
                assert_eq!(dig(&ask).await, "10.96.14.7\n", "{ask}");
            }
        }
        assert_eq!(server.counters.get(Count::Strangers), 0);
        for transport in ["+notcp", "+tcp"] {
            let ask = format!(
                "@192.168.1.10 -p 9476 -b 203.0.113.10 +timeout=1 {transport} payments.shop.svc.cluster.local A"
            );
            let said = dig(&ask).await;
            assert!(!said.contains("10.96.14.7") && !said.contains("status:"), "{said}");
        }
        assert!(server.counters.get(Count::Strangers) >= 2);
        // Whoever has a route to the cluster's own address is no part of the cluster.
        let before = server.counters.get(Count::Strangers);
        for transport in ["+notcp", "+tcp"] {
            let ask = format!("-b 203.0.113.10 +timeout=1 {transport} payments.shop.svc.cluster.local A");
            let said = dig(&ask).await;
            assert!(!said.contains("10.96.14.7") && !said.contains("status:"), "{said}");
        }
        assert!(server.counters.get(Count::Strangers) >= before + 2);
        let said = dig("-b 10.244.2.7 +short payments.shop.svc.cluster.local A").await;
        assert_eq!(said, "10.96.14.7\n");
    });
}

#[test]
fn both_families_are_served() {
    inside(async || {
        let conf = Conf::new(&[]);
        let addresses = vec![VIP.parse().unwrap(), "[fd00:10:96::a]:53".parse().unwrap()];
        let server = serve(DnsConfig { addresses: addresses.clone(), ..conf.config() }, shared()).unwrap();
        assert_eq!(server.addresses(), addresses);
        for transport in ["+notcp", "+tcp"] {
            let ask = format!("@fd00:10:96::a {transport} +short payments.shop.svc.cluster.local A");
            assert_eq!(dig(&ask).await, "10.96.14.7\n");
        }
        let said = dig("@fd00:10:96::a +notcp +short crowd.shop.svc.cluster.local A").await;
        assert_eq!(said.lines().filter(|line| line.starts_with("10.244.1.")).count(), 200, "{said}");
    });
}

#[test]
fn dns_32_two_questions_from_one_port_are_both_answered() {
    inside(async || {
        let conf = Conf::new(&[]);
        let _server = serve(conf.config(), shared()).unwrap();
        let name = dns::Name::parse("payments.shop.svc.cluster.local").unwrap();
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(VIP).await.unwrap();
        for id in 0..200u16 {
            client.send(&message::encode_query(id, &name, dns::Type::A)).await.unwrap();
            client.send(&message::encode_query(id, &name, dns::Type::AAAA)).await.unwrap();
            let mut buffer = [0; 1500];
            for answers in [1, 0] {
                let received = tokio::time::timeout(Duration::from_secs(2), client.recv(&mut buffer));
                let length = received.await.expect("an answer").unwrap();
                let reply = message::decode(&buffer[..length]).unwrap();
                assert_eq!((reply.id, reply.answers.len()), (id, answers), "in the order of the questions");
            }
        }
    });
}

#[test]
fn a_taken_port_names_the_cause_and_the_port_is_free_after_a_stop() {
    inside(async || {
        let conf = Conf::new(&[]);
        let other = UdpSocket::bind("0.0.0.0:53").unwrap();
        let error = serve(conf.config(), shared()).unwrap_err().to_string();
        assert!(error.contains("udp 10.96.0.10:53") && error.contains("another DNS server"), "{error}");
        assert!(error.contains("ss -lnp"), "{error}");
        drop(other);
        for _ in 0..3 {
            free(&conf).await.stop().await;
        }
    });
}

/// DNS-30: what came before it left is answered, even what upstreams still have to say; nothing later comes to it.
#[test]
fn dns_30_a_server_that_leaves_answers_what_it_was_asked() {
    inside(async || {
        let upstream = tokio::net::UdpSocket::bind("127.0.0.2:53").await.unwrap();
        let conf = Conf::new(&["127.0.0.2"]);
        let server = serve(conf.config(), shared()).unwrap();
        let query = |id, name: &str| message::encode_query(id, &Name::parse(name).unwrap(), Type::A);
        let (near, far) = ("payments.shop.svc.cluster.local", "www.outside.test");
        let client = client().await;
        client.send(&query(1, far)).await.unwrap();
        let mut connection = tokio::net::TcpStream::connect(VIP).await.unwrap();
        let over_tcp = query(2, "web.outside.test");
        connection.write_u16(over_tcp.len() as u16).await.unwrap();
        connection.write_all(&over_tcp).await.unwrap();
        let (mut held, mut buffer) = (Vec::new(), [0; 512]);
        while held.len() < 2 {
            let (length, peer) = upstream.recv_from(&mut buffer).await.unwrap();
            held.push((buffer[..length].to_vec(), peer));
        }
        client.send(&query(3, near)).await.unwrap();
        let leaving = tokio::spawn(server.leave());
        // Answered until it is turned away, then refused.
        loop {
            let late = self::client().await;
            late.send(&query(4, near)).await.unwrap();
            if late.recv(&mut buffer).await.is_err() {
                break;
            }
        }
        for (query, peer) in held {
            let reply = message::address_reply(&query, 60, &[[192, 0, 2, 1].into()]).unwrap();
            upstream.send_to(&reply, peer).await.unwrap();
        }
        // One thread answers for the zone, another for upstreams: in either order.
        let mut answered = Vec::new();
        while answered.len() < 2 {
            let length = client.recv(&mut buffer).await.unwrap();
            let reply = message::decode(&buffer[..length]).unwrap();
            answered.push((reply.id, reply.answers.len()));
        }
        answered.sort_unstable();
        assert_eq!(answered, [(1, 1), (3, 1)]);
        let mut whole = Vec::new();
        connection.read_to_end(&mut whole).await.unwrap();
        assert_eq!(message::decode(&whole[2..]).unwrap().answers.len(), 1);
        leaving.await.unwrap();
        free(&conf).await.stop().await;
    });
}

async fn client() -> tokio::net::UdpSocket {
    let client = tokio::net::UdpSocket::bind("10.96.0.10:0").await.unwrap();
    client.connect(VIP).await.unwrap();
    client
}

/// Serves as soon as the port is free. A program that another test starts at this moment holds a copy of every
/// socket of this process from its fork until its exec.
async fn free(conf: &Conf) -> DnsServer {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        match serve(conf.config(), shared()) {
            Ok(server) => return server,
            Err(error) if std::time::Instant::now() > end => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
