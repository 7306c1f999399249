use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;

use kernel::Netns;
use model::{Endpoint, EndpointSlice, Event, Kind, Namespace, Pod, Row, Service, ServicePort, SlicePort};
use node::Reply;
use tokio::sync::oneshot;
use types::ObjectName;

use super::*;
use crate::inbox::{CniInput, Input};

const SERVICES: u16 = 10_000;

fn service(number: u16, port: u16) -> [Row; 2] {
    let [high, low] = number.to_be_bytes();
    let name = format!("s{number}");
    let ports = vec![SlicePort { name: "http".into(), port: Some(port), ..SlicePort::default() }];
    let slice = EndpointSlice {
        key: ObjectName::new("shop", format!("{name}-1")),
        service: name.clone(),
        ports,
        endpoints: vec![Endpoint::ready([10, 244, 2, 9])],
        ..EndpointSlice::default()
    };
    let service = Service {
        key: ObjectName::new("shop", name),
        cluster_ips: vec![[10, 96, high, low].into()],
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    };
    [Row::Service(Box::new(service)), Row::EndpointSlice(slice)]
}

fn rows(kind: Kind, services: u16) -> Vec<Row> {
    let pairs = (0..services).map(|number| service(number, 8080));
    let (services, slices) = pairs.map(|[service, slice]| (service, slice)).unzip();
    match kind {
        Kind::Node => vec![Row::Node(model::Node {
            name: "node1".into(),
            addresses: vec![[192, 168, 1, 10].into()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            ..model::Node::default()
        })],
        Kind::Namespace => vec![Row::Namespace(Namespace { name: "shop".into(), ..Namespace::default() })],
        Kind::Pod => vec![Row::Pod(Box::new(Pod {
            key: ObjectName::new("shop", "web"),
            uid: "u".into(),
            node: Some("node1".into()),
            ..Pod::default()
        }))],
        Kind::Service => services,
        Kind::EndpointSlice => slices,
        _ => Vec::new(),
    }
}

fn asks(command: &str, netns: &str) -> (Input, oneshot::Receiver<Reply>) {
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", netns),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u"),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let config = br#"{"cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni"}"#;
    let (reply, answer) = oneshot::channel();
    let request = cni::Request::parse(&env, config).unwrap();
    let received = crate::clock::since_boot();
    (Input::Cni(Box::new(CniInput { request, pod: None, received, reply })), answer)
}

fn listed(directory: &Path, services: u16) -> (Node, crate::inbox::Inbox) {
    let (mut node, inbox) = crate::bench::held(directory).unwrap();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Attachment) {
        node.apply(Event::Start(kind));
        rows(kind, services).into_iter().for_each(|row| node.apply(Event::Upsert(row)));
        node.apply(Event::Done(kind));
    }
    node.look_for_ways();
    (node, inbox)
}

fn kernel() -> kstate::nft::Ruleset {
    crate::actual::tables(&mut kernel::nft::Nft::open().unwrap()).unwrap().ruleset
}

/// An agent of before has left Services that this one has not compiled yet.
#[test]
fn what_is_not_compiled_yet_is_not_taken_away() {
    let directory = std::env::temp_dir().join(format!("plumb-carry-first-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let services = u16::try_from(3 * PIECE).unwrap();
        let (mut node, _inbox) = listed(&directory, services);
        node.settle_all();
        let before = kernel();
        drop(node);
        let (mut node, _inbox) = listed(&directory, services);
        let mut generations = 0;
        while !node.base.datapath.backend.has_followed() {
            node.round(Vec::new()).unwrap();
            assert!(kstate::nft::diff(&before, &kernel()).is_empty(), "after {generations} pieces");
            if node.base.datapath.backend.is_following() {
                let turned = node.base.datapath.backend.wait().expect("its thread lives");
                node.answered(turned);
                generations += 1;
            }
        }
        assert!(generations >= 3 && node.lacking().is_none(), "{generations} {:?}", node.lacking());
        assert!(kstate::nft::diff(&before, &kernel()).is_empty());
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Counted, not timed: an ADD that comes while ten thousand Services change is answered after the piece that is on its way and
/// its own.
#[test]
fn an_add_waits_for_one_piece_of_what_changes_beside_it() {
    let directory = std::env::temp_dir().join(format!("plumb-carry-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let (mut node, mut inbox) = listed(&directory, SERVICES);
        node.settle_all();
        assert!(node.lacking().is_none(), "{:?}", node.lacking());
        for row in (0..SERVICES).flat_map(|number| service(number, 9090)) {
            node.apply(Event::Upsert(row));
        }
        node.round(Vec::new()).unwrap();
        assert!(node.base.datapath.backend.is_following(), "a piece is on its way");
        let netns = Netns::fresh().unwrap();
        let (add, mut answer) = asks("ADD", &format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd()));
        node.round(vec![add]).unwrap();
        let mut generations = 0;
        while node.attachments.waits_for().is_some() {
            let turned = node.base.datapath.backend.wait().expect("its thread lives");
            generations += usize::from(matches!(turned, Answer::Followed(_)));
            node.answered(turned);
            node.round(Vec::new()).unwrap();
        }
        assert!(node.compiler.as_ref().unwrap().is_behind());
        // Its interface is being made now, which may take as long as it likes.
        let is_wired = |input: &Input| matches!(input, Input::Wired(_));
        let mut wired = false;
        while !wired {
            // Tokio lets nobody wait on a thread of its own.
            let inputs = thread::scope(|scope| scope.spawn(|| inbox.wait(None)).join().unwrap()).unwrap();
            wired = inputs.iter().any(is_wired);
            node.round(inputs).unwrap();
        }
        let reply = answer.try_recv().expect("it is answered");
        assert!(matches!(reply, Reply::Done(Ok(_))), "{reply:?}");
        // The one on its way may have come to its end before the loop heard of the pod.
        assert!((1..=2).contains(&generations), "{generations}");
        node.settle_all();
        assert!(kstate::nft::diff(&node.tables(), &kernel()).is_empty());
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

/// The API may be away for long, and containers end all the same.
#[test]
fn a_del_is_answered_before_anything_is_listed() {
    let directory = std::env::temp_dir().join(format!("plumb-carry-del-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let (mut node, mut inbox) = crate::bench::held(&directory).unwrap();
        let (del, mut answer) = asks("DEL", "");
        let mut inputs = vec![del];
        let reply = loop {
            node.round(inputs).unwrap();
            match answer.try_recv() {
                Ok(reply) => break reply,
                // Tokio lets nobody wait on a thread of its own.
                Err(_) => {
                    inputs = thread::scope(|scope| scope.spawn(|| inbox.wait(None)).join().unwrap()).unwrap()
                }
            }
        };
        assert!(matches!(reply, Reply::Done(Ok(_))), "{reply:?}");
        assert!(node.compiler.is_none());
    });
    std::fs::remove_dir_all(&directory).unwrap();
}
