//! A pod tries what would reach the machine: root's lab runs its pods with the machine's own root for a user.

use super::bench::{Lab, User, success, text};
use super::wait_ready;

/// A plain pod; one of the node's network; and one that is this program, by its own wish and by its image.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: host, command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  nodeName: node1
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: host, command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: host, command: [sleep, "1000"]}
  - {name: image, image: plumb.local/demo, args: [serve, --http, "8080"]}
  - {name: wish, image: host, command: [/proc/self/exe, demo, serve, --http, "8081"]}
"#;

fn a_pod_reaches_nothing_of_the_machine(user: User) {
    let lab = Lab::up(user);
    lab.apply(PODS);
    wait_ready(&lab, &["pod/plain", "pod/host", "pod/own"]);
    for pod in ["plain", "host", "own"] {
        let attempts = include_str!("attempts.py");
        let tried = lab.kubectl(&["exec", pod, "-c", "c", "--", "python3", "-c", attempts, "-v"]);
        success(&tried);
        let said = text(&tried.stdout);
        // Both of the containers that run this program were looked at.
        let own = "the lab's own program is on a read-only mount\n".repeat(if pod == "own" { 2 } else { 0 });
        assert_eq!(said, own + "tried everything\n", "pod {pod} of {user:?}");
        let links = lab.ask(&["exec", pod, "-c", "c", "--", "ls", "/sys/class/net"]);
        match pod {
            "host" => {
                assert!(links.contains("underlay") || links.contains("veth") || links.lines().count() > 2)
            }
            _ => assert_eq!(links, "eth0\nlo", "/sys of pod {pod} is another network namespace's"),
        }
        let run_dir = lab.run_dir();
        for place in [
            run_dir.clone(),
            std::path::Path::new("/.host").join(run_dir.strip_prefix("/").expect("absolute")),
        ] {
            let shown = lab.kubectl(&["exec", pod, "-c", "c", "--", "ls", place.to_str().expect("plain")]);
            assert!(!shown.status.success(), "{pod} sees {}", place.display());
        }
    }
}

#[test]
fn a_pod_reaches_nothing_of_roots_machine() {
    a_pod_reaches_nothing_of_the_machine(User::Own);
}

#[test]
fn a_pod_reaches_nothing_of_the_machine_of_an_ordinary_user() {
    a_pod_reaches_nothing_of_the_machine(User::Ordinary);
}
