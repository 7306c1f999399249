//! Every alert that Plumb ships fires where its fault is, and nothing else does: a real Prometheus scrapes real agents
//! and evaluates the shipped rules, with seconds for the minutes of `for:` ([`prometheus`]).
//!
//! ```text
//!   node1  Prometheus; at first nothing is wrong here     node2 … node10  a fault each
//! ```

mod prometheus;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Kubectl, Lab, run, wait_for};
use crate::said::repository;
use prometheus::{Firing, Prometheus, program, shipped};

const NODES: u32 = 10;
/// More than the two minutes after which a sync is late.
const PATIENCE: Duration = Duration::from_secs(240);
/// More seconds than the longest `for:` has minutes.
const QUIET: f64 = 17.0;

/// A node, what goes wrong there, and what fires there then.
type Fault = (&'static str, fn(&Lab), &'static [&'static str]);

/// node5's is [`rival_tunnel`].
const FAULTS: &[Fault] = &[
    ("node2", |lab| drop(lab.lab_ok(&["agent", "stop", "node2"])), &["PlumbAgentDown"]),
    ("node3", |lab| drop(lab.lab_ok(&["agent", "pause", "node3"])), &["PlumbPaused"]),
    // Put back each time: more of it follows in `again_and_again`.
    ("node4", |lab| changes_a_route(lab, 1), &["PlumbDriftKeepsComing"]),
    ("node6", one_port_for_all, &["PlumbCniFails"]),
    ("node7", many_pods, &["PlumbAddressesRunOut"]),
    ("node8", rival_dns, &["PlumbDnsAway"]),
    (
        "node9",
        |lab| {
            silent_resolvers(lab);
            strange_packets(lab);
            many_clients(lab);
        },
        &["PlumbClientsRefused", "PlumbDnsUpstreamFails", "PlumbForgedPackets", "PlumbStrayPackets"],
    ),
    ("node10", unserved_port, &["PlumbObjectsNotCarriedOut"]),
];

/// What is said of an object that works must not call anybody: egress to a Service's address matches nothing.
const WELL: &str = r#"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: noted, namespace: default}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.10/32}}]}]}
"#;

#[test]
fn promtool_accepts_the_rules() {
    let said = run(Command::new(program("promtool")).args(["check", "rules"]).arg(shipped()));
    assert!(said.ok, "{said:?}");
    let counted = format!("SUCCESS: {} rules found", alerts().len());
    assert!(said.out.contains(&counted), "{counted}: {said:?}");
}

#[test]
fn each_alert_fires_where_its_fault_is_and_nowhere_else() {
    let lab = Lab::up(NODES);
    lab.apply(&format!(
        "{}{WELL}",
        Lab::pod("default", "web", "nodeName: node1", r#"serve, --http, "8080""#)
    ));
    lab.wait_ready("default");
    let prometheus = Prometheus::start(&lab, NODES);
    healthy(&lab, &prometheus);

    // Its alerts come one after the other: see the end.
    rival_tunnel(&lab);
    FAULTS.iter().for_each(|(_, plant, _)| plant(&lab));
    again_and_again(&lab, &prometheus);
    let mut expected = nobody();
    expected.remove("node5");
    expected.extend(FAULTS.iter().map(|(node, _, alerts)| fires(node, alerts)));
    fire(&prometheus, &expected);
    let mut provoked: BTreeSet<String> = expected.into_values().flatten().collect();

    // The API is out of node1's reach. What differs on node3 is drift before its kernel has been wrong for two minutes.
    lab.node_ok("node1", &["ip", "route", "add", "unreachable", "192.168.1.2"]);
    lab.node_ok("node3", &["ip", "route", "del", "10.244.1.0/24"]);
    let expected = Firing::from([
        fires("node1", &["PlumbWatchBreaks"]),
        fires("node3", &["PlumbDriftStands", "PlumbPaused"]),
    ]);
    fire(&prometheus, &expected);
    provoked.extend(expected.into_values().flatten());

    // Its last alert comes once the kernel was not found right for two minutes.
    let expected =
        Firing::from([fires("node5", &["PlumbApplyFails", "PlumbDriftStands", "PlumbSyncIsLate"])]);
    fire(&prometheus, &expected);
    provoked.extend(expected.into_values().flatten());
    assert_eq!(provoked, alerts(), "left: provoked; right: shipped");
}

/// The commands of its page bring what the alert's expression asks for.
#[test]
fn addresses_run_out_as_their_page_says() {
    let page = fs::read_to_string(repository("docs/runbooks/PlumbAddressesRunOut.md")).expect("the page");
    let command = |begin: &str| -> Vec<&str> {
        let line = page.lines().find_map(|line| line.trim().strip_prefix(begin));
        let line = line.unwrap_or_else(|| panic!("the page has no {begin:?}"));
        line.trim_end_matches(" | kubectl apply -f -").split_whitespace().collect()
    };
    let lab = Lab::up_with(2, &command("plumb lab up --name small "));
    let said = lab.kubectl(&command("kubectl "));
    assert!(said.ok, "{said:?}");
    lab.apply(&said.out);
    for node in ["node1", "node2"] {
        await_metrics(&lab, node, |metrics| {
            let has = |series: &str| metrics.lines().any(|line| line == series);
            has("plumb_attachments 12") && has("plumb_pod_addresses 13")
        });
    }
}

fn nobody() -> Firing {
    (1..=NODES).map(|node| fires(&format!("node{node}"), &[])).collect()
}

fn fires(node: &str, alerts: &[&str]) -> (String, BTreeSet<String>) {
    (node.to_owned(), alerts.iter().map(|alert| (*alert).to_owned()).collect())
}

/// The names of the shipped alerts.
fn alerts() -> BTreeSet<String> {
    let rules = fs::read_to_string(shipped()).expect("the shipped rules");
    rules.lines().filter_map(|line| Some(line.trim().strip_prefix("- alert: ")?.to_owned())).collect()
}

/// Every rule can be evaluated, and none fires although all have been true for long enough if they are.
fn healthy(lab: &Lab, prometheus: &Prometheus<'_>) {
    wait_for("the policy's note", PATIENCE, || {
        let events = lab.get(&["events"]);
        let mut items = events["items"].as_array().into_iter().flatten();
        items.any(|event| event["reason"] == "NetworkNote").then_some(()).ok_or_else(|| format!("{events:#}"))
    });
    wait_for("every agent is scraped for a while", PATIENCE, || {
        let scrapes = prometheus.values("sum_over_time(up[1h])")?;
        let all = scrapes.len() == NODES as usize && scrapes.values().all(|count| *count > QUIET);
        all.then_some(()).ok_or_else(|| format!("{scrapes:?}"))
    });
    fire(prometheus, &nobody());
    let groups = prometheus.ask("rules").expect("an answer");
    let rules: Vec<_> = groups["groups"].as_array().into_iter().flatten().collect();
    let rules: Vec<_> = rules.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    assert_eq!(rules.len(), alerts().len(), "{groups:#}");
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{groups:#}");
}

/// Waits until exactly these alerts fire on these nodes.
fn fire(prometheus: &Prometheus<'_>, expected: &Firing) {
    wait_for(&format!("alerts {expected:?}"), PATIENCE, || {
        let firing = prometheus.firing()?;
        let right = |(node, alerts): (&String, &BTreeSet<String>)| {
            firing.get(node).map_or(alerts.is_empty(), |found| found == alerts)
        };
        if expected.iter().all(right) { Ok(()) } else { Err(format!("{firing:?}")) }
    });
}

/// A counter is there once it has counted: what follows counts once Prometheus has seen the beginning.
fn again_and_again(lab: &Lab, prometheus: &Prometheus<'_>) {
    wait_for("the first drift is seen", PATIENCE, || {
        let values = prometheus.values("plumb_drift_mended_total")?;
        values.contains_key("node4").then_some(()).ok_or_else(|| format!("{values:?}"))
    });
    changes_a_route(lab, 25);
}

/// In the node's own namespaces; what it says is for whoever reads why it failed.
fn shell(lab: &Lab, node: &str, script: &str) {
    lab.node_ok(node, &["timeout", "60", "sh", "-ec", script]);
}

fn await_metrics(lab: &Lab, node: &str, right: fn(&str) -> bool) {
    wait_for(&format!("the metrics of {node}"), PATIENCE, || {
        let path = format!("/api/v1/namespaces/kube-system/pods/plumb-{node}:9475/proxy/metrics");
        let metrics = lab.kubectl(&["get", "--raw", &path]).or_missing()?;
        if right(&metrics) { Ok(()) } else { Err(metrics) }
    });
}

/// Somebody deletes what the agent puts back.
fn changes_a_route(lab: &Lab, times: u32) {
    let delete = "until ip route del 10.244.1.0/24 2>/dev/null; do :; done";
    shell(lab, "node4", &format!("for n in $(seq {times}); do {delete}; done"));
}

/// Another program took the tunnel's number while the agent only looked.
fn rival_tunnel(lab: &Lab) {
    lab.lab_ok(&["agent", "pause", "node5"]);
    shell(
        lab,
        "node5",
        "ip link del plumb.1
         ip link add rival type vxlan id 1 dstport 8472 local 192.168.1.14 dev eth0
         ip link set rival up",
    );
    await_metrics(lab, "node5", |metrics| metrics.contains("plumb_drift_seen_total{"));
    lab.lab_ok(&["agent", "resume", "node5"]);
}

const CALL: &str = r#"
conf='{"cniVersion":"1.1.0","name":"plumb","type":"plumb-cni"}'
add() { echo "$conf" | CNI_COMMAND=ADD CNI_CONTAINERID=$1 CNI_NETNS=/run/netns/$1 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/plumb-cni; }
"#;

/// One of these pods gets the host port; for the others the kubelet tries again and again.
fn one_port_for_all(lab: &Lab) {
    let pods = (1..=5).map(|number| {
        let pod =
            Lab::pod("rivals", &format!("rival{number}"), "nodeName: node6", r#"serve, --http, "8080""#);
        format!("{pod}    ports: [{{containerPort: 8080, hostPort: 8080}}]\n")
    });
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: rivals}\n";
    lab.apply(&format!("{namespace}{}", pods.collect::<String>()));
}

/// Pods for more than nine in ten of the node's 253 addresses.
fn many_pods(lab: &Lab) {
    await_metrics(lab, "node7", |metrics| metrics.contains("plumb_pod_addresses 253\n"));
    let add = "ip netns add many$n; add many$n >/dev/null";
    for first in (1..=240).step_by(40) {
        shell(lab, "node7", &format!("{CALL}for n in $(seq {first} {}); do {add}; done", first + 39));
    }
}

/// Another DNS server takes the port while the agent leaves it.
fn rival_dns(lab: &Lab) {
    lab.lab_ok(&["agent", "pause", "node8", "--no-dns"]);
    let place = "nodeName: node8\n  hostNetwork: true";
    lab.apply(&Lab::pod("default", "rival", place, r#"serve, --udp, "53""#));
    lab.wait_ready("default");
    lab.lab_ok(&["agent", "resume", "node8"]);
}

/// The node's resolvers are at an address that nobody has.
fn silent_resolvers(lab: &Lab) {
    shell(lab, "node9", "echo nameserver 192.168.1.99 >/etc/resolv.conf");
    let said = lab.node_demo("node9", &["dns", "outside.test", "--server", "10.96.0.10"]);
    assert!(!said.ok, "{said:?}");
}

/// node10 speaks for a pod of node1, and asks again and again for a pod of node9 that is not there.
fn strange_packets(lab: &Lab) {
    let program = r#"
import socket, struct
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
inner = b"\x45\0\0\x14\0\0\0\0\x40\x11\0\0" + bytes([10, 244, 1, 9, 10, 244, 9, 9])
out.sendto(b"\x08\0\0\0\0\0\1\0" + b"\2" * 12 + b"\x08\0" + inner, ("192.168.1.18", 8472))
for n in range(4000): out.sendto(b"anybody?", ("10.244.9.250", 9))
"#;
    lab.node_ok("node10", &["python3", "-c", program]);
}

/// One machine opens more connections than an address has.
fn many_clients(lab: &Lab) {
    let program = r#"
import socket
all = [socket.create_connection(("192.168.1.18", 9475), 10) for n in range(200)]
"#;
    lab.node_ok("node10", &["python3", "-c", program]);
}

/// A host port that cannot be: packets from ::1 stay on their node.
fn unserved_port(lab: &Lab) {
    let pod = Lab::pod("default", "port", "nodeName: node10", r#"serve, --http, "8080""#);
    lab.apply(&format!("{pod}    ports: [{{containerPort: 8080, hostPort: 8080, hostIP: '::1'}}]\n"));
    lab.wait_ready("default");
}
