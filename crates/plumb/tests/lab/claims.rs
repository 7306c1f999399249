//! What Services and pods may not take from others: each asks here for what is somebody's, and does not get it.
//!
//! ```text
//!   node1  owner1 (Service owner)   thief1 (Service a-thief)   mute1 (no egress)
//! ```

use std::time::Duration;

use types::Protocol;
use types::wire::NODE_PORTS;

use crate::cluster::{Checks, Kubectl, Lab, wait_for};

const NS: &str = "claims";
const API: &str = "192.168.1.2";

#[test]
fn nobody_gets_what_is_somebodys() {
    let lab = Lab::up_with(2, &["--families", "dual"]);
    let mut manifest = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NS}}}\n");
    for name in ["owner1", "thief1", "mute1"] {
        manifest += &Lab::pod(NS, name, "nodeName: node1", r#"serve, --http, "8080""#);
    }
    lab.apply(&format!("{manifest}---\n{}", include_str!("claims/manifest.yaml")));
    lab.wait_ready(NS);
    let ips = |service: &str| -> Vec<String> {
        let ips = lab.get(&["-n", NS, "service", service])["spec"]["clusterIPs"].clone();
        ips.as_array().expect("addresses").iter().map(|ip| ip.as_str().expect("text").to_owned()).collect()
    };
    let theirs = ips("owner");
    assert_eq!(theirs.len(), 2, "one of each family: {theirs:?}");
    let listed =
        theirs.iter().chain([&API.to_owned()]).map(|ip| format!("{ip:?}")).collect::<Vec<_>>().join(", ");
    lab.apply(&include_str!("claims/thief.yaml").replace("EXTERNAL", &listed));
    let mut checks = Checks::default();
    checks.check("the thief's Service works where it takes nothing", || works(&lab));
    checks.check("the API stays where it is, for nodes and pods", || api(&lab));
    checks.check("a ClusterIP stays its Service's, in both families", || cluster_ips(&lab, &theirs));
    checks.check("Events name who has it", || events(&lab));
    checks.check("a pod with a node's own port as hostPort does not start, and its Events say why", || {
        host_ports(&lab)
    });
    checks.check("no external address leads nodes' own ports away, at any of their addresses", || {
        external_addresses(&lab)
    });
    checks.check("no node port is one of them", || node_ports(&lab));
    checks.check("no host port takes a Service's health checks or its node port", || health_checks(&lab));
    checks.check("only DNS passes policies at the cluster's DNS address", || dns_port(&lab));
}

/// The Service's external address is the thief's, so the rules that take nothing are there.
fn works(lab: &Lab) {
    wait_for("the external address", Duration::from_secs(60), || {
        let said = lab.node_demo("node2", &["get", &format!("http://{API}:81"), "--timeout", "1"]);
        if said.out.contains("name=thief1") { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

fn api(lab: &Lab) {
    for node in ["node1", "node2"] {
        let said = lab.node_demo(node, &["get", &format!("http://{API}:6443"), "--timeout", "2"]);
        assert!(!said.out.contains("thief1"), "{node}: {said:?}");
    }
    let said = lab.demo(NS, "owner1", &["get", &format!("http://{API}:6443"), "--timeout", "2"]);
    assert!(!said.out.contains("thief1"), "{said:?}");
    // The agents hear the API: a pod that comes now is wired on both nodes.
    for node in ["node1", "node2"] {
        let name = format!("late{}", node.trim_start_matches("node"));
        lab.apply(&Lab::pod(NS, &name, &format!("nodeName: {node}"), r#"serve, --http, "8080""#));
    }
    lab.wait_ready(NS);
}

fn cluster_ips(lab: &Lab, theirs: &[String]) {
    for ip in theirs {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        for pod in ["late2", "thief1"] {
            let said = lab.demo_ok(NS, pod, &["get", &format!("http://{host}:80")]);
            assert!(said.contains("name=owner1"), "{pod} at {ip}: {said}");
        }
        // No port of the thief's is there either.
        lab.demo(NS, "thief1", &["get", &format!("http://{host}:81"), "--timeout", "2"])
            .refused(&["Connection refused"]);
    }
}

fn events(lab: &Lab) {
    wait_for("the Events", Duration::from_secs(60), || {
        let said = lab.kubectl_ok(&["-n", NS, "get", "events", "-o", "jsonpath={.items[*].message}"]);
        let wanted = ["it is kept for the Kubernetes API", "it is the ClusterIP of Service claims/owner"];
        match wanted.iter().find(|text| !said.contains(*text)) {
            None => Ok(()),
            Some(missing) => Err(format!("no {missing:?} in {said}")),
        }
    });
}

/// `9476/udp`, and what it is kept for.
fn nodes_own() -> impl Iterator<Item = (Protocol, u16, String, &'static str)> {
    NODE_PORTS.into_iter().map(|(protocol, port, what)| (protocol, port, format!("{port}/{protocol}"), what))
}

/// As manifests have it.
fn written(protocol: Protocol) -> String {
    protocol.to_string().to_uppercase()
}

fn host_ports(lab: &Lab) {
    let name = |number: &str| format!("hijack-{}", number.replace('/', "-"));
    for (protocol, port, number, _) in nodes_own() {
        let manifest = include_str!("claims/hijack.yaml").replace("NAME", &name(&number));
        lab.apply(&manifest.replace("PORT", &port.to_string()).replace("PROTOCOL", &written(protocol)));
    }
    for (_, _, number, what) in nodes_own() {
        wait_for(&format!("the refusal of {number}"), Duration::from_secs(60), || {
            let field = format!("--field-selector=involvedObject.name={}", name(&number));
            let path = "jsonpath={.items[*].message}";
            let said = lab.kubectl_ok(&["-n", NS, "get", "events", &field, "-o", path]);
            if said.contains(&format!("{number}, which is kept for {what}")) { Ok(()) } else { Err(said) }
        });
    }
    let running = "jsonpath={.items[?(@.status.phase==\"Running\")].metadata.name}";
    let running = lab.kubectl_ok(&["-n", NS, "get", "pods", "-l", "takes=host-port", "-o", running]);
    assert_eq!(running, "", "none of them starts");
    lab.kubectl_ok(&["-n", NS, "delete", "pods", "-l", "takes=host-port", "--wait=false"]);
}

fn external_addresses(lab: &Lab) {
    let addresses = ["192.168.1.10", "192.168.1.11", "fd00:192:168:1::10", "fd00:192:168:1::11"];
    let listed = addresses.map(|ip| format!("{ip:?}")).join(", ");
    let ports: String = nodes_own()
        .map(|(protocol, port, number, _)| {
            let target = if protocol == Protocol::Udp { 9000 } else { 8080 };
            let name = format!("p{}", number.replace('/', "-"));
            let protocol = written(protocol);
            format!("  - {{name: {name}, port: {port}, protocol: {protocol}, targetPort: {target}}}\n")
        })
        .collect();
    lab.apply(&(include_str!("claims/nodes.yaml").replace("EXTERNAL", &listed) + &ports));
    let url = |ip: &str, port: u16| {
        let ip: std::net::IpAddr = ip.parse().expect("an address");
        format!("http://{}", std::net::SocketAddr::new(ip, port))
    };
    for ip in addresses {
        // Its free port leads to the thief, so the Service is in force there.
        wait_for(&format!("the Service at {ip}"), Duration::from_secs(60), || {
            let said = lab.demo(NS, "owner1", &["get", &url(ip, 82), "--timeout", "1"]);
            if said.out.contains("name=thief1") { Ok(()) } else { Err(format!("{said:?}")) }
        });
        for (_, port, number, _) in nodes_own().filter(|(protocol, ..)| *protocol == Protocol::Tcp) {
            let asked = ["get", &url(ip, port), "--timeout", "2"];
            for said in [lab.demo(NS, "owner1", &asked), lab.node_demo("node2", &asked)] {
                assert!(!said.out.contains("thief1"), "{ip} {number}: {said:?}");
            }
        }
    }
    wait_for("an Event for each port", Duration::from_secs(60), || {
        let field = "--field-selector=involvedObject.name=b-nodes";
        let said = lab.kubectl_ok(&["-n", NS, "get", "events", field, "-o", "jsonpath={.items[*].message}"]);
        let missing = nodes_own().find(|(_, _, number, what)| {
            let told = format!("port {number}, does not lead to this Service: it is kept for {what}");
            !said.contains(&told)
        });
        missing.map_or(Ok(()), |missing| Err(format!("{missing:?} is not in {said}")))
    });
}

/// The API gives out others; where it is told to give out these, agents refuse them (scenarios/claims.yaml).
fn node_ports(lab: &Lab) {
    for (protocol, port, number, _) in nodes_own() {
        let protocol = written(protocol);
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: c-port, namespace: {NS}}}\nspec: {{type: NodePort, selector: \
             {{app: thief}}, ports: [{{port: 80, protocol: {protocol}, nodePort: {port}}}]}}\n"
        );
        let said = lab.kubectl_fed(&["create", "-f", "-"], &service);
        assert!(!said.ok && said.err.contains("valid ports is 30000-32767"), "{number}: {said:?}");
    }
}

/// The node answers the checks at its own addresses, and the pod has the port at 127.0.0.1 all the same.
fn health_checks(lab: &Lab) {
    lab.apply(include_str!("claims/balanced.yaml"));
    lab.wait_ready(NS);
    let get = |url: &str| lab.node_demo("node1", &["get", url, "--timeout", "1"]);
    for node in ["192.168.1.10", "[fd00:192:168:1::10]"] {
        wait_for("the health checks", Duration::from_secs(60), || {
            let url = format!("http://{node}:32100");
            let all = [get(&url), lab.node_demo("node2", &["get", &url, "--timeout", "1"])];
            if all.iter().all(|said| said.out.contains("localEndpoints")) {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        });
    }
    assert!(get("http://127.0.0.1:32100").out.contains("name=liar1"), "there it is the pod's");
    wait_for("the Events", Duration::from_secs(60), || {
        let field = "--field-selector=involvedObject.name=liar1";
        let said = lab.kubectl_ok(&["-n", NS, "get", "events", field, "-o", "jsonpath={.items[*].message}"]);
        let told = |at: &&str| {
            let at = format!(
                "host port 32100/tcp does not lead to this pod at {at}: Service claims/d-checked has it"
            );
            !said.contains(&at)
        };
        ["192.168.1.10", "fd00:192:168:1::10"].into_iter().find(told).map_or(Ok(()), |_| Err(said.clone()))
    });
}

/// A port more at the DNS address has the thief as its endpoint; `mute1` may send nowhere.
fn dns_port(lab: &Lab) {
    let port = r#"[{"op": "add", "path": "/spec/ports/-", "value": {"name": "metrics", "port": 9153}}]"#;
    lab.kubectl_ok(&["-n", "kube-system", "patch", "service", "kube-dns", "--type=json", "-p", port]);
    let pod = lab.get(&["-n", NS, "pod", "thief1"]);
    for ip in pod["status"]["podIPs"].as_array().expect("addresses") {
        let ip = ip["ip"].as_str().expect("text");
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        lab.apply(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\nmetadata: {{namespace: \
             kube-system, name: metrics-{}, labels: {{kubernetes.io/service-name: kube-dns}}}}\nports: [{{name: metrics, \
             protocol: TCP, port: 8080}}]\nendpoints: [{{addresses: [{ip:?}], conditions: {{ready: true}}}}]\n",
            family.to_lowercase(),
        ));
    }
    for dns in [types::wire::DNS_IPS[0].to_owned(), format!("[{}]", types::wire::DNS_IPS[1])] {
        let url = format!("http://{dns}:9153");
        wait_for("the Service at the DNS address", Duration::from_secs(60), || {
            let said = lab.demo(NS, "owner1", &["get", &url, "--timeout", "1"]);
            if said.out.contains("name=thief1") { Ok(()) } else { Err(format!("{url}: {said:?}")) }
        });
        lab.demo(NS, "mute1", &["get", &url, "--timeout", "2"]).refused(&["timed out"]);
    }
    for kind in ["A", "AAAA"] {
        lab.demo_ok(NS, "mute1", &["dns", "owner", kind]);
    }
}
