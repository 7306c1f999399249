//! Out of the cluster, into it from its nodes and its API server, and between pods that a policy keeps apart.

use crate::cluster::{self, Cluster, Namespace, plumb, pod, run, server};

/// A server at 203.0.113.10:8080, once for everybody who needs it.
fn outside(cluster: &Cluster) {
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

#[test]
fn a_pod_that_leaves_the_cluster_has_its_nodes_address() {
    let cluster = cluster::single();
    outside(cluster);
    let ns = cluster.namespace("egress");
    ns.apply(&[&server("client", "node2")]);
    ns.wait_ready();
    let said = ns.until_demo("client", &["get", "http://203.0.113.10:8080/"]);
    assert!(said.contains("name=outside peer=192.168.1.11:"), "{said}");
}

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

#[test]
fn nodes_reach_pods_and_pods_reach_nodes() {
    let cluster = cluster::single();
    let ns = cluster.namespace("hosts");
    let host = pod("host", "nodeName: node2\n  hostNetwork: true", r#"serve, --http, "18080""#);
    ns.apply(&[&server("echo1", "node1"), &host]);
    ns.wait_ready();
    let program = plumb();
    let program = program.to_string_lossy();
    let of_pod = format!("http://{}:8080/", ns.pod_ip("echo1"));
    for node in &cluster.nodes {
        let said = cluster.node_ok(node, &[&program, "demo", "get", &of_pod]);
        assert!(said.contains("name=echo1 "), "{node}: {said}");
    }
    let said = ns.demo_ok("echo1", &["get", "http://192.168.1.11:18080/"]);
    assert!(said.contains("name=node2 "), "{said}");
}

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
    for object in ["pods/echo1:8080", "services/echo:80", "services/echo:http"] {
        let path = format!("/api/v1/namespaces/{}/{object}/proxy/", ns.name);
        let said = ns.cluster.wait_for(object, || ns.kubectl(&["get", "--raw", &path]).or_missing());
        assert!(said.contains("name=echo1 "), "{object}: {said}");
    }
}

/// Whether a client gets an answer from the pod; neither is believed before it holds.
fn becomes(ns: &Namespace<'_>, client: &str, target: &str, open: bool) {
    let url = format!("http://{}:8080/", ns.pod_ip(target));
    ns.cluster.wait_for(&format!("{client} → {target}: {}", if open { "open" } else { "closed" }), || {
        let said = ns.demo(client, &["get", &url, "--timeout", "1"]);
        if said.ok == open { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

#[test]
fn a_policy_lets_friends_in_and_nobody_else() {
    let ns = cluster::single().namespace("policy");
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

#[test]
fn a_trace_goes_through_the_api_servers_node_proxy() {
    let ns = cluster::single().namespace("trace");
    let service = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}
";
    ns.apply(&[service, &server("echo1", "node2"), &server("client1", "node1")]);
    ns.wait_ready();
    ns.until_demo("client1", &["get", "http://echo/"]);
    let mut trace = std::process::Command::new(plumb());
    trace.env("KUBECONFIG", &ns.cluster.kubeconfig);
    let said = run(trace.args(["trace", &format!("{}/client1", ns.name), "http://echo"]));
    assert!(said.ok, "{said:?}");
    assert!(said.out.contains("model and kernel agree"), "{said:?}");
}
