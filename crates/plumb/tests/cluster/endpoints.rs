//! Which pods of a Service get its traffic, while they come, get ready, end and go.

use crate::ask::{OUT, Place, at, url, word};
use crate::cluster::{Cluster, Kubectl, Namespace, pod, server};

on_each_stack!(
    endpoints_come_and_go,
    a_pod_that_is_not_ready_gets_traffic_only_where_that_is_published,
    a_pod_that_ends_serves_only_when_nobody_else_is_left,
    a_named_port_is_each_pods_own,
    endpoints_written_by_hand_are_served,
    a_flow_of_datagrams_follows_its_service_to_another_pod,
);

/// A Service `NAME` of the pods `echo`, with more of its spec.
fn service(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: echo}}\n  ipFamilyPolicy: \
         PreferDualStack\n  ports:\n  - {{name: http, port: 80, targetPort: 8080}}\n  - {{name: gram, port: 90, \
         targetPort: 9001, protocol: UDP}}\n{more}"
    )
}

/// A server that is ready when it says so.
fn probed(name: &str, node: &str, args: &str) -> String {
    let args = format!(r#"serve, --http, "8080", --udp, "9001"{args}"#);
    let probe =
        "    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, failureThreshold: 1}\n";
    pod(name, &format!("nodeName: {node}"), &args) + probe
}

const CLIENTS: [Place<'static>; 4] =
    [Place::Pod("client1"), Place::Pod("client2"), Place::Node("node1"), Place::Node("node2")];

fn clients(ns: &Namespace<'_>) {
    ns.apply(&[&server("client1", "node1"), &server("client2", "node2")]);
}

/// Everybody's calls of the Service, by every address it has, are answered by these; by nobody: they are refused.
fn becomes(ns: &Namespace<'_>, name: &str, pods: &[&str]) {
    for address in ns.service_ips(name) {
        for place in CLIENTS {
            if pods.is_empty() {
                ns.until_refused(place, &["get", &url(&address, 80)]);
                ns.until_refused(place, &["udp", &at(&address, 90)]);
            } else {
                ns.until_answered_by(place, &url(&address, 80), pods);
            }
        }
    }
}

fn endpoints_come_and_go(cluster: &Cluster) {
    let ns = cluster.namespace("come-and-go");
    ns.apply(&[&service("echo", "  type: NodePort\n")]);
    clients(&ns);
    ns.wait_ready();
    becomes(&ns, "echo", &[]);
    let port = ns.node_port("echo", "http");
    let at_node = cluster.node_urls("node1", port);
    at_node.iter().for_each(|url| ns.until_refused(OUT, &["get", url]));
    ns.apply(&[&probed("echo1", "node1", "")]);
    becomes(&ns, "echo", &["echo1"]);
    ns.apply(&[&probed("echo2", "node2", "")]);
    becomes(&ns, "echo", &["echo1", "echo2"]);
    ns.kill("echo1");
    becomes(&ns, "echo", &["echo2"]);
    at_node.iter().for_each(|url| ns.until_answered_by(OUT, url, &["echo2"]));
    let own = url(&ns.pod_ip("echo2"), 8080);
    ns.until_demo("client1", &["get", &format!("{own}ready?set=false")]);
    becomes(&ns, "echo", &[]);
    ns.until_demo("client1", &["get", &format!("{own}ready?set=true")]);
    becomes(&ns, "echo", &["echo2"]);
    // One that is still there and no longer chosen.
    ns.kubectl_ok(&["label", "pod", "echo2", "app=other", "--overwrite"]);
    becomes(&ns, "echo", &[]);
}

fn a_pod_that_is_not_ready_gets_traffic_only_where_that_is_published(cluster: &Cluster) {
    let ns = cluster.namespace("unready");
    ns.apply(&[
        &service("early", "  publishNotReadyAddresses: true\n"),
        &service("echo", ""),
        &probed("echo1", "node1", ", --unready"),
    ]);
    clients(&ns);
    ["client1", "client2"].into_iter().for_each(|pod| ns.wait_ready_of(pod));
    becomes(&ns, "early", &["echo1"]);
    becomes(&ns, "echo", &[]);
    ns.patch("service/echo", r#"{"spec": {"publishNotReadyAddresses": true}}"#);
    becomes(&ns, "echo", &["echo1"]);
}

/// KEP-1669: no new connection while another pod is ready; better than nobody when none is. The pod goes on as long as
/// its grace lasts, for its server is process 1 and does not heed SIGTERM.
fn a_pod_that_ends_serves_only_when_nobody_else_is_left(cluster: &Cluster) {
    let ns = cluster.namespace("ends");
    let slow = |pod: String| {
        pod.replace("terminationGracePeriodSeconds: 1\n", "terminationGracePeriodSeconds: 300\n")
    };
    ns.apply(&[
        &service("echo", "  type: NodePort\n"),
        &probed("echo1", "node1", ""),
        &slow(probed("echo2", "node2", "")),
    ]);
    clients(&ns);
    ns.wait_ready();
    becomes(&ns, "echo", &["echo1", "echo2"]);
    let port = ns.node_port("echo", "http");
    let from_outside = |node: &str, pod: &str| {
        cluster.node_urls(node, port).iter().for_each(|url| ns.until_answered_by(OUT, url, &[pod]));
    };
    ns.kubectl_ok(&["delete", "pod", "echo2", "--wait=false"]);
    becomes(&ns, "echo", &["echo1"]);
    from_outside("node2", "echo1");
    ns.kill("echo1");
    becomes(&ns, "echo", &["echo2"]);
    from_outside("node1", "echo2");
    ns.kill("echo2");
    becomes(&ns, "echo", &[]);
}

fn a_named_port_is_each_pods_own(cluster: &Cluster) {
    let ns = cluster.namespace("named");
    let listens = |name: &str, node: &str, port: u16| {
        let args = format!(r#"serve, --http, "{port}""#);
        pod(name, &format!("nodeName: {node}"), &args)
            + &format!("    ports: [{{name: web, containerPort: {port}}}]\n")
    };
    let named = service("echo", "").replace("targetPort: 8080", "targetPort: web");
    ns.apply(&[&named, &listens("echo1", "node1", 8081), &listens("echo2", "node2", 8082)]);
    clients(&ns);
    ns.wait_ready();
    becomes(&ns, "echo", &["echo1", "echo2"]);
    for address in ns.service_ips("echo") {
        let said = ns.until(Place::Pod("client1"), &["get", &url(&address, 80)]);
        let own = if word(&said, "name") == Some("echo1") { ":8081" } else { ":8082" };
        assert!(word(&said, "local").is_some_and(|local| local.ends_with(own)), "{said}");
    }
}

/// A Service without a selector, whose endpoints are whatever somebody wrote: here a server outside the cluster.
fn endpoints_written_by_hand_are_served(cluster: &Cluster) {
    crate::reach::outside(cluster);
    let ns = cluster.namespace("by-hand");
    let plain = service("echo", "").replace("  selector: {app: echo}\n", "");
    ns.apply(&[&plain]);
    clients(&ns);
    ns.wait_ready();
    becomes(&ns, "echo", &[]);
    for (family, address) in [("IPv4", "203.0.113.10"), ("IPv6", "2001:db8::10")] {
        ns.apply(&[&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: echo-{}, labels: \
             {{kubernetes.io/service-name: echo}}}}\naddressType: {family}\nports: [{{name: http, port: 8080}}]\nendpoints: \
             [{{addresses: [\"{address}\"]}}]\n",
            family.to_lowercase()
        )]);
    }
    becomes(&ns, "echo", &["outside"]);
    // For names only, as the controller says of headless Services.
    let label = "service.kubernetes.io/headless";
    ns.kubectl_ok(&["label", "endpointslices", "--all", &format!("{label}=")]);
    becomes(&ns, "echo", &[]);
    ns.kubectl_ok(&["label", "endpointslices", "--all", &format!("{label}-")]);
    becomes(&ns, "echo", &["outside"]);
    ns.kubectl_ok(&["delete", "endpointslices", "--all"]);
    becomes(&ns, "echo", &[]);
}

/// Clients that keep their socket while the only pod is replaced, and begin before there is any: what the kernel
/// remembers of the flow must not outlive the pod it leads to.
fn a_flow_of_datagrams_follows_its_service_to_another_pod(cluster: &Cluster) {
    let ns = cluster.namespace("flows");
    ns.apply(&[&service("echo", "  type: NodePort\n")]);
    let port = ns.node_port("echo", "gram");
    let mut flows = Vec::new();
    let targets = ns.service_ips("echo").into_iter().map(|address| at(&address, 90));
    let targets = targets.chain(cluster.node_ips("node1").into_iter().map(|address| at(&address, port)));
    for target in targets {
        for (node, network) in [("node1", ""), ("node2", "\n  hostNetwork: true")] {
            let (name, number) = (format!("flow{}", flows.len()), flows.len());
            let args = format!(r#"udp, "{target}", --every, "100", --timeout, "0.5", --say, "of-{number}""#);
            ns.apply(&[&pod(&name, &format!("nodeName: {node}{network}"), &args)]);
            flows.push(name);
        }
    }
    ns.wait_ready();
    let all_reach = |server: &str| {
        for flow in &flows {
            ns.cluster.wait_for(&format!("{flow} reaches {server}"), || {
                let said = ns.kubectl(&["logs", "--tail=3", flow]);
                let reached = |line: &str| word(line, "name") == Some(server);
                if said.out.lines().count() == 3 && said.out.lines().all(reached) {
                    Ok(())
                } else {
                    Err(format!("{said:?}"))
                }
            });
        }
    };
    ns.apply(&[&server("echo1", "node1")]);
    all_reach("echo1");
    ns.apply(&[&server("echo2", "node2")]);
    ns.wait_ready();
    ns.kill("echo1");
    all_reach("echo2");
    ns.kill("echo2");
    ns.apply(&[&server("echo3", "node1")]);
    all_reach("echo3");
}
