//! A pod that has the kernel write a checksum where a packet has an address or a port: after every rule has seen the packet, on
//! its way out of the node (ip_do_fragment, skb_checksum_help).

use std::collections::BTreeSet;
use std::time::Duration;

use types::Family;

use super::{GATEWAYS, NODES, Siege};
use crate::cluster::{Kubectl, wait_for};

const PROGRAMS: [&str; 2] = ["plumb_checksums", "plumb_uplink"];

/// thief1 becomes friend1 on the way to the other node, and friend1 gets to a port that is closed.
pub fn checksums(siege: &Siege, family: Family) {
    let ip = |pod: &str| siege.ip(pod, family).to_owned();
    let friend = format!("struct.unpack('!H', packed({:?})[-2:])[0]", ip("friend1"));
    let misplace = |from: &str, to: &str, word: &str, place: &str| {
        let (src, dst) = (ip(from), ip(to));
        siege.python(
            from,
            &format!("misplace(gateway_mac({:?}), {src:?}, {dst:?}, {word:?}, {place})", GATEWAYS[0]),
        );
    };
    let attack = || {
        siege.seen(&["victim1", "victim2"], family, || {
            misplace("thief1", "victim2", "as-friend", &format!("'source', {friend}"));
            misplace("friend1", "victim1", "closed-port", "'port', 9002");
        })
    };
    let ports = ["thief1", "friend1"].map(|pod| siege.port(pod));
    if !siege.has_program(&ports[0]) {
        let told = siege.lab.kubectl_ok(&["get", "events", "-A"]);
        assert!(told.contains("cannot look where checksums are to be filled in"), "{told}");
        return;
    }
    siege.lab.lab_ok(&["agent", "pause", "node1"]);
    for port in &ports {
        siege.lab.node_ok("node1", &["tc", "qdisc", "del", "dev", port, "clsact"]);
    }
    let both = BTreeSet::from(["as-friend", "closed-port"].map(str::to_owned));
    assert_eq!(attack(), both, "without the program the kernel changes both");
    siege.lab.lab_ok(&["agent", "resume", "node1"]);
    wait_for("the program is back", Duration::from_secs(30), || {
        let back = ports.iter().all(|port| siege.has_program(port));
        back.then_some(()).ok_or_else(|| siege.filters(&ports[0]))
    });
    assert_eq!(attack(), BTreeSet::new());
    honest(siege, family);
    from_outside(siege, family);
}

/// A machine on the nodes' network, which hands on what is to be filled in: to a port that is closed, by a node port that leads
/// to an open one.
fn from_outside(siege: &Siege, family: Family) {
    let own_mac = siege.lab.node_ok("node1", &["cat", "/sys/class/net/eth0/address"]);
    let (node, pod) = (family.pick(NODES[0]), siege.ip("mute1", family));
    let me = family.pick(["192.168.1.1", "fd00:192:168:1::1"]);
    let misplace = format!(
        "misplace(mac({:?}), {me:?}, {node:?}, 'closed-port', 'port', 9002, 30475, {pod:?})",
        own_mac.trim()
    );
    // In fragments; those of IPv6 are larger than a pod's packets may be, and the sender would be told so first.
    let length = family.pick([3000, 1000]);
    let honest = format!("say({node:?}, 30475, 'open-port', 40000, {length})");
    let attack = || {
        siege.seen(&["mute1"], family, || {
            siege.outside(&misplace);
            siege.outside(&honest);
        })
    };
    siege.lab.lab_ok(&["agent", "pause", "node1"]);
    siege.lab.node_ok("node1", &["tc", "qdisc", "del", "dev", "eth0", "clsact"]);
    let both = BTreeSet::from(["open-port", "closed-port"].map(str::to_owned));
    assert_eq!(attack(), both, "without the program the kernel changes the port");
    siege.lab.lab_ok(&["agent", "resume", "node1"]);
    wait_for("the program is back at the node's link", Duration::from_secs(60), || {
        siege.has_program("eth0").then_some(()).ok_or_else(|| siege.filters("eth0"))
    });
    assert_eq!(attack(), BTreeSet::from(["open-port".to_owned()]));
}

/// Checksums that are filled in where they belong arrive, and what a pod's own kernel cuts into fragments.
fn honest(siege: &Siege, family: Family) {
    for victim in ["victim1", "victim2"] {
        let to = siege.ip(victim, family);
        let seen = siege.seen(&[victim], family, || {
            let me = siege.ip("friend1", family);
            siege.python("friend1", &format!("place_well({:?}, {me:?}, {to:?}, 'well')", GATEWAYS[0]));
            siege.python("friend1", &format!("say({to:?}, 9001, 'long', 40000, 4000)"));
        });
        assert_eq!(seen, BTreeSet::from(["well", "well-inner", "long"].map(str::to_owned)), "{victim}");
    }
}

impl Siege {
    /// The node's end of a pod's veth.
    fn port(&self, pod: &str) -> String {
        let entries = self.lab.node_ok("node1", &["bridge", "fdb", "show", "br", "cni0"]);
        let of_pod = entries.lines().find(|line| line.starts_with(&self.mac(pod)));
        of_pod
            .and_then(|line| line.split(' ').nth(2))
            .unwrap_or_else(|| panic!("{pod}: {entries}"))
            .to_owned()
    }

    fn filters(&self, port: &str) -> String {
        self.lab.node_ok("node1", &["tc", "filter", "show", "dev", port, "ingress"])
    }

    fn has_program(&self, port: &str) -> bool {
        PROGRAMS.iter().any(|name| self.filters(port).contains(name))
    }
}
