use std::net::IpAddr;

use domain::base::{Message, Name as RefName, Rtype};
use model::Event;
use proptest::prelude::*;

use super::*;
use crate::explain::Finding;
use crate::message::{self, Data, Reply};
use crate::resolv::ResolvConf;
use crate::testbed::{self, ask, exchange};

const NS: &str = "testns.svc.cluster.local";

fn addresses(reply: &Reply) -> Vec<String> {
    let mut all: Vec<String> = reply
        .answers
        .iter()
        .filter_map(
            |record| if let Data::Address(address) = &record.data { Some(address.to_string()) } else { None },
        )
        .collect();
    all.sort();
    all
}

fn services(reply: &Reply) -> Vec<String> {
    let mut all: Vec<String> = reply
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            Data::Service { priority, weight, port, target } => {
                Some(format!("{priority} {weight} {port} {target}"))
            }
            _ => None,
        })
        .collect();
    all.sort();
    all
}

fn has_soa(reply: &Reply) -> bool {
    reply.authority.iter().any(|r| matches!(&r.data, Data::Other { kind: Type::SOA, .. }) && r.ttl == 5)
}

/// Names with what they answer: the fixture of spec 7.1.
#[test]
fn dns_02_05_addresses_of_services() {
    let zone = testbed::zone();
    let cases: [(&str, Type, &[&str]); 9] = [
        ("svc1", Type::A, &["10.0.0.1"]),
        ("svc6", Type::AAAA, &["1234:abcd::1"]),
        ("svc-dual-stack", Type::A, &["10.0.0.3"]),
        ("svc-dual-stack", Type::AAAA, &["10::3"]),
        ("hdls1", Type::A, &["172.0.0.2", "172.0.0.3", "172.0.0.4", "172.0.0.5"]),
        ("hdls1", Type::AAAA, &["5678:abcd::1", "5678:abcd::2"]),
        ("172-0-0-2.hdls1", Type::A, &["172.0.0.2"]),
        ("dup-name.hdls1", Type::A, &["172.0.0.4", "172.0.0.5"]),
        ("5678-abcd--1.hdls1", Type::AAAA, &["5678:abcd::1"]),
    ];
    for (name, kind, expected) in cases {
        let reply = ask(&zone, &format!("{name}.{NS}"), kind);
        assert_eq!(
            (reply.rcode, addresses(&reply)),
            (Rcode::NOERROR, expected.iter().map(|s| s.to_string()).collect())
        );
        assert!(reply.authoritative && reply.answers.iter().all(|record| record.ttl == 5), "{name}: DNS-20");
    }
}

/// Spec table 1.7: the code is a function of the name, and every negative answer carries the SOA.
#[test]
fn table_1_7_no_data_and_no_name() {
    let zone = testbed::zone();
    let exist = ["svc1", "svc6", "hdls1", "172-0-0-2.hdls1", "external-ip", "_tcp.svc1", "_http._tcp.svc1"];
    let missing = [
        "svc0",
        "bogus.hdls1",
        "bogus.svc0",
        "unready",
        "x.external",
        "a.b.external",
        "_tcp.unnamed",
        "_x._tcp.svc1",
        "_http._udp.svc1",
        "a.b.c.svc1",
    ];
    let full = |name: &&str| format!("{name}.{NS}");
    let outer = ["cluster.local", "svc.cluster.local", "pod.cluster.local", NS, "podns.pod.cluster.local"];
    let unknown =
        ["foo.cluster.local", "foo.svc.cluster.local", "x.foo.svc.cluster.local", "foo.pod.cluster.local"];
    let exist: Vec<String> = exist.iter().map(full).chain(outer.iter().map(|s| s.to_string())).collect();
    let missing: Vec<String> =
        missing.iter().map(full).chain(unknown.iter().map(|s| s.to_string())).collect();
    for (names, code) in [(exist, Rcode::NOERROR), (missing, Rcode::NXDOMAIN)] {
        for name in names {
            for kind in [Type::A, Type::AAAA, Type::TXT, Type::SRV, Type(15), Type(65), Type(255)] {
                let reply = ask(&zone, &name, kind);
                assert_eq!(reply.rcode, code, "{name} {kind}");
                assert_eq!(has_soa(&reply), reply.answers.is_empty(), "{name} {kind}");
            }
        }
    }
}

#[test]
fn dns_03_srv_for_named_ports() {
    let zone = testbed::zone();
    let reply = ask(&zone, &format!("_http._tcp.svc1.{NS}"), Type::SRV);
    assert_eq!(services(&reply), [format!("0 100 80 svc1.{NS}")]);
    assert_eq!(reply.additional.len(), 1);
    assert_eq!(reply.additional[0].owner, format!("svc1.{NS}"));
    let reply = ask(&zone, &format!("svc-dual-stack.{NS}"), Type::SRV);
    assert_eq!((services(&reply), reply.additional.len()), (vec![format!("0 50 80 svc-dual-stack.{NS}")], 2));
    // Six endpoints, two of one name: five targets, six addresses, weight by six.
    let reply = ask(&zone, &format!("_http._tcp.hdls1.{NS}"), Type::SRV);
    assert_eq!((services(&reply).len(), reply.additional.len()), (5, 6));
    assert!(services(&reply).contains(&format!("0 16 80 dup-name.hdls1.{NS}")), "{:?}", services(&reply));
    assert!(reply.additional.iter().any(|record| record.owner == format!("172-0-0-3.hdls1.{NS}")));
}

#[test]
fn dns_01_dns_04_dns_21_version_reverse_and_apex() {
    let zone = testbed::zone();
    let reply = ask(&zone, "dns-version.cluster.local", Type::TXT);
    assert_eq!((reply.answers[0].ttl, &reply.answers[0].data), (28800, &Data::Text("1.1.0".into())));
    let reply = ask(&zone, "1.0.0.10.in-addr.arpa", Type::PTR);
    assert_eq!(reply.answers[0].data, Data::Pointer(format!("svc1.{NS}")));
    let nibbles = format!("1.{}d.c.b.a.4.3.2.1.ip6.arpa", "0.".repeat(23));
    assert_eq!(ask(&zone, &nibbles, Type::PTR).answers[0].data, Data::Pointer(format!("svc6.{NS}")));
    let unknown = ask(&zone, "101.0.0.10.in-addr.arpa", Type::PTR);
    assert_eq!((unknown.rcode, unknown.authority[0].owner.as_str()), (Rcode::NXDOMAIN, "0.10.in-addr.arpa"));
    let inner = ask(&zone, "0.10.in-addr.arpa", Type::PTR);
    assert_eq!((inner.rcode, has_soa(&inner)), (Rcode::NOERROR, true));
    let soa = ask(&zone, "cluster.local", Type::SOA);
    assert!(
        matches!(&soa.answers[0].data, Data::Other { text, .. } if text.contains("ns.dns.cluster.local"))
    );
    let ns = ask(&zone, "cluster.local", Type::NS);
    assert_eq!((ns.answers.len(), ns.additional.len()), (1, 1));
    assert_eq!(addresses(&ask(&zone, "ns.dns.cluster.local", Type::A)), ["10.96.0.10"]);
    assert_eq!(ask(&zone, NS, Type::SOA).answers.len(), 0);
}

#[test]
fn dns_07_aliases_lead_on() {
    let zone = testbed::zone();
    let reply = ask(&zone, &format!("external-to-service.{NS}"), Type::A);
    assert_eq!(reply.answers.len(), 2);
    assert_eq!(reply.answers[0].data, Data::Alias(format!("svc1.{NS}")));
    assert_eq!(
        (reply.answers[1].owner.clone(), addresses(&reply)),
        (format!("svc1.{NS}"), vec!["10.0.0.1".into()])
    );
    let reply = ask(&zone, &format!("external-to-nothing.{NS}"), Type::A);
    assert_eq!((reply.rcode, reply.answers.len(), has_soa(&reply)), (Rcode::NXDOMAIN, 1, true));
    assert_eq!(ask(&zone, &format!("loop-a.{NS}"), Type::A).rcode, Rcode::SERVFAIL);
    let alone = ask(&zone, &format!("external.{NS}"), Type::CNAME);
    assert_eq!(alone.answers[0].data, Data::Alias("ext.interwebs.test".into()));
    let query = message::encode_query(1, &Name::parse(&format!("external.{NS}")).unwrap(), Type::A);
    let mut out = [0; 1232];
    let Outcome::Follow { length, target } = zone.answer(&query, &mut out, Transport::Udp, 0) else {
        panic!("not followed")
    };
    assert_eq!(target.to_string(), "ext.interwebs.test");
    let question = message::encode_query(0, &target, Type::A);
    let theirs = message::address_reply(&question, 60, &["192.0.2.7".parse().unwrap()]).unwrap();
    let whole = message::decode(&message::append(&out[..length], &theirs, 1232).unwrap()).unwrap();
    assert_eq!((whole.id, whole.answers.len(), addresses(&whole)), (1, 2, vec!["192.0.2.7".into()]));
}

/// Where an alias leads, its answer is that of a direct question, of each type.
#[test]
fn dns_07_an_alias_answers_as_its_target_does() {
    let zone = testbed::zone();
    let pod6 = "fd00--7.podns.pod.cluster.local".to_owned();
    let in_ns = |name: &str| format!("{name}.{NS}");
    let chains: [(&str, Vec<String>); 9] = [
        ("external-to-service", vec![in_ns("svc1")]),
        ("external-to-nothing", vec![in_ns("nobody")]),
        ("external-to-headless", vec![in_ns("hdls1")]),
        ("external-to-endpoint", vec![in_ns("dup-name.hdls1")]),
        ("external-to-pod", vec!["10-244-2-9.podns.pod.cluster.local".into()]),
        ("external-to-pod6", vec![pod6]),
        ("external-to-pod-of-nothing", vec!["10-244-2-9.nowhere.pod.cluster.local".into()]),
        ("external-to-domain", vec!["cluster.local".into()]),
        ("twice", vec![in_ns("external-to-service"), in_ns("svc1")]),
    ];
    for (alias, chain) in chains {
        for kind in [Type::A, Type::AAAA, Type::SRV, Type::TXT, Type::NS, Type(65)] {
            let reply = ask(&zone, &in_ns(alias), kind);
            let (aliases, rest) = reply.answers.split_at(chain.len());
            let led: Vec<_> = chain.iter().cloned().map(Data::Alias).collect();
            assert_eq!(
                aliases.iter().map(|record| record.data.clone()).collect::<Vec<_>>(),
                led,
                "{alias} {kind}"
            );
            let direct = ask(&zone, chain.last().unwrap(), kind);
            assert_eq!(reply.rcode, direct.rcode, "{alias} {kind}");
            let sorted = |records: &[message::Record]| {
                let mut all: Vec<_> = records.iter().map(|r| format!("{} {:?}", r.owner, r.data)).collect();
                all.sort();
                all
            };
            assert_eq!(sorted(rest), sorted(&direct.answers), "{alias} {kind}");
            assert_eq!(has_soa(&reply), rest.is_empty(), "{alias} {kind}");
            assert_eq!(
                reply.authority.iter().map(|r| &r.owner).collect::<Vec<_>>(),
                direct.authority.iter().map(|r| &r.owner).collect::<Vec<_>>(),
                "{alias} {kind}"
            );
        }
        // The alias itself, and all there is.
        for kind in [Type::CNAME, Type::ANY] {
            let reply = ask(&zone, &in_ns(alias), kind);
            let first = Data::Alias(chain[0].clone());
            assert_eq!((reply.rcode, reply.answers.len()), (Rcode::NOERROR, 1), "{alias} {kind}");
            assert_eq!(reply.answers[0].data, first, "{alias} {kind}");
        }
    }
    for (name, kind, expected) in [
        ("external-to-pod", Type::A, "10.244.2.9"),
        ("external-to-pod6", Type::AAAA, "fd00::7"),
        ("external-to-service", Type::A, "10.0.0.1"),
    ] {
        assert_eq!(addresses(&ask(&zone, &in_ns(name), kind)), [expected], "{name}");
    }
}

/// Every record once, and no name that may be true.
#[test]
fn dns_07_aliases_in_a_circle_fail() {
    let zone = testbed::zone();
    for (name, records) in [("loop-self", 1), ("loop-a", 2), ("loop-b", 2), ("loop-behind", 3)] {
        for kind in [Type::A, Type::AAAA, Type::TXT] {
            let reply = ask(&zone, &format!("{name}.{NS}"), kind);
            assert_eq!((reply.rcode, reply.answers.len()), (Rcode::SERVFAIL, records), "{name} {kind}");
            let mut owners: Vec<_> = reply.answers.iter().map(|record| record.owner.clone()).collect();
            owners.sort();
            owners.dedup();
            assert_eq!(owners.len(), records, "{name} {kind}");
        }
    }
    let full =
        |names: &[&str]| names.iter().map(|name| format!("{name}.{NS}")).collect::<Vec<_>>().join(" → ");
    for (name, circle) in [
        ("loop-self", &["loop-self", "loop-self"][..]),
        ("loop-a", &["loop-a", "loop-b", "loop-a"]),
        ("loop-behind", &["loop-behind", "loop-a", "loop-b", "loop-a"]),
    ] {
        let why = format!("alias circle: {}; change their externalName", full(circle));
        assert_eq!(zone.finding(&format!("{name}.{NS}"), Type::A), Finding::Endless(why));
    }
}

#[test]
fn dns_07_out_of_the_cluster_an_upstream_is_asked_for_every_type() {
    let zone = testbed::zone();
    let mut out = [0; 1232];
    for (name, records) in [("external", 1), ("external-dot", 1), ("twice-outside", 2)] {
        for kind in [Type::A, Type::AAAA, Type::TXT, Type(65)] {
            let query = message::encode_query(1, &Name::parse(&format!("{name}.{NS}")).unwrap(), kind);
            let outcome = zone.answer(&query, &mut out, Transport::Udp, 0);
            let Outcome::Follow { length, target } = outcome else { panic!("{name} {kind}: {outcome:?}") };
            assert_eq!(target.to_string(), "ext.interwebs.test", "{name} {kind}");
            assert_eq!(message::decode(&out[..length]).unwrap().answers.len(), records, "{name} {kind}");
        }
    }
    // An address is no name, with a closing dot or without.
    for name in ["external-ip", "external-ip-dot"] {
        let reply = ask(&zone, &format!("{name}.{NS}"), Type::A);
        assert_eq!((reply.rcode, reply.answers.len(), has_soa(&reply)), (Rcode::NOERROR, 0, true), "{name}");
    }
}

#[test]
fn dns_08_the_case_of_the_question_comes_back() {
    let zone = testbed::zone();
    let mut query = message::encode_query(1, &Name::parse(&format!("svc1.{NS}")).unwrap(), Type::A);
    for byte in query[12..].iter_mut().take(20).step_by(2) {
        *byte = byte.to_ascii_uppercase();
    }
    let answer = exchange(&zone, &query, 0);
    let length = Query::parse(&query).unwrap().question().len();
    assert_eq!(answer[12..12 + length], query[12..12 + length]);
    assert_eq!(addresses(&message::decode(&answer).unwrap()), ["10.0.0.1"]);
}

/// Clients that compare by bytes (0x20) look into SRV targets, too. The labels of objects stay lower case.
#[test]
fn dns_08_srv_targets_end_in_the_domain_as_it_was_asked() {
    let zone = testbed::zone();
    for (name, kept) in
        [("_HtTp._tcp.SvC1", "svc1"), ("_http._tcp.HDLS1", "172-0-0-2.hdls1"), ("SVC1", "svc1")]
    {
        let asked = format!("{name}.TeStNs.SvC.cLuStEr.LoCaL");
        let mut query = message::encode_query(1, &Name::parse(&asked).unwrap(), Type::SRV);
        let mut at = 12;
        for label in asked.split('.') {
            query[at + 1..=at + label.len()].copy_from_slice(label.as_bytes());
            at += label.len() + 1;
        }
        let answer = exchange(&zone, &query, 0);
        let target =
            [&[kept.split('.').next().unwrap().len() as u8], kept.split('.').next().unwrap().as_bytes()]
                .concat();
        assert!(answer.windows(target.len()).any(|bytes| bytes == target), "{asked}");
        let message = Message::from_octets(&answer[..]).unwrap();
        let mut seen = 0;
        for record in message.answer().unwrap().limit_to::<domain::rdata::Srv<_>>() {
            let target = record.unwrap().data().target().to_string();
            assert!(target.ends_with(".testns.svc.cLuStEr.LoCaL"), "{target}");
            seen += 1;
        }
        assert!(seen > 0);
    }
}

/// A label must not end in a dash; CoreDNS adds the zero that the address leaves out.
#[test]
fn dns_06_an_address_that_ends_in_colons_gets_a_zero() {
    let mut cluster = testbed::listed();
    for row in testbed::headless("zeros", &[testbed::endpoint("2001:db8:6666::", None)]) {
        cluster.apply(Event::Upsert(row));
    }
    let zone = Zone::build(testbed::settings(), &cluster, 1);
    assert_eq!(
        addresses(&ask(&zone, &format!("2001-db8-6666--0.zeros.{NS}"), Type::AAAA)),
        ["2001:db8:6666::"]
    );
}

#[test]
fn dns_24_pod_names_are_computed() {
    let zone = testbed::zone();
    assert_eq!(addresses(&ask(&zone, "10-240-0-1.podns.pod.cluster.local", Type::A)), ["10.240.0.1"]);
    assert_eq!(addresses(&ask(&zone, "1234--1.podns.pod.cluster.local", Type::AAAA)), ["1234::1"]);
    assert_eq!(ask(&zone, "10-240-0-1.podns.pod.cluster.local", Type::AAAA).rcode, Rcode::NOERROR);
    for name in ["blah.podns", "10-240-0-256.podns", "10-240-0-1.nowhere", "x.10-240-0-1.podns"] {
        assert_eq!(
            ask(&zone, &format!("{name}.pod.cluster.local"), Type::A).rcode,
            Rcode::NXDOMAIN,
            "{name}"
        );
    }
}

/// A zone with one headless service of many endpoints.
fn crowd(count: u32) -> Zone {
    let mut cluster = testbed::listed();
    let endpoints: Vec<_> = (0..count)
        .map(|n| testbed::endpoint(&std::net::Ipv4Addr::from_bits(0x0af4_0000 + n).to_string(), None))
        .collect();
    for row in testbed::headless("crowd", &endpoints) {
        cluster.apply(Event::Upsert(row));
    }
    Zone::build(testbed::settings(), &cluster, 1)
}

#[test]
fn dns_26_what_does_not_fit_is_whole_records_with_tc_and_tcp_has_all() {
    for count in [1u32, 20, 27, 28, 29, 60, 70, 71, 72, 73, 500] {
        let zone = crowd(count);
        for edns in [None, Some(100), Some(512), Some(900), Some(1232), Some(4096)] {
            let mut query = message::encode_query(1, &Name::parse(&format!("crowd.{NS}")).unwrap(), Type::A);
            match edns {
                None => {
                    query.truncate(query.len() - OPT_LENGTH);
                    query[11] = 0;
                }
                Some(size) => {
                    let at = query.len() - 8;
                    query[at..at + 2].copy_from_slice(&u16::to_be_bytes(size));
                }
            }
            let limit = edns.map_or(512, |size| usize::from(size).clamp(512, 1232));
            let answer = exchange(&zone, &query, 3);
            assert!(answer.len() <= limit);
            let reply = message::decode(&answer).unwrap();
            let room = limit - query.len();
            assert_eq!(reply.answers.len(), (room / 16).min(count as usize), "{count} {edns:?}");
            assert_eq!(reply.truncated, reply.answers.len() < count as usize, "{count} {edns:?}");
            let mut out = vec![0; 65535];
            let Outcome::Answered(length) = zone.answer(&query, &mut out, Transport::Tcp, 0) else {
                panic!()
            };
            let whole = message::decode(&out[..length]).unwrap();
            assert_eq!((whole.answers.len(), whole.truncated), (count as usize, false));
        }
    }
}

#[test]
fn dns_26_every_endpoint_comes_first_sometime() {
    let zone = crowd(7);
    let query = message::encode_query(1, &Name::parse(&format!("crowd.{NS}")).unwrap(), Type::A);
    let firsts: std::collections::BTreeSet<String> = (0..7)
        .map(|chance| {
            let reply = message::decode(&exchange(&zone, &query, chance)).unwrap();
            assert_eq!(addresses(&reply).len(), 7);
            format!("{:?}", reply.answers[0].data)
        })
        .collect();
    assert_eq!(firsts.len(), 7);
}

#[test]
fn faults_get_the_code_they_deserve() {
    let zone = testbed::zone();
    let good = message::encode_query(7, &Name::parse(&format!("svc1.{NS}")).unwrap(), Type::A);
    let code = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut query = good.clone();
        change(&mut query);
        let mut out = [0; 1232];
        match zone.answer(&query, &mut out, Transport::Udp, 0) {
            Outcome::Answered(length) => {
                assert_eq!(out[..2], [0, 7]);
                let message = Message::from_octets(&out[..length]).unwrap();
                Some(message.opt_rcode().to_int())
            }
            _ => None,
        }
    };
    let qend = good.len() - OPT_LENGTH;
    assert_eq!(code(&|_| {}), Some(0));
    assert_eq!(code(&|q| q[2] |= 0x80), None, "an answer is no query");
    assert_eq!(code(&|q| q.truncate(11)), None);
    assert_eq!(code(&|q| q[2] |= 0x28), Some(4), "opcode UPDATE");
    assert_eq!(code(&|q| q[5] = 2), Some(1), "two questions");
    assert_eq!(code(&|q| q[5] = 0), Some(1), "no question");
    assert_eq!(code(&|q| q[12] = 0xc0), Some(1), "a pointer in the question");
    assert_eq!(code(&|q| q.truncate(20)), Some(1), "cut in the name");
    assert_eq!(code(&|q| q[qend - 1] = 3), Some(5), "class CH");
    assert_eq!(code(&|q| q[qend - 3] = 252), Some(5), "AXFR");
    assert_eq!(code(&|q| q[qend + 6] = 1), Some(16), "EDNS version 1");
    assert_eq!(
        code(&|q| {
            q.extend_from_slice(&[0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]);
            q[11] = 2
        }),
        Some(1),
        "two OPTs"
    );
    assert_eq!(code(&|q| q[11] = 2), Some(1), "a record that is not there");
}

#[test]
fn other_names_are_forwarded_only_on_request() {
    let zone = testbed::zone();
    let mut query = message::encode_query(7, &Name::parse("example.com").unwrap(), Type::A);
    let mut out = [0; 1232];
    assert_eq!(zone.answer(&query, &mut out, Transport::Udp, 0), Outcome::Forward);
    query[2] = 0;
    assert_eq!(message::decode(&exchange(&zone, &query, 0)).unwrap().rcode, Rcode::REFUSED);
}

#[test]
fn explain_walks_the_search_list() {
    let zone = testbed::zone();
    let conf = ResolvConf::parse(
        "search testns.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
    );
    let steps = zone.explain("svc1", &conf, Type::A);
    assert_eq!(steps.len(), 1);
    let Finding::Addresses { addresses, .. } = &steps[0].finding else { panic!("{steps:?}") };
    assert_eq!(addresses, &[IpAddr::from([10, 0, 0, 1])]);
    let steps = zone.explain("svc1.testns", &conf, Type::A);
    let findings: Vec<bool> = steps.iter().map(|step| step.finding == Finding::NoName).collect();
    assert_eq!(findings, [true, false]);
    let steps = zone.explain("example.com", &conf, Type::A);
    assert_eq!(steps.last().map(|step| &step.finding), Some(&Finding::Upstream { alias: None }));
    assert_eq!(steps.len(), 4);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), chance: u32) {
        let zone = testbed::zone();
        let mut out = [0; 1232];
        zone.answer(&bytes, &mut out, Transport::Udp, chance);
    }

    /// Damage near real queries reaches deeper than noise; the answer, if any, must read back.
    #[test]
    fn damaged_queries_are_answered_legibly(name in 0..8usize, kind in 0..300u16, at: usize, byte: u8, size in 0..1300usize) {
        let zone = testbed::zone();
        let names = ["svc1", "hdls1", "_http._tcp.hdls1", "external-to-service", "x", "svc6", "loop-a", "dup-name.hdls1"];
        let mut query = message::encode_query(1, &Name::parse(&format!("{}.{NS}", names[name])).unwrap(), Type(kind));
        let length = query.len();
        query[at % length] = byte;
        let mut out = vec![0; size];
        match zone.answer(&query, &mut out, Transport::Udp, at as u32) {
            Outcome::Answered(length) | Outcome::Follow { length, .. } if length > 0 => {
                prop_assert!(length <= size);
                let message = Message::from_octets(&out[..length]).unwrap();
                for record in message.answer().unwrap() {
                    prop_assert!(record.is_ok());
                }
            }
            _ => {}
        }
    }

    /// Against an answer that the `domain` crate builds from the same facts.
    #[test]
    fn the_hot_path_agrees_with_the_reference(count in 1..60u32, chance: u32, id: u16) {
        let zone = crowd(count);
        let name = format!("crowd.{NS}");
        let query = message::encode_query(id, &Name::parse(&name).unwrap(), Type::A);
        let facts: Vec<IpAddr> = (0..count).map(|n| IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0af4_0000 + n))).collect();
        let reference = message::decode(&message::address_reply(&query, 5, &facts).unwrap()).unwrap();
        let ours = exchange(&zone, &query, chance);
        let parsed = message::decode(&ours).unwrap();
        let sorted = |reply: &Reply| {
            let mut all: Vec<_> = reply.answers.iter().map(|r| (r.owner.clone(), r.ttl, format!("{:?}", r.data))).collect();
            all.sort();
            all
        };
        prop_assert_eq!(sorted(&parsed), sorted(&reference));
        prop_assert_eq!((parsed.id, parsed.rcode), (reference.id, reference.rcode));
        let message = Message::from_octets(&ours).unwrap();
        let question = message.sole_question().unwrap();
        prop_assert_eq!(question.qtype(), Rtype::A);
        prop_assert!(question.qname().to_string().eq(&RefName::<Vec<u8>>::from_chars(name.chars()).unwrap().to_string()));
        prop_assert!(message.opt().is_some());
    }
}
