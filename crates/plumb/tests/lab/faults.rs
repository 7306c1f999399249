//! Planted faults: trace names the hop of each, and no other; what is ours an agent mends within a second, and says so.
//!
//! ```text
//!   node1  web near        trace way/web → far, near, 203.0.113.10
//!   node2  far talk closed
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Checks, Lab, wait_for};

const NS: &str = "way";
const FAR: &str = "http://far:8080";
const STALE_PORT: &str = "40999";

/// Something that somebody breaks on a node.
struct Fault {
    name: &'static str,
    node: &'static str,
    /// Shell in which `$MAC`, `$VIP`, … stand for what [`Stage::names`] found.
    plant: &'static str,
    /// Needed where it is not ours to mend.
    undo: &'static str,
    target: &'static str,
    /// Number and stage of the hop, and its node.
    hop: (u64, &'static str, &'static str),
    /// What shows it, and what the Event about it says; empty: not ours.
    look: &'static str,
    told: &'static str,
}

const NONE: Fault =
    Fault { name: "", node: "node1", plant: "", undo: "", target: FAR, hop: (0, "", ""), look: "", told: "" };

const TUNNEL: (u64, &str, &str) = (8, "tunnel", "node1");
const FDB: &str = "bridge fdb show dev plumb.1";
const PORT: &str = "bridge -d link show dev $SOURCE | grep -o 'master.*isolated [a-z]*'";

/// The ten kinds of the issue, some in several forms.
const FAULTS: &[Fault] = &[
    Fault {
        name: "FDB entry gone",
        plant: "bridge fdb del $MAC dev plumb.1 self",
        hop: TUNNEL,
        look: FDB,
        told: "fdb $MAC",
        ..NONE
    },
    Fault {
        name: "FDB entry to the wrong node",
        plant: "bridge fdb replace $MAC dev plumb.1 dst 192.168.1.99 self permanent",
        hop: TUNNEL,
        look: FDB,
        told: "fdb $MAC",
        ..NONE
    },
    Fault {
        name: "FDB entry of the way back gone",
        node: "node2",
        plant: "bridge fdb del $MAC_BACK dev plumb.1 self",
        hop: (12, "return", "node1"),
        look: FDB,
        told: "fdb $MAC_BACK",
        ..NONE
    },
    Fault {
        name: "neighbour",
        plant: "ip neigh del 10.244.2.0 dev plumb.1",
        hop: TUNNEL,
        look: "ip neigh show dev plumb.1 nud permanent",
        told: "neighbour 10.244.2.0",
        ..NONE
    },
    Fault {
        name: "route",
        plant: "ip route del 10.244.2.0/24",
        hop: (5, "route", "node1"),
        look: "ip route show 10.244.2.0/24",
        told: "route 10.244.2.0/24",
        ..NONE
    },
    Fault {
        name: "ep element gone",
        plant: "nft delete element ip plumb ep { 0x0 . $VIP . tcp . 8080 }",
        hop: (4, "service", "node1"),
        look: "nft get element ip plumb ep { 0x0 . $VIP . tcp . 8080 }",
        told: "ep",
        ..NONE
    },
    Fault {
        name: "ep element to the wrong pod",
        plant: "nft delete element ip plumb ep { 0x0 . $VIP . tcp . 8080 } && \
                nft add element ip plumb ep { 0x0 . $VIP . tcp . 8080 : 10.244.2.99 . 8080 }",
        hop: (4, "service", "node1"),
        look: "nft get element ip plumb ep { 0x0 . $VIP . tcp . 8080 }",
        told: "ep",
        ..NONE
    },
    Fault {
        name: "foreign drop rule",
        plant: "nft add table ip stranger && \
                nft add chain ip stranger stop '{ type filter hook forward priority 10; }' && \
                nft add rule ip stranger stop ip daddr $FAR drop",
        undo: "nft delete table ip stranger",
        hop: (6, "egress", "node1"),
        ..NONE
    },
    Fault {
        name: "foreign drop rule on the way back",
        node: "node2",
        plant: "nft add table ip stranger && \
                nft add chain ip stranger stop '{ type filter hook forward priority 10; }' && \
                nft add rule ip stranger stop ip saddr $FAR drop",
        undo: "nft delete table ip stranger",
        hop: (12, "return", "node1"),
        ..NONE
    },
    Fault {
        name: "MTU of the tunnel",
        plant: "ip link set plumb.1 mtu 1000",
        hop: TUNNEL,
        look: "ip -o link show plumb.1 | grep -o 'mtu [0-9]*'",
        told: "plumb.1",
        ..NONE
    },
    Fault {
        name: "MTU of a veth",
        node: "node2",
        plant: "ip link set $TARGET mtu 1000",
        hop: (9, "node", "node2"),
        look: "ip -o link show $TARGET | grep -o 'mtu [0-9]*'",
        told: "$TARGET",
        ..NONE
    },
    Fault {
        name: "stale conntrack entry",
        plant: "conntrack -I -p tcp -s $WEB -d $VIP --sport 40999 --dport 8080 --state SYN_SENT --timeout 120 \
                --dst-nat 10.244.2.99:8080",
        undo: "conntrack -D -p tcp -s $WEB --sport 40999",
        hop: (4, "service", "node1"),
        ..NONE
    },
    Fault {
        name: "missing masquerade",
        plant: "nft flush chain ip plumb postrouting",
        target: "203.0.113.10:80",
        hop: (7, "masq", "node1"),
        look: "nft -s list chain ip plumb postrouting",
        told: "postrouting",
        ..NONE
    },
    Fault {
        name: "source's port out of the bridge",
        plant: "ip link set $SOURCE nomaster",
        hop: (3, "veth", "node1"),
        look: PORT,
        told: "$SOURCE",
        ..NONE
    },
    Fault {
        name: "source's port down",
        plant: "ip link set $SOURCE down",
        hop: (3, "veth", "node1"),
        look: "ip -o link show $SOURCE | grep -o ',UP,'",
        told: "$SOURCE",
        ..NONE
    },
    Fault {
        name: "source's port not isolated",
        plant: "bridge link set dev $SOURCE isolated off",
        hop: (3, "veth", "node1"),
        look: PORT,
        told: "$SOURCE",
        ..NONE
    },
    Fault {
        name: "destination's port out of the bridge",
        node: "node2",
        plant: "ip link set $TARGET nomaster",
        hop: (9, "node", "node2"),
        look: "bridge -d link show dev $TARGET | grep -o 'master.*isolated [a-z]*'",
        told: "$TARGET",
        ..NONE
    },
    Fault {
        name: "destination's port on the same node down",
        plant: "ip link set $BESIDE down",
        target: "http://near:8080",
        hop: (9, "node", "node1"),
        look: "ip -o link show $BESIDE | grep -o ',UP,'",
        told: "$BESIDE",
        ..NONE
    },
    Fault {
        name: "DNS address",
        plant: "ip address del 10.96.0.10/32 dev lo",
        hop: (1, "resolve", "node1"),
        look: "ip -o address show dev lo",
        told: "10.96.0.10/32",
        ..NONE
    },
];

struct Stage {
    lab: Lab,
    names: BTreeMap<&'static str, String>,
}

impl Stage {
    fn up() -> Self {
        let lab = Lab::up(2);
        let mut manifest = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NS}}}\n");
        let pods = [("web", "node1"), ("near", "node1"), ("far", "node2"), ("talk", "node2"), ("closed", "node2")];
        for (pod, node) in pods {
            let args = r#"serve, --http, "8080", --udp, "9001""#;
            manifest += &Lab::pod(NS, pod, &format!("nodeName: {node}"), args);
        }
        lab.apply(&format!("{manifest}{}", include_str!("faults/way.yaml")));
        lab.wait_ready(NS);
        let mut stage = Self { lab, names: BTreeMap::new() };
        stage.find_names();
        stage
    }

    /// What the commands of the faults need to know, from traces of the healthy lab.
    fn find_names(&mut self) {
        let far = wait_for("a trace to far", Duration::from_secs(10), || self.whole(FAR, &[]));
        let near = wait_for("a trace to near", Duration::from_secs(10), || self.whole("http://near:8080", &[]));
        let frontend = fact(&far, "service", "frontend");
        let mac = self.lab.node_ok("node2", &["sh", "-c", "bridge fdb show dev plumb.1 | cut -d' ' -f1"]);
        self.names = BTreeMap::from([
            ("$MAC_BACK", mac.trim().to_owned()),
            ("$MAC", fact(&far, "tunnel", "inner_mac")),
            ("$VIP", frontend.trim_end_matches(":8080").to_owned()),
            ("$SOURCE", fact(&far, "veth", "host_if")),
            ("$TARGET", fact(&far, "node", "host_if")),
            ("$BESIDE", fact(&near, "node", "host_if")),
            ("$FAR", self.lab.pod_ip(NS, "far")),
            ("$WEB", self.lab.pod_ip(NS, "web")),
        ]);
    }

    /// Longer names first: one begins another.
    fn filled(&self, text: &str) -> String {
        self.names.iter().rev().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    fn run(&self, node: &str, shell: &str) -> String {
        self.lab.node_ok(node, &["sh", "-c", &quoted(&self.filled(shell))])
    }

    fn trace(&self, target: &str, more: &[&str]) -> Value {
        let args: Vec<&str> = ["trace", "way/web", target, "--json"].iter().chain(more).copied().collect();
        self.lab.plumb(&args).json()
    }

    /// A trace in which all hops agree, or what is wrong.
    fn whole(&self, target: &str, more: &[&str]) -> Result<Value, String> {
        let report = self.trace(target, more);
        if report["conclusion"] == "delivered" && report["agree"] == report["of"] {
            Ok(report)
        } else {
            Err(format!("{report:#}"))
        }
    }

    fn pause(&self, more: &[&str]) {
        self.lab.lab_ok(&[&["agent", "pause", "node1"], more].concat());
        self.lab.lab_ok(&["agent", "pause", "node2"]);
    }

    fn resume(&self) {
        for node in ["node1", "node2"] {
            self.lab.lab_ok(&["agent", "resume", node]);
        }
    }

    /// The fault stands, for nobody mends it: trace finds it, and agrees again once it is gone.
    fn named(&self, fault: &Fault) {
        let more: &[&str] = if fault.name.contains("conntrack") { &["--source-port", STALE_PORT] } else { &[] };
        self.pause(&[]);
        self.run(fault.node, fault.plant);
        let report = self.trace(fault.target, more);
        only(&report, fault.hop);
        if !fault.undo.is_empty() {
            self.run(fault.node, fault.undo);
        }
        self.resume();
        wait_for("it agrees again", Duration::from_secs(5), || self.whole(fault.target, more));
    }

    /// Nobody holds the agent back: what it was before comes again, and is told.
    fn mended(&self, fault: &Fault) {
        let look = || self.lab.node(fault.node, &["sh", "-c", &quoted(&self.filled(fault.look))]);
        let before = look();
        assert!(before.ok, "{before:?}");
        let counted = self.drift(fault.node);
        let began = Instant::now();
        self.run(fault.node, fault.plant);
        wait_for(fault.name, Duration::from_secs(5), || {
            let now = look();
            // A fault that was mended before the first look leaves its count.
            let mended = now.ok && now.out == before.out && self.drift(fault.node) > counted;
            mended.then_some(()).ok_or_else(|| format!("{now:?}"))
        });
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{}: mended after {took:?}", fault.name);
        let told = self.filled(fault.told);
        wait_for("an Event says so", Duration::from_secs(5), || {
            let events = self.lab.get(&["events", "-A"]);
            let mut all = events["items"].as_array().into_iter().flatten();
            let says = |event: &Value| {
                event["reason"] == "DriftMended"
                    && event["involvedObject"]["name"] == fault.node
                    && event["message"].as_str().is_some_and(|message| message.contains(&told))
            };
            all.any(says).then_some(()).ok_or_else(|| format!("{told}: {events:#}"))
        });
    }

    /// Differences that the node's agent has put back so far.
    fn drift(&self, node: &str) -> u64 {
        let metrics = self.lab.kubectl_ok(&["get", "--raw", &format!("/api/v1/nodes/{node}:9475/proxy/metrics")]);
        let lines = metrics.lines().filter(|line| line.starts_with("plumb_drift_mended_total"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Every hop agrees, with the conclusion, and it does not take long.
    fn concludes(&self, target: &str, more: &[&str], conclusion: &str) -> Value {
        let report = self.trace(target, more);
        assert_eq!(report["conclusion"], conclusion, "{target}: {report:#}");
        assert_eq!(report["agree"], report["of"], "{target}: {report:#}");
        println!("        {target}: {} ms", report["took_ms"]);
        report
    }
}

/// Braces are the shell's too.
fn quoted(shell: &str) -> String {
    shell.replace("{ 0x0", "'{ 0x0").replace("8080 }", "8080 }'")
}

/// A field of the fact of the hop at this stage.
fn fact(report: &Value, stage: &str, field: &str) -> String {
    let hops = report["hops"].as_array().expect("hops");
    let hop = hops.iter().find(|hop| hop["hop"]["stage"] == stage);
    let value = hop.and_then(|hop| hop["hop"]["fact"][field].as_str());
    value.unwrap_or_else(|| panic!("no {field} at {stage}: {report:#}")).to_owned()
}

/// They disagree at this hop, and there only.
fn only(report: &Value, (n, stage, node): (u64, &str, &str)) {
    let broken = &report["broken"];
    let found = (broken["n"].as_u64(), broken["stage"].as_str(), broken["node"].as_str());
    assert_eq!(found, (Some(n), Some(stage), Some(node)), "{report:#}");
    for hop in report["hops"].as_array().expect("hops") {
        let outcome = hop["outcome"]["outcome"].as_str();
        let here = hop["hop"]["n"].as_u64() == Some(n);
        assert_eq!(outcome == Some("disagree"), here, "{report:#}");
    }
}

#[test]
fn a_trace_names_the_hop_of_each_planted_fault_and_agents_mend_what_is_ours() {
    let stage = Stage::up();
    let mut checks = Checks::default();
    for fault in FAULTS {
        checks.check(&format!("named: {}", fault.name), || stage.named(fault));
    }
    checks.check("named: DNS socket", || {
        stage.pause(&["--no-dns"]);
        let socket = || stage.run("node1", "ss -Huln src 10.96.0.10").is_empty();
        wait_for("the sockets are closed", Duration::from_secs(5), || socket().then_some(()).ok_or("open".into()));
        only(&stage.trace(FAR, &[]), (1, "resolve", "node1"));
        stage.resume();
        wait_for("it agrees again", Duration::from_secs(5), || stage.whole(FAR, &[]));
    });
    for fault in FAULTS.iter().filter(|fault| !fault.look.is_empty()) {
        checks.check(&format!("mended: {}", fault.name), || stage.mended(fault));
    }
}

#[test]
fn a_trace_tells_the_whole_way_or_where_it_ends() {
    let stage = Stage::up();
    let mut checks = Checks::default();
    checks.check("across nodes, within a second", || {
        let report = stage.concludes(FAR, &["--full"], "delivered");
        assert_eq!(report["of"], 12, "{report:#}");
        let took = (0..3).filter_map(|_| stage.trace(FAR, &[])["took_ms"].as_u64()).min();
        assert!(took.is_some_and(|took| took <= 1000), "{took:?}");
    });
    checks.check("as text", || {
        let said = stage.lab.plumb(&["trace", "way/web", FAR, "--full"]);
        assert!(said.ok, "{said:?}");
        for part in ["search step 1 of 3", "nft plumb/n1", "dev plumb.1 onlink", "HTTP 200", "12 of 12", "conntrack"] {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }
    });
    for (name, target, more, conclusion) in [
        ("on one node", "http://near:8080", &[][..], "delivered"),
        ("to itself", "http://web:8080", &[], "delivered"),
        ("a pod's address", "$FAR:8080", &[], "delivered"),
        ("outside", "203.0.113.10:80", &[], "delivered"),
        ("the API", "kubernetes.default:443", &[], "delivered"),
        ("another node", "192.168.1.11:9475", &[], "delivered"),
        ("its own node", "192.168.1.10:9475", &[], "delivered"),
        ("UDP", "talk:9001", &["--udp"], "delivered"),
        ("DNS", "10.96.0.10:53", &["--udp"], "delivered"),
        ("from a port of choice", FAR, &["--source-port", "41000"], "delivered"),
        ("no endpoint", "empty:80", &[], "refused"),
        ("no such port", "far:9", &[], "refused"),
        ("no Service", "10.96.200.200:80", &[], "refused"),
        ("no pod", "10.244.2.250:80", &[], "refused"),
        ("no such name", "http://nosuch.way.svc.cluster.local", &[], "no-name"),
    ] {
        let target = stage.filled(target);
        checks.check(name, || drop(stage.concludes(&target, more, conclusion)));
    }
    checks.check("denied, and why", || {
        let report = stage.concludes("http://closed:8080", &[], "denied");
        let said = stage.lab.plumb(&["trace", "way/web", "http://closed:8080"]);
        for part in ["isolated by way/closed", "way/closed rule 1", "is not among its peers", "policy stops"] {
            assert!(said.out.contains(part), "{part}: {} {report:#}", said.out);
        }
    });
    checks.check("what cannot be traced is named", || {
        stage.lab.plumb(&["trace", "way/nobody", FAR]).refused(&["way/nobody", "kubectl get pods -n way"]);
        stage.lab.plumb(&["trace", "way/web", "far"]).refused(&["no port", "HOST:PORT"]);
    });
}
