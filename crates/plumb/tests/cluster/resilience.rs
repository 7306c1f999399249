//! What breaks around a running network must not be felt by it, and must be made good once the cause is over: the API,
//! its store, the agent, kubelet, containerd, a node's interfaces, a whole node. Named faults first, one by one; then
//! kills at moments that a seed decides (`PLUMB_TEST_SEED`, printed).
//!
//! ```text
//!   node1  caller (a call of Service echo every 50 ms), reader (one long answer of echo2, line by line), echo1, probe1
//!   node2  echo2, probe2
//! ```
//! After each fault a Service that did not exist before is reached by its name, from the node in question: what the API
//! says reaches kernel and DNS again. Its EndpointSlice is made by hand, so that no other controller's patience is
//! measured. How long it took is printed.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Kubectl, Namespace, Stack, pod, server, wait_for};

const ECHO: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{port: 8080}]}
";

/// How long a cause lasts: `PLUMB_TEST_LASTS` seconds, 5 by itself. An API server that answers no more, but whose kernel
/// still does, is left by the agent after 30 to 90 s, according to what it owes: more than that tries this too.
fn lasts() -> Duration {
    let given = std::env::var("PLUMB_TEST_LASTS").ok().map(|word| word.parse().expect("PLUMB_TEST_LASTS"));
    Duration::from_secs(given.unwrap_or(5))
}

fn world(cluster: &Cluster) -> Namespace<'_> {
    let ns = cluster.namespace("faults");
    ns.apply(&[ECHO, &server("echo1", "node1"), &server("echo2", "node2"), &server("probe1", "node1")]);
    ns.apply(&[&server("probe2", "node2")]);
    ns.wait_ready();
    let here = "nodeName: node1\n  restartPolicy: Never";
    let (address, service) = (ns.pod_ip("echo2"), ns.get(&["service", "echo"])["spec"]["clusterIP"].clone());
    let service = service.as_str().expect("a ClusterIP");
    ns.until_demo("probe1", &["get", "http://echo:8080/"]);
    ns.apply(&[
        &pod("caller", here, &format!(r#"loop, "http://{service}:8080/", --every, "50", --timeout, "5""#)),
        &pod("reader", here, &format!(r#"stream, "{address}:8080", --every, "20", --timeout, "5""#)),
    ]);
    ns.wait_ready();
    ns
}

/// A Service made now is reached by the probe of this node.
fn follows(ns: &Namespace<'_>, node: usize, word: &str) {
    let (name, address) = (format!("echo-{word}"), ns.pod_ip("echo1"));
    let objects = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{port: 8080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{port: 8080, protocol: TCP}}]
endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]
"
    );
    ns.cluster
        .wait_for("the API takes a Service", || ns.kubectl_fed(&["apply", "-f", "-"], &objects).or_missing());
    ns.until_demo(&format!("probe{node}"), &["get", &format!("http://{name}:8080/"), "--timeout", "1"]);
}

/// The traffic that ran all the while: every call was answered, no line was lost.
fn unharmed(ns: &Namespace<'_>, word: &str) {
    let calls = ns.kubectl_ok(&["logs", "caller"]);
    let failed: Vec<&str> = calls.lines().filter(|line| line.split(' ').nth(1) != Some("200")).collect();
    assert!(failed.is_empty() && !calls.is_empty(), "{word}: calls failed: {failed:#?}");
    for pod in ["caller", "reader"] {
        let phase = ns.get(&["pod", pod])["status"]["phase"].clone();
        assert_eq!(phase, "Running", "{word}: {pod}: {}", ns.kubectl(&["logs", "--tail=3", pod]).out);
    }
}

/// The cause, for a while; then what shows that all is right again, and that nobody noticed.
fn fault(ns: &Namespace<'_>, word: &str, node: usize, begin: &[&[&str]], end: &[&[&str]]) {
    for step in begin {
        ns.cluster.tool_ok(step);
    }
    std::thread::sleep(lasts()); // the fault itself, not a wait for anything
    for step in end {
        ns.cluster.tool_ok(step);
    }
    ns.cluster.wait_for("the API", || ns.kubectl(&["get", "--raw", "/readyz"]).or_missing());
    let over = Instant::now();
    follows(ns, node, word);
    println!("{word:<22} right again {:.1} s after its end", over.elapsed().as_secs_f64());
    unharmed(ns, word);
}

#[test]
fn faults_around_the_network_are_not_felt_and_leave_nothing() {
    let cluster = Cluster::own(Stack::Single, 2);
    let ns = world(&cluster);
    let killed = |word: &str, on: &str, unit: &str| {
        let node = if on == "node2" { 2 } else { 1 };
        fault(&ns, word, node, &[&["kill", on, unit]], &[&["start", on, unit]]);
    };
    killed("api-killed", "cp", "kube-apiserver");
    let hung = ["STOP", "CONT"].map(|signal| ["kill", "cp", "kube-apiserver", signal]);
    fault(&ns, "api-hung", 1, &[&hung[0]], &[&hung[1]]);
    fault(&ns, "etcd-paused", 1, &[&["kill", "cp", "etcd", "STOP"]], &[&["kill", "cp", "etcd", "CONT"]]);
    api_is_slow(&ns);
    killed("agent-killed", "node1", "plumb");
    killed("kubelet-killed", "node1", "kubelet");
    killed("containerd-killed", "node1", "containerd");
    interfaces_are_lost(&ns);
    node_boots_again(&ns);
}

/// The API server works a tenth of the time, for as long as [`lasts`] says.
fn api_is_slow(ns: &Namespace<'_>) {
    let began = Instant::now();
    while began.elapsed() < lasts() {
        // The fault itself, not a wait for anything.
        for (signal, lasts) in [("STOP", 900), ("CONT", 100)] {
            ns.cluster.tool_ok(&["kill", "cp", "kube-apiserver", signal]);
            std::thread::sleep(Duration::from_millis(lasts));
        }
    }
    let over = Instant::now();
    follows(ns, 1, "api-slow");
    println!("api-slow               right again {:.1} s after its end", over.elapsed().as_secs_f64());
    unharmed(ns, "api-slow");
}

/// xorshift64*: the same seed, the same moments.
struct Chance(u64);

impl Chance {
    fn from_environment() -> Self {
        let given = std::env::var("PLUMB_TEST_SEED").ok().map(|seed| seed.parse().expect("PLUMB_TEST_SEED"));
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one("kills"));
        println!("PLUMB_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// So many kills, each while a pod is being made on its node and a Service comes.
const KILLS: u64 = 8;

#[test]
fn kills_at_random_moments_are_not_felt_and_what_was_begun_is_finished() {
    let cluster = Cluster::own(Stack::Single, 2);
    let ns = world(&cluster);
    let mut chance = Chance::from_environment();
    for round in 0..KILLS {
        let node = 1 + chance.below(2) as usize;
        let unit = ["plumb", "kubelet", "containerd"][chance.below(3) as usize];
        let (on, word, moment) = (format!("node{node}"), format!("kill-{round}"), chance.below(1500));
        let begun = format!("begun{round}");
        ns.apply(&[&server(&begun, &on)]);
        std::thread::sleep(Duration::from_millis(moment)); // the moment is what is tried
        cluster.tool_ok(&["kill", &on, unit]);
        cluster.tool_ok(&["start", &on, unit]); // as the machine's init would
        let over = Instant::now();
        follows(&ns, node, &word);
        let right = over.elapsed().as_secs_f64();
        // kubelet tries a refused sandbox again after 10 to 15 s, and more than once when it was killed itself.
        wait_for(&format!("{begun} is Ready"), Duration::from_secs(180), || {
            ns.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{begun}"), "--timeout=1s"])
                .or_missing()
        });
        let url = format!("http://{}:8080/", ns.pod_ip(&begun));
        ns.until_demo("probe1", &["get", &url, "--timeout", "1"]);
        let ready = over.elapsed().as_secs_f64();
        println!(
            "{unit:<11} of {on} killed {moment:>4} ms into a pod: right {right:.1} s, that pod reached {ready:.1} s later"
        );
        unharmed(&ns, &word);
    }
}

/// node2 loses its cable with eth0, and bridge and tunnel too.
fn interfaces_are_lost(ns: &Namespace<'_>) {
    ns.cluster.tool_ok(&["unplug", "node2"]);
    for link in ["plumb.1", "cni0"] {
        // The tunnel goes with eth0; the agent may have made it anew by now, or not.
        ns.cluster.node("node2", &["ip", "link", "delete", link]);
    }
    std::thread::sleep(lasts()); // the fault itself, not a wait for anything
    ns.cluster.tool_ok(&["plug", "node2"]);
    let over = Instant::now();
    let url = format!("http://{}:8080/", ns.pod_ip("echo2"));
    ns.until_demo("probe1", &["get", &url, "--timeout", "1"]);
    let reached = over.elapsed().as_secs_f64();
    follows(ns, 2, "interfaces-lost");
    let right = over.elapsed().as_secs_f64();
    println!("interfaces-lost        pods reached {reached:.1} s, right again {right:.1} s after its end");
}

/// node2 loses every process, /run and its interfaces. What ran on node1 and needs nothing of it goes on; its own pods
/// are made anew, with addresses that work.
fn node_boots_again(ns: &Namespace<'_>) {
    let before = ns.get(&["pod", "echo2"])["status"]["containerStatuses"][0]["containerID"].clone();
    let start = Instant::now();
    ns.cluster.tool_ok(&["reboot", "node2"]);
    let up = Instant::now();
    // Our part: everything is in the kernel, and pods can be wired.
    let health = "http://192.168.1.11:9475/healthz";
    ns.cluster.wait_for("node2's agent serves", || {
        ns.cluster.node("node2", &["curl", "-sf", "--max-time", "1", health]).or_missing()
    });
    let agent = up.elapsed().as_secs_f64();
    // The rest is kubelet's: it registers the node, and makes sandboxes anew that are gone.
    wait_for("echo2 runs again", Duration::from_secs(180), || {
        let status = ns.get(&["pod", "echo2"])["status"].clone();
        let again = status["containerStatuses"][0]["containerID"] != before;
        let ready = status["conditions"].as_array().is_some_and(|all| {
            all.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        });
        if again && ready { Ok(()) } else { Err(status.to_string()) }
    });
    ns.wait_ready_of("probe2");
    follows(ns, 2, "node-booted");
    let url = format!("http://{}:8080/", ns.pod_ip("echo2"));
    ns.until_demo("probe1", &["get", &url, "--timeout", "1"]);
    ns.until_demo("probe2", &["get", &format!("http://{}:8080/", ns.pod_ip("echo1")), "--timeout", "1"]);
    let (down, after) = ((up - start).as_secs_f64(), up.elapsed().as_secs_f64());
    println!(
        "node-booted            down {down:.1} s, agent right {agent:.1} s, pods made anew {after:.1} s after boot"
    );
}
