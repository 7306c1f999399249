//! What others change is put back and told; while paused it is only told. How soon is printed, never asserted.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::stage::{Node, Stage, wait_for};

/// Breaks something and measures until the look is as before.
fn mended(node: &Node, broken: &str, look: &str) -> Duration {
    let before = node.run(look);
    let began = Instant::now();
    node.run(broken);
    wait_for(&format!("{broken} is mended"), || {
        (node.try_run(look).as_ref() == Ok(&before)).then(|| began.elapsed())
    })
}

#[test]
fn what_others_change_is_mended_and_told() {
    let stage = Stage::new(2);
    let (_pod, _) = stage.wired(0, "web");
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let port = node.run("ip -o link show master cni0");
    let veth = port.split([' ', '@']).nth(1).unwrap();
    let fdb = node.run("bridge fdb show dev plumb.1");
    let mac = fdb.split(' ').next().unwrap();
    let entry = format!("bridge fdb show brport {veth}");
    let entries = node.run(&entry);
    let own = entries.lines().find(|line| line.contains("static")).and_then(|line| line.split(' ').next());
    let own = own.unwrap_or_else(|| panic!("{entries}"));
    let settled = "ip neigh show dev cni0 nud permanent";
    let neighbour = node.run(settled);
    let neighbour = neighbour.split(' ').next().unwrap();
    let sorted = "nft -s list table ip plumb";
    for (broken, look) in [
        ("ip route del 10.244.2.0/24", "ip route"),
        ("ip neigh del 10.244.2.0 dev plumb.1", "ip neigh show dev plumb.1 nud permanent"),
        (&format!("bridge fdb del {mac} dev plumb.1 self"), "bridge fdb show dev plumb.1"),
        ("ip link set cni0 mtu 1400", "ip -o link show cni0"),
        (&format!("ip link set {veth} nomaster"), "bridge link show"),
        (&format!("bridge link set dev {veth} isolated off"), "bridge -d link show"),
        (&format!("bridge link set dev {veth} locked off learning on"), "bridge -d link show"),
        (
            &format!("bridge link set dev {veth} flood on mcast_flood on bcast_flood on"),
            "bridge -d link show",
        ),
        (&format!("bridge fdb del {own} dev {veth} master"), &entry),
        (&format!("ip neigh del {neighbour} dev cni0"), settled),
        (&format!("ip neigh replace {neighbour} lladdr 02:00:00:00:00:09 dev cni0 nud permanent"), settled),
        ("ip addr del 10.244.1.1/24 dev cni0", "ip -4 -o addr show cni0"),
        ("nft flush chain ip plumb postrouting", sorted),
        ("nft add rule ip plumb forward drop", sorted),
        ("nft delete table ip plumb", sorted),
    ] {
        let took = mended(node, broken, look);
        println!("{broken}: {took:?}");
    }
    let told = wait_for("an Event says so", || Some(stage.events("DriftMended")).filter(|e| e.len() >= 5));
    assert!(told.iter().any(|message| message.contains("10.244.2.0/24")), "{told:#?}");
    assert!(node.metrics().contains("plumb_drift_mended_total{subsystem=\"nft\"}"));
}

/// How often the agent has read that part of the kernel as a whole.
fn looks(node: &Node, subsystem: &str) -> u64 {
    let series = format!("plumb_looks_total{{subsystem=\"{subsystem}\"}} ");
    let metrics = node.metrics();
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

/// What firewalls and other proxies do to their own tables costs no look at ours. The agent hears of rules and of routes
/// in one thread, and looks in this order: once a route is back, what was done to rules before has been dealt with.
#[test]
fn what_others_do_to_their_own_tables_costs_no_look() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    wait_for("a look at all, every 30 s, does not come in between", || {
        let before = looks(node, "nft");
        for foreign in [
            "nft add table ip other",
            "nft add chain ip other forward { type filter hook forward priority 0; }",
            "nft add rule ip other forward counter",
            "nft delete table ip other",
            "nft add table netdev plumb",
            "nft delete table netdev plumb",
        ] {
            node.run(foreign);
        }
        mended(node, "ip route del 10.244.2.0/24", "ip route");
        (looks(node, "nft") == before).then_some(())
    });
    let before = looks(node, "nft");
    let table = "nft -s list table ip plumb";
    mended(node, "nft add rule ip plumb forward drop", table);
    assert!(looks(node, "nft") > before, "looks at the rules are counted");
    for broken in ["nft flush ruleset", "nft add table ip other; flush chain ip plumb postrouting"] {
        mended(node, broken, table);
    }
    for guard in ["inet plumb", "bridge plumb"] {
        mended(node, &format!("nft delete table {guard}"), &format!("nft -s list table {guard}"));
    }
}

#[test]
fn a_paused_agent_reports_and_leaves_it() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    node.ask("POST", "/v1/pause", &json!({ "paused": true }).to_string()).unwrap();
    node.run("ip route del 10.244.2.0/24");
    wait_for("it is seen", || {
        node.metrics().contains("plumb_drift_seen_total{subsystem=\"net\"}").then_some(())
    });
    assert!(!node.run("ip route").contains("10.244.2.0/24"));
    node.ask("POST", "/v1/pause", &json!({ "paused": false }).to_string()).unwrap();
    wait_for("it is mended", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
}
