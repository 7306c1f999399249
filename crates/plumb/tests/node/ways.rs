//! A node without its address, without a route to the API or to another node: nothing is half made, it is told what is
//! lacking and what to do, and it goes on by itself when that is there.

use serde_json::json;

use crate::stage::{Node, Stage, connects_at_once, wait_for};

/// A node of the stage as before its first agent.
pub fn bare(stage: &mut Stage, number: usize) -> &mut Node {
    let node = &mut stage.nodes[number];
    node.kill();
    for command in ["nft flush ruleset", "ip link del cni0", "ip link del plumb.1"] {
        node.run(command);
    }
    std::fs::remove_file(node.dir.join("net.d/10-plumb.conflist")).unwrap();
    node
}

/// Waits until the agent says why it does not serve, and looks that it has made nothing.
fn refuses(node: &Node, words: &[&str]) {
    let said = wait_for(&format!("{words:?} are said"), || {
        let said = node.ask("GET", "/healthz", "").ok()?;
        words.iter().all(|word| said.contains(word)).then_some(said)
    });
    assert!(said.starts_with("HTTP/1.0 503"), "{said}");
    let links = node.run("ip -o link");
    assert!(!links.contains("cni0") && !links.contains("plumb.1"), "{links}");
    assert_eq!(node.run("nft list tables"), "");
    assert!(!node.dir.join("net.d/10-plumb.conflist").exists(), "a runtime would call it");
}

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.dir.join("agent.log")).unwrap()
}

#[test]
fn a_node_without_its_address_makes_nothing_and_waits_for_it() {
    let mut stage = Stage::new(1);
    let node = bare(&mut stage, 0);
    node.run("ip address add 192.168.1.77/24 dev eth0");
    node.run("ip address del 192.168.1.10/24 dev eth0");
    // The second was secondary, which went with the first.
    if !node.run("ip -o address").contains("192.168.1.77") {
        node.run("ip address add 192.168.1.77/24 dev eth0");
    }
    node.start();
    let words = ["node node1", "InternalIP 192.168.1.10 is on no interface", "ip address add 192.168.1.10"];
    refuses(node, &words);
    let node = &stage.nodes[0];
    let told = wait_for("an Event says so", || stage.events("NetworkFailed").pop());
    assert!(words[1..].iter().all(|word| told.contains(word)), "{told}");
    assert!(words.iter().all(|word| log(node).contains(word)), "{}", log(node));
    node.run("ip address add 192.168.1.10/24 dev eth0");
    node.wait_ready();
    assert!(node.run("ip -o link").contains("plumb.1"));
}

#[test]
fn a_node_without_a_route_to_the_api_makes_nothing_and_waits_for_it() {
    let mut stage = Stage::new(1);
    let node = bare(&mut stage, 0);
    node.run("ip route del 192.168.1.0/24 dev eth0");
    node.start();
    let words = ["https://192.168.1.2:6443", "Network is unreachable", "ip route get 192.168.1.2"];
    refuses(node, &words);
    assert!(words.iter().all(|word| log(node).contains(word)), "{}", log(node));
    node.run("ip route add 192.168.1.0/24 dev eth0");
    node.wait_ready();
    assert!(node.run("ip -o link").contains("plumb.1"));
}

#[test]
fn a_node_without_a_route_to_another_says_which_and_goes_on() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    node.run("ip route add 192.168.1.2 dev eth0");
    node.run("ip route del 192.168.1.0/24 dev eth0");
    let words = [
        "no route from 192.168.1.10 to node node2 at 192.168.1.11",
        "Network is unreachable",
        "ip route get",
    ];
    let told = wait_for("an Event says so", || {
        stage.events("NetworkDegraded").into_iter().find(|told| told.contains(words[0]))
    });
    assert!(words.iter().all(|word| told.contains(word)), "{told}");
    assert!(words.iter().all(|word| log(node).contains(word)), "{}", log(node));
    // All else works here, and the way is there as soon as the route is.
    let (pod, _) = stage.wired(0, "web");
    node.wait_ready();
    assert!(node.run("ip route").contains("10.244.2.0/24"));
    node.run("ip route add 192.168.1.0/24 dev eth0");
    wait_for("it is over", || log(node).contains("no longer: node node1").then_some(()));
    let (far, far_ip) = stage.wired(1, "far");
    let _server = crate::stage::listen(&far, 8080);
    assert!(crate::stage::connects(&pod.netns, std::net::SocketAddr::new(far_ip, 8080)));
}

#[test]
fn a_node_that_has_anothers_tunnel_address_is_refused_by_its_name() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let tunnel = || node.run("bridge fdb show dev plumb.1");
    let before = tunnel();
    let annotated = |name: &str| {
        let of = stage.get(&format!("/api/v1/nodes/{name}"));
        of["metadata"]["annotations"][types::wire::VTEP_MAC_ANNOTATION].as_str().unwrap().to_owned()
    };
    let annotation = |mac: &str| json!({ "annotations": { types::wire::VTEP_MAC_ANNOTATION: mac } });
    let mac = annotated("node2");
    let mut metadata = annotation(&mac);
    metadata["name"] = "a-rival".into();
    let spec = json!({ "podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"] });
    stage.create(
        "/api/v1/nodes",
        &json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec }),
    );
    let address = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.1.77" }] } });
    stage.patch("/api/v1/nodes/a-rival/status", &address);
    let words = [&mac, "node node2's", "out of reach", "join by another"];
    let told = wait_for("an Event says so", || {
        let mut told = stage.events("NetworkFailed").into_iter();
        told.find(|told| words.iter().all(|word| told.contains(word)))
    });
    wait_for(&told, || log(node).contains("node a-rival").then_some(()));
    assert_eq!(tunnel(), before, "the other's packets go where they went");
    assert!(!node.run("ip route").contains("10.244.9.0/24"));
    // It is another's no more.
    stage.patch("/api/v1/nodes/a-rival", &json!({ "metadata": annotation("0e:70:00:00:00:09") }));
    wait_for("it is reached", || node.run("ip route").contains("10.244.9.0/24").then_some(()));
    assert!(before.lines().all(|line| tunnel().contains(line)));
    wait_for("it is over", || log(node).contains("no longer: node a-rival").then_some(()));
}

#[test]
fn an_agent_that_begins_in_a_conflict_says_so_at_the_nodes_address() {
    let mut stage = Stage::new(1);
    let node = bare(&mut stage, 0);
    node.run("ip link add rival type vxlan id 1 dstport 8472 local 192.168.1.10 dev eth0");
    node.start();
    let said = wait_for("the conflict is told where the kubelet asks", || {
        node.http("192.168.1.10", "/healthz").ok().filter(|said| said.contains("it did not take net"))
    });
    assert!(said.starts_with("HTTP/1.0 503") && said.contains("plumb.1"), "{said}");
    let metrics = node.metrics();
    assert!(metrics.contains("plumb_dns_serving 0"), "{metrics}");
    assert!(!node.dir.join("net.d/10-plumb.conflist").exists(), "a runtime would call it");
    node.run("ip link del rival");
    serves(node, "192.168.1.10");
    wait_for("its DNS serves", || node.metrics().contains("plumb_dns_serving 1").then_some(()));
}

#[test]
fn a_runtime_that_cannot_be_given_its_configuration_keeps_the_node_from_being_ready() {
    let mut stage = Stage::new(1);
    let node = bare(&mut stage, 0);
    let directory = node.dir.join("net.d");
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::write(&directory, "in the way").unwrap();
    node.start();
    let said = wait_for("it is told where the kubelet asks", || {
        node.http("192.168.1.10", "/healthz").ok().filter(|said| said.contains("no CNI configuration"))
    });
    assert!(said.starts_with("HTTP/1.0 503") && said.contains("net.d"), "{said}");
    std::fs::remove_file(&directory).unwrap();
    serves(node, "192.168.1.10");
    assert!(node.dir.join("net.d/10-plumb.conflist").exists(), "ready means that a runtime can call");
}

/// Waits until all is well at this address.
fn serves(node: &Node, ip: &str) {
    wait_for(&format!("health at {ip}"), || {
        node.http(ip, "/healthz").ok().filter(|said| said.starts_with("HTTP/1.0 200"))
    });
}

#[test]
fn a_node_that_gets_other_addresses_serves_there() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let move_to = |addresses: &[&str]| {
        let of_node = |ip: &&str| json!({ "type": "InternalIP", "address": ip });
        let status = json!({ "status": { "addresses": addresses.iter().map(of_node).collect::<Vec<_>>() } });
        stage.patch("/api/v1/nodes/node1/status", &status);
    };
    let dns_at =
        |ip: &str| connects_at_once(&node.netns, std::net::SocketAddr::new(ip.parse().unwrap(), 9476));
    wait_for("DNS for other nodes", || dns_at("192.168.1.10").then_some(()));

    // The Node's address of a second family, told before it is on the interface.
    move_to(&["192.168.1.10", "fd00:192:168:1::10"]);
    node.run("ip address add fd00:192:168:1::10/64 dev eth0 nodad");
    serves(node, "fd00:192:168:1::10");
    wait_for("DNS there", || dns_at("fd00:192:168:1::10").then_some(()));
    serves(node, "192.168.1.10");

    node.run("ip address add 192.168.1.77/24 dev eth0");
    move_to(&["192.168.1.77"]);
    serves(node, "192.168.1.77");
    wait_for("DNS there", || dns_at("192.168.1.77").then_some(()));
    for ip in ["192.168.1.10", "fd00:192:168:1::10"] {
        wait_for(&format!("nothing at {ip}"), || node.http(ip, "/healthz").is_err().then_some(()));
        wait_for(&format!("no DNS at {ip}"), || (!dns_at(ip)).then_some(()));
    }
    wait_for("the tunnel begins there", || {
        node.run("ip -d link show plumb.1").contains("local 192.168.1.77").then_some(())
    });
}
