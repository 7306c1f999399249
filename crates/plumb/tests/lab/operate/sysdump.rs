//! `plumb sysdump`: what a maintainer needs is in it, and a planted secret is nowhere.

use std::path::Path;
use std::process::Command;

use super::{Scratch, operate};
use crate::cluster::{Checks, Kubectl, Lab, plumb, run};

const SECRET: &str = "hunter2-Sesame-42";

/// Where people put secrets: an environment value, an argument, an annotation; one of them in an Event besides.
fn manifest() -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: bank}}
---
apiVersion: v1
kind: Pod
metadata:
  name: teller
  namespace: bank
  annotations: {{note: '{SECRET}-note'}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: plumb.local/demo
    args: [serve, --http, '8080', --name, {SECRET}-argument]
    env: [{{name: PASSWORD, value: {SECRET}-value}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: vault, namespace: bank}}
spec: {{podSelector: {{}}, policyTypes: [Ingress]}}
"
    )
}

/// As an agent writes it: created, so without the annotation in which `kubectl apply` keeps all of an object.
fn event() -> String {
    format!(
        "apiVersion: v1
kind: Event
metadata: {{name: told, namespace: bank}}
involvedObject: {{kind: Pod, name: teller, namespace: bank, apiVersion: v1}}
reason: Told
message: the pod said {SECRET}-value and eyJhbGciOi.eyJpc3Mi.{SECRET}
type: Normal
source: {{component: plumb-agent, host: node1}}
"
    )
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn an_archive_has_what_a_maintainer_needs_and_no_secret() {
    let lab = Lab::up(2);
    lab.apply(&manifest());
    lab.wait_ready("bank");
    let scratch = Scratch::new();
    let told = scratch.0.join("event.yaml");
    std::fs::write(&told, event()).expect("the scratch directory can be written");
    lab.kubectl_ok(&["create", "-f", told.to_str().expect("UTF-8")]);
    let archive = scratch.0.join("dump.tar.gz");
    let said = operate(&lab, &["sysdump", "-o", archive.to_str().expect("UTF-8")]);
    assert!(said.ok && said.out.contains("dump.tar.gz"), "{said:?}");
    let unpacked = run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&scratch.0));
    assert!(unpacked.ok, "{unpacked:?}");
    let root = scratch.0.join("plumb-sysdump");
    let mut checks = Checks::default();
    checks.check("the secret is nowhere", || {
        let found = run(Command::new("grep").args(["-rlF", "hunter2"]).arg(&root));
        assert!(found.out.is_empty(), "{found:?}");
        let words = run(Command::new("grep").args(["-rl", "last-applied"]).arg(&root));
        assert!(words.out.is_empty(), "{words:?}");
    });
    checks.check("the objects are there", || {
        assert!(read(&root.join("objects/pods.json")).contains("\"teller\""));
        assert!(read(&root.join("objects/networkpolicies.json")).contains("\"vault\""));
        let events = read(&root.join("objects/events.json"));
        assert!(events.contains("the pod said (left out)"), "{events}");
        assert!(read(&root.join("versions.json")).contains("\"gitVersion\""));
    });
    for (file, part) in [
        ("status.json", "\"last_sync\""),
        ("log.txt", "everything is listed"),
        ("metrics.txt", "plumb_synced 1"),
        ("plan/nft.txt", "table ip plumb"),
        ("kernel/nft.txt", "table ip plumb"),
        ("plan/net.txt", "plumb.1"),
        ("kernel/links.txt", "cni0"),
        ("kernel/routes.txt", "proto 112"),
        ("kernel/neighbours.txt", "plumb.1"),
        ("kernel/conntrack.txt", "tcp"),
        ("drift.txt", "none: the kernel holds what it should"),
        ("settings.txt", "cluster_cidr"),
        ("decisions.jsonl", "\"Started\""),
    ] {
        checks.check(file, || {
            for node in ["node1", "node2"] {
                let text = read(&root.join("nodes").join(node).join(file));
                assert!(text.contains(part), "{node}/{file} does not say {part:?}: {text}");
            }
        });
    }
    checks.check("what nodes decided is decided again without them", || {
        let replay = |more: &[&str]| run(Command::new(plumb()).arg("replay").arg(&archive).args(more));
        let all = replay(&[]);
        assert!(all.ok && all.out.matches("decided as they were").count() == 2, "{all:?}");
        let its = replay(&["--pod", "bank/teller"]);
        assert!(its.ok && its.out.contains("→ wired bank/teller"), "{its:?}");
        let json = replay(&["--node", "node1", "-o", "json"]);
        let parsed: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
        assert_eq!(parsed[0]["node"], "node1", "{json:?}");
        assert!(parsed[0]["turns"].as_array().is_some_and(|turns| !turns.is_empty()), "{json:?}");
    });
    checks.check("an agent that is away is said, and the rest is there", || {
        lab.lab_ok(&["agent", "stop", "node2"]);
        let said = operate(&lab, &["sysdump", "-o", archive.to_str().expect("UTF-8")]);
        said.refused(&["not in it: node2"]);
        assert!(said.out.contains("files"), "{said:?}");
    });
}
