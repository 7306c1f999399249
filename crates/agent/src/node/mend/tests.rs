use model::{Event, Kind, Phase, Pod, Row};

use super::*;

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
