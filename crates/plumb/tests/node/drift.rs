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
    let sorted = "nft -s list table ip plumb";
    for (broken, look) in [
        ("ip route del 10.244.2.0/24", "ip route"),
        ("ip neigh del 10.244.2.0 dev plumb.1", "ip neigh show dev plumb.1 nud permanent"),
        (&format!("bridge fdb del {mac} dev plumb.1 self"), "bridge fdb show dev plumb.1"),
        ("ip link set cni0 mtu 1400", "ip -o link show cni0"),
        (&format!("ip link set {veth} nomaster"), "bridge link show"),
        (&format!("bridge link set dev {veth} isolated off"), "bridge -d link show"),
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
