//! The cluster of CoreDNS's own handler tests (spec 7.1), and a client for it.

use std::net::IpAddr;

use model::{
    Cluster, Endpoint, EndpointSlice, Event, Kind, Namespace, Row, Service, ServicePort, ServiceType,
    SlicePort,
};
use types::{ObjectName, Protocol};

use crate::answer::{Outcome, Transport};
use crate::message::{self, Reply};
use crate::name::Name;
use crate::query::Type;
use crate::zone::{Settings, Zone};

pub fn settings() -> Settings {
    Settings {
        addresses: vec![IpAddr::from([10, 96, 0, 10])],
        ranges: vec!["10.0.0.0/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap()],
        ..Settings::new("cluster.local").unwrap()
    }
}

pub fn endpoint(address: &str, hostname: Option<&str>) -> Endpoint {
    Endpoint {
        hostname: hostname.map(Into::into),
        ..Endpoint::ready(address.parse::<std::net::IpAddr>().unwrap())
    }
}

fn service(namespace: &str, name: &str, ips: &[&str]) -> Service {
    Service {
        key: ObjectName::new(namespace, name),
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    }
}

fn external(name: &str, target: &str) -> Row {
    Row::Service(Box::new(Service {
        kind: ServiceType::ExternalName,
        external_name: Some(target.into()),
        ..service("testns", name, &[])
    }))
}

/// A headless service with one slice.
pub fn headless(name: &str, endpoints: &[Endpoint]) -> Vec<Row> {
    let ports = vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: Some(80) }];
    let slice = EndpointSlice {
        key: ObjectName::new("testns", format!("{name}-slice")),
        service: name.into(),
        ports,
        endpoints: endpoints.to_vec(),
        ..EndpointSlice::default()
    };
    let row = Service { headless: true, ..service("testns", name, &[]) };
    vec![Row::Service(Box::new(row)), Row::EndpointSlice(slice)]
}

pub fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = ["testns", "kube-system", "podns"]
        .into_iter()
        .map(|name| Row::Namespace(Namespace { name: name.into(), ..Namespace::default() }))
        .collect();
    let plain = [
        service("kube-system", "kubedns", &["10.0.0.10"]),
        service("testns", "svc1", &["10.0.0.1"]),
        service("testns", "svc6", &["1234:abcd::1"]),
        service("testns", "svc-dual-stack", &["10.0.0.3", "10::3"]),
        Service {
            ports: vec![ServicePort { port: 80, ..ServicePort::default() }],
            ..service("testns", "unnamed", &["10.0.0.4"])
        },
    ];
    rows.extend(plain.into_iter().map(|row| Row::Service(Box::new(row))));
    rows.extend(headless(
        "hdls1",
        &[
            endpoint("172.0.0.2", None),
            endpoint("172.0.0.3", None),
            endpoint("172.0.0.4", Some("dup-name")),
            endpoint("172.0.0.5", Some("dup-name")),
            endpoint("5678:abcd::1", None),
            endpoint("5678:abcd::2", None),
        ],
    ));
    rows.extend(headless("unready", &[Endpoint { ready: false, ..endpoint("172.0.0.7", None) }]));
    rows.push(external("external", "ext.interwebs.test"));
    rows.push(external("external-to-service", "svc1.testns.svc.cluster.local."));
    rows.push(external("external-to-nothing", "nobody.testns.svc.cluster.local"));
    rows.push(external("external-ip", "192.0.2.1"));
    rows.push(external("external-ip-dot", "192.0.2.1."));
    rows.push(external("external-dot", "ext.interwebs.test."));
    rows.push(external("external-to-headless", "hdls1.testns.svc.cluster.local"));
    rows.push(external("external-to-endpoint", "dup-name.hdls1.testns.svc.cluster.local"));
    rows.push(external("external-to-pod", "10-244-2-9.podns.pod.cluster.local"));
    rows.push(external("external-to-pod6", "fd00--7.podns.pod.cluster.local"));
    rows.push(external("external-to-pod-of-nothing", "10-244-2-9.nowhere.pod.cluster.local"));
    rows.push(external("external-to-domain", "cluster.local"));
    rows.push(external("twice", "external-to-service.testns.svc.cluster.local"));
    rows.push(external("twice-outside", "external.testns.svc.cluster.local"));
    rows.push(external("loop-self", "loop-self.testns.svc.cluster.local"));
    rows.push(external("loop-behind", "loop-a.testns.svc.cluster.local"));
    rows.push(external("loop-a", "loop-b.testns.svc.cluster.local"));
    rows.push(external("loop-b", "loop-a.testns.svc.cluster.local"));
    rows
}

/// All of it, every list complete.
pub fn listed() -> Cluster {
    let mut cluster = Cluster::default();
    for kind in Kind::ALL {
        cluster.apply(Event::Start(kind));
    }
    for row in rows() {
        cluster.apply(Event::Upsert(row));
    }
    for kind in Kind::ALL {
        cluster.apply(Event::Done(kind));
    }
    cluster
}

pub fn zone() -> Zone {
    Zone::build(settings(), &listed(), 1)
}

/// The answer's bytes over UDP.
pub fn exchange(zone: &Zone, query: &[u8], chance: u32) -> Vec<u8> {
    let mut out = vec![0; 1232];
    match zone.answer(query, &mut out, Transport::Udp, chance) {
        Outcome::Answered(length) | Outcome::Follow { length, .. } => out[..length].to_vec(),
        other => panic!("no answer but {other:?}"),
    }
}

/// Asks as a resolver does and reads the answer with the reference codec.
pub fn ask(zone: &Zone, name: &str, kind: Type) -> Reply {
    let query = message::encode_query(1, &Name::parse(name).unwrap(), kind);
    message::decode(&exchange(zone, &query, 0)).unwrap()
}
