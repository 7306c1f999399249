//! What a pod began from a further source ends with its right to it: neither it nor who has the source next is answered in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;
use types::wire::SOURCES_ANNOTATION;
use types::{Families, Family};

use crate::former::{Ear, Peer, UDP, Wired, admits_friend, began, lose_link, say, wired};
use crate::stage::{Node, Stage, wait_for};

const SOURCES: [&str; 2] = ["198.51.100.7", "2001:db8:51::7"];

fn sources() -> [IpAddr; 2] {
    SOURCES.map(|source| source.parse().unwrap())
}

fn stage(nodes: usize) -> Stage {
    let mut stage = Stage::of(nodes, Families::Dual);
    for node in &mut stage.nodes {
        node.flags.push("--allow-sources=198.51.100.0/24,2001:db8:51::/48".into());
        node.kill();
        node.start();
    }
    stage.nodes.iter().for_each(Node::wait_ready);
    for node in &stage.nodes {
        // What is forgotten here was not forgotten because it was silent for 30 s.
        let timeouts = ["udp_timeout", "udp_timeout_stream"];
        let keep = |name| std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), "3600");
        node.netns.run(|| timeouts.into_iter().try_for_each(keep)).unwrap().unwrap();
    }
    stage
}

fn asks(stage: &Stage, pod: &str, yes: bool) {
    asks_for(stage, pod, yes.then_some(&SOURCES));
}

fn asks_for(stage: &Stage, pod: &str, sources: Option<&[&str]>) {
    let value = sources.map(|sources| sources.join(","));
    let annotations = json!({ "metadata": { "annotations": { SOURCES_ANNOTATION: value } } });
    stage.patch(&format!("/api/v1/namespaces/default/pods/{pod}"), &annotations);
}

fn ip(words: &str) -> std::process::Output {
    std::process::Command::new("ip").args(words.split(' ')).output().unwrap()
}

/// The administrator's routes, and the addresses inside.
fn leads_to(node: &Node, router: &Wired) {
    leads(node, router, &sources());
}

fn leads(node: &Node, router: &Wired, sources: &[IpAddr]) {
    for (&source, own) in sources.iter().zip(router.ips) {
        let length = Family::of(source).pick([32, 128]);
        router.pod.netns.run(|| ip(&format!("address add {source}/{length} dev eth0 nodad"))).unwrap();
        node.run(&format!("ip route replace {source}/{length} via {own} dev cni0"));
    }
}

/// Calls from both sources, and waits until it may.
fn calls(peer: &mut Peer, router: &Wired) -> Vec<UdpSocket> {
    let call = |(family, source)| peer.called_by(&router.pod, family, source);
    sources().into_iter().enumerate().map(call).collect()
}

fn wait_until_forgotten(node: &Node, what: &str) {
    wait_for(&format!("what was begun from the sources is forgotten: {what}"), || {
        (began(node, &sources()) == 0).then_some(())
    });
}

#[test]
fn what_was_begun_from_a_further_source_ends_with_the_right_to_it() {
    let mut stage = stage(1);
    let mut near = Peer::new(wired(&stage, 0, "near", None, || {}));
    let router = wired(&stage, 0, "router", None, || {});
    leads_to(&stage.nodes[0], &router);

    asks(&stage, "router", true);
    let _open = calls(&mut near, &router);
    asks(&stage, "router", false);
    wait_until_forgotten(&stage.nodes[0], "its annotation went");

    asks(&stage, "router", true);
    let _open = calls(&mut near, &router);
    stage.nodes[0].kill();
    asks(&stage, "router", false);
    assert!(began(&stage.nodes[0], &sources()) > 0, "nobody has forgotten it yet");
    stage.nodes[0].start();
    stage.nodes[0].wait_ready();
    wait_until_forgotten(&stage.nodes[0], "its annotation went while no agent ran");

    asks(&stage, "router", true);
    let _open = calls(&mut near, &router);
    stage.nodes[0].del(&router.pod).unwrap();
    wait_until_forgotten(&stage.nodes[0], "the pod is gone");
}

#[test]
fn what_was_begun_from_a_further_source_ends_with_a_pod_that_went_while_no_agent_ran() {
    let mut stage = stage(1);
    let mut near = Peer::new(wired(&stage, 0, "near", None, || {}));
    let router = wired(&stage, 0, "router", None, || {});
    leads_to(&stage.nodes[0], &router);
    asks(&stage, "router", true);
    let open = calls(&mut near, &router);
    let node = &mut stage.nodes[0];
    node.kill();
    lose_link(node, "router");
    drop((open, router));
    assert!(began(node, &sources()) > 0, "nobody has forgotten it yet");
    node.start();
    node.wait_ready();
    wait_until_forgotten(node, "the link went");
    let next = wired(&stage, 0, "next", None, || {});
    leads_to(&stage.nodes[0], &next);
    asks(&stage, "next", true);
    asks(&stage, "router", false);
    let _open = calls(&mut near, &next);
}

/// Calls a node by its own addresses, and waits until it may.
fn call_node(node: &Node, router: &Wired, sources: &[IpAddr]) -> Vec<UdpSocket> {
    let call = |source: &IpAddr| {
        let number = node.address.rsplit('.').next().unwrap();
        let to = Family::of(*source).pick([node.address.clone(), format!("fd00:192:168:1::{number}")]);
        // A port of its own each time: a child that another test has just forked may hold one for a moment.
        let to = (to.parse::<IpAddr>().unwrap(), 0);
        let ear = node.netns.run(|| UdpSocket::bind(to)).unwrap().unwrap();
        let to = ear.local_addr().unwrap();
        let socket = router.pod.netns.run(|| UdpSocket::bind((*source, 0))).unwrap().unwrap();
        for socket in [&ear, &socket] {
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
        wait_for(&format!("{source} calls {to}"), || {
            socket.send_to(b"call", to).ok()?;
            let (_, caller) = ear.recv_from(&mut [0; 8]).ok()?;
            ear.send_to(b"answer", caller).ok()?;
            socket.recv(&mut [0; 8]).ok()
        });
        socket
    };
    sources.iter().map(call).collect()
}

/// Nodes see a further source where nothing translates it: at their own addresses.
#[test]
fn other_nodes_forget_what_was_begun_from_a_further_source_that_nobody_has_any_more() {
    const OTHERS: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];
    let others = OTHERS.map(|source| source.parse().unwrap());
    let stage = stage(2);
    let [here, there] = [&stage.nodes[0], &stage.nodes[1]];
    there.run("ip route add 198.51.100.0/24 via 192.168.1.10");
    there.run("ip route add 2001:db8:51::/48 via fd00:192:168:1::10");
    let [router, other] = ["router", "other"].map(|name| wired(&stage, 0, name, None, || {}));
    leads_to(here, &router);
    leads(here, &other, &others);
    asks(&stage, "router", true);
    asks_for(&stage, "other", Some(&OTHERS));
    let _open = call_node(there, &router, &sources());
    let _open_too = call_node(there, &other, &others);
    let known = began(there, &sources());
    assert!(known >= 2 && began(there, &others) >= 2);

    // Of one node's two that ask the older has it.
    let _next = wired(&stage, 0, "next", None, || {});
    asks(&stage, "next", true);
    asks(&stage, "router", false);
    asks_for(&stage, "other", None);
    wait_for("the other node has heard of both", || (began(there, &others) == 0).then_some(()));
    assert_eq!(began(there, &sources()), known, "they may be those of who has the sources now");
    asks(&stage, "next", false);
    wait_until_forgotten(there, "nobody has them");
}

#[test]
fn what_a_pod_began_from_a_further_source_does_not_reach_who_has_it_next() {
    let stage = stage(1);
    let node = &stage.nodes[0];
    admits_friend(&stage, "next");
    let mut near = Peer::new(wired(&stage, 0, "near", None, || {}));
    let friend = wired(&stage, 0, "friend", None, || {});
    let router = wired(&stage, 0, "router", None, || {});
    let next = wired(&stage, 0, "next", None, || {});
    leads_to(node, &router);
    asks(&stage, "router", true);
    let _open = calls(&mut near, &router);
    // Of two that ask the older has it.
    asks(&stage, "next", true);
    asks(&stage, "router", false);
    wait_until_forgotten(node, "another pod has them");
    let mut ear = Ear::at(&next.pod);
    leads_to(node, &next);
    // To such addresses pods are masqueraded: what arrives here has the gateway's.
    let sockets = sources().map(|source| {
        let socket = next.pod.netns.run(|| UdpSocket::bind((source, UDP))).unwrap().unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let (mut heard, mut rounds, mut told) = (BTreeSet::new(), 0, [false; 2]);
    wait_for("who has the sources now hears its friend there", || {
        near.goes_on();
        sources().into_iter().for_each(|source| say(&friend.pod, source));
        ear.hears(&mut heard);
        rounds += 1;
        for (told, socket) in told.iter_mut().zip(&sockets) {
            *told |= socket.recv(&mut [0; 8]).is_ok();
        }
        (rounds >= 50 && told == [true; 2]).then_some(())
    });
    assert!(!near.of.ips.iter().any(|ip| heard.contains(ip)), "{heard:?}");
}
