//! One pod is wired and unwired again and again, among as many nodes, pods and Services as the first argument says: for
//! callgrind, which counts instructions where a machine's counters do not.

use std::hint::black_box;

use compile::backend::nftables::Composed;
use compile::{Compiler, Pieces};
use model::{
    Attachment, Cluster, Endpoint, EndpointSlice, Event, Kind, Namespace, Node, Peer, Pod, Policy,
    PolicyRule, Row, Service, ServicePort, SlicePort,
};
use semantics::Settings;
use types::{IfName, Labels, Mac, ObjectName, Selector};

const ROUNDS: u32 = 100;

fn cluster(size: u32) -> Cluster {
    let mut cluster = Cluster::default();
    let mut put = |row| drop(cluster.apply(Event::Upsert(row)));
    put(Row::Namespace(Namespace { name: "shop".into(), ..Namespace::default() }));
    for n in 0..size {
        let [.., a, b] = n.to_be_bytes();
        put(Row::Node(Node {
            name: format!("node{n}"),
            addresses: vec![[172, 16, a, b].into()],
            pod_cidrs: vec![format!("10.{}.{b}.0/24", 100 + a).parse().expect("a prefix")],
            announced: model::Announced { vtep_mac: Some(Mac([0x0e, 0x70, 0, 0, a, b])) },
            ..Node::default()
        }));
        put(Row::Pod(Box::new(Pod {
            key: ObjectName::new("others", format!("pod{n}")),
            node: Some(format!("node{n}")),
            ips: vec![[10, 100 + a, b, 5].into()],
            ..Pod::default()
        })));
        put(Row::Service(Box::new(Service {
            key: ObjectName::new("others", format!("service{n}")),
            cluster_ips: vec![[10, 96, a, b].into()],
            ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
            ..Service::default()
        })));
        put(Row::EndpointSlice(EndpointSlice {
            key: ObjectName::new("others", format!("slice{n}")),
            service: format!("service{n}"),
            ports: vec![SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() }],
            endpoints: vec![Endpoint::ready([10, 100 + a, b, 5])],
            ..EndpointSlice::default()
        }));
    }
    let web = Selector::from_labels(&Labels::from([("app".to_owned(), "web".to_owned())]));
    let peers = vec![Peer::Pods { namespaces: None, pods: Some(web.clone()) }];
    put(Row::Policy(Box::new(Policy {
        key: ObjectName::new("shop", "web"),
        pods: web,
        ingress: Some(vec![PolicyRule { peers, ports: Vec::new() }]),
        ..Policy::default()
    })));
    for kind in Kind::ALL {
        cluster.apply(Event::Done(kind));
    }
    cluster
}

/// What is counted (`--toggle-collect`).
#[inline(never)]
fn round(cluster: &mut Cluster, (compiler, tables): &mut (Compiler, Composed), event: Event) {
    let keys = cluster.apply(black_box(event));
    let pieces = compiler.update(cluster.synced().expect("synced"), &keys).pieces;
    pieces.into_iter().for_each(|Pieces::Nftables(pieces)| drop(black_box(tables.compose(pieces))));
}

fn main() {
    let size = std::env::args().nth(1).and_then(|size| size.parse().ok()).expect("how many");
    let mut cluster = cluster(size);
    let pods = vec!["10.0.0.0/8".parse().expect("a prefix")];
    let settings = Settings {
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a prefix")],
        ..Settings::new("node0", pods, 1450)
    };
    let (mut compiler, mut tables) = (Compiler::new(settings), Composed::default());
    let pieces = compiler.update(cluster.synced().expect("synced"), &[]).pieces;
    pieces.into_iter().for_each(|Pieces::Nftables(pieces)| drop(tables.compose(pieces)));
    let mut compiler = (compiler, tables);
    let key = ObjectName::new("shop", "web");
    let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
    for _ in 0..ROUNDS {
        let pod = Pod {
            key: key.clone(),
            node: Some("node0".into()),
            ips: vec![[10, 100, 0, 9].into()],
            labels: labels.clone().into(),
            ..Pod::default()
        };
        round(&mut cluster, &mut compiler, Event::Upsert(Row::Pod(Box::new(pod))));
        let attachment = Attachment {
            wiring: types::Wiring::default(),
            container: "c/eth0".into(),
            pod: key.clone(),
            uid: String::new(),
            ips: vec![[10, 100, 0, 9].into()],
            host_if: IfName::new("veth1").expect("a name"),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            host_ports: Vec::new(),
            withheld: Vec::new(),
        };
        round(&mut cluster, &mut compiler, Event::Upsert(Row::Attachment(Box::new(attachment))));
        for (kind, name) in [(Kind::Attachment, ObjectName::cluster("c/eth0")), (Kind::Pod, key.clone())] {
            round(&mut cluster, &mut compiler, Event::Delete(model::Key::new(kind, name)));
        }
    }
}
