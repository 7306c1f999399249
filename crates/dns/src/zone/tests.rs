use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Endpoint, EndpointSlice, Event, Namespace, Row, Service, ServicePort, ServiceType, SlicePort};
use types::Protocol;

use super::*;
use crate::query::{Rcode, Type};
use crate::testbed::{self, ask};

#[test]
fn dns_23_nothing_is_denied_before_the_lists_are_whole() {
    let mut cluster = Cluster::default();
    let mut zone = Zone::new(testbed::settings());
    for row in testbed::rows() {
        let keys = cluster.apply(Event::Upsert(row));
        zone.update(&cluster, &keys, 7);
    }
    for name in ["svc1.testns.svc.cluster.local", "nobody.testns.svc.cluster.local", "1.0.0.10.in-addr.arpa"]
    {
        assert_eq!(ask(&zone, name, Type::A).rcode, Rcode::SERVFAIL, "{name}");
    }
    for kind in Kind::ALL {
        cluster.apply(Event::Start(kind));
    }
    for row in testbed::rows() {
        cluster.apply(Event::Upsert(row));
    }
    for kind in Kind::ALL {
        cluster.apply(Event::Done(kind));
    }
    zone.update(&cluster, &[], 8);
    assert_eq!(ask(&zone, "svc1.testns.svc.cluster.local", Type::A).rcode, Rcode::NOERROR);
    assert_eq!(ask(&zone, "nobody.testns.svc.cluster.local", Type::A).rcode, Rcode::NXDOMAIN);
}

/// Law 2: any history ends where one build of the last cluster ends.
#[test]
fn incremental_equals_whole() {
    use proptest::prelude::*;
    let services = 0..4usize;
    let step = (services, 0..6u8, proptest::collection::vec((0..6u8, any::<bool>(), 0..3u8), 0..5));
    proptest!(|(history in proptest::collection::vec(step, 1..25))| {
        let mut cluster = testbed::listed();
        let mut zone = Zone::build(testbed::settings(), &cluster, 1);
        for (number, what, endpoints) in history {
            let mut keys = Vec::new();
            for event in events(number, what, &endpoints) {
                keys.extend(cluster.apply(event));
            }
            zone.update(&cluster, &keys, 2);
        }
        let whole = Zone::build(testbed::settings(), &cluster, 2);
        prop_assert_eq!(&zone.nodes, &whole.nodes);
        let all: BTreeSet<_> = whole.owned.keys().collect();
        prop_assert_eq!(zone.owned.keys().collect::<BTreeSet<_>>(), all);
        prop_assert_eq!(zone.claims, whole.claims);
    });
}

fn events(number: usize, what: u8, endpoints: &[(u8, bool, u8)]) -> Vec<Event> {
    let key = ObjectName::new("testns", format!("s{number}"));
    let slice = ObjectName::new("testns", format!("slice{}", number / 2));
    let service = |kind, headless, ips: Vec<IpAddr>| {
        Event::Upsert(Row::Service(Box::new(Service {
            key: key.clone(),
            kind,
            headless,
            cluster_ips: ips,
            external_name: (kind == ServiceType::ExternalName).then(|| "x.example".to_owned()),
            ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
            ..Service::default()
        })))
    };
    match what {
        0 => vec![Event::Delete(Key::new(Kind::Service, key))],
        1 => vec![service(ServiceType::ClusterIp, false, vec![IpAddr::from([10, 96, 1, number as u8])])],
        2 => vec![service(ServiceType::ExternalName, false, vec![])],
        3 => vec![Event::Delete(Key::new(Kind::EndpointSlice, slice))],
        4 => vec![service(ServiceType::ClusterIp, true, vec![])],
        _ => vec![Event::Upsert(Row::EndpointSlice(EndpointSlice {
            key: slice,
            service: key.name.to_string(),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: Some(80) }],
            endpoints: endpoints
                .iter()
                .map(|(ip, ready, host)| Endpoint {
                    ready: *ready,
                    hostname: (*host > 0).then(|| format!("h{host}").into()),
                    ..testbed::endpoint(&format!("10.244.0.{ip}"), None)
                })
                .collect(),
            ..EndpointSlice::default()
        }))],
    }
}

#[test]
fn the_serial_moves_only_when_an_answer_does() {
    let mut cluster = testbed::listed();
    let mut zone = Zone::build(testbed::settings(), &cluster, 100);
    let keys: Vec<Key> = cluster.services.keys().map(|name| Key::new(Kind::Service, name.clone())).collect();
    assert!(!zone.update(&cluster, &keys, 200));
    assert_eq!(zone.serial, 100);
    let row = Row::Namespace(Namespace { name: "new".into(), ..Namespace::default() });
    let keys = cluster.apply(Event::Upsert(row));
    // The clock went back; the serial must not (spec 1.7).
    assert!(zone.update(&cluster, &keys, 50));
    assert_eq!(zone.serial, 101);
}

#[test]
fn dns_25_a_cluster_ip_goes_before_endpoints_and_endpoints_share_a_name() {
    let mut cluster = testbed::listed();
    let mut zone = Zone::build(testbed::settings(), &cluster, 1);
    let pointers = |zone: &Zone| {
        let reply = ask(zone, "9.0.0.172.in-addr.arpa", Type::PTR);
        reply.answers.iter().map(|record| format!("{:?}", record.data)).collect::<Vec<_>>()
    };
    for name in ["one", "two"] {
        let rows = testbed::headless(name, &[testbed::endpoint("172.0.0.9", Some("ep"))]);
        let keys: Vec<Key> = rows.into_iter().flat_map(|row| cluster.apply(Event::Upsert(row))).collect();
        zone.update(&cluster, &keys, 2);
    }
    let both = pointers(&zone);
    assert_eq!(both.len(), 2, "{both:?}");
    let key = ObjectName::new("testns", "two");
    let keys = cluster.apply(Event::Delete(Key::new(Kind::Service, key)));
    zone.update(&cluster, &keys, 3);
    assert_eq!(pointers(&zone), [r#"Pointer("ep.one.testns.svc.cluster.local")"#]);
}
