use std::process::Command;
use std::time::Duration;

use kernel::Netns;
use model::{Event, Kind, Phase, Pod, Row};
use serde_json::json;
use tokio::sync::oneshot;

use super::*;
use crate::clock;
use crate::inbox::{CniInput, Inbox, Input};

const VETH: &str = "veth00000001";

fn listed(node: &mut Node, kind: Kind, rows: Vec<Row>) {
    node.apply(Event::Start(kind));
    rows.into_iter().for_each(|row| node.apply(Event::Upsert(row)));
    node.apply(Event::Done(kind));
}

fn own() -> Row {
    Row::Node(model::Node {
        name: "node1".into(),
        addresses: vec![[192, 168, 1, 10].into()],
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        ..model::Node::default()
    })
}

fn pod() -> Pod {
    Pod {
        key: ObjectName::new("shop", "web"),
        uid: "u".into(),
        node: Some("node1".into()),
        ips: vec![[10, 244, 1, 4].into()],
        phase: Phase::Running,
        ..Pod::default()
    }
}

/// Its veth is gone already.
fn wire(node: &mut Node, netns: &str) {
    let json = format!(
        r#"{{"container":"c1","ifname":"eth0","netns":"{netns}","pod":{{"namespace":"shop","name":"web"}},"uid":"u",
           "ips":["10.244.1.4"],"host_if":"{VETH}","mac":"02:00:00:00:00:01"}}"#
    );
    let record: Record = serde_json::from_str(&json).unwrap();
    let mut records = node.attachments.records().clone();
    records.insert(record.clone());
    node.attachments = node::Attachments::new(records);
    node.apply(Event::Upsert(Row::Attachment(Box::new(record.row()))));
}

fn drift_of_veths(node: &mut Node) -> Vec<String> {
    let steps = node.differ_links().unwrap();
    steps.known().iter().filter(|step| step.contains(VETH)).cloned().collect()
}

/// The kubelet deletes a pod, or its containers have ended: the veth goes with the namespace, before the DEL comes.
#[test]
fn a_veth_that_goes_with_its_pod_is_no_drift() {
    let directory = std::env::temp_dir().join(format!("plumb-mend-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let (mut node, _inbox) = crate::bench::held(&directory).unwrap();
        for kind in Kind::ALL {
            listed(&mut node, kind, if kind == Kind::Node { vec![own()] } else { Vec::new() });
        }
        wire(&mut node, "/proc/self/ns/net");
        let mut turn = |pod: Option<Pod>, netns: &str| {
            wire(&mut node, netns);
            listed(&mut node, Kind::Pod, pod.into_iter().map(|pod| Row::Pod(Box::new(pod))).collect());
            node.look_for_ways();
            node.settle_all();
            drift_of_veths(&mut node)
        };
        let (here, gone) = ("/proc/self/ns/net", "/proc/self/ns/none");
        assert_eq!(turn(Some(pod()), here), [format!("the veth {VETH} of pod shop/web is gone")]);
        for (pod, netns) in [
            (Some(Pod { terminating: true, ..pod() }), here),
            (Some(Pod { phase: Phase::Succeeded, ..pod() }), here),
            (Some(Pod { uid: "another".into(), ..pod() }), here),
            (None, here),
            (Some(pod()), gone),
        ] {
            assert_eq!(turn(pod.clone(), netns), [""; 0], "{pod:?} {netns}");
        }
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

/// An ADD as far as its interface is on its way; what the runtime will hear.
fn begun(node: &mut Node, netns: &str) -> oneshot::Receiver<node::Reply> {
    let config = json!({ "cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni" });
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", netns),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u"),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let request = cni::Request::parse(&env, config.to_string().as_bytes()).unwrap();
    let (reply, answer) = oneshot::channel();
    node.asked(CniInput { request, pod: None, received: clock::since_boot(), reply });
    node.settle_all();
    node.followed();
    answer
}

/// What the loop hears until it hears that.
fn heard(node: &mut Node, inbox: &mut Inbox, is_it: impl Fn(&Input) -> bool) {
    loop {
        // Tokio's own threads may not wait.
        let inputs = std::thread::scope(|scope| scope.spawn(|| inbox.wait(None)).join()).unwrap();
        for input in inputs.unwrap() {
            let over = is_it(&input);
            node.take(input);
            if over {
                return;
            }
        }
    }
}

fn looks(node: &mut Node) -> Steps {
    node.stale.suspected.insert(Subsystem::Net);
    node.was_contradicted();
    node.converge_links().unwrap()
}

/// Wirers work beside the loop: what they have not told of yet is neither lost nor drift, however much of it is there.
#[test]
fn what_is_being_wired_is_no_drift() {
    let directory = std::env::temp_dir().join(format!("plumb-mend-wiring-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let (mut node, mut inbox) = crate::bench::held(&directory).unwrap();
        for kind in Kind::ALL {
            let rows = match kind {
                Kind::Node => vec![own()],
                Kind::Pod => vec![Row::Pod(Box::new(Pod { ips: Vec::new(), ..pod() }))],
                _ => Vec::new(),
            };
            listed(&mut node, kind, rows);
        }
        node.look_for_ways();
        node.settle_all();
        looks(&mut node);
        let pod = Netns::fresh().unwrap();
        let path = {
            use std::os::fd::{AsFd, AsRawFd};
            format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd())
        };
        let mut answer = begun(&mut node, &path);
        let veth = node.records().next().unwrap().host_if.to_string();
        assert_eq!(looks(&mut node).into_words(), [""; 0], "whether it is there or not");
        while node.base.datapath.links.rtnl.index(&types::IfName::new(&veth).unwrap()).is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(looks(&mut node).into_words(), [""; 0], "it is there, in whichever state");
        assert!(answer.try_recv().is_err());
        heard(&mut node, &mut inbox, |input| matches!(input, Input::Wired(_)));
        assert!(matches!(answer.try_recv(), Ok(node::Reply::Done(Ok(_)))));
        assert_eq!(looks(&mut node).into_words(), [""; 0], "it is as it should be");
        assert!(Command::new("ip").args(["link", "del", &veth]).status().unwrap().success());
        let lost = format!("the veth {veth} of pod shop/web is gone");
        assert_eq!(looks(&mut node).into_words(), [lost]);
    });
    std::fs::remove_dir_all(&directory).unwrap();
}
