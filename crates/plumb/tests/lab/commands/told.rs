//! What the lab tells of itself: state as JSON, logs, and when everything is ready.

use super::at;
use crate::cluster::{Checks, Lab, run};

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("`lab status -o json`", || json(lab));
}

fn json(lab: &Lab) {
    let said = run(&mut at(lab, &["lab", "status", "-o", "json"])).json();
    assert_eq!(said["name"], lab.name.as_str());
    assert_eq!(said["kubeconfig"], lab.kubeconfig.to_str().expect("plain"));
    let processes = said["processes"].as_array().expect("processes");
    for name in ["supervise", "api", "agent-node1", "kubelet-node2"] {
        let process = processes.iter().find(|process| process["name"] == name);
        let process = process.unwrap_or_else(|| panic!("no {name}: {said}"));
        assert_eq!(process["state"], "running", "{process}");
        assert!(process["pid"].as_u64() > Some(0) && process["rssKiB"].as_u64() > Some(0), "{process}");
    }
    let nodes: Vec<_> = said["nodes"].as_array().expect("nodes").iter().collect();
    let seen: Vec<_> =
        nodes.iter().map(|node| (&node["name"], &node["ready"], &node["addresses"][0])).collect();
    assert_eq!(
        seen,
        [
            (&"node1".into(), &true.into(), &"192.168.1.10".into()),
            (&"node2".into(), &true.into(), &"192.168.1.11".into())
        ]
    );
    assert!(said["apiError"].is_null(), "{said}");
}
