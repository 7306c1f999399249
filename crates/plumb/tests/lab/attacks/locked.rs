//! What holds of a pod's place when no table of nf_tables looks: its port takes its own MAC only, the bridge learns nothing,
//! and the node knows its neighbours.

use std::net::Ipv4Addr;
use std::time::Duration;

use types::Family;

use super::{GATEWAYS, NOBODY, Siege, places, tables};
use crate::cluster::wait_for;

const OTHER_MAC: &str = "02:11:00:00:00:01";

/// Whom the node answers at the bridge group's addresses: a pod itself, as always by its bridge.
pub fn groups(siege: &Siege, family: Family) {
    let gateway = format!("honest: {}", siege.gateway_mac());
    let nobody = family.pick(NOBODY);
    let forged = [("by-mac", OTHER_MAC, nobody), ("by-address", "", nobody)];
    assert_eq!(siege.answered(family, &forged), gateway);
    siege.holds_only_pods();
}

/// Without the table that looks at each frame. The node's agents are held back from putting it there again.
pub fn unguarded(siege: &Siege) {
    for node in ["node1", "node2"] {
        siege.lab.lab_ok(&["agent", "pause", node]);
        siege.lab.node_ok(node, &["nft", "delete", "table", "bridge", "plumb"]);
    }
    for family in Family::ALL {
        let (friend, victim) = (siege.ip("friend1", family), siege.ip("victim1", family));
        let seen = siege.seen(&["victim1"], family, || {
            siege.python(
                "thief1",
                &format!("forge({:?}, [('as-friend', {friend:?}, {victim:?})])", GATEWAYS[0]),
            );
        });
        assert!(seen.contains("as-friend"), "only the table looks at the source: {seen:?}");
        places(siege, family);
        let by_mac = [("by-mac", OTHER_MAC, family.pick(NOBODY))];
        assert_eq!(siege.answered(family, &by_mac), format!("honest: {}", siege.gateway_mac()));
    }
    tables(siege);
    siege.holds_only_pods();
    for node in ["node1", "node2"] {
        siege.lab.lab_ok(&["agent", "resume", node]);
        wait_for("the table is back", Duration::from_secs(30), || {
            let table = siege.lab.node(node, &["nft", "list", "table", "bridge", "plumb"]);
            if table.ok { Ok(()) } else { Err(format!("{table:?}")) }
        });
    }
}

impl Siege {
    /// That of `cni0` on node1.
    fn gateway_mac(&self) -> String {
        let first: Ipv4Addr = GATEWAYS[0].parse().expect("an address");
        let [a, b, c, d] = first.octets();
        types::Mac([0x0a, 0x58, a, b, c, d]).to_string()
    }

    /// What thief1 is answered by which MAC, in frames to the bridge group, for itself and under these claims.
    fn answered(&self, family: Family, claims: &[(&str, &str, &str)]) -> String {
        let honest = ("honest", "", self.ip("thief1", family));
        let claims: Vec<String> = claims
            .iter()
            .chain([&honest])
            .map(|(word, mac, address)| format!("({word:?},{mac:?},{address:?})"))
            .collect();
        let asks = format!("group({:?}, [{}])", family.pick(GATEWAYS), claims.join(","));
        self.python("thief1", &asks).trim().to_owned()
    }

    /// node1 believes nobody about where its pods are and asks for none, and its bridge has learned nothing.
    fn holds_only_pods(&self) {
        let neighbours = self.lab.node_ok("node1", &["ip", "neigh", "show", "nud", "all"]);
        let told = |line: &&str| line.contains(" lladdr ") || line.contains("INCOMPLETE");
        let settled =
            |line: &&str| ["NOARP", "PERMANENT"].contains(&line.trim_end().rsplit(' ').next().unwrap_or(""));
        let ours = |line: &&str| line.contains(" dev cni0 ") || line.contains(" dev veth");
        let believed = neighbours.lines().find(|line| ours(line) && told(line) && !settled(line));
        assert_eq!(believed, None, "{neighbours}");
        let entries = self.lab.node_ok("node1", &["bridge", "fdb", "show", "br", "cni0"]);
        let learned = |line: &&str| !["self", "permanent", "static"].iter().any(|word| line.contains(word));
        assert_eq!(entries.lines().find(learned), None, "{entries}");
    }
}
