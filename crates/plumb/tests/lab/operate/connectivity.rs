//! `plumb connectivity test`: a healthy lab passes, each planted fault fails the tests that it concerns and no
//! others, and nothing is left behind.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::operate;
use crate::cluster::{Checks, Kubectl, Lab, plumb, run, wait_for};

const NAMESPACE: &str = "plumb-connectivity";

/// Something broken on one node while its agent only looks. Links are no use here: the test's own pods change what
/// is desired of them, and an agent carries that out although it is paused.
struct Fault {
    name: &'static str,
    node: &'static str,
    plant: &'static str,
    /// Needed where it is not ours to mend.
    undo: &'static str,
    /// The tests that fail, and all of them.
    fails: &'static [&'static str],
    /// What the trace of a failed check finds, or the check itself where no trace can follow.
    finding: &'static str,
}

const FOREIGN: &str = "nft delete table ip stranger";

const FAULTS: &[Fault] = &[
    Fault {
        name: "large packets dropped",
        node: "node2",
        plant: "nft add table ip stranger && \
                nft add chain ip stranger stop '{ type filter hook forward priority 10; }' && \
                nft add rule ip stranger stop ip length '>' 1400 drop",
        undo: FOREIGN,
        fails: &["full-size"],
        finding: "on node",
    },
    Fault {
        name: "endpoints gone",
        node: "node1",
        plant: "nft flush map ip plumb ep",
        undo: "",
        fails: &["api"],
        finding: "(service on node1)",
    },
    Fault {
        name: "masquerade gone",
        node: "node1",
        plant: "nft flush chain ip plumb postrouting",
        undo: "",
        fails: &["api", "egress", "hairpin", "host-to-service", "pod-to-host"],
        finding: "(masq on node1)",
    },
    Fault {
        name: "queries dropped",
        node: "node1",
        plant: "nft add table ip stranger && \
                nft add chain ip stranger stop '{ type filter hook input priority 0; }' && \
                nft add rule ip stranger stop udp dport 53 drop",
        undo: FOREIGN,
        fails: &["dns", "dns-outside", "external-name", "headless"],
        finding: "(resolve on node1)",
    },
    Fault {
        name: "datagrams dropped",
        node: "node2",
        plant: "nft add table ip stranger && \
                nft add chain ip stranger stop '{ type filter hook forward priority 10; }' && \
                nft add rule ip stranger stop udp dport 9001 drop",
        undo: FOREIGN,
        // Forged datagrams prove nothing where honest ones are lost.
        fails: &[
            "full-size",
            "pod-to-pod-udp",
            "service",
            "spoofing-place",
            "spoofing-source",
            "spoofing-tunnel",
        ],
        finding: "hop",
    },
    Fault {
        name: "policies passed by",
        node: "node1",
        plant: "nft flush chain ip plumb forward && nft add rule ip plumb forward 'ip daddr != @pods jump onward'",
        undo: "",
        fails: &["policy-deny-egress", "policy-deny-ingress"],
        finding: "(policy on node1)",
    },
    Fault {
        name: "guards gone",
        node: "node1",
        plant: "nft flush chain bridge plumb frames && nft flush chain ip plumb from_pods && \
                nft flush chain ip plumb onward && nft flush chain ip plumb to_tunnel && \
                nft flush chain ip6 plumb from_pods && nft flush chain ip6 plumb onward && \
                nft flush chain ip6 plumb to_tunnel",
        undo: "",
        // A pod's place needs no table: its port is locked.
        fails: &["spoofing-source", "spoofing-tunnel"],
        finding: "it got through",
    },
];

impl Fault {
    fn plant_of(name: &str) -> &'static str {
        FAULTS.iter().find(|fault| fault.name == name).map_or("", |fault| fault.plant)
    }
}

struct Stage(Lab);

impl Stage {
    fn test(&self, more: &[&str]) -> (bool, Value) {
        let args = [&["connectivity", "test", "--json", "--settle", "4"], more].concat();
        let said = operate(&self.0, &args);
        (said.ok, said.json())
    }

    fn shell(&self, node: &str, command: &str) {
        self.0.node_ok(node, &["sh", "-c", command]);
    }

    fn nothing_is_left(&self) {
        self.0.kubectl(&["get", "namespace", NAMESPACE]).refused(&["NotFound"]);
    }

    fn fails(&self, fault: &Fault) {
        for node in ["node1", "node2"] {
            self.0.lab_ok(&["agent", "pause", node]);
        }
        self.shell(fault.node, fault.plant);
        let (ok, report) = self.test(&[]);
        if !fault.undo.is_empty() {
            self.shell(fault.node, fault.undo);
        }
        for node in ["node1", "node2"] {
            self.0.lab_ok(&["agent", "resume", node]);
        }
        let failed: Vec<&Value> = checks(&report).filter(|check| check["ok"] == false).collect();
        let tests: BTreeSet<&str> = failed.iter().filter_map(|check| check["test"].as_str()).collect();
        // A node port works on while its endpoint is drawn on that very node.
        let chance = fault.name == "masquerade gone";
        let tests: BTreeSet<&str> =
            tests.into_iter().filter(|test| !chance || *test != "node-port").collect();
        assert_eq!(tests, fault.fails.iter().copied().collect(), "{failed:#?}");
        assert!(!ok, "the exit code says so too");
        let traced = |check: &&&Value| !check["finding"].is_null();
        let traces = failed.iter().filter(traced).count();
        let found = |check: &&Value| {
            let said = if traces > 0 { &check["finding"] } else { &check["said"] };
            said.as_str().is_some_and(|text| text.contains(fault.finding))
        };
        assert!(failed.iter().any(found), "nothing says {:?}: {failed:#?}", fault.finding);
        if traces > 0 {
            // A trace of pods that are gone would lead nowhere.
            let command = failed.iter().filter_map(|check| check["again"].as_str()).next();
            let command = command.unwrap_or_default();
            assert!(command.ends_with(" --keep --settle 4") && !command.contains(';'), "{failed:#?}");
            assert!(failed.iter().all(|check| check["trace"].is_null()), "{failed:#?}");
        }
        self.nothing_is_left();
    }
}

fn checks(report: &Value) -> impl Iterator<Item = &Value> {
    report["checks"].as_array().into_iter().flatten()
}

#[test]
fn connectivity_tests_find_planted_faults_and_leave_nothing() {
    let stage = Stage(Lab::up(2));
    let mut all = Checks::default();
    all.check("a healthy lab passes every test", || {
        let listed = operate(&stage.0, &["connectivity", "test", "--list"]).out;
        let listed: BTreeSet<&str> =
            listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let (ok, report) = stage.test(&[]);
        let failed: Vec<&Value> = checks(&report).filter(|check| check["ok"] == false).collect();
        assert!(ok && failed.is_empty(), "{failed:#?}");
        let tested: BTreeSet<&str> = checks(&report).filter_map(|check| check["test"].as_str()).collect();
        assert_eq!((tested, &report["skipped"]), (listed, &Value::Array(Vec::new())));
        stage.nothing_is_left();
    });
    for fault in FAULTS {
        all.check(fault.name, || stage.fails(fault));
    }
    all.check("a table for people, of what was chosen", || {
        let said = operate(&stage.0, &["connectivity", "test", "--only", "dns,policy-*", "--full"]);
        assert!(said.ok, "{said:?}");
        for part in ["✓ dns ", "✓ policy-deny-egress", "client-0 on node1 → server-0", "checks hold"] {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }
        assert!(!said.out.contains("hairpin"), "{}", said.out);
    });
    all.check("one node is enough, and what it cannot show is said", || {
        let (ok, report) = stage.test(&["--nodes", "node2"]);
        assert!(ok, "{report:#}");
        assert_eq!(report["skipped"][0][0], "everything across nodes", "{report:#}");
    });
    all.check("an interrupted test removes what it made", || interrupted(&stage));
    all.check("somebody else's namespace is left alone", || {
        stage.0.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: theirs}\n");
        operate(&stage.0, &["connectivity", "test", "-n", "theirs"])
            .refused(&["theirs", "give another with -n"]);
        stage.0.kubectl_ok(&["get", "namespace", "theirs"]);
    });
    all.check("what is not there is named", || {
        operate(&stage.0, &["connectivity", "test", "--only", "dsn"]).refused(&["no test dsn", "--list"]);
        operate(&stage.0, &["connectivity", "test", "--nodes", "node9"]).refused(&["no node node9"]);
    });
    all.check("what was kept can be traced, and stays as long as no test begins", || kept(&stage));
}

fn kept(stage: &Stage) {
    stage.shell("node2", Fault::plant_of("large packets dropped"));
    let (ok, report) = stage.test(&["--only", "full-size", "--keep"]);
    assert!(!ok, "{report:#}");
    let traces = checks(&report).filter_map(|check| check["trace"].as_str());
    let command = traces.map(str::to_owned).next().expect("what traces it");
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let traced = || operate(&stage.0, &[&words[..], &["--json"]].concat()).json();
    assert!(traced()["hops"].as_array().is_some_and(|hops| hops.len() > 5), "{command}");
    stage.shell("node2", FOREIGN);
    operate(&stage.0, &["connectivity", "test", "--nodes", "node9"]).refused(&["no node node9"]);
    operate(&stage.0, &["connectivity", "test", "--outside", "nowhere"]).refused(&["not HOST:PORT"]);
    assert_eq!(traced()["conclusion"], "delivered", "its pods are still there");
    stage.0.kubectl_ok(&["delete", "namespace", NAMESPACE]);
}

/// As a person at a terminal interrupts it, once its pods are there.
fn interrupted(stage: &Stage) {
    let mut child = Command::new(plumb())
        .args(["connectivity", "test"])
        .env("KUBECONFIG", &stage.0.kubeconfig)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("plumb starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let begun = lines.by_ref().map_while(Result::ok).find(|line| line.contains("servers are Ready"));
    assert!(begun.is_some(), "it never came so far");
    let signal = run(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    assert!(signal.ok, "{signal:?}");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let ended = child.wait().expect("it ends");
    assert_eq!(ended.code(), Some(143), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("nothing is left behind")), "{rest:?}");
    wait_for("the namespace is gone", Duration::from_secs(1), || {
        let said = stage.0.kubectl(&["get", "namespace", NAMESPACE]);
        (!said.ok).then_some(()).ok_or(said.out)
    });
}
