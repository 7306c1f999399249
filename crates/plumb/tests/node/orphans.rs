//! Attachments whose runtime forgot them: no DEL ever comes.

use std::net::IpAddr;

use serde_json::{Value, json};
use types::Families;

use crate::stage::{Node, Pod, Stage, wait_for};

/// With an agent that waits one second for a DEL.
fn stage(families: Families) -> Stage {
    let mut stage = Stage::of(1, families);
    let node = &mut stage.nodes[0];
    node.flags.push("--orphan-grace=1".into());
    node.kill();
    node.start();
    node.wait_ready();
    stage
}

fn no_grace(stage: &Stage, pod: &str) -> Pod {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": pod, "namespace": "default" },
        "spec": {
            "nodeName": stage.nodes[0].name,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "c", "image": "host", "command": ["/bin/true"] }],
        },
    });
    stage.create("/api/v1/namespaces/default/pods", &object);
    Pod { name: pod.to_owned(), netns: kernel::Netns::fresh().unwrap() }
}

/// What the agent has given out, by address.
fn leases(node: &Node) -> Vec<(IpAddr, String)> {
    let files = std::fs::read_dir(node.dir.join("data")).unwrap();
    let file = files
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "json"))
        .unwrap();
    let store: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let pools = store["pools"].as_array().unwrap();
    let leases = pools.iter().flat_map(|pool| pool["leases"].as_object().unwrap());
    leases.map(|(ip, handle)| (ip.parse().unwrap(), handle.as_str().unwrap().to_owned())).collect()
}

fn held_for(node: &Node, pod: &str) -> Vec<IpAddr> {
    let handle = format!("id-{pod}/eth0");
    leases(node).into_iter().filter(|(_, held)| *held == handle).map(|(ip, _)| ip).collect()
}

fn veths(node: &Node) -> usize {
    node.run("ip -o link show master cni0").lines().count()
}

fn wait_for_event(stage: &Stage, pod: &str) -> String {
    let told = || stage.events("AttachmentReleased").into_iter().find(|told| told.contains(pod));
    wait_for(&format!("an Event of pod {pod}"), told)
}

#[test]
fn an_attachment_is_released_when_its_namespace_is_gone_though_no_del_comes() {
    for families in [Families::Ipv4, Families::Dual] {
        let stage = stage(families);
        let node = &stage.nodes[0];
        let (_stays, _) = stage.wired(0, "stays");
        let (lost, _) = stage.wired(0, "lost");
        let ips = held_for(node, "lost");
        assert_eq!(ips.len(), families.list().len());
        drop(lost);
        wait_for("its addresses are free", || held_for(node, "lost").is_empty().then_some(()));
        let told = wait_for_event(&stage, "default/lost");
        assert!(told.contains("network namespace") && told.contains(&ips[0].to_string()), "{told}");
        wait_for("its rules are gone", || {
            let rules = node.run("nft list ruleset");
            (!ips.iter().any(|ip| rules.contains(&format!("{ip} ")))).then_some(())
        });
        assert_eq!(held_for(node, "stays").len(), ips.len(), "nobody missed it");
        assert!(node.metrics().contains("plumb_attachments 1"));
    }
}

#[test]
fn an_attachment_whose_pod_is_gone_is_cut_off_and_its_address_held_while_its_namespace_lives() {
    let mut stage = stage(Families::Ipv4);
    let (_stays, _) = stage.wired(0, "stays");
    let gone = no_grace(&stage, "gone");
    let ip = stage.nodes[0].add(&gone).unwrap();
    assert_eq!(veths(&stage.nodes[0]), 2);
    stage.delete("/api/v1/namespaces/default/pods/gone?gracePeriodSeconds=0");
    wait_for("its veth is deleted", || (veths(&stage.nodes[0]) == 1).then_some(()));
    let told = wait_for_event(&stage, "default/gone");
    assert!(told.contains("has not been in the API") && told.contains(&ip.to_string()), "{told}");
    wait_for("it is no attachment", || {
        stage.nodes[0].metrics().contains("plumb_attachments 1").then_some(())
    });
    // Also by the next process.
    let node = &mut stage.nodes[0];
    node.kill();
    node.start();
    node.wait_ready();
    assert_eq!(held_for(&stage.nodes[0], "gone"), [ip], "its namespace still has it");
    assert!(stage.nodes[0].metrics().contains("plumb_attachments 1"));
    drop(gone);
    wait_for("its address is free", || held_for(&stage.nodes[0], "gone").is_empty().then_some(()));
    assert_eq!(held_for(&stage.nodes[0], "stays").len(), 1);
}

#[test]
fn a_runtime_that_sends_del_after_all_is_answered_and_frees_the_address() {
    let stage = stage(Families::Ipv4);
    let node = &stage.nodes[0];
    let late = no_grace(&stage, "late");
    let ip = node.add(&late).unwrap();
    stage.delete("/api/v1/namespaces/default/pods/late?gracePeriodSeconds=0");
    wait_for("its veth is deleted", || (veths(node) == 0).then_some(()));
    wait_for("it is held", || (held_for(node, "late") == [ip]).then_some(()));
    wait_for_event(&stage, "default/late");
    assert!(node.del(&late).is_ok() && node.del(&late).is_ok());
    assert_eq!(held_for(node, "late"), [] as [IpAddr; 0]);
}

#[test]
fn an_attachment_of_no_pod_stays_as_long_as_its_namespace() {
    let stage = stage(Families::Ipv4);
    let node = &stage.nodes[0];
    let outside = Pod { name: "outside".into(), netns: kernel::Netns::fresh().unwrap() };
    node.add_outside_kubernetes(&outside).unwrap();
    // Whoever is released for its pod is seen after it.
    let gone = no_grace(&stage, "gone");
    node.add(&gone).unwrap();
    stage.delete("/api/v1/namespaces/default/pods/gone?gracePeriodSeconds=0");
    wait_for_event(&stage, "default/gone");
    assert_eq!(held_for(node, "outside").len(), 1);
    drop(outside);
    wait_for("its address is free", || held_for(node, "outside").is_empty().then_some(()));
}
