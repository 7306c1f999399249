use serde_json::json;
use types::ObjectName;

use super::*;
use crate::memory::Memory;

fn node_of(api: &Memory, name: &str) -> String {
    api.world.get::<Pod>(&ObjectName::new("shop", name)).unwrap().spec.node_name.clone()
}

fn scheduled(api: &Memory, name: &str) -> String {
    let pod = api.world.get::<Pod>(&ObjectName::new("shop", name)).unwrap();
    condition(&pod.status.conditions, "PodScheduled").map(|c| c.message.clone()).unwrap_or_default()
}

fn pod(app: &str, spec: serde_json::Value) -> serde_json::Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": spec})
}

#[test]
fn pods_of_one_owner_spread_before_anything_else() {
    let mut api = Memory::default();
    api.ready_node("node1");
    api.ready_node("node2");
    for name in ["a1", "a2", "a3", "a4"] {
        api.apply(Kind::Pod, &format!("shop/{name}"), pod("a", json!({})));
        api.settle();
    }
    api.apply(Kind::Pod, "shop/b1", pod("b", json!({})));
    api.apply(Kind::Pod, "shop/b2", pod("b", json!({})));
    api.settle();
    let on = |app: &str, node: &str| {
        let pods = api.world.all::<Pod>().filter(|p| p.metadata.labels["app"] == app);
        pods.filter(|p| p.spec.node_name == node).count()
    };
    assert_eq!((on("a", "node1"), on("a", "node2"), on("b", "node1"), on("b", "node2")), (2, 2, 1, 1));
}

#[test]
fn a_pod_that_fits_nowhere_says_why_once_and_is_placed_when_it_fits() {
    let mut api = Memory::default();
    api.ready_node("node1");
    api.apply(Kind::Node, "node2", json!({}));
    api.apply(Kind::Pod, "shop/web", pod("web", json!({"nodeSelector": {"disk": "ssd"}})));
    api.settle();
    let why = "0/2 nodes are available: 1 node(s) didn't match Pod's node selector (disk=ssd), 1 node(s) were not ready.";
    assert_eq!(scheduled(&api, "web"), why);
    api.settle();
    assert_eq!(api.events.iter().filter(|e| e.reason == "FailedScheduling").count(), 1);
    let mut labelled = api.object(Kind::Node, "node1").clone();
    labelled["metadata"]["labels"] = json!({"disk": "ssd"});
    api.apply(Kind::Node, "node1", labelled);
    api.settle();
    assert_eq!(node_of(&api, "web"), "node1");
}

#[test]
fn taints_cordons_and_host_ports_are_honoured() {
    let mut api = Memory::default();
    api.ready_node("node1");
    api.ready_node("node2");
    let mut tainted = api.object(Kind::Node, "node1").clone();
    tainted["spec"] = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
    api.apply(Kind::Node, "node1", tainted);
    let port = json!({"containers": [{"ports": [{"containerPort": 80, "hostPort": 8080}]}]});
    api.apply(Kind::Pod, "shop/one", pod("p", port.clone()));
    api.settle();
    api.apply(Kind::Pod, "shop/two", pod("p", port.clone()));
    api.settle();
    assert_eq!(node_of(&api, "one"), "node2");
    assert_eq!(
        scheduled(&api, "two"),
        "0/2 nodes are available: 1 node(s) didn't have free ports for the requested pod ports, 1 node(s) had untolerated taint {gpu: yes}."
    );
    let mut tolerant = port;
    tolerant["tolerations"] = json!([{"key": "gpu", "operator": "Exists"}]);
    api.apply(Kind::Pod, "shop/three", pod("p", tolerant));
    api.settle();
    assert_eq!(node_of(&api, "three"), "node1");
}

#[test]
fn a_field_that_is_not_read_is_refused_by_its_name() {
    let mut api = Memory::default();
    api.ready_node("node1");
    let affinity = json!({"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}}});
    api.apply(Kind::Pod, "shop/web", pod("web", affinity));
    api.settle();
    assert!(scheduled(&api, "web").starts_with("spec.affinity.podAffinity is not supported"));
    assert_eq!(node_of(&api, "web"), "");
}

#[test]
fn anti_affinity_keeps_pods_apart_whichever_of_them_says_so() {
    let mut api = Memory::default();
    api.ready_node("node1");
    api.ready_node("node2");
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}]}}});
    for name in ["one", "two", "three"] {
        api.apply(Kind::Pod, &format!("shop/{name}"), pod("db", apart.clone()));
        api.settle();
    }
    assert_ne!(node_of(&api, "one"), node_of(&api, "two"));
    assert_eq!(
        scheduled(&api, "three"),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    api.apply(Kind::Pod, "shop/plain", pod("db", json!({})));
    api.settle();
    assert_eq!(
        scheduled(&api, "plain"),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
}

#[test]
fn a_spread_constraint_bounds_the_skew() {
    let mut api = Memory::default();
    for (node, zone) in [("node1", "a"), ("node2", "a"), ("node3", "b")] {
        api.ready_node(node);
        api.merge(Kind::Node, node, &json!({"metadata": {"labels": {"zone": zone}}}));
    }
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    for n in 0..4 {
        api.apply(Kind::Pod, &format!("shop/w{n}"), pod("web", spread.clone()));
        api.settle();
    }
    let in_b = (0..4).filter(|n| node_of(&api, &format!("w{n}")) == "node3").count();
    assert_eq!(in_b, 2, "two zones of two, although zone a has two nodes");
    api.merge(Kind::Node, "node3", &json!({"spec": {"unschedulable": true}}));
    api.apply(Kind::Pod, "shop/w4", pod("web", spread.clone()));
    api.settle();
    assert_ne!(node_of(&api, "w4"), "");
    api.apply(Kind::Pod, "shop/w5", pod("web", spread));
    api.settle();
    assert!(scheduled(&api, "w5").contains("2 node(s) didn't match pod topology spread constraints"));
}

#[test]
fn another_scheduler_s_pod_is_left_alone() {
    let mut api = Memory::default();
    api.ready_node("node1");
    api.apply(Kind::Pod, "shop/web", pod("web", json!({"schedulerName": "mine"})));
    api.settle();
    assert_eq!((node_of(&api, "web"), scheduled(&api, "web")), (String::new(), String::new()));
}
