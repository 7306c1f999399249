//! Out of the cluster, into it from its nodes and its API server, and between pods that a policy keeps apart.

use crate::ask::{Place, at, peer, url};
use crate::cluster::{self, Cluster, Kubectl, Namespace, plumb, pod, server};

/// A server at 203.0.113.10:8080, once for everybody who needs it.
pub fn outside(cluster: &Cluster) {
    static STARTED: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
    let mut started = STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !started.contains(&cluster.name) {
        let program = plumb();
        let program = program.to_string_lossy();
        let args = ["demo", "serve", "--http", "8080", "--name", "outside"];
        cluster.tool_ok(&[&["start", "out", "demo", &*program][..], &args].concat());
        started.push(cluster.name.clone());
    }
}

on_each_stack!(
    a_pod_that_leaves_the_cluster_has_its_nodes_address,
    nodes_reach_pods_and_pods_reach_nodes,
    a_policy_lets_friends_in_and_nobody_else,
);

fn a_pod_that_leaves_the_cluster_has_its_nodes_address(cluster: &Cluster) {
    outside(cluster);
    let ns = cluster.namespace("egress");
    ns.apply(&[&server("client", "node2")]);
    ns.wait_ready();
    for of_node in cluster.node_ips("node2") {
        let target = if of_node.contains(':') { "2001:db8::10" } else { "203.0.113.10" };
        let said = ns.until_demo("client", &["get", &url(target, 8080)]);
        assert!(said.contains("name=outside "), "{said}");
        assert_eq!(peer(&said), of_node, "{said}");
    }
}

/// Single: that Service has one address, of the first family, in every cluster.
#[test]
fn a_pod_reaches_the_api_by_the_service_kubernetes() {
    let ns = cluster::single().namespace("api");
    ns.apply(&[&server("client", "node1")]);
    ns.wait_ready();
    // What a TLS server says to plain HTTP shows that this one was reached.
    ns.cluster.wait_for("the API at its Service", || {
        let said = ns.demo("client", &["get", "http://kubernetes.default:443/"]);
        if said.err.contains("HTTP 400 from 10.96.0.1:443") { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

fn nodes_reach_pods_and_pods_reach_nodes(cluster: &Cluster) {
    let ns = cluster.namespace("hosts");
    let args = r#"serve, --http, "18080", --udp, "18080""#;
    let host = pod("host", "nodeName: node2\n  hostNetwork: true", args);
    ns.apply(&[&server("echo1", "node1"), &host]);
    ns.wait_ready();
    for address in ns.pod_ips("echo1") {
        for node in &cluster.nodes {
            let from = Place::Node(node);
            assert!(ns.until(from, &["get", &url(&address, 8080)]).contains("name=echo1 "), "{node}");
            assert!(ns.until(from, &["udp", &at(&address, 9001)]).contains("name=echo1 "), "{node}");
        }
        let said = ns.until(Place::Pod("host"), &["get", &url(&address, 8080)]);
        assert!(said.contains("name=echo1 "), "{said}");
    }
    for address in cluster.node_ips("node2") {
        let from = Place::Pod("echo1");
        assert!(ns.until(from, &["get", &url(&address, 18080)]).contains("name=node2 "));
        assert!(ns.until(from, &["udp", &at(&address, 18080)]).contains("name=node2 "));
    }
}

/// Single: the API server calls pods by their first address only.
#[test]
fn the_api_servers_proxy_reaches_pods_and_services() {
    let ns = cluster::single().namespace("proxy");
    let service = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8080}]}
";
    ns.apply(&[service, &server("echo1", "node2")]);
    ns.wait_ready();
    for object in ["pods/echo1:8080", "pods/http:echo1:8080", "services/echo:80", "services/echo:http"] {
        let path = format!("/api/v1/namespaces/{}/{object}/proxy/", ns.name);
        let said = ns.cluster.wait_for(object, || ns.kubectl(&["get", "--raw", &path]).or_missing());
        assert!(said.contains("name=echo1 "), "{object}: {said}");
        let said = ns
            .cluster
            .wait_for(object, || ns.kubectl(&["get", "--raw", &format!("{path}hostname")]).or_missing());
        assert_eq!(said.trim(), "echo1", "a path below {object}");
    }
}

/// Whether a client gets an answer from the pod; neither is believed before it holds.
fn becomes(ns: &Namespace<'_>, client: &str, target: &str, open: bool) {
    for url in ns.pod_ips(target).iter().map(|address| url(address, 8080)) {
        let what = format!("{client} → {target}, {url}: {}", if open { "open" } else { "closed" });
        ns.cluster.wait_for(&what, || {
            let said = ns.demo(client, &["get", &url, "--timeout", "1"]);
            if said.ok == open { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }
}

fn a_policy_lets_friends_in_and_nobody_else(cluster: &Cluster) {
    let ns = cluster.namespace("policy");
    ns.apply(&[
        &server("guarded1", "node1"),
        &server("guarded2", "node2"),
        &server("friend1", "node1"),
        &server("stranger1", "node1"),
    ]);
    ns.wait_ready();
    for guarded in ["guarded1", "guarded2"] {
        becomes(&ns, "stranger1", guarded, true);
    }
    ns.apply(&["
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: guarded}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}]}]
"]);
    for guarded in ["guarded1", "guarded2"] {
        becomes(&ns, "stranger1", guarded, false);
        becomes(&ns, "friend1", guarded, true);
    }
    ns.kubectl_ok(&["delete", "networkpolicy", "friends"]);
    becomes(&ns, "stranger1", "guarded2", true);
}
