//! With agents away: what they have wired goes on, and names come from another node.

use super::{ECHOS, Mesh, NS};
use crate::cluster::{Checks, wait_for};
use std::time::Duration;

pub fn checks(mesh: &Mesh, checks: &mut Checks) {
    checks.check("one agent stopped: its pods' names are answered by the other node", || names(mesh));
    checks.check("every agent stopped: 1,000 new connections through the service work", || all_stopped(mesh));
    checks.check("the agents come back to what they left", || back(mesh));
}

fn names(mesh: &Mesh) {
    mesh.lab.lab_ok(&["agent", "stop", "node1"]);
    for _ in 0..5 {
        let out = mesh.lab.demo_ok(NS, "echo1", &["dns", "echo"]);
        assert!(out.contains(mesh.service("echo")), "{out}");
    }
    let out = mesh.lab.demo_ok(NS, "echo1", &["dns", "outside.test."]);
    assert!(out.contains("203.0.113.10"), "{out}");
    mesh.ask("echo1", &["get", "http://echo"]);
    // With its agent back, the node answers itself: also while the other one is away.
    mesh.lab.lab_ok(&["agent", "start", "node1"]);
    serving(mesh, "node1");
    mesh.lab.lab_ok(&["agent", "stop", "node2"]);
    for pod in ["echo1", "echo2"] {
        let out = mesh.lab.demo_ok(NS, pod, &["dns", "echo"]);
        assert!(out.contains(mesh.service("echo")), "{pod}: {out}");
    }
    mesh.lab.lab_ok(&["agent", "start", "node2"]);
    serving(mesh, "node2");
}

/// Waits until the node's own agent holds the DNS address.
fn serving(mesh: &Mesh, node: &str) {
    wait_for("the agent's DNS socket", Duration::from_secs(60), || {
        let sockets = mesh.lab.node_ok(node, &["ss", "-Hnul", "src", "10.96.0.10:53"]);
        if sockets.trim().is_empty() { Err(format!("none on {node}")) } else { Ok(()) }
    });
}

fn all_stopped(mesh: &Mesh) {
    for node in ["node1", "node2"] {
        mesh.lab.lab_ok(&["agent", "stop", node]);
    }
    let url = format!("http://{}", mesh.service("echo"));
    let out = mesh.lab.demo_ok(NS, "echo1", &["loop", &url, "--every", "0", "--count", "1000"]);
    assert_eq!(out.lines().filter(|line| line.contains(" 200 ")).count(), 1000, "{out}");
    for pod in ECHOS {
        let count = out.lines().filter(|line| line.contains(&format!("name={pod} "))).count();
        // 250 expected, with a standard deviation of 14.
        assert!((150..350).contains(&count), "{pod}: {count} of 1000");
    }
    for node in ["node1", "node2"] {
        mesh.lab.lab_ok(&["agent", "start", node]);
        serving(mesh, node);
    }
}

fn back(mesh: &Mesh) {
    let late = crate::cluster::Lab::pod(NS, "late1", "nodeName: node1", super::SERVE);
    mesh.lab.apply(&late);
    mesh.lab.wait_ready(NS);
    let answer = mesh.ask("late1", &["get", &format!("http://{}", mesh.service("far"))]);
    assert_eq!((answer.name(), answer.peer()), ("echo2", mesh.lab.pod_ip(NS, "late1").as_str()));
}
