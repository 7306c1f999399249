//! A node that cannot be asked: the trace tells what the sender's node saw, and which one is silent.

use std::time::Duration;

use serde_json::Value;

use super::{FAR, Stage, only};
use crate::cluster::{Checks, wait_for};

pub fn checks(stage: &Stage, checks: &mut Checks) {
    stage.lab.lab_ok(&["agent", "stop", "node2"]);
    checks.check("away: the other node's agent, and the packet gets through", || agent_stopped(stage));
    checks.check("away: the other node's agent, and a policy there", || policy(stage));
    checks.check("away: the other node's agent is not needed on one node", || on_one_node(stage));
    stage.lab.lab_ok(&["agent", "start", "node2"]);
    checks.check("away: it answers again", || whole_again(stage));
    let link = "ip link set eth0 down";
    stage.run("node2", link);
    checks.check("away: the other node's link is down", || link_down(stage));
    stage.run("node2", "ip link set eth0 up; ip route replace default via 192.168.1.1");
    checks.check("away: its link is up again", || whole_again(stage));
    stage.lab.lab_ok(&["agent", "stop", "node1"]);
    checks.check("away: the pod's own agent", || {
        let said = stage.plumb(&["trace", "way/web", FAR]);
        said.refused(&["node1", "trace from way/web, which its own node", "agent"]);
    });
    stage.lab.lab_ok(&["agent", "start", "node1"]);
    checks.check("away: that answers again", || whole_again(stage));
}

/// An agent that has just been started may not be heard yet.
fn whole_again(stage: &Stage) {
    wait_for("it agrees again", Duration::from_secs(30), || {
        stage.plumb(&["trace", "way/web", FAR, "--expect", "delivered"]).or_missing()?;
        stage.whole(FAR, &[])
    });
}

/// The hop of this number.
fn hop(report: &Value, n: u64) -> &Value {
    let mut hops = report["hops"].as_array().into_iter().flatten();
    hops.find(|hop| hop["hop"]["n"] == n).unwrap_or_else(|| panic!("no hop {n}: {report:#}"))
}

fn agent_stopped(stage: &Stage) {
    let report = stage.trace(FAR, &[]);
    assert_eq!((&report["conclusion"], &report["broken"]), (&"delivered".into(), &Value::Null), "{report:#}");
    assert_eq!(hop(&report, 9)["outcome"]["outcome"], "not-asked", "{report:#}");
    assert_eq!((&report["agree"], &report["of"]), (&11.into(), &12.into()), "{report:#}");
    assert_eq!(hop(&report, 11)["hop"]["text"], "way/far", "{report:#}");
    let said = stage.plumb(&["trace", "way/web", FAR]);
    assert!(said.ok && said.out.contains("node2 could not be asked"), "{said:?}");
}

fn policy(stage: &Stage) {
    let report = stage.trace("http://closed:8080", &[]);
    only(&report, (9, "node", "node2"));
    let text = hop(&report, 10)["hop"]["text"].as_str().unwrap_or_default();
    assert!(text.contains("isolated by way/closed"), "{report:#}");
}

fn on_one_node(stage: &Stage) {
    let report = stage.concludes("http://near:8080", &[], "delivered");
    assert_eq!(report["not_asked"], Value::Object(serde_json::Map::new()), "{report:#}");
}

/// Whether the packet still left the sender's node depends on how long that knows the other's hardware address.
fn link_down(stage: &Stage) {
    let report = stage.trace(FAR, &[]);
    match report["broken"]["n"].as_u64() {
        Some(8) => only(&report, (8, "tunnel", "node1")),
        _ => only(&report, (9, "node", "node2")),
    }
    assert!(report["not_asked"]["node2"].is_string(), "{report:#}");
    assert_eq!(report["conclusion"], "broken", "{report:#}");
    let up = format!("plumb lab up --name {}", stage.lab.name);
    assert_eq!(report["next"], up.as_str(), "{report:#}");
    // A node's own address, which it alone answers.
    let said = stage.plumb(&["trace", "way/web", "192.168.1.11:9475"]);
    let last = said.out.lines().last().unwrap_or_default();
    assert!(last.contains("node2 could not be asked") && last.contains(&format!("next: {up}")), "{said:?}");
}
