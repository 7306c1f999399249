//! Policies, on one node and across, by pod address and through services.

use super::{Mesh, NS};
use crate::cluster::{Checks, Kubectl, wait_for};
use std::time::Duration;

pub fn checks(mesh: &Mesh, checks: &mut Checks) {
    checks.check("ingress: only whom the policy names, on the same node and across", || ingress(mesh));
    checks.check("ingress: only the port that the policy names", || port(mesh));
    checks.check("egress: only where the policy allows, judged after the service's translation", || {
        egress(mesh)
    });
    checks.check("a policy that is taken away lets everyone in again", || removed(mesh));
}

fn reaches(mesh: &Mesh, from: &str, target: &str) -> bool {
    let said = mesh.lab.demo(NS, from, &["get", &format!("http://{target}"), "--timeout", "1"]);
    if !said.ok {
        // Dropped, and not refused: no rule of a policy answers.
        assert!(said.err.contains("timed out"), "{said:?}");
    }
    said.ok
}

fn ingress(mesh: &Mesh) {
    for to in ["guarded1", "guarded2"] {
        let target = format!("{}:8080", mesh.ip(to));
        assert!(reaches(mesh, "friend1", &target), "friend1 → {to}");
        for from in ["echo1", "echo2"] {
            assert!(!reaches(mesh, from, &target), "{from} → {to}");
        }
    }
}

fn port(mesh: &Mesh) {
    let target = format!("{}:9000", mesh.ip("guarded1"));
    mesh.lab.demo(NS, "friend1", &["tcp", &target, "--timeout", "1"]).refused(&["timed out"]);
}

fn egress(mesh: &Mesh) {
    for target in [
        format!("{}:8080", mesh.ip("echo3")),
        format!("{}:8080", mesh.ip("echo2")),
        mesh.service("far").to_owned(),
    ] {
        assert!(reaches(mesh, "mute1", &target), "mute1 → {target}");
    }
    for target in [format!("{}:8080", mesh.ip("friend1")), "203.0.113.10".to_owned()] {
        assert!(!reaches(mesh, "mute1", &target), "mute1 → {target}");
    }
}

fn removed(mesh: &Mesh) {
    let policy =
        mesh.lab.kubectl_ok(&["-n", NS, "get", "networkpolicy", "guarded-from-friend", "-o", "yaml"]);
    mesh.lab.kubectl_ok(&["-n", NS, "delete", "networkpolicy", "guarded-from-friend"]);
    let target = format!("{}:8080", mesh.ip("guarded2"));
    let settled = |wanted: bool| {
        wait_for("the policy's change", Duration::from_secs(60), || {
            (reaches(mesh, "echo1", &target) == wanted)
                .then_some(())
                .ok_or_else(|| format!("reached is {}", !wanted))
        });
    };
    settled(true);
    let spec = policy.find("spec:").map(|at| &policy[at..]).expect("a spec");
    mesh.lab.apply(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: guarded-from-friend, namespace: {NS}}}\n{spec}"
    ));
    settled(false);
}
