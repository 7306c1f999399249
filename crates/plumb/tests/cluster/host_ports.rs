//! Ports of a node that lead to a pod, through a real kubelet, containerd and scheduler.

use crate::ask::{at, peer, url};
use crate::cluster::{self, Cluster, Kubectl, plumb, pod, server};
use crate::said::Said;

on_each_stack!(a_host_port_leads_to_its_pod_from_everywhere_until_it_is_gone);

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

/// `[::1]` is no address that leads to a pod: the kernel lets nothing out that comes from it.
fn a_host_port_leads_to_its_pod_from_everywhere_until_it_is_gone(cluster: &Cluster) {
    let ns = cluster.namespace("hostport");
    let own = cluster.node_ips("node1");
    let last = own.last().expect("node1 has an address");
    let ports = format!(
        "{{containerPort: 8080, hostPort: 18081}}, {{containerPort: 8080, hostPort: 18082, hostIP: 127.0.0.1}}, \
         {{containerPort: 8080, hostPort: 18083, hostIP: '{last}'}}, \
         {{containerPort: 9001, hostPort: 15060, protocol: UDP}}"
    );
    ns.apply(&[
        &with_ports("web", "nodeName: node1", &ports),
        &server("near", "node1"),
        &server("far", "node2"),
    ]);
    ns.wait_ready();
    for address in &own {
        let same_family = |ip: &&String| ip.contains(':') == address.contains(':');
        let of_node2 = cluster.node_ips("node2").iter().find(same_family).cloned().expect("of that family");
        let to = url(address, 18081);
        let control_plane = if address.contains(':') { "fd00:192:168:1::2" } else { "192.168.1.2" };
        for (node, sender) in [("cp", control_plane), ("node2", &of_node2)] {
            answers(cluster, node, &to, "name=web ");
            let said = get(cluster, node, &to);
            assert_eq!(peer(&said.out), sender, "{node}: {said:?}");
        }
        answers(cluster, "node1", &to, "name=web ");
        for client in ["near", "far", "web"] {
            let said = ns.until_demo(client, &["get", &to]);
            assert!(said.contains("name=web "), "{client}: {said}");
            let said = ns.until_demo(client, &["udp", &at(address, 15060)]);
            assert!(said.contains("name=web"), "{client}: {said}");
        }
        assert!(!get(cluster, "cp", &url(address, 18082)).ok, "127.0.0.1 only: {address}");
        if address == last {
            answers(cluster, "cp", &url(address, 18083), "name=web ");
        } else {
            assert!(!get(cluster, "cp", &url(address, 18083)).ok, "of {last} only");
        }
    }
    for port in [18081, 18082] {
        answers(cluster, "node1", &url("127.0.0.1", port), "name=web ");
    }
    ns.kubectl_ok(&["delete", "pod", "web"]);
    for to in cluster.node_urls("node1", 18081) {
        cluster.wait_for("the port is closed", || {
            let said = get(cluster, "cp", &to);
            if said.ok { Err(format!("{said:?}")) } else { Ok(()) }
        });
    }
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
