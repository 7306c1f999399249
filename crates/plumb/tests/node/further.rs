//! What a pod began from a further source ends with its right to it: neither it nor who has the source next is answered in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};

use serde_json::json;
use types::wire::SOURCES_ANNOTATION;
use types::{Families, Family};

use crate::former::{Ear, Peer, UDP, Wired, admits_friend, began, say, wired};
use crate::stage::{Node, Stage, wait_for};

const SOURCES: [&str; 2] = ["198.51.100.7", "2001:db8:51::7"];

fn sources() -> [IpAddr; 2] {
    SOURCES.map(|source| source.parse().unwrap())
}

fn stage() -> Stage {
    let mut stage = Stage::of(1, Families::Dual);
    let node = &mut stage.nodes[0];
    node.flags.push("--allow-sources=198.51.100.0/24,2001:db8:51::/48".into());
    node.kill();
    node.start();
    node.wait_ready();
    stage
}

fn asks(stage: &Stage, pod: &str, yes: bool) {
    let value = yes.then(|| SOURCES.join(","));
    let annotations = json!({ "metadata": { "annotations": { SOURCES_ANNOTATION: value } } });
    stage.patch(&format!("/api/v1/namespaces/default/pods/{pod}"), &annotations);
}

fn ip(words: &str) -> std::process::Output {
    std::process::Command::new("ip").args(words.split(' ')).output().unwrap()
}

/// The administrator's routes, and the addresses inside.
fn leads_to(node: &Node, router: &Wired) {
    for (source, own) in sources().into_iter().zip(router.ips) {
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
    let mut stage = stage();
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
    assert_eq!(began(&stage.nodes[0], &sources()), 0, "DEL answers when nothing of it is left");
}

#[test]
fn what_a_pod_began_from_a_further_source_does_not_reach_who_has_it_next() {
    let stage = stage();
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
