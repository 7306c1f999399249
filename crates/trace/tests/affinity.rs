//! ClientIP affinity in the compiled rules: clients that the kernel remembers meet their endpoint, others any.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use compile::whole;
use kstate::nft::build::encode;
use kstate::nft::{ElemData, ElemKey, Expr, Ruleset};
use model::{
    Attachment, Cluster, Endpoint, EndpointSlice, Event, Kind, Node, Row, Service, ServicePort, ServiceType,
    SlicePort, TrafficPolicy,
};
use semantics::Settings;
use trace::Packet;
use trace::eval::{self, Kernel};
use trace::packet::CtState;
use types::{IfName, Mac, ObjectName, Protocol};

const NEAR: [&str; 2] = ["10.244.1.2:8080", "10.244.1.3:8080"];
const FAR: &str = "10.244.2.2:8080";

fn cluster(affinity: Option<u32>, endpoints: &[&str]) -> Cluster {
    let mut cluster = Cluster::default();
    for kind in Kind::ALL {
        cluster.apply(Event::Done(kind));
    }
    for n in 1..=2_u8 {
        cluster.apply(Event::Upsert(Row::Node(Node {
            name: format!("node{n}"),
            addresses: vec![[192, 168, 1, 9 + n].into()],
            pod_cidrs: vec![format!("10.244.{n}.0/24").parse().expect("a prefix")],
            ..Node::default()
        })));
    }
    // Nobody else sends by the bridge, nor gets anything there.
    for last in [2, 3, 8, 9_u8] {
        cluster.apply(Event::Upsert(Row::Attachment(Box::new(Attachment {
            wiring: types::Wiring::default(),
            container: format!("c{last}/eth0"),
            pod: ObjectName::new("shop", format!("p{last}")),
            uid: String::new(),
            ips: vec![[10, 244, 1, last].into()],
            host_if: IfName::new(&format!("veth{last}")).expect("a name"),
            mac: Mac::default(),
            host_ports: Vec::new(),
            withheld: Vec::new(),
        }))));
    }
    cluster.apply(Event::Upsert(Row::Service(Box::new(Service {
        key: ObjectName::new("shop", "web"),
        kind: ServiceType::NodePort,
        cluster_ips: vec![[10, 96, 0, 7].into()],
        ports: vec![ServicePort { port: 80, node_port: Some(30_080), ..ServicePort::default() }],
        external_policy: TrafficPolicy::Local,
        affinity,
        ..Service::default()
    }))));
    let endpoints = endpoints.iter().map(|text| {
        let address: SocketAddr = text.parse().expect("an address");
        let node = if *text == FAR { "node2" } else { "node1" };
        Endpoint { node: Some(node.into()), ..Endpoint::ready(address.ip()) }
    });
    cluster.apply(Event::Upsert(Row::EndpointSlice(EndpointSlice {
        key: ObjectName::new("shop", "web-1"),
        service: "web".to_owned(),
        ports: vec![SlicePort { port: Some(8080), ..SlicePort::default() }],
        endpoints: endpoints.collect(),
        ..EndpointSlice::default()
    })));
    cluster
}

fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a prefix")],
        ..Settings::new("node1", vec!["10.244.0.0/16".parse().expect("a prefix")], 1450)
    }
}

/// The set of a chain's last endpoint.
fn set_of_last(nft: &Ruleset, chain: &str) -> String {
    let chains = nft.tables.values().flat_map(|table| &table.chains);
    let (_, chain) = chains.into_iter().find(|(name, _)| name.starts_with(chain)).expect("a chain");
    let mut sets = chain.rules.iter().flat_map(|rule| &rule.exprs).filter_map(|expr| match expr {
        Expr::Update { set, timeout_ms: 60_000, .. } => Some(set.clone()),
        _ => None,
    });
    sets.next_back().expect("it remembers for the Service's time")
}

/// What the packet path does when a client passes.
fn remember(nft: &mut Ruleset, set: &str, client: &str) {
    let client: IpAddr = client.parse().expect("an address");
    let sets = nft.tables.values_mut().filter_map(|table| table.sets.get_mut(set));
    for set in sets {
        assert!(set.dynamic && set.timeout_ms.is_some());
        let key = ElemKey::point(encode(&[client.into()]));
        set.elements.insert(key, ElemData::None);
    }
}

fn reached(nft: &Ruleset, cluster: &Cluster, from: (&str, &str), to: &str) -> BTreeSet<String> {
    let desired = whole(cluster.synced().expect("synced"), settings());
    let local = ["192.168.1.10".parse().expect("an address")];
    let kernel = Kernel { nft, net: &desired.net, local: &local, socket: None };
    let to: SocketAddr = to.parse().expect("an address");
    let packet = Packet {
        iif: IfName::new(from.0).ok(),
        src: from.1.parse().expect("an address"),
        dst: to.ip(),
        protocol: Protocol::Tcp,
        sport: 40_000,
        dport: to.port(),
        ct: CtState::New,
    };
    eval::all(&packet, &kernel).iter().map(|path| path.destination.to_string()).collect()
}

fn all(endpoints: &[&str]) -> BTreeSet<String> {
    endpoints.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_01_a_03_a_remembered_client_returns_and_others_are_spread() {
    let three = [NEAR[0], NEAR[1], FAR];
    let full = cluster(Some(60), &three);
    let mut nft = whole(full.synced().expect("synced"), settings()).nft;
    let (pod, stranger) = (("cni0", "10.244.1.9"), ("eth0", "203.0.113.10"));
    let (address, node) = ("10.96.0.7:80", "192.168.1.10:30080");
    assert_eq!(reached(&nft, &full, pod, address), all(&three));
    assert_eq!(reached(&nft, &full, stranger, node), all(&NEAR));
    let far = set_of_last(&nft, "aff_ip_");
    for client in [pod, stranger] {
        remember(&mut nft, &far, client.1);
    }
    // The port has one table for all its addresses.
    assert_eq!(reached(&nft, &full, pod, address), all(&[FAR]));
    assert_eq!(reached(&nft, &full, pod, node), all(&[FAR]));
    assert_eq!(reached(&nft, &full, ("cni0", "10.244.1.8"), address), all(&three));
    // Under the local policy a pin elsewhere is none.
    assert_eq!(reached(&nft, &full, stranger, node), all(&NEAR));
    let near = set_of_last(&nft, "aff_out_");
    remember(&mut nft, &near, stranger.1);
    assert_eq!(reached(&nft, &full, stranger, node), all(&[NEAR[1]]));
}

#[test]
fn a_03_a_05_sets_go_with_their_endpoint_and_with_affinity() {
    let sets = |cluster: &Cluster| -> BTreeSet<String> {
        let desired = whole(cluster.synced().expect("synced"), settings());
        let names = desired.nft.tables.values().flat_map(|table| table.sets.keys().cloned());
        names.filter(|name| name.starts_with("aff_")).map(|name| name.to_string()).collect()
    };
    let (three, two) = (sets(&cluster(Some(60), &[NEAR[0], NEAR[1], FAR])), sets(&cluster(Some(60), &NEAR)));
    assert_eq!((three.len(), two.len()), (3, 2));
    assert!(two.is_subset(&three), "the others keep their clients");
    assert!(sets(&cluster(None, &NEAR)).is_empty());
    // Another timeout keeps the clients, too.
    assert_eq!(sets(&cluster(Some(5), &NEAR)), two);
}
