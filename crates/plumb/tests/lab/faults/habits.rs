//! What people reach for first: ping, what a pod can resolve, a shell where there is none.

use std::time::Duration;

use super::{NS, Stage, only};
use crate::cluster::{Checks, Kubectl, wait_for};

pub fn checks(stage: &Stage, checks: &mut Checks) {
    for (name, target, conclusion) in [
        ("ping across nodes", "ping:$FAR", "delivered"),
        ("ping on one node", "ping:$NEAR", "delivered"),
        ("ping by a headless name", "ping:heads", "delivered"),
        ("ping itself", "ping:$WEB", "delivered"),
        ("ping localhost", "ping:localhost", "delivered"),
        ("ping its own node", "ping:192.168.1.10", "delivered"),
        ("ping another node", "ping:192.168.1.11", "delivered"),
        ("ping the outside", "ping:203.0.113.10", "delivered"),
        ("ping a ClusterIP", "ping:far", "refused"),
        ("ping what a policy closes", "ping:$CLOSED", "denied"),
        ("ping no pod", "ping:10.244.2.250", "refused"),
    ] {
        let target = stage.filled(target);
        checks.check(name, || drop(stage.concludes(&target, &[], conclusion)));
    }
    checks.check("why a ClusterIP has no answer", || {
        let said = stage.plumb(&["trace", "way/web", "ping:far"]);
        assert!(said.ok && said.out.contains("no interface has a ClusterIP"), "{said:?}");
    });
    checks.check("a pod that is not there is pinged in vain", || {
        stage.pause(&[]);
        stage.run("node2", "ip link set $TARGET down");
        only(&stage.trace(&stage.filled("ping:$FAR"), &[]), (9, "node", "node2"));
        stage.resume();
        let far = stage.filled("ping:$FAR");
        wait_for("it agrees again", Duration::from_secs(30), || stage.whole(&far, &[]));
    });
    checks.check("ping works from a pod", || ping(stage));
    checks.check("a shell in a pod finds both programs", || shell(stage));
    checks.check("what a pod can resolve", || names(stage));
    checks.check("one name step by step", || steps(stage));
    checks.check("exec into a container that has ended", || exec_into_ended(stage));
}

fn ping(stage: &Stage) {
    for target in ["$FAR", "$NEAR", "heads", "localhost"] {
        let said = stage.lab.exec(NS, "web", &["ping", "-c", "2", "-i", "0.2", &stage.filled(target)]);
        assert!(said.ok && said.out.contains("2 received"), "{target}: {said:?}");
    }
    let said = stage.lab.exec(NS, "web", &["ping", "-c", "1", "far"]);
    assert!(!said.ok && said.out.to_lowercase().contains("port unreachable"), "{said:?}");
}

/// Also in a pod whose own command is a shell.
fn shell(stage: &Stage) {
    for pod in ["web", "shell"] {
        for words in ["ping -c 1 heads", "plumb demo ping -c 1 heads", "plumb --version"] {
            let said = stage.lab.exec(NS, pod, &["sh", "-c", words]);
            assert!(said.ok, "{pod}: {words}: {said:?}");
        }
        // The link by its path, where the machine has a ping of its own.
        let said = stage.lab.exec(NS, pod, &["sh", "-c", "/run/program/spare/ping -c 1 -i 0.1 heads"]);
        assert!(said.ok && said.out.contains("1 received"), "{said:?}");
        let said = stage.lab.exec(NS, pod, &["sh", "-c", "echo x > /run/program/plumb"]);
        assert!(!said.ok && said.err.contains("Read-only"), "{said:?}");
    }
    // Nobody reads it after the first line: a ping without an end is over all the same.
    let words = "timeout 60 /run/program/spare/ping -i 0.1 heads | head -n 1";
    let said = stage.lab.exec(NS, "web", &["bash", "-c", &format!("set -o pipefail; {words}")]);
    assert!(said.ok && said.out.starts_with("PING heads"), "{said:?}");
}

fn names(stage: &Stage) {
    let said = stage.plumb(&["dns", "way/web"]);
    assert!(said.ok, "{said:?}");
    let line = |name: &str| {
        let mut lines = said.out.lines();
        lines.find(|line| line.split_whitespace().next() == Some(name)).unwrap_or_default()
    };
    for (name, found) in
        [("far", "search step 1"), ("kubernetes.default", "search step 2"), ("localhost", "/etc/hosts")]
    {
        assert!(line(name).contains(found), "{name}: {said:?}");
    }
    assert!(line("far").contains(&stage.filled("$VIP")) && line("heads").contains(&stage.filled("$FAR")));
    // What its own file has, a pod's resolver finds there.
    let said = stage.plumb(&["dns", "way/shell"]);
    let all = |name: &str| -> Vec<&str> {
        said.out.lines().filter(|line| line.split_whitespace().next() == Some(name)).collect()
    };
    let [far] = all("far")[..] else { panic!("far: {said:?}") };
    assert!(far.contains("192.0.2.9") && far.contains("/etc/hosts"), "{said:?}");
    let [by_namespace] = all("far.way")[..] else { panic!("far.way: {said:?}") };
    assert!(by_namespace.contains(&stage.filled("$VIP")), "{said:?}");
    let [farther] = all("farther")[..] else { panic!("farther: {said:?}") };
    assert!(farther.contains("192.0.2.9"), "{said:?}");
    let asked = stage.lab.demo_ok(NS, "shell", &["get", "http://far.way:8080"]);
    assert!(!asked.is_empty());
}

fn steps(stage: &Stage) {
    let said = stage.plumb(&["dns", "way/web", "kubernetes.default"]);
    assert!(said.ok, "{said:?}");
    for part in [
        "1. kubernetes.default.way.svc.cluster.local A",
        "no such name",
        "2. kubernetes.default.svc.cluster.local A",
        "10.96.0.1",
        "a name of the cluster",
    ] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    let said = stage.plumb(&["dns", "way/web", "nosuch.way.svc.cluster.local."]);
    assert!(!said.ok && said.out.contains("no such name"), "{said:?}");
    let said = stage.plumb(&["dns", "way/web", "localhost"]);
    assert!(said.ok && said.out.contains("nobody is asked"), "{said:?}");
}

/// A shell in the demo's image, and a name of the cluster's that it knows otherwise.
pub const SHELL: &str = r#"
---
apiVersion: v1
kind: Pod
metadata: {name: shell, namespace: way}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  hostAliases: [{ip: 192.0.2.9, hostnames: [far, farther]}]
  containers:
  - {name: main, image: plumb.local/demo, command: [sh, -c, "plumb demo serve --http 8080"]}
"#;

/// Two containers, of which one ends: into a pod that has ended kubectl does not even ask.
const HALF: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: half, namespace: way}
spec:
  nodeName: node1
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: plumb.local/demo, args: [serve, --http, "8080"]}
  - {name: short, image: plumb.local/demo, args: [get, "http://127.0.0.1:1"]}
"#;

/// kubectl tries another protocol after any refusal: what it says last must be the cause all the same.
fn exec_into_ended(stage: &Stage) {
    stage.lab.apply(HALF);
    wait_for("the container has ended", Duration::from_secs(60), || {
        let pod = stage.lab.get(&["-n", NS, "pod", "half"]);
        let mut all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        let ended = all.any(|of| of["name"] == "short" && of["state"]["terminated"].is_object());
        ended.then_some(()).ok_or_else(|| pod["status"].to_string())
    });
    let said = stage.lab.kubectl(&["-n", NS, "exec", "half", "-c", "short", "--", "true"]);
    assert!(!said.ok, "{said:?}");
    for part in [r#"container "short" of pod way/half is not running"#, "exit code 1", "describe pod half"] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
    assert!(!said.err.contains("WebSocket"), "{said:?}");
}
