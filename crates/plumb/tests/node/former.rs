//! What a pod began that is gone by now. Its other ends go on with it, and none of it reaches who has the address next: it
//! asked for nothing.
//!
//! ```text
//!   node1   former, then heir with the same addresses, which lets in friend alone
//!           friend, near: what former began with near and far goes on
//!   node2   far
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use kernel::capture::{Capture, Direction, Filter};
use kernel::conntrack::Conntrack;
use serde_json::{Value, json};
use types::{Families, Family};

use crate::stage::{Node, Pod, Stage, config, wait_for};

pub const UDP: u16 = 9001;
const TCP: u16 = 9002;
/// Connections of each other end, in each family: what is written first into one is sent at once.
const STREAMS: usize = 6;

pub struct Wired {
    pub pod: Pod,
    pub ips: [IpAddr; 2],
}

/// Of both families, at addresses of its own choice or given ones.
pub fn wired(
    stage: &Stage,
    node: usize,
    name: &str,
    ips: Option<[IpAddr; 2]>,
    meanwhile: impl Fn(),
) -> Wired {
    let pod = stage.pod(node, name);
    wire(&stage.nodes[node], pod, ips, meanwhile)
}

/// Also at addresses that rest still.
fn wire(node: &Node, pod: Pod, ips: Option<[IpAddr; 2]>, meanwhile: impl Fn()) -> Wired {
    let mut config = config();
    if let Some(ips) = ips {
        config["args"] = json!({ "cni": { "ips": ips } });
    }
    let result = wait_for(&format!("pod {} is wired", pod.name), || {
        meanwhile();
        node.cni("ADD", &pod, &config).ok()
    });
    let ips = [0, 1].map(|at: usize| {
        let address = result["ips"][at]["address"].as_str().unwrap();
        address.split('/').next().unwrap().parse().unwrap()
    });
    Wired { pod, ips }
}

fn any(of: IpAddr) -> IpAddr {
    match Family::of(of) {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Says something once, from a port of its own.
pub fn say(from: &Pod, to: IpAddr) {
    let socket = from.netns.run(|| UdpSocket::bind((any(to), 0))).unwrap().unwrap();
    // Nobody may be there yet.
    let _ = socket.send_to(b"x", (to, UDP));
}

/// The other end of what a pod begins, in both families.
pub struct Peer {
    pub of: Wired,
    udp: [UdpSocket; 2],
    tcp: [TcpListener; 2],
    /// Where they were called from.
    callers: Vec<(usize, SocketAddr)>,
    streams: [Vec<TcpStream>; 2],
}

impl Peer {
    pub fn new(of: Wired) -> Self {
        let udp = of.ips.map(|ip| {
            let socket = of.pod.netns.run(|| UdpSocket::bind((ip, UDP))).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket
        });
        let tcp = of.ips.map(|ip| of.pod.netns.run(|| TcpListener::bind((ip, TCP))).unwrap().unwrap());
        Self { of, udp, tcp, callers: Vec::new(), streams: [Vec::new(), Vec::new()] }
    }

    /// The pod calls by UDP and is answered, from its own address or another one. Its socket.
    pub fn called_by(&mut self, pod: &Pod, family: usize, from: IpAddr) -> UdpSocket {
        let (ear, to) = (&self.udp[family], SocketAddr::new(self.of.ips[family], UDP));
        let socket = pod.netns.run(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let caller = wait_for(&format!("{from} calls {to}"), || {
            socket.send_to(b"call", to).ok()?;
            let (_, caller) = ear.recv_from(&mut [0; 8]).ok()?;
            ear.send_to(b"answer", caller).ok()?;
            socket.recv(&mut [0; 8]).ok().map(|_| caller)
        });
        self.callers.push((family, caller));
        socket
    }

    /// And by TCP.
    fn connected_by(&mut self, pod: &Pod, family: usize) -> Vec<TcpStream> {
        let to = SocketAddr::new(self.of.ips[family], TCP);
        let connect = || pod.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20))).unwrap();
        (0..STREAMS)
            .map(|_| {
                let stream = connect().unwrap();
                self.streams[family].push(self.tcp[family].accept().unwrap().0);
                stream
            })
            .collect()
    }

    /// Goes on in what was begun by UDP. A refusal of one packet is told of at the next, which is sent all the same.
    pub fn goes_on(&self) {
        for (family, caller) in &self.callers {
            let _ = self.udp[*family].send_to(b"more", caller);
        }
    }

    /// In one TCP connection of each family that was silent until now.
    fn writes(&mut self) {
        for streams in &mut self.streams {
            let Some(mut stream) = streams.pop() else { continue };
            let _ = std::io::Write::write_all(&mut stream, b"more");
            // It goes on until the test ends.
            std::mem::forget(stream);
        }
    }
}

/// Begins something with each peer; what is returned keeps it open.
fn begin(former: &Pod, ips: [IpAddr; 2], peers: &mut [Peer]) -> (Vec<UdpSocket>, Vec<TcpStream>) {
    let (mut sockets, mut streams) = (Vec::new(), Vec::new());
    for peer in peers {
        for (family, from) in ips.into_iter().enumerate() {
            sockets.push(peer.called_by(former, family, from));
            streams.extend(peer.connected_by(former, family));
        }
    }
    (sockets, streams)
}

/// Connections that these addresses began, as the node knows them.
pub fn began(node: &Node, ips: &[IpAddr]) -> usize {
    let mut conntrack = Conntrack::open_in(&node.netns).unwrap();
    let of = |ip: &IpAddr| {
        let filter = netlink::conntrack::Filter { src: Some(*ip), ..Default::default() };
        conntrack.entries(Family::of(*ip), &filter).unwrap().len()
    };
    ips.iter().map(of).sum()
}

/// From whom packets come into a namespace.
pub struct Ear(Capture);

impl Ear {
    /// At every interface that it ever has.
    pub fn at(pod: &Pod) -> Self {
        Self(Capture::open_in(&pod.netns, None, &Filter::default()).unwrap())
    }

    pub fn hears(&mut self, heard: &mut BTreeSet<IpAddr>) {
        while let Some(packet) = self.0.receive().unwrap() {
            let source: Option<IpAddr> = match packet.frame.get(12..14) {
                Some([0x08, 0x00]) => {
                    packet.frame.get(26..30).map(|b| <[u8; 4]>::try_from(b).unwrap().into())
                }
                Some([0x86, 0xdd]) => {
                    packet.frame.get(22..38).map(|b| <[u8; 16]>::try_from(b).unwrap().into())
                }
                _ => None,
            };
            heard.extend(source.filter(|_| packet.direction == Direction::In));
        }
    }
}

pub fn policy(stage: &Stage, name: &str, spec: &Value) {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "default" }, "spec": spec,
    });
    stage.create("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", &object);
}

pub fn admits_friend(stage: &Stage, pod: &str) {
    let labelled = |app: &str| json!({ "matchLabels": { "app": app } });
    let spec = json!({ "podSelector": labelled(pod), "ingress": [{ "from": [{ "podSelector": labelled("friend") }] }] });
    policy(stage, &format!("{pod}-admits-friend"), &spec);
}

/// Wires the heir at the addresses, while its former owner's peers go on; who is heard there.
fn inherit(
    stage: &Stage,
    name: &str,
    ips: [IpAddr; 2],
    friend: &Wired,
    peers: &mut [Peer],
) -> BTreeSet<IpAddr> {
    let pod = stage.pod(0, name);
    let mut ear = Ear::at(&pod);
    let heir = wire(&stage.nodes[0], pod, Some(ips), || peers.iter().for_each(Peer::goes_on));
    assert_eq!(heir.ips, ips);
    let (mut heard, mut rounds) = (BTreeSet::new(), 0);
    wait_for("the heir hears its friend, in both families", || {
        for peer in &mut *peers {
            peer.goes_on();
            peer.writes();
        }
        ips.into_iter().for_each(|ip| say(&friend.pod, ip));
        ear.hears(&mut heard);
        rounds += 1;
        (rounds >= 10 * STREAMS && friend.ips.iter().all(|ip| heard.contains(ip))).then_some(())
    });
    heard
}

/// How a pod's network ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Del,
    /// The agent is killed when the veth is gone, and before anything else.
    Killed,
    /// It was an agent of before, which gave the address back and forgot nothing.
    Before,
}

/// What the node has written of its attachments.
fn store(node: &Node) -> (PathBuf, Value) {
    let mut files = std::fs::read_dir(node.dir.join("data")).unwrap().map(|entry| entry.unwrap().path());
    let is_store = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("attachments-") && name.ends_with(".json")
    };
    let file = files.find(is_store).unwrap();
    let store = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    (file, store)
}

/// As it goes with its namespace, while no agent runs.
pub fn lose_link(node: &Node, pod: &str) {
    let (_, store) = store(node);
    let record = &store["records"][format!("id-{pod}/eth0")];
    node.run(&format!("ip link delete {}", record["host_if"].as_str().unwrap()));
}

fn end(stage: &mut Stage, former: &Wired, how: End) {
    let node = &mut stage.nodes[0];
    if let End::Del = how {
        node.del(&former.pod).unwrap();
        wait_for("nothing of it is left", || (began(node, &former.ips) == 0).then_some(()));
        return;
    }
    node.kill();
    lose_link(node, "former");
    let (file, mut store) = store(node);
    assert!(began(node, &former.ips) > 0, "nobody has forgotten anything yet");
    if let End::Before = how {
        store["records"].as_object_mut().unwrap().remove("id-former/eth0").unwrap();
        for pool in store["pools"].as_array_mut().unwrap() {
            pool["leases"].as_object_mut().unwrap().retain(|_, handle| handle != "id-former/eth0");
        }
        std::fs::write(&file, store.to_string()).unwrap();
    }
    node.start();
    node.wait_ready();
}

#[test]
fn what_a_gone_pod_began_reaches_nobody_who_has_its_address_next() {
    for how in [End::Del, End::Killed, End::Before] {
        let mut stage = Stage::of(2, Families::Dual);
        admits_friend(&stage, "heir");
        let [friend, near] = ["friend", "near"].map(|name| wired(&stage, 0, name, None, || {}));
        let far = wired(&stage, 1, "far", None, || {});
        let mut peers = [near, far].map(Peer::new);
        let former = wired(&stage, 0, "former", None, || {});
        let open = begin(&former.pod, former.ips, &mut peers);
        assert!(began(&stage.nodes[0], &former.ips) >= 2 * 2 * (1 + STREAMS));
        end(&mut stage, &former, how);
        let ips = former.ips;
        drop((open, former));
        let heard = inherit(&stage, "heir", ips, &friend, &mut peers);
        for peer in &peers {
            assert!(!peer.of.ips.iter().any(|ip| heard.contains(ip)), "{how:?}: {heard:?}");
        }
    }
}

/// As a kubelet writes them.
fn shows(stage: &Stage, pod: &str, ips: [IpAddr; 2]) {
    let status = json!({ "phase": "Running", "podIP": ips[0], "podIPs": ips.map(|ip| json!({ "ip": ip })) });
    stage.patch(&format!("/api/v1/namespaces/default/pods/{pod}/status"), &json!({ "status": status }));
}

/// A kubelet may take long to have the API forget a pod whose network it has ended (volumes that are busy).
#[test]
fn what_a_pod_began_goes_on_when_the_api_forgets_late_who_had_its_address_before() {
    let stage = Stage::of(2, Families::Dual);
    let mut peers = [Peer::new(wired(&stage, 1, "far", None, || {}))];
    let former = wired(&stage, 0, "former", None, || {});
    let ips = former.ips;
    shows(&stage, "former", ips);
    stage.nodes[0].del(&former.pod).unwrap();
    drop(former);
    let heir = wired(&stage, 0, "heir", Some(ips), || {});
    shows(&stage, "heir", ips);
    let _open = begin(&heir.pod, ips, &mut peers);
    let known = began(&stage.nodes[1], &ips);
    assert_eq!(known, 2 * (1 + STREAMS));
    let other = wired(&stage, 0, "other", None, || {});
    shows(&stage, "other", other.ips);
    let _open_too = begin(&other.pod, other.ips, &mut peers);
    for pod in ["former", "other"] {
        stage.delete(&format!("/api/v1/namespaces/default/pods/{pod}?gracePeriodSeconds=0"));
    }
    wait_for("the other node has heard of both", || (began(&stage.nodes[1], &other.ips) == 0).then_some(()));
    assert_eq!(began(&stage.nodes[1], &ips), known, "they are those of who has the addresses now");
}

/// What it says in a conversation that somebody began with it is no answer to who has his address next.
#[test]
fn a_pod_that_may_send_nothing_goes_on_with_nobody_whose_address_another_node_gives_to_another_pod() {
    let stage = Stage::of(2, Families::Dual);
    let mute = json!({ "podSelector": { "matchLabels": { "app": "far" } }, "policyTypes": ["Egress"] });
    policy(&stage, "mute", &mute);
    let friend = wired(&stage, 0, "friend", None, || {});
    let mut peers = [Peer::new(wired(&stage, 1, "far", None, || {}))];
    let former = wired(&stage, 0, "former", None, || {});
    let ips = former.ips;
    shows(&stage, "former", ips);
    let open = begin(&former.pod, ips, &mut peers);
    stage.nodes[0].del(&former.pod).unwrap();
    drop((open, former));
    assert!(began(&stage.nodes[1], &ips) > 0, "the other node knows of no end yet");
    stage.delete("/api/v1/namespaces/default/pods/former?gracePeriodSeconds=0");
    wait_for("the other node forgets what it began", || (began(&stage.nodes[1], &ips) == 0).then_some(()));
    let heard = inherit(&stage, "open", ips, &friend, &mut peers);
    assert!(!peers[0].of.ips.iter().any(|ip| heard.contains(ip)), "{heard:?}");
}
