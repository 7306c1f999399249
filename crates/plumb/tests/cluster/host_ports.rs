//! Ports of a node that lead to a pod, through a real kubelet, containerd and scheduler.

use crate::cluster::{self, Cluster, Kubectl, plumb, pod};
use crate::said::Said;

/// A pod of node1 that serves HTTP on 8080 and UDP on 9001, with ports of the node in YAML.
fn with_ports(name: &str, place: &str, ports: &str) -> String {
    let of_pod = pod(name, place, r#"serve, --http, "8080", --udp, "9001""#);
    format!("{of_pod}    ports: [{ports}]\n")
}

fn get(cluster: &Cluster, node: &str, url: &str) -> Said {
    let program = plumb();
    cluster.node(node, &[&program.to_string_lossy(), "demo", "get", url, "--timeout", "2"])
}

/// Whoever asks is answered by the pod.
fn answers(cluster: &Cluster, node: &str, url: &str, expected: &str) {
    cluster.wait_for(&format!("{node} → {url}: {expected}"), || {
        let said = get(cluster, node, url);
        if said.ok && said.out.contains(expected) { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_until_it_is_gone() {
    let cluster = cluster::single();
    let ns = cluster.namespace("hostport");
    let ports = "{containerPort: 8080, hostPort: 18081}, \
                 {containerPort: 8080, hostPort: 18082, hostIP: 127.0.0.1}, \
                 {containerPort: 9001, hostPort: 15060, protocol: UDP}";
    let client = |name: &str, node: &str| cluster::server(name, node);
    ns.apply(&[
        &with_ports("web", "nodeName: node1", ports),
        &client("near", "node1"),
        &client("far", "node2"),
    ]);
    ns.wait_ready();
    let url = "http://192.168.1.10:18081/";
    answers(cluster, "cp", url, "name=web peer=192.168.1.2:");
    answers(cluster, "node2", url, "name=web peer=192.168.1.11:");
    for own in [url, "http://127.0.0.1:18081/", "http://127.0.0.1:18082/"] {
        answers(cluster, "node1", own, "name=web ");
    }
    for client in ["near", "far", "web"] {
        let said = ns.until_demo(client, &["get", url]);
        assert!(said.contains("name=web "), "{client}: {said}");
        let said = ns.until_demo(client, &["udp", "192.168.1.10:15060"]);
        assert!(said.contains("name=web"), "{client}: {said}");
    }
    let elsewhere = get(cluster, "cp", "http://192.168.1.10:18082/");
    assert!(!elsewhere.ok, "127.0.0.1 only: {elsewhere:?}");
    ns.kubectl_ok(&["delete", "pod", "web"]);
    cluster.wait_for("the port is closed", || {
        let said = get(cluster, "cp", url);
        if said.ok { Err(format!("{said:?}")) } else { Ok(()) }
    });
}

#[test]
fn a_host_port_that_is_taken_is_said() {
    let cluster = cluster::single();
    let ns = cluster.namespace("hostport-taken");
    let ports = "{containerPort: 8080, hostPort: 18091}";
    ns.apply(&[&with_ports("first", "nodeName: node1", ports)]);
    ns.wait_ready();
    ns.apply(&[&with_ports("second", "nodeName: node1", ports)]);
    cluster.wait_for("the kubelet refuses the second", || {
        let reason = ns.kubectl_ok(&["get", "pod", "second", "-o", "jsonpath={.status.reason}"]);
        if reason == "NodePorts" { Ok(()) } else { Err(reason) }
    });
    answers(cluster, "cp", "http://192.168.1.10:18091/", "name=first ");
    ns.kubectl_ok(&["delete", "pod", "first", "second"]);
    ns.apply(&[&with_ports("third", "nodeName: node1", ports)]);
    ns.wait_ready();
    answers(cluster, "cp", "http://192.168.1.10:18091/", "name=third ");
}

#[test]
fn host_ports_are_there_in_both_families() {
    let cluster = cluster::dual();
    let ns = cluster.namespace("hostport-dual");
    let ports = "{containerPort: 8080, hostPort: 18081}, \
                 {containerPort: 8080, hostPort: 18082, hostIP: 'fd00:192:168:1::10'}";
    ns.apply(&[&with_ports("web", "nodeName: node1", ports), &cluster::server("far", "node2")]);
    ns.wait_ready();
    let v6 = "http://[fd00:192:168:1::10]:18081/";
    for url in ["http://192.168.1.10:18081/", v6, "http://[fd00:192:168:1::10]:18082/"] {
        answers(cluster, "cp", url, "name=web ");
        answers(cluster, "node1", url, "name=web ");
        let said = ns.until_demo("far", &["get", url]);
        assert!(said.contains("name=web "), "{url}: {said}");
    }
    assert!(!get(cluster, "cp", "http://192.168.1.10:18082/").ok, "of the IPv6 address only");
}
