//! ADD, DEL, CHECK, GC; what a killed agent comes back to; services and policies of real packets.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::stage::{Stage, config, connects, connects_at_once, listen, wait_for};

fn slice(service: &str, addresses: &[String]) -> serde_json::Value {
    let endpoints: Vec<_> = addresses.iter().map(|a| json!({ "addresses": [a], "conditions": {} })).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-1"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

#[test]
fn pods_reach_each_other_and_a_service_on_one_node_and_across() {
    let stage = Stage::new(2);
    let (web, _) = stage.wired(0, "web");
    let (near, near_ip) = stage.wired(0, "near");
    let (far, far_ip) = stage.wired(1, "far");
    let _servers = [listen(&near, 8080), listen(&far, 8080)];
    for ip in [near_ip, far_ip] {
        wait_for(&format!("web reaches {ip}"), || {
            connects_at_once(&web.netns, SocketAddr::new(ip, 8080)).then_some(())
        });
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "pay", "namespace": "default" },
        "spec": { "clusterIP": "10.96.14.7", "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    stage.create("/api/v1/namespaces/default/services", &service);
    let endpoints = slice("pay", &[near_ip.to_string(), far_ip.to_string()]);
    stage.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &endpoints);
    let vip: SocketAddr = "10.96.14.7:80".parse().unwrap();
    wait_for("the service answers", || connects_at_once(&web.netns, vip).then_some(()));
    // Half of them meet the endpoint of their own node, whatever br_netfilter was set to before.
    let failed: Vec<_> = (0..40).filter(|_| !connects(&web.netns, vip)).collect();
    assert!(failed.is_empty(), "every new connection finds an endpoint: {failed:?}");
}

/// A client that keeps its port is answered by the new endpoint when the old one is gone.
#[test]
fn c_04_a_udp_client_follows_the_service_to_its_new_endpoint() {
    let stage = Stage::new(1);
    let [(client, _), (old, old_ip), (new, new_ip)] = ["client", "old", "new"].map(|pod| stage.wired(0, pod));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "sip", "namespace": "default" },
        "spec": { "clusterIP": "10.96.14.8", "ports": [{ "port": 5060, "protocol": "UDP" }] },
    });
    stage.create("/api/v1/namespaces/default/services", &service);
    let mut endpoints = slice("sip", &[old_ip.to_string()]);
    endpoints["ports"][0]["protocol"] = "UDP".into();
    stage.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &endpoints);
    let bind = |pod: &crate::stage::Pod, port: u16| {
        let socket = pod.netns.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    };
    let (from, at_old, at_new) = (bind(&client, 40_000), bind(&old, 8080), bind(&new, 8080));
    let arrives =
        |at: &UdpSocket| from.send_to(b"hello", "10.96.14.8:5060").is_ok() && at.recv(&mut [0; 16]).is_ok();
    wait_for("the first endpoint hears", || arrives(&at_old).then_some(()));
    let moved = json!({ "endpoints": [{ "addresses": [new_ip.to_string()], "conditions": {} }] });
    stage.patch("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/sip-1", &moved);
    wait_for("the second endpoint hears", || arrives(&at_new).then_some(()));
}

#[test]
fn np_40_a_policy_holds_before_add_returns() {
    let stage = Stage::new(1);
    let deny = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "closed", "namespace": "default" },
        "spec": {
            "podSelector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["early", "closed"] }] },
            "policyTypes": ["Ingress"],
        },
    });
    stage.create("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", &deny);
    let (web, _) = stage.wired(0, "web");
    let (early, early_ip) = stage.wired(0, "early");
    let _early_server = listen(&early, 8080);
    wait_for("the policy is known", || {
        (!connects_at_once(&web.netns, SocketAddr::new(early_ip, 8080))).then_some(())
    });
    let (open, open_ip) = stage.wired(0, "open");
    let (closed, closed_ip) = stage.wired(0, "closed");
    let _servers = [listen(&open, 8080), listen(&closed, 8080)];
    assert!(
        !connects_at_once(&web.netns, SocketAddr::new(closed_ip, 8080)),
        "denied from the first packet on"
    );
    assert!(connects(&web.netns, SocketAddr::new(open_ip, 8080)), "the one beside it is open");
    // NP-12: the node itself always gets through.
    assert!(connects(&stage.nodes[0].netns, SocketAddr::new(closed_ip, 8080)));
}

#[test]
fn del_gives_everything_back_and_may_come_twice() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let before = node.run("ip -o link").lines().count();
    let (pod, ip) = stage.wired(0, "web");
    assert!(node.cni("CHECK", &pod, &checked(ip)).is_ok());
    assert_eq!(node.add(&pod).unwrap_err()["code"], 100, "a second ADD is refused");
    assert!(node.del(&pod).is_ok() && node.del(&pod).is_ok());
    assert_eq!(node.run("ip -o link").lines().count(), before);
    assert_eq!(node.cni("CHECK", &pod, &checked(ip)).unwrap_err()["code"], 3);
    assert_ne!(node.add(&pod).unwrap(), ip, "a released address rests");
}

fn checked(ip: std::net::IpAddr) -> serde_json::Value {
    let mut with_prev = config();
    with_prev["prevResult"] = json!({ "cniVersion": "1.1.0", "ips": [{ "address": format!("{ip}/32") }] });
    with_prev
}

#[test]
fn a_failed_add_leaves_nothing() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let before = node.run("ip -o link").lines().count();
    let pod = stage.pod(0, "web");
    // The name is taken inside: the kernel refuses the pair.
    pod.netns
        .run(|| std::process::Command::new("ip").args(["link", "add", "eth0", "type", "bridge"]).status())
        .unwrap()
        .unwrap();
    assert_eq!(node.add(&pod).unwrap_err()["code"], 100);
    assert_eq!(node.run("ip -o link").lines().count(), before);
    let ghost = crate::stage::Pod { name: "ghost".into(), netns: kernel::Netns::fresh().unwrap() };
    let error = node.add(&ghost).unwrap_err();
    assert_eq!(error["code"], 11, "{error}");
    assert!(error["msg"].as_str().unwrap().contains("default/ghost"), "{error}");
}

#[test]
fn a_killed_agent_comes_back_to_the_same_attachments() {
    let mut stage = Stage::new(1);
    let (web, _) = stage.wired(0, "web");
    let (api, api_ip) = stage.wired(0, "api");
    let (gone, gone_ip) = stage.wired(0, "gone");
    let server = listen(&api, 8080);
    let to = SocketAddr::new(api_ip, 8080);
    stage.nodes[0].kill();
    drop(gone);
    assert!(connects(&web.netns, to), "the datapath outlives the agent");
    wait_for("the kernel removed the ended pod's veth", || {
        (stage.nodes[0].run("ip -o link show type veth").lines().count() == 3).then_some(())
    });
    stage.nodes[0].start();
    stage.nodes[0].wait_ready();
    assert!(connects(&web.netns, to));
    let (_late, late_ip) = stage.wired(0, "late");
    assert!(![api_ip, gone_ip].contains(&late_ip), "{late_ip}");
    assert!(stage.nodes[0].metrics().contains("plumb_attachments 3"));
    drop(server);
}

#[test]
fn gc_removes_what_the_runtime_does_not_know_and_nothing_without_a_list() {
    let mut stage = Stage::new(1);
    let (web, _) = stage.wired(0, "web");
    let (_lost, _) = stage.wired(0, "lost");
    let veths = |stage: &Stage| stage.nodes[0].run("ip -o link show master cni0").lines().count();
    // What this process has just made is left alone: attachments of the process before are not.
    stage.nodes[0].kill();
    stage.nodes[0].start();
    stage.nodes[0].wait_ready();
    assert!(stage.nodes[0].cni("GC", &web, &config()).is_ok());
    assert_eq!(veths(&stage), 2);
    let mut with_list = config();
    with_list["cni.dev/valid-attachments"] = json!([{ "containerID": "id-web", "ifname": "eth0" }]);
    let mut of_another = with_list.clone();
    of_another["name"] = "another".into();
    assert!(stage.nodes[0].cni("GC", &web, &of_another).is_ok());
    assert_eq!(veths(&stage), 2, "another network's list says nothing of this one");
    assert!(stage.nodes[0].cni("GC", &web, &with_list).is_ok());
    assert_eq!(veths(&stage), 1);
    assert!(stage.nodes[0].cni("STATUS", &web, &config()).is_ok());
}

#[test]
fn thirty_two_adds_at_once_get_thirty_two_addresses() {
    let stage = Stage::new(1);
    let pods: Vec<_> = (0..32).map(|n| stage.pod(0, &format!("p{n}"))).collect();
    let node = &stage.nodes[0];
    let mut ips: Vec<_> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.add(pod).unwrap())).collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 32);
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| node.del(pod).unwrap());
        }
    });
    assert_eq!(node.run("ip -o link show master cni0").lines().count(), 0);
}

/// Pods are wired beside each other, and some are to go while they are: what a runtime was told holds, and nothing is left.
#[test]
fn many_pods_at_once_come_and_go() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let pods: Vec<_> = (0..24).map(|n| stage.pod(0, &format!("pod{n}"))).collect();
    let wired: Vec<_> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.add(pod))).collect();
        let dels: Vec<_> = pods.iter().step_by(2).map(|pod| scope.spawn(|| node.del(pod))).collect();
        dels.into_iter().for_each(|del| _ = del.join().unwrap().unwrap());
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let ports = || node.run("ip -o link show master cni0").lines().count();
    // Of the others a runtime sent the DEL before or after their ADD was done.
    let stay: Vec<_> = pods.iter().zip(&wired).skip(1).step_by(2).collect();
    let addresses: BTreeSet<_> = stay.iter().map(|(_, ip)| *ip.as_ref().unwrap()).collect();
    assert_eq!(addresses.len(), stay.len(), "each has its own");
    let others = stay.iter().cycle().skip(1);
    for ((pod, ip), (other, _)) in stay.iter().zip(others) {
        let _server = listen(pod, 8080);
        let to = SocketAddr::new(*ip.as_ref().unwrap(), 8080);
        assert!(connects(&other.netns, to), "{} at {to}", pod.name);
    }
    pods.iter().for_each(|pod| drop(node.del(pod).unwrap()));
    assert_eq!(ports(), 0);
    assert_eq!(stage.events("DriftMended"), [""; 0], "what the agent does is nobody's drift");
}
