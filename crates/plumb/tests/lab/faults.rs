//! Planted faults: trace names the hop of each, and no other; what is ours an agent mends, and says so.
//!
//! ```text
//!   node1  web near        trace way/web → far, near, 203.0.113.10
//!   node2  far talk closed
//! ```

mod away;
mod ground;
mod habits;
mod list;
mod mtu;
mod tells;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Checks, Kubectl, Lab, Said, plumb, run, wait_for};
use crate::operate::operate;
use ground::GROUND;
use list::{FAULTS, Fault, NO_PROGRAM};
use mtu::MTUS;

const NS: &str = "way";
const FAR: &str = "http://far:8080";
/// Promised for one; on a machine that others use, half of them keep it and each comes within the other.
const MENDED: Duration = Duration::from_secs(1);
const MENDED_ONCE: Duration = Duration::from_secs(30);
const STALE_PORT: &str = "40999";

struct Stage {
    lab: Lab,
    names: BTreeMap<&'static str, String>,
}

impl Stage {
    fn up() -> Self {
        let lab = Lab::up(2);
        let mut manifest = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NS}}}\n");
        let pods =
            [("web", "node1"), ("near", "node1"), ("far", "node2"), ("talk", "node2"), ("closed", "node2")];
        for (pod, node) in pods {
            let args = r#"serve, --http, "8080", --udp, "9001""#;
            manifest += &Lab::pod(NS, pod, &format!("nodeName: {node}"), args);
        }
        lab.apply(&format!("{manifest}{}{}", include_str!("faults/way.yaml"), habits::SHELL));
        lab.wait_ready(NS);
        let mut stage = Self { lab, names: BTreeMap::new() };
        stage.find_names();
        stage
    }

    /// What the commands of the faults need to know, from traces of the healthy lab.
    fn find_names(&mut self) {
        let far = wait_for("a trace to far", Duration::from_secs(60), || self.whole(FAR, &[]));
        let near =
            wait_for("a trace to near", Duration::from_secs(60), || self.whole("http://near:8080", &[]));
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
            ("$CLOSED", self.lab.pod_ip(NS, "closed")),
            ("$NEAR", self.lab.pod_ip(NS, "near")),
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

    fn plumb(&self, args: &[&str]) -> Said {
        run(Command::new(plumb()).args(args).env("KUBECONFIG", &self.lab.kubeconfig))
    }

    fn trace(&self, target: &str, more: &[&str]) -> Value {
        let args: Vec<&str> = ["trace", "way/web", target, "--json"].iter().chain(more).copied().collect();
        self.plumb(&args).json()
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
        let more: &[&str] =
            if fault.name.contains("conntrack") { &["--source-port", STALE_PORT] } else { &[] };
        let target = self.filled(fault.target);
        self.pause(&[]);
        self.run(fault.node, fault.plant);
        let says = |report: &Value| {
            let why = report["broken"]["why"].as_str().unwrap_or_default();
            why.contains(fault.sign).then_some(()).ok_or_else(|| format!("{report:#}"))
        };
        let report = wait_for(fault.name, Duration::from_secs(30), || {
            let report = self.trace(&target, more);
            says(&report).map(|()| report)
        });
        if !fault.undo.is_empty() {
            self.run(fault.node, fault.undo);
            if fault.undo == mtu::AS_BEFORE {
                self.followed();
            }
        }
        self.resume();
        broken_at(&report, fault.hop, fault.also);
        for hop in
            hops(&report).filter(|hop| fault.also.contains(&hop["hop"]["n"].as_u64().unwrap_or_default()))
        {
            let why = hop["outcome"]["why"].as_str().unwrap_or_default();
            assert!(why.contains(fault.sign), "{report:#}");
        }
        wait_for("it agrees again", Duration::from_secs(30), || self.whole(&target, more));
    }

    /// Paused agents know the MTUs of their machines again: one that was resumed before would make links smaller once more.
    fn followed(&self) {
        wait_for("MTUs are followed", Duration::from_secs(30), || {
            let status = operate(&self.lab, &["status", "-o", "json"]).json();
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            let other = nodes.iter().find(|node| node["agent"]["datapath"]["mtu"] != 1450);
            other.map_or(Ok(()), |node| Err(format!("{node:#}")))
        });
    }

    /// Nobody holds the agent back: what it was before comes again, and is told. How soon.
    fn mended(&self, fault: &Fault) -> Duration {
        let look = || self.lab.node(fault.node, &["sh", "-c", &quoted(&self.filled(fault.look))]);
        let before = look();
        assert!(before.ok, "{before:?}");
        let counted = self.drift(fault.node);
        let began = Instant::now();
        self.run(fault.node, fault.plant);
        let took = wait_for(fault.name, MENDED_ONCE, || {
            let now = look();
            let at = began.elapsed();
            // A fault that was mended before the first look leaves its count.
            let mended = now.ok && now.out == before.out && self.drift(fault.node) > counted;
            mended.then_some(at).ok_or_else(|| format!("{now:?}"))
        });
        println!("{}: mended after {took:?}", fault.name);
        let told = self.filled(fault.told);
        wait_for("an Event says so", Duration::from_secs(30), || {
            let events = self.lab.get(&["events", "-A"]);
            let mut all = events["items"].as_array().into_iter().flatten();
            let says = |event: &Value| {
                event["reason"] == "DriftMended"
                    && event["involvedObject"]["name"] == fault.node
                    && event["message"].as_str().is_some_and(|message| message.contains(&told))
            };
            all.any(says).then_some(()).ok_or_else(|| format!("{told}: {events:#}"))
        });
        took
    }

    /// Differences that the node's agent has put back so far.
    fn drift(&self, node: &str) -> u64 {
        let metrics = self.lab.kubectl_ok(&[
            "get",
            "--raw",
            &format!("/api/v1/namespaces/kube-system/pods/plumb-{node}:9475/proxy/metrics"),
        ]);
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

fn hops(report: &Value) -> impl Iterator<Item = &Value> {
    report["hops"].as_array().into_iter().flatten()
}

/// They disagree at this hop, and there only.
fn only(report: &Value, hop: (u64, &str, &str)) {
    broken_at(report, hop, &[]);
}

/// They disagree at this hop first, and beside it at these alone.
fn broken_at(report: &Value, (n, stage, node): (u64, &str, &str), also: &[u64]) {
    let broken = &report["broken"];
    let found = (broken["n"].as_u64(), broken["stage"].as_str(), broken["node"].as_str());
    assert_eq!(found, (Some(n), Some(stage), Some(node)), "{report:#}");
    let disagree = hops(report).filter(|hop| hop["outcome"]["outcome"] == "disagree");
    let numbers: Vec<u64> = disagree.filter_map(|hop| hop["hop"]["n"].as_u64()).collect();
    assert_eq!(numbers, [&[n], also].concat(), "{report:#}");
}

#[test]
fn a_trace_names_the_hop_of_each_planted_fault_and_agents_mend_what_is_ours() {
    let stage = Stage::up();
    let mut checks = Checks::default();
    let ours = || FAULTS.iter().chain(MTUS);
    let faults = || ours().filter(|fault| kernel::own::is_root() || fault.name != NO_PROGRAM);
    for fault in faults().chain(GROUND) {
        checks.check(&format!("named: {}", fault.name), || stage.named(fault));
    }
    checks.check("named: DNS socket", || {
        stage.pause(&["--no-dns"]);
        let socket = || stage.run("node1", "ss -Huln src 10.96.0.10").is_empty();
        wait_for("the sockets are closed", Duration::from_secs(30), || {
            socket().then_some(()).ok_or("open".into())
        });
        only(&stage.trace(FAR, &[]), (1, "resolve", "node1"));
        stage.resume();
        wait_for("it agrees again", Duration::from_secs(30), || stage.whole(FAR, &[]));
    });
    away::checks(&stage, &mut checks);
    let mut took = Vec::new();
    for fault in faults().filter(|fault| !fault.look.is_empty()) {
        checks.check(&format!("mended: {}", fault.name), || took.push(stage.mended(fault)));
    }
    checks.check("mended soon", || {
        took.sort_unstable();
        let median = took.get(took.len() / 2).expect("a fault was mended");
        // On a busy machine so much longer as a look takes, of which each fault wants several.
        let began = Instant::now();
        for _ in 0..10 {
            stage.drift("node1");
        }
        let bound = MENDED + began.elapsed();
        assert!(*median <= bound, "half of the faults took longer than {bound:?}: {took:?}");
    });
}
