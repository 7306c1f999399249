//! What a node is believed that was broken into, or that somebody made up: the packets of its own pods by the tunnel, and
//! nothing else. All of it is sent by hand from the underlay, under addresses of Node objects that no machine is behind.
//!
//! ```text
//!   underlay   192.168.1.77  Node peer   pods 10.244.7.0/24, fd00:10:244:7::/64
//!              192.168.1.78  Node half   pods 10.244.9.0/25
//!              10.244.8.9    Node liar   no pods: its address is one of other's pods
//!                            Node other  pods 10.244.8.0/24, fd00:10:244:8::/64
//!   node1      192.168.1.10  an agent, and the pod that listens
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use kernel::Netns;
use serde_json::{Value, json};
use types::{Families, Family, Mac};

use crate::stage::{Pod, Stage, wait_for};

const PEER: &str = "192.168.1.77";
const HALF: &str = "192.168.1.78";
const LIAR: &str = "10.244.8.9";
const NODE1: &str = "192.168.1.10";
/// Pods of peer and of other.
const OF_PEER: [&str; 2] = ["10.244.7.5", "fd00:10:244:7::5"];
const OF_OTHER: [&str; 2] = [LIAR, "fd00:10:244:8::9"];
const PORT: u16 = 9001;

struct Siege {
    stage: Stage,
    /// Keeps the namespace.
    _victim: Pod,
    ears: UdpSocket,
    to: [IpAddr; 2],
    vtep: Mac,
}

impl Siege {
    fn new() -> Self {
        let stage = Stage::of(1, Families::Dual);
        node(&stage, "peer", PEER, &["10.244.7.0/24", "fd00:10:244:7::/64"]);
        node(&stage, "half", HALF, &["10.244.9.0/25"]);
        node(&stage, "other", "192.168.1.79", &["10.244.8.0/24", "fd00:10:244:8::/64"]);
        node(&stage, "liar", LIAR, &[]);
        for address in [PEER, HALF] {
            ip(&stage.underlay, &format!("address add {address}/24 dev br0"));
        }
        ip(&stage.underlay, &format!("address add {LIAR}/32 dev br0"));
        ip(&stage.underlay, &format!("route add 10.244.1.0/24 via {NODE1} src {LIAR}"));
        let victim = stage.pod(0, "victim");
        let wired = stage.nodes[0].cni("ADD", &victim, &crate::stage::config()).unwrap();
        let to = [0, 1].map(|n| {
            let text = wired["ips"][n]["address"].as_str().unwrap();
            text.split('/').next().unwrap().parse().unwrap()
        });
        let ears = victim.netns.run(|| UdpSocket::bind(("::", PORT))).unwrap().unwrap();
        ears.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let vtep = wait_for("the tunnel's hardware address", || {
            let own = stage.get("/api/v1/nodes/node1");
            own["metadata"]["annotations"][types::wire::VTEP_MAC_ANNOTATION].as_str()?.parse().ok()
        });
        let siege = Self { stage, _victim: victim, ears, to, vtep };
        wait_for("node1 knows all of them", || {
            let known = siege.stage.nodes[0].run("nft list set ip plumb nodes");
            [PEER, HALF, LIAR].iter().all(|address| known.contains(address)).then_some(())
        });
        siege
    }

    /// From an address of the underlay's.
    fn socket(&self, from: &str) -> UdpSocket {
        let socket = self.stage.underlay.run(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
        socket.set_broadcast(true).unwrap();
        socket
    }

    /// By VXLAN: from whom in the outer header, to where, and from whom in the inner one.
    fn tunnel(&self, from: &str, at: &str, source: &str, word: &str) {
        let source: IpAddr = source.parse().unwrap();
        let to = Family::of(source).pick(self.to);
        let kind = Family::of(source).pick([[0x08, 0x00], [0x86, 0xdd]]);
        let frame =
            [&self.vtep.0[..], &[0x0e, 0x70, 0, 0, 0, 1], &kind, &datagram(source, to, word)].concat();
        let packet = [&[0x08, 0, 0, 0, 0, 0, 1, 0][..], &frame].concat();
        self.socket(from).send_to(&packet, (at, types::wire::VXLAN_PORT)).unwrap();
    }

    /// What the pod has heard by the time that it hears an honest word, by the tunnel, in both families.
    fn heard(&self) -> BTreeSet<String> {
        let mut heard = BTreeSet::new();
        for source in OF_PEER {
            let last = format!("honest {source}");
            wait_for("the pod hears an honest word", || {
                self.tunnel(PEER, NODE1, source, &last);
                heard.extend(std::iter::from_fn(|| self.hear()));
                heard.remove(&last).then_some(())
            });
        }
        heard.retain(|word| !word.starts_with("honest"));
        heard
    }

    fn hear(&self) -> Option<String> {
        let mut buffer = [0; 100];
        let (length, _) = self.ears.recv_from(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}

fn node(stage: &Stage, name: &str, address: &str, pods: &[&str]) {
    let spec = if pods.is_empty() { json!({}) } else { json!({ "podCIDR": pods[0], "podCIDRs": pods }) };
    // Each its own, so that there are routes to all of their pods.
    let vtep = format!("0e:70:00:00:01:{:02x}", address.rsplit('.').next().unwrap().parse::<u8>().unwrap());
    let annotations = json!({ types::wire::VTEP_MAC_ANNOTATION: vtep });
    let metadata = json!({ "name": name, "annotations": annotations });
    let object: Value = json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec });
    stage.create("/api/v1/nodes", &object);
    let addresses = json!([{ "type": "InternalIP", "address": address }]);
    stage.patch(&format!("/api/v1/nodes/{name}/status"), &json!({ "status": { "addresses": addresses } }));
}

fn ip(netns: &Netns, words: &str) {
    let run = || std::process::Command::new("ip").args(words.split(' ')).status();
    assert!(netns.run(run).unwrap().unwrap().success(), "ip {words}");
}

/// An IP packet with a datagram from port 40000.
fn datagram(source: IpAddr, to: IpAddr, word: &str) -> Vec<u8> {
    let octets = |ip| match ip {
        IpAddr::V4(v4) => std::net::Ipv4Addr::octets(&v4).to_vec(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::octets(&v6).to_vec(),
    };
    let ends = [octets(source), octets(to)].concat();
    let length = u16::try_from(8 + word.len()).unwrap();
    let ports = [40_000_u16.to_be_bytes(), PORT.to_be_bytes(), length.to_be_bytes()].concat();
    let pseudo = [&ends[..], &[0, 17], &length.to_be_bytes(), &ports, &[0, 0], word.as_bytes()].concat();
    let udp = [&ports[..], &checksum(&pseudo), word.as_bytes()].concat();
    let head = match source {
        IpAddr::V4(_) => {
            let [high, low] = (20 + length).to_be_bytes();
            let start = [0x45, 0, high, low, 0, 7, 0, 0, 64, 17];
            [&start[..], &checksum(&[&start[..], &[0, 0], &ends].concat())].concat()
        }
        IpAddr::V6(_) => [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[17, 64]].concat(),
    };
    [head, ends, udp].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[test]
fn a_node_speaks_for_its_own_pods_whichever_way_it_reaches_the_tunnel() {
    let siege = Siege::new();
    let everywhere = [NODE1, "192.168.1.255", "255.255.255.255", "224.0.0.1"];
    for at in everywhere {
        for source in OF_OTHER.iter().chain(&["10.244.1.9", "192.168.1.79", "203.0.113.10"]) {
            siege.tunnel(PEER, at, source, &format!("{source} by {at}"));
        }
    }
    assert_eq!(siege.heard(), BTreeSet::new());
}

#[test]
fn a_node_speaks_for_no_more_than_its_pods_network() {
    let siege = Siege::new();
    wait_for("the pods of the half are heard", || {
        siege.tunnel(HALF, NODE1, "10.244.9.5", "half");
        siege.heard().contains("half").then_some(())
    });
    siege.tunnel(HALF, NODE1, "10.244.9.200", "the other half");
    assert!(!siege.heard().contains("the other half"));
}

/// Whoever may write a Node's status, its kubelet or its agent, may say that it is at any address.
#[test]
fn a_node_that_says_it_is_at_a_pods_address_is_no_pod() {
    let siege = Siege::new();
    let plain = siege.socket(LIAR);
    plain.send_to(b"bare", SocketAddr::new(siege.to[0], PORT)).unwrap();
    siege.tunnel(LIAR, NODE1, LIAR, "by its tunnel");
    assert_eq!(siege.heard(), BTreeSet::new());
}
