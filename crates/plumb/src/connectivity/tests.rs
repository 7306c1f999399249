use serde_json::Value;

use super::*;
use crate::demo::probe::Ask;

#[test]
fn a_star_stands_for_anything() {
    for (pattern, name, fits) in [
        ("dns", "dns", true),
        ("dns", "dns-outside", false),
        ("dns*", "dns-outside", true),
        ("*-to-*", "pod-to-pod-udp", true),
        ("policy-*-egress", "policy-deny-egress", true),
        ("policy-*-egress", "policy-allow", false),
    ] {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
}

/// A cast as a lab of so many nodes has it.
fn cast(nodes: u8) -> Cast {
    let place = |k: u8| cast::Place {
        index: k.into(),
        node: format!("node{}", k + 1),
        node_ips: vec![[192, 168, 1, 10 + k].into()],
        pod_cidrs: vec![types::IpNet::new([10, 244, k + 1, 0].into(), 24).unwrap()],
        vtep: Some(compile::fabric::vxlan::vtep_mac(&format!("node{}", k + 1))),
        server: vec![[10, 244, k + 1, 2].into()],
        locked: vec![[10, 244, k + 1, 3].into()],
        prey: vec![[10, 244, k + 1, 4].into()],
        service: vec![[10, 96, 0, 20 + k].into()],
        mirror: vec![[10, 96, 0, 40 + k].into()],
    };
    Cast {
        namespace: "n".into(),
        domain: "cluster.local".into(),
        places: (0..nodes).map(place).collect(),
        all: vec![[10, 96, 0, 99].into()],
        node_port: Some(30_000),
        api: vec![[10, 96, 0, 1].into()],
        outside: lab_outside(),
        outside_name: Some(LAB_NAME.into()),
        lab: true,
        ..Cast::default()
    }
}

#[test]
fn every_test_that_is_named_has_checks() {
    let plan = checks::plan(&cast(2));
    let planned: BTreeSet<&str> = plan.checks.iter().map(|check| check.test).collect();
    let known: BTreeSet<&str> = TESTS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(planned, known);
    assert!(plan.skipped.is_empty());
}

#[test]
fn what_cannot_be_tested_is_said() {
    let alone = Cast { outside: Vec::new(), outside_name: None, ..cast(1) };
    let plan = checks::plan(&alone);
    let skipped: Vec<&str> = plan.skipped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(skipped, ["dns-outside", "egress", "everything across nodes"]);
    assert!(plan.checks.iter().all(|check| check.on == "node1"));
}

#[test]
fn what_no_pod_can_try_is_left_out_with_the_reason() {
    let mut plan = checks::plan(&cast(2));
    let outcome = |check: &Planned| {
        let unable = check.test == "spoofing-place";
        let said = "no right".to_owned();
        (check.id, Outcome { id: check.id, ok: !unable, unable, said, tries: 1, took_ms: 0 })
    };
    let outcomes = plan.checks.iter().map(outcome).collect();
    plan.leave_out(&outcomes);
    plan.without("forger-0", "not admitted");
    let skipped: Vec<(&str, &str)> =
        plan.skipped.iter().map(|(test, why)| (test.as_str(), why.as_str())).collect();
    assert_eq!(skipped, [("spoofing-place", "no right"), ("spoofing-source", "not admitted")]);
    assert!(plan.checks.iter().all(|check| check.test != "spoofing-place" && check.pod != "forger-0"));
    assert!(plan.checks.iter().any(|check| check.pod == "forger-1"), "the other node's go on");
}

#[test]
fn each_node_is_reached_from_another_one() {
    let plan = checks::plan(&cast(3));
    let across = plan.checks.iter().filter(|check| check.test == "pod-to-pod");
    let pairs: BTreeSet<(String, String)> =
        across.map(|check| (check.pod.clone(), check.to.clone())).collect();
    for (from, to) in [(0, 0), (0, 1), (1, 2), (2, 0)] {
        assert!(pairs.contains(&(format!("client-{from}"), format!("server-{to}"))), "{pairs:?}");
    }
}

/// Both families when both are there.
#[test]
fn dual_stack_doubles_what_has_an_address() {
    let mut dual = cast(2);
    for place in &mut dual.places {
        place.server.push(format!("fd00:10:244:{}::2", place.index + 1).parse().unwrap());
    }
    let plan = checks::plan(&dual);
    let of = |family| plan.checks.iter().filter(|c| c.test == "pod-to-pod" && c.family == family).count();
    assert_eq!((of(types::Family::V4), of(types::Family::V6)), (4, 4));
    assert!(plan.checks.iter().any(|check| format!("{:?}", check.ask).contains("[fd00:10:244:2::2]:8080")));
}

/// Either check of the outside is made in each family there is, or said not to be.
#[test]
fn the_outside_is_met_in_every_family_or_said_not_to_be() {
    let mut dual = cast(1);
    let mut of_v6 = cast(1);
    dual.places[0].server.push("fd00:10:244:1::2".parse().unwrap());
    of_v6.places[0].server = vec!["fd00:10:244:1::2".parse().unwrap()];
    let (v4, v6) = ("203.0.113.10:80", "[2001:db8::10]:80");
    for (cast, outside, met, missing) in [
        (&dual, &[v4][..], &["A", v4][..], &["IPv6"][..]),
        (&dual, &[v4, v6], &["A", v4, v6], &[]),
        (&dual, &[], &["A"], &["IPv4", "IPv6"]),
        (&dual, &["outside.test:80"], &["A", "outside.test:80"], &["IPv6"]),
        (&of_v6, &[v4], &["AAAA"], &["IPv6"]),
        (&of_v6, &[v6], &["AAAA", v6], &[]),
        (&of_v6, &["outside.test:80"], &["AAAA", "outside.test:80"], &[]),
    ] {
        let outside = outside.iter().map(|word| (*word).to_owned()).collect();
        let plan = checks::plan(&Cast { outside, lab: false, ..cast.clone() });
        let asked = plan.checks.iter().filter_map(|check| match (&check.ask, check.test) {
            (Ask::Connect { target }, "egress") => Some(target.as_str()),
            (Ask::Dns { kind, .. }, "dns-outside") => Some(kind.as_str()),
            _ => None,
        });
        assert_eq!(asked.collect::<BTreeSet<_>>(), met.iter().copied().collect(), "{:?}", plan.skipped);
        let why = plan.skipped.iter().filter(|(test, _)| test == "egress").map(|(_, why)| why);
        let why = why.filter_map(|why| why.split(' ').nth(1));
        assert_eq!(why.collect::<BTreeSet<_>>(), missing.iter().copied().collect(), "{:?}", plan.skipped);
    }
}

#[test]
fn objects_are_what_an_api_takes() {
    let cast = cast(1);
    let place = &cast.places[0];
    let pods: Vec<Value> =
        cast.servers_of(place).into_iter().chain([cast.prober("host-client-0", place, &[])]).collect();
    for pod in &pods {
        let typed: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod.clone()).unwrap();
        let host = typed.metadata.name.as_deref().is_some_and(|name| name.starts_with("host-"));
        assert_eq!(typed.spec.unwrap().host_network.unwrap_or_default(), host);
    }
    for service in cast.services() {
        let _: Service = serde_json::from_value(service).unwrap();
    }
}
