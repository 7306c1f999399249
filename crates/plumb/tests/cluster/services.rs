//! Services of every type, their ports, and what becomes of them when the object changes.

use crate::ask::{OUT, Place, at, peer, url};
use crate::cluster::{Cluster, Kubectl, Namespace, server};

on_each_stack!(
    every_port_is_reached_by_number_and_protocol,
    node_ports_are_open_on_every_node_to_everybody,
    addresses_of_load_balancers_and_external_addresses_lead_to_pods,
    a_service_may_change_its_type,
    a_service_may_be_left_to_somebody_else,
    a_pod_reaches_itself_through_its_service,
    a_client_stays_with_its_pod_while_affinity_is_on,
    a_client_is_forgotten_after_the_affinitys_time,
    services_are_made_changed_and_deleted_beside_each_other,
);

/// `echo1` on node1, `echo2` on node2, and a client on each node.
fn world<'a>(cluster: &'a Cluster, word: &str, service: &str) -> Namespace<'a> {
    let ns = cluster.namespace(word);
    let pods = [("echo1", "node1"), ("echo2", "node2"), ("client1", "node1"), ("client2", "node2")];
    ns.apply(&[service]);
    ns.apply(&pods.map(|(name, node)| server(name, node)).each_ref().map(String::as_str));
    ns.wait_ready();
    ns
}

const PLACES: [Place<'static>; 4] =
    [Place::Pod("client1"), Place::Pod("client2"), Place::Node("node1"), Place::Node("node2")];

/// A Service `echo` with more of its spec.
fn echo(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: echo}}\nspec:\n  selector: {{app: echo}}\n  ipFamilyPolicy: \
         PreferDualStack\n  {spec}\n"
    )
}

/// One number may be two ports, if their protocols differ.
const PORTS: &str = "ports:\n  - {name: http, port: 80, targetPort: 8080}\n  - {name: line, port: 90, targetPort: \
                     9000}\n  - {name: gram, port: 80, targetPort: 9001, protocol: UDP}";

fn every_port_is_reached_by_number_and_protocol(cluster: &Cluster) {
    let ns = world(cluster, "ports", &echo(PORTS));
    let addresses = ns.service_ips("echo");
    for address in &addresses {
        for place in PLACES {
            ns.until_answered_by(place, &url(address, 80), &["echo1", "echo2"]);
            assert!(ns.until(place, &["tcp", &at(address, 90)]).contains("local="), "the port for lines");
            assert!(
                ns.until(place, &["udp", &at(address, 80)]).contains("said=hello"),
                "the port for datagrams"
            );
        }
        // A pod is seen by its own address, whatever node the server is on.
        let said = ns.until(Place::Pod("client1"), &["get", &url(address, 80)]);
        assert!(ns.pod_ips("client1").contains(&peer(&said)), "{said}");
        ns.until_refused(Place::Pod("client2"), &["tcp", &at(address, 91)]);
    }
    let moved = r#"[{"op": "replace", "path": "/spec/ports/1/port", "value": 91}]"#;
    ns.kubectl_ok(&["patch", "service/echo", "--type=json", "-p", moved]);
    for address in &addresses {
        for place in PLACES {
            ns.until(place, &["tcp", &at(address, 91)]);
            ns.until_refused(place, &["tcp", &at(address, 90)]);
        }
    }
}

fn node_ports_are_open_on_every_node_to_everybody(cluster: &Cluster) {
    let ns = world(cluster, "nodeport", &echo(&format!("type: NodePort\n  {PORTS}")));
    let (http, gram) = (ns.node_port("echo", "http"), ns.node_port("echo", "gram"));
    for node in &cluster.nodes {
        for address in cluster.node_ips(node) {
            for place in PLACES.into_iter().chain([OUT]) {
                ns.until_answered_by(place, &url(&address, http), &["echo1", "echo2"]);
                ns.until(place, &["udp", &at(&address, gram)]);
            }
        }
    }
}

fn addresses_of_load_balancers_and_external_addresses_lead_to_pods(cluster: &Cluster) {
    let dual = cluster.service_families() == 2;
    let given = if dual { vec!["198.51.100.10", "2001:db8:1::10"] } else { vec!["198.51.100.10"] };
    let external = if dual { vec!["198.51.100.11", "2001:db8:1::11"] } else { vec!["198.51.100.11"] };
    let spec = format!("type: LoadBalancer\n  externalIPs: {external:?}\n  {PORTS}");
    let ns = world(cluster, "balancer", &echo(&spec));
    let ingress: Vec<String> = given.iter().map(|ip| format!(r#"{{"ip": "{ip}"}}"#)).collect();
    let status = format!(r#"{{"status": {{"loadBalancer": {{"ingress": [{}]}}}}}}"#, ingress.join(", "));
    ns.kubectl_ok(&["patch", "service/echo", "--subresource=status", "--type=merge", "-p", &status]);
    for address in given.into_iter().chain(external) {
        cluster.route_outside(address, "node2");
        for place in PLACES.into_iter().chain([OUT]) {
            ns.until_answered_by(place, &url(address, 80), &["echo1", "echo2"]);
            ns.until(place, &["udp", &at(address, 80)]);
        }
    }
}

/// The name leads to `other1` while it is an alias, to the pods of `echo` while it has an address of its own.
fn a_service_may_change_its_type(cluster: &Cluster) {
    let other = "apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {selector: {app: other}, ports: [{name: \
                 http, port: 8080}]}\n";
    let ns = world(cluster, "types", &echo("ports: [{name: http, port: 8080}]"));
    ns.apply(&[other, &server("other1", "node1")]);
    ns.wait_ready();
    let name = format!("http://echo.{}.svc.cluster.local:8080/", ns.name);
    let alias = format!("other.{}.svc.cluster.local", ns.name);
    let alias = format!(r#"{{"spec": {{"type": "ExternalName", "externalName": "{alias}"}}}}"#);
    let by_name = |names: &[&str]| {
        for client in ["client1", "client2"] {
            ns.until_answered_by(Place::Pod(client), &name, names);
        }
    };
    by_name(&["echo1", "echo2"]);
    for to in ["ClusterIP", "NodePort"] {
        let mut before: Vec<String> =
            ns.service_ips("echo").iter().map(|address| url(address, 8080)).collect();
        assert_eq!(before.len(), cluster.service_families(), "{before:?}");
        if to == "NodePort" {
            before.extend(cluster.node_urls("node1", ns.node_port("echo", "http")));
        }
        ns.patch("service/echo", &alias);
        by_name(&["other1"]);
        before.iter().for_each(|url| ns.until_unanswered(Place::Pod("client1"), &["get", url]));
        // An alias has no address, so the API server has dropped how many families it had.
        let back =
            r#"{"spec": {"type": "NodePort", "externalName": null, "ipFamilyPolicy": "PreferDualStack"}}"#;
        ns.patch("service/echo", back);
        by_name(&["echo1", "echo2"]);
        for url in cluster.node_urls("node2", ns.node_port("echo", "http")) {
            ns.until_answered_by(OUT, &url, &["echo1", "echo2"]);
        }
    }
    let at_node = cluster.node_urls("node1", ns.node_port("echo", "http"));
    ns.patch("service/echo", r#"{"spec": {"type": "ClusterIP"}}"#);
    at_node.iter().for_each(|url| ns.until_unanswered(OUT, &["get", url]));
    by_name(&["echo1", "echo2"]);
}

/// A Service with the name of another proxy is none of ours, and is again when the label goes.
fn a_service_may_be_left_to_somebody_else(cluster: &Cluster) {
    let ns = world(cluster, "left", &echo(PORTS));
    let label = "service.kubernetes.io/service-proxy-name";
    for address in ns.service_ips("echo") {
        ns.until_answered_by(Place::Pod("client1"), &url(&address, 80), &["echo1", "echo2"]);
        ns.kubectl_ok(&["label", "service", "echo", &format!("{label}=theirs")]);
        ns.until_unanswered(Place::Pod("client1"), &["get", &url(&address, 80)]);
        ns.until_unanswered(Place::Node("node2"), &["get", &url(&address, 80)]);
        ns.kubectl_ok(&["label", "service", "echo", &format!("{label}-")]);
    }
    ns.until_answered_by(Place::Pod("client2"), &url(&ns.service_ips("echo")[0], 80), &["echo1", "echo2"]);
}

fn a_pod_reaches_itself_through_its_service(cluster: &Cluster) {
    let ns = cluster.namespace("itself");
    ns.apply(&[&echo(&format!("type: NodePort\n  {PORTS}")), &server("echo1", "node1")]);
    ns.wait_ready();
    let mut ways: Vec<(String, u16, u16)> =
        ns.service_ips("echo").into_iter().map(|address| (address, 80, 80)).collect();
    for address in cluster.nodes.iter().flat_map(|node| cluster.node_ips(node)) {
        ways.push((address, ns.node_port("echo", "http"), ns.node_port("echo", "gram")));
    }
    for (address, http, gram) in ways {
        ns.until_answered_by(Place::Pod("echo1"), &url(&address, http), &["echo1"]);
        ns.until(Place::Pod("echo1"), &["udp", &at(&address, gram)]);
    }
}

fn a_client_stays_with_its_pod_while_affinity_is_on(cluster: &Cluster) {
    let ns = world(cluster, "affinity", &echo(&format!("type: NodePort\n  {PORTS}")));
    let port = ns.node_port("echo", "http");
    let mut calls: Vec<(Place<'_>, String)> = Vec::new();
    for address in ns.service_ips("echo") {
        calls.extend(PLACES.map(|place| (place, url(&address, 80))));
    }
    calls.extend(cluster.node_urls("node2", port).into_iter().map(|url| (OUT, url)));
    for _ in 0..2 {
        for (place, url) in &calls {
            ns.until_answered_by(*place, url, &["echo1", "echo2"]);
        }
        ns.patch("service/echo", r#"{"spec": {"sessionAffinity": "ClientIP"}}"#);
        for (place, url) in &calls {
            let one = ns.until_one_answers(*place, url);
            assert_eq!(ns.until_one_answers(*place, url), one, "{place:?} → {url}");
        }
        ns.patch("service/echo", r#"{"spec": {"sessionAffinity": "None"}}"#);
    }
    // A pod that goes takes nobody with it.
    ns.patch("service/echo", r#"{"spec": {"sessionAffinity": "ClientIP"}}"#);
    let chosen: Vec<String> = calls.iter().map(|(place, url)| ns.until_one_answers(*place, url)).collect();
    let gone = &chosen[0];
    ns.kill(gone);
    let stays = if gone == "echo1" { "echo2" } else { "echo1" };
    for (place, url) in &calls {
        ns.until_answered_by(*place, url, &[stays]);
    }
}

/// Calls that are further apart than the time that the Service gives reach either pod.
fn a_client_is_forgotten_after_the_affinitys_time(cluster: &Cluster) {
    let spec = "sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}";
    let ns = world(cluster, "forgotten", &echo(&format!("{spec}\n  {PORTS}")));
    for address in ns.service_ips("echo") {
        let mut seen = std::collections::BTreeSet::new();
        ns.cluster.wait_for("both pods", || {
            let args = ["loop", &url(&address, 80), "--every", "2100", "--count", "2"];
            let said = ns.call(Place::Pod("client1"), &args);
            seen.extend(
                said.out.lines().filter_map(|line| crate::ask::word(line, "name").map(str::to_owned)),
            );
            if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}, {said:?}")) }
        });
    }
}

/// Services that share their pods, one of which goes while another comes.
fn services_are_made_changed_and_deleted_beside_each_other(cluster: &Cluster) {
    let ns = world(cluster, "beside", &echo(PORTS));
    let named = |name: &str| echo(PORTS).replace("name: echo}", &format!("name: {name}}}"));
    let works = |name: &str| {
        for address in ns.service_ips(name) {
            for place in PLACES {
                ns.until_answered_by(place, &url(&address, 80), &["echo1", "echo2"]);
            }
        }
    };
    ns.apply(&[&named("two"), &named("three")]);
    ["echo", "two", "three"].into_iter().for_each(works);
    let gone = ns.service_ips("two");
    ns.kubectl_ok(&["delete", "service", "two"]);
    for address in &gone {
        PLACES.into_iter().for_each(|place| ns.until_unanswered(place, &["get", &url(address, 80)]));
    }
    ns.apply(&[&named("four")]);
    ["echo", "three", "four"].into_iter().for_each(works);
    // The same name again, at another address.
    ns.apply(&[&named("two")]);
    works("two");
}
