//! Who reaches whom, and under which address.

use std::collections::BTreeSet;

use super::{ECHOS, Mesh, NS};
use crate::cluster::Checks;

pub fn checks(mesh: &Mesh, checks: &mut Checks) {
    checks.check("every pod reaches every pod, and is seen under its own address", || every_pair(mesh));
    checks.check("a service spreads over its endpoints and keeps the caller's address", || spread(mesh));
    checks.check("a service over UDP", || udp(mesh));
    checks.check("a pod reaches itself through its own service", || hairpin(mesh));
    checks.check("a service without endpoints refuses at once", || nobody(mesh));
    checks.check("node to pod, pod to nodes, node to service", || nodes(mesh));
    checks.check("what leaves the cluster bears the node's address, and the answer finds the pod", || {
        outside(mesh)
    });
    checks.check("bridge netfilter is off in the nodes", || br_netfilter(mesh));
    checks.check("the API answers at the kubernetes service", || api(mesh));
}

fn every_pair(mesh: &Mesh) {
    for from in ECHOS {
        for to in ECHOS {
            let answer = mesh.ask(from, &["get", &format!("http://{}:8080/", mesh.ip(to))]);
            assert_eq!((answer.name(), answer.peer()), (to, mesh.ip(from)), "{from} → {to}");
            assert_eq!(answer.field("local"), format!("{}:8080", mesh.ip(to)));
        }
        // What the pod itself takes for its address is what the others see.
        let own = mesh.lab.exec(NS, from, &["ip", "-4", "-o", "address", "show", "dev", "eth0"]).out;
        assert!(own.contains(&format!("inet {}/32 ", mesh.ip(from))), "{own}");
    }
}

fn spread(mesh: &Mesh) {
    let out = mesh.lab.demo_ok(NS, "echo1", &["loop", "http://echo", "--every", "0", "--count", "60"]);
    let answerers: BTreeSet<&str> =
        out.split_ascii_whitespace().filter_map(|word| word.strip_prefix("name=")).collect();
    // 60 draws miss one of four with a chance of 1 in 8 million.
    assert_eq!(answerers, BTreeSet::from(ECHOS), "{out}");
    for line in out.lines().filter(|line| !line.contains("name=echo1")) {
        assert!(line.contains(&format!("peer={}:", mesh.ip("echo1"))), "{line}");
    }
}

fn udp(mesh: &Mesh) {
    let answers: Vec<_> = (0..8).map(|_| mesh.ask("echo3", &["udp", "far:53", "--say", "ping"])).collect();
    for answer in answers {
        assert_eq!((answer.name(), answer.peer(), answer.field("said")), ("echo2", mesh.ip("echo3"), "ping"));
    }
    mesh.ask("echo3", &["udp", "echo:9001"]);
}

fn hairpin(mesh: &Mesh) {
    let answer = mesh.ask("echo1", &["get", "http://self"]);
    // Were its own address kept, the answer would stay in the pod, and its client would see a stranger.
    assert_eq!((answer.name(), answer.peer()), ("echo1", "10.244.1.1"));
    assert_eq!(mesh.ask("echo1", &["udp", "self:9001"]).name(), "echo1");
}

fn nobody(mesh: &Mesh) {
    for args in [["get", "http://nobody"], ["udp", "nobody:9001"]] {
        mesh.lab.demo(NS, "echo1", &args).refused(&["Connection refused"]);
    }
}

fn nodes(mesh: &Mesh) {
    let own = [("node1", "192.168.1.10"), ("node2", "192.168.1.11")];
    for (node, address) in own {
        for to in ["echo1", "echo2", "guarded1", "guarded2"] {
            // A policy keeps out other nodes; the pod's own node may always reach it (its kubelet's probes).
            let guarded_far = to.starts_with("guarded") && !to.ends_with(&node[4..]);
            let said =
                mesh.lab.node_demo(node, &["get", &format!("http://{}:8080", mesh.ip(to)), "--timeout", "1"]);
            assert_eq!(said.ok, !guarded_far, "{node} → {to}: {said:?}");
        }
        let said = mesh.lab.node_demo(node, &["get", &format!("http://{}", mesh.service("echo"))]);
        assert!(said.ok, "{node} → service: {said:?}");
        for from in ["echo1", "echo2"] {
            let answer = mesh.ask(from, &["get", &format!("http://{address}:18080")]);
            assert_eq!(answer.name(), node, "a host network pod has its node's name");
        }
    }
    let own_node = mesh.ask("echo1", &["get", "http://192.168.1.10:18080"]);
    assert_eq!(own_node.peer(), mesh.ip("echo1"));
}

fn outside(mesh: &Mesh) {
    for (pod, node) in [("echo1", "192.168.1.10"), ("echo2", "192.168.1.11")] {
        let said = mesh.lab.demo_ok(NS, pod, &["get", "http://203.0.113.10/"]);
        assert!(said.starts_with(&format!("outside 203.0.113.10:80 {node}:")), "{pod}: {said}");
    }
}

/// Then nothing but routing brings a packet between two pods of one node past the rules.
fn br_netfilter(mesh: &Mesh) {
    for node in ["node1", "node2"] {
        let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let value = mesh.lab.node_ok(node, &["sh", "-c", &format!("test ! -e {path} || cat {path}")]);
        assert!(matches!(value.trim(), "" | "0"), "{node}: {path} is {value}");
    }
}

fn api(mesh: &Mesh) {
    let said = mesh.lab.demo(NS, "echo2", &["tcp", "kubernetes.default:443", "--say", "no TLS"]);
    // It is TLS that answers: an alert, or the end of the connection; no refusal, no silence.
    let silent =
        ["connect ", "timed out", "temporarily unavailable"].iter().any(|word| said.err.contains(word));
    assert!(said.err.contains("10.96.0.1:443") && !silent, "{said:?}");
}
