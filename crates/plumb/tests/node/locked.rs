//! What keeps a pod in its place: its port's options, its entry in the bridge, its neighbours on the node.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use types::Families;

use crate::stage::{Node, Pod, Stage, config, wait_for};

/// Options of ports as they are when nobody sets any, and isolated.
const BEFORE: &str = "locked off learning on flood on mcast_flood on bcast_flood on";
/// As if the bridge had seen it before.
const LEARNED: &str = "02:00:00:00:00:77";
const PORTS: &str = "bridge -d link show";
const NEIGHBOURS: &str = "ip neigh show dev cni0 nud permanent";

fn veths(node: &Node) -> Vec<String> {
    let links = node.run("ip -o link show master cni0");
    links.lines().filter_map(|line| Some(line.split([' ', '@']).nth(1)?.to_owned())).collect()
}

/// MAC and port of each entry of a port that was not learned.
fn entries(node: &Node) -> Vec<(String, String)> {
    let all = node.run("bridge fdb show br cni0");
    let fixed = all.lines().filter(|line| line.contains(" static"));
    let pair = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        Some((words.next()?, words.nth(1)?))
    };
    fixed.filter_map(pair).collect()
}

/// The pods' ports, entries and neighbours; of these each has one of each family, and one of the link.
fn is_whole(node: &Node, pods: usize) -> bool {
    is_whole_of(node, pods, 3)
}

fn is_whole_of(node: &Node, pods: usize, neighbours: usize) -> bool {
    let ports = node.run(PORTS);
    let has = |option: &str| ports.matches(option).count() == pods;
    ["isolated on", "locked on", "learning off", " flood off", "mcast_flood off", "bcast_flood off"]
        .into_iter()
        .all(has)
        && node.run("ip -d link show master cni0").matches("group_fwd_mask 0xfffd").count() == pods
        && entries(node).len() == pods
        && node.run(NEIGHBOURS).lines().count() == neighbours * pods
}

#[test]
fn a_pod_has_it_when_add_returns_and_del_takes_it_away() {
    let stage = Stage::of(1, Families::Dual);
    let node = &stage.nodes[0];
    let seen = || format!("{}\n{:?}\n{}", node.run(PORTS), entries(node), node.run(NEIGHBOURS));
    let (web, _) = stage.wired(0, "web");
    assert!(is_whole(node, 1), "{}", seen());
    let (_api, _) = stage.wired(0, "api");
    assert!(is_whole(node, 2), "{}", seen());
    node.del(&web).unwrap();
    assert!(is_whole(node, 1), "{}", seen());
    assert_eq!(stage.events("DriftMended"), Vec::<String>::new());
}

/// One of two ports with one hardware address would be cut off, and a bridge whose own somebody has, from all.
#[test]
fn nobody_gets_the_hardware_address_of_another() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let asks = |pod: &Pod, mac: &str| {
        let mut with_mac = config();
        with_mac["runtimeConfig"] = json!({ "mac": mac });
        node.cni("ADD", pod, &with_mac)
    };
    let [first, second] = ["first", "second"].map(|name| stage.pod(0, name));
    asks(&first, "02:00:00:00:00:0a").unwrap();
    for taken in ["02:00:00:00:00:0a", "0a:58:0a:f4:01:01"] {
        let refused = asks(&second, taken).unwrap_err();
        assert!(refused["msg"].as_str().unwrap().contains(taken), "{refused}");
    }
    asks(&second, "02:00:00:00:00:0b").unwrap();
    assert!(is_whole_of(node, 2, 1));
}

/// Ends a thread also where the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers what it hears until it is told to end.
fn echo(socket: &UdpSocket, ended: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 64];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// Asks one question after the other, each once; how many until it was told to end. None may get lost.
fn ask(from: &kernel::Netns, to: SocketAddr, ended: &AtomicBool) -> u64 {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.run(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut count, mut buffer) = (0_u64, [0; 64]);
    while !ended.load(Ordering::Relaxed) {
        count += 1;
        socket.send_to(&count.to_ne_bytes(), to).unwrap();
        let length =
            socket.recv(&mut buffer).unwrap_or_else(|error| panic!("number {count} to {to}: {error}"));
        assert_eq!(buffer[..length], count.to_ne_bytes(), "{to}");
    }
    count
}

/// As attachments are that were made before there was any of it: learned entries, and ports that anybody may use.
fn strip(node: &Node) {
    for veth in veths(node) {
        node.run(&format!("bridge link set dev {veth} {BEFORE}"));
        node.run(&format!("ip link set dev {veth} type bridge_slave group_fwd_mask 0"));
    }
    if let Some(veth) = veths(node).first() {
        node.run(&format!("bridge fdb add {LEARNED} dev {veth} master dynamic"));
    }
    for (mac, veth) in entries(node) {
        node.run(&format!("bridge fdb del {mac} dev {veth} master"));
    }
    for neighbour in node.run(NEIGHBOURS).lines() {
        let ip = neighbour.split(' ').next().unwrap();
        node.run(&format!("ip neigh del {ip} dev cni0"));
    }
}

#[test]
fn pods_of_a_version_before_gain_it_and_lose_no_packet() {
    let mut stage = Stage::of(1, Families::Dual);
    let (web, _) = stage.wired(0, "web");
    let api = stage.pod(0, "api");
    let added = stage.nodes[0].cni("ADD", &api, &config()).unwrap();
    let of_api = [0, 1].map(|n| {
        let net = added["ips"][n]["address"].as_str().unwrap();
        net.split('/').next().unwrap().parse::<IpAddr>().unwrap()
    });
    stage.nodes[0].kill();
    strip(&stage.nodes[0]);
    assert!(!is_whole(&stage.nodes[0], 2));
    let (of_node, ended) = (stage.nodes[0].netns.try_clone().unwrap(), AtomicBool::new(false));
    let (server, over) =
        (api.netns.run(|| UdpSocket::bind("[::]:9001")).unwrap().unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (_over, asking) = (End(&over), End(&ended));
        scope.spawn(|| echo(&server, &over));
        let clients: Vec<_> = [&web.netns, &of_node]
            .into_iter()
            .flat_map(|from| of_api.map(|ip| (from, SocketAddr::new(ip, 9001))))
            .map(|(from, to)| {
                let ended = &ended;
                scope.spawn(move || ask(from, to, ended))
            })
            .collect();
        stage.nodes[0].start();
        stage.nodes[0].wait_ready();
        wait_for("both pods have it", || is_whole(&stage.nodes[0], 2).then_some(()));
        let bridge = stage.nodes[0].run("bridge fdb show br cni0");
        assert!(!bridge.contains(LEARNED), "what was learned is forgotten: {bridge}");
        drop(asking);
        let asked: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        assert!(asked.iter().all(|count| count.as_ref().is_ok_and(|count| *count > 0)), "{asked:?}");
    });
}
