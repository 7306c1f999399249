use std::net::IpAddr;
use std::process::Command;

use model::{Event, Placed, Row, Service, ServicePort};
use types::ObjectName;

use std::sync::Arc;

use super::*;
use crate::snapshot::{Question, Snapshot};

const NODE: &str = "node1";

fn said(program: &str, args: &str) -> String {
    let done = Command::new(program).args(args.split(' ')).output().unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn listed(node: &mut Node, kind: Kind, rows: impl IntoIterator<Item = Row>) {
    node.apply(Event::Start(kind));
    rows.into_iter().for_each(|row| node.apply(Event::Upsert(row)));
    node.apply(Event::Done(kind));
    node.look_for_ways();
    node.settle_all();
}

fn nodes() -> impl Iterator<Item = Row> {
    (1..=3_u8).map(|n| {
        let name = format!("node{n}");
        Row::Node(model::Node {
            announced: model::Announced { vtep_mac: Some(compile::fabric::vxlan::vtep_mac(&name)) },
            name,
            addresses: vec![[192, 168, 1, 9 + n].into()],
            pod_cidrs: vec![format!("10.244.{n}.0/24").parse().unwrap()],
            ..model::Node::default()
        })
    })
}

fn service() -> Row {
    Row::Service(Box::new(Service {
        key: ObjectName::new("shop", "web"),
        cluster_ips: vec![IpAddr::from([10, 96, 0, 7])],
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    }))
}

/// Pods may take seconds to be listed, and no route depends on them. Behind the routes there is the guard from the first.
#[test]
fn routes_wait_for_nodes_alone_and_rules_for_everything() {
    let directory = std::env::temp_dir().join(format!("plumb-settle-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let (mut node, _inbox) = crate::bench::held(&directory).unwrap();
        assert_eq!(node.base.settings.node, NODE);
        let routes = || said("ip", "route show proto 112").lines().count();
        assert_eq!(routes(), 0);
        listed(&mut node, Kind::Node, nodes());
        assert!(node.compiler().is_none() && node.lacking().is_some(), "no pod is wired yet");
        assert_eq!(routes(), 2);
        let guarded = || said("nft", "list chain ip plumb from_wire").contains("pod_from_outside");
        assert!(guarded());
        // The agent itself may reach the API by a ClusterIP that somebody else carries.
        assert!(!said("nft", "list table ip plumb").contains("no Service has this address"));
        let does = |line: &str| {
            let mut words = line.split(' ');
            let done = Command::new(words.next().unwrap()).args(words).status().unwrap();
            assert!(done.success(), "{line}");
        };
        let looks = |node: &mut Node| {
            node.stale.suspected.insert(Subsystem::Net);
            node.mend_all();
        };
        does("nft delete table ip plumb");
        does("ip link del plumb.1");
        looks(&mut node);
        assert_eq!(routes(), 0, "without a whole guard there is no tunnel");
        does("nft delete table ip6 plumb");
        does("nft delete table bridge plumb");
        looks(&mut node);
        assert!(guarded() && routes() == 2, "where nothing is left the guard comes first");
        for kind in Kind::ALL.into_iter().filter(|kind| !Placed::KINDS.contains(kind)) {
            assert!(node.compiler().is_none());
            assert!(!said("nft", "list map ip plumb svc").contains("10.96.0.7"));
            listed(&mut node, kind, (kind == Kind::Service).then(service));
        }
        assert!(node.compiler().is_some());
        assert!(said("nft", "list set ip plumb clusterips").contains("10.96.0.7"));
        assert_eq!(routes(), 2);
        let Some(Row::Node(gone)) = nodes().nth(2) else { panic!("three nodes") };
        node.apply(Event::Delete(Key::new(Kind::Node, ObjectName::cluster(&gone.name))));
        node.settle_all();
        assert_eq!(routes(), 1);
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

/// An agent of before has left rules: they stay as they are until everything is listed.
#[test]
fn rules_of_before_stay_until_everything_is_listed() {
    let directory = std::env::temp_dir().join(format!("plumb-settle-before-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let before = || {
            let (mut node, inbox) = crate::bench::held(&directory).unwrap();
            listed(&mut node, Kind::Node, nodes());
            (node, inbox)
        };
        let (mut node, _inbox) = before();
        for kind in Kind::ALL.into_iter().filter(|kind| !Placed::KINDS.contains(kind)) {
            listed(&mut node, kind, (kind == Kind::Service).then(service));
        }
        drop(node);
        let ips = || said("nft", "list set ip plumb clusterips");
        assert!(ips().contains("10.96.0.7"));
        assert!(Command::new("ip").args(["route", "del", "10.244.2.0/24"]).status().unwrap().success());
        let (node, _inbox) = before();
        assert!(node.compiler().is_none() && ips().contains("10.96.0.7"));
        assert!(said("ip", "route show proto 112").contains("10.244.2.0/24"), "routes are mended before");
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Nobody pays for who does not look; and who looks sees one moment, whatever comes next.
#[test]
fn a_snapshot_is_shared_and_stays_what_it_was() {
    let directory = std::env::temp_dir().join(format!("plumb-settle-snapshot-{}", std::process::id()));
    crate::dns::tests::inside(async || {
        let (mut node, _inbox) = crate::bench::held(&directory).unwrap();
        for kind in Kind::ALL {
            listed(&mut node, kind, nodes().filter(|_| kind == Kind::Node));
        }
        let snapshot = |node: &Node| {
            let (answer, mut wait) = tokio::sync::oneshot::channel();
            node.answer(Question::Snapshot(answer));
            wait.try_recv().unwrap()
        };
        let cluster = Arc::as_ptr(&node.cluster);
        let (before, same) = (snapshot(&node), snapshot(&node));
        let net = |snapshot: &Snapshot| Arc::clone(&snapshot.desired.as_ref().unwrap().net);
        assert!(Arc::ptr_eq(&before.cluster, &same.cluster) && Arc::ptr_eq(&net(&before), &net(&same)));
        drop((before, same));
        let delete = |n| {
            let Some(Row::Node(gone)) = nodes().nth(n) else { panic!("three nodes") };
            Event::Delete(Key::new(Kind::Node, ObjectName::cluster(&gone.name)))
        };
        node.apply(delete(1));
        node.settle();
        assert_eq!(Arc::as_ptr(&node.cluster), cluster, "nobody had it, so nothing was copied");
        let before = snapshot(&node);
        node.apply(delete(2));
        node.settle();
        let after = snapshot(&node);
        assert_eq!((before.cluster.nodes.len(), after.cluster.nodes.len()), (2, 1));
        assert_eq!((net(&before).routes.len(), net(&after).routes.len()), (1, 0));
    });
    std::fs::remove_dir_all(&directory).unwrap();
}
