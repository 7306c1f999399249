//! Traffic that must stay on its node, and whose sender the pod must see.

use crate::ask::{OUT, Place, peer, url};
use crate::cluster::{Cluster, Kubectl, Namespace, pod, server};

on_each_stack!(
    what_is_local_inside_stays_on_its_node,
    what_is_local_from_outside_stays_on_its_node_and_keeps_its_sender,
    a_local_pod_that_ends_is_better_than_one_elsewhere,
    a_local_service_serves_pods_in_the_hosts_network,
);

fn service(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: echo}}\n  ipFamilyPolicy: \
         PreferDualStack\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n{more}"
    )
}

fn clients(ns: &Namespace<'_>) {
    ns.apply(&[&server("client1", "node1"), &server("client2", "node2")]);
    ns.wait_ready();
}

/// Pods and the node itself.
fn on(node: &str) -> [Place<'static>; 2] {
    match node {
        "node1" => [Place::Pod("client1"), Place::Node("node1")],
        _ => [Place::Pod("client2"), Place::Node("node2")],
    }
}

fn what_is_local_inside_stays_on_its_node(cluster: &Cluster) {
    let ns = cluster.namespace("inside");
    ns.apply(&[&service("echo", "  internalTrafficPolicy: Local\n"), &server("echo2", "node2")]);
    clients(&ns);
    // Once node1 serves a Service that came later, it knows this one too.
    ns.apply(&[&service("all", "")]);
    for address in ns.service_ips("all") {
        ns.until_answered_by(Place::Pod("client1"), &url(&address, 80), &["echo2"]);
    }
    for address in ns.service_ips("echo") {
        let url = url(&address, 80);
        on("node2").into_iter().for_each(|place| ns.until_answered_by(place, &url, &["echo2"]));
        on("node1").into_iter().for_each(|place| ns.until_unanswered(place, &["get", &url]));
    }
    ns.apply(&[&server("echo1", "node1")]);
    for address in ns.service_ips("echo") {
        let url = url(&address, 80);
        on("node1").into_iter().for_each(|place| ns.until_answered_by(place, &url, &["echo1"]));
        on("node2").into_iter().for_each(|place| ns.until_answered_by(place, &url, &["echo2"]));
    }
    ns.patch("service/echo", r#"{"spec": {"internalTrafficPolicy": "Cluster"}}"#);
    for address in ns.service_ips("echo") {
        for place in on("node1").into_iter().chain(on("node2")) {
            ns.until_answered_by(place, &url(&address, 80), &["echo1", "echo2"]);
        }
    }
}

/// The address by which nodes see the world outside, in the family of another.
fn of_outside(like: &str) -> &'static str {
    if like.contains(':') { "fd00:192:168:1::1" } else { "192.168.1.1" }
}

fn what_is_local_from_outside_stays_on_its_node_and_keeps_its_sender(cluster: &Cluster) {
    let ns = cluster.namespace("outside");
    let dual = cluster.service_families() == 2;
    let external = if dual { vec!["198.51.100.20", "2001:db8:1::20"] } else { vec!["198.51.100.20"] };
    let local = format!("  type: NodePort\n  externalIPs: {external:?}\n  externalTrafficPolicy: Local\n");
    ns.apply(&[&service("echo", &local), &server("echo2", "node2")]);
    clients(&ns);
    let port = ns.node_port("echo", "http");
    let with_port = cluster.node_urls("node2", port);
    let of_external: Vec<String> = external.iter().map(|address| url(address, 80)).collect();
    external.iter().for_each(|address| cluster.route_outside(address, "node2"));
    for url in with_port.iter().chain(&of_external) {
        let said = ns.until(OUT, &["get", url]);
        assert_eq!(peer(&said), of_outside(&peer(&said)), "the pod sees who calls: {url}: {said}");
    }
    external.iter().for_each(|address| cluster.route_outside(address, "node1"));
    let elsewhere = cluster.node_urls("node1", port);
    for url in elsewhere.iter().chain(&of_external) {
        // Whoever is in the cluster need not care where the pods are.
        on("node1").into_iter().for_each(|place| ns.until_answered_by(place, url, &["echo2"]));
        ns.until_unanswered(OUT, &["get", url]);
    }
    for address in ns.service_ips("echo") {
        on("node1").into_iter().for_each(|place| ns.until_answered_by(place, &url(&address, 80), &["echo2"]));
    }
    ns.patch("service/echo", r#"{"spec": {"externalTrafficPolicy": "Cluster"}}"#);
    for url in elsewhere.iter().chain(&of_external) {
        let said = ns.until(OUT, &["get", url]);
        assert_ne!(peer(&said), of_outside(&peer(&said)), "the answer comes back by the node: {url}: {said}");
    }
}

/// KEP-1669 with traffic policies: the pod that ends on this node, not the ready one of the other.
fn a_local_pod_that_ends_is_better_than_one_elsewhere(cluster: &Cluster) {
    let ns = cluster.namespace("ending");
    let slow = server("echo2", "node2")
        .replace("terminationGracePeriodSeconds: 1\n", "terminationGracePeriodSeconds: 300\n");
    let local = "  type: NodePort\n  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n";
    ns.apply(&[&service("echo", local), &service("all", ""), &server("echo1", "node1"), &slow]);
    clients(&ns);
    let port = ns.node_port("echo", "http");
    ns.kubectl_ok(&["delete", "pod", "echo2", "--wait=false"]);
    for address in ns.service_ips("all") {
        ns.until_answered_by(Place::Pod("client2"), &url(&address, 80), &["echo1"]);
    }
    for address in ns.service_ips("echo") {
        on("node2").into_iter().for_each(|place| ns.until_answered_by(place, &url(&address, 80), &["echo2"]));
    }
    for url in cluster.node_urls("node2", port) {
        ns.until_answered_by(OUT, &url, &["echo2"]);
    }
    ns.kill("echo2");
    for address in ns.service_ips("echo") {
        on("node2").into_iter().for_each(|place| ns.until_unanswered(place, &["get", &url(&address, 80)]));
    }
    for url in cluster.node_urls("node2", port) {
        ns.until_unanswered(OUT, &["get", &url]);
    }
}

fn a_local_service_serves_pods_in_the_hosts_network(cluster: &Cluster) {
    let ns = cluster.namespace("host-local");
    let host = pod("echo1", "nodeName: node1\n  hostNetwork: true", r#"serve, --http, "18081""#);
    let local = "  type: NodePort\n  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n";
    let of_host = service("echo", local).replace("targetPort: 8080", "targetPort: 18081");
    ns.apply(&[&of_host, &host]);
    clients(&ns);
    let port = ns.node_port("echo", "http");
    for address in ns.service_ips("echo") {
        // A pod in the host's network says the host's name.
        on("node1").into_iter().for_each(|place| ns.until_answered_by(place, &url(&address, 80), &["node1"]));
        on("node2").into_iter().for_each(|place| ns.until_unanswered(place, &["get", &url(&address, 80)]));
    }
    for url in cluster.node_urls("node1", port) {
        ns.until_answered_by(OUT, &url, &["node1"]);
    }
}
