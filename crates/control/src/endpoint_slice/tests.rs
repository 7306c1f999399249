//! One test per line of the checklist, by its id.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::memory::Memory;

fn service(spec: Value) -> Value {
    let mut object = json!({"metadata": {"labels": {"team": "pay"}}, "spec": {
        "selector": {"app": "pay"}, "clusterIP": "10.96.0.7",
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
    crate::memory::merge(&mut object["spec"], &spec);
    object
}

fn pod(ip: &str) -> Value {
    json!({"metadata": {"labels": {"app": "pay"}}, "spec": {"nodeName": "node1", "containers": [{}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-15T08:00:05Z"}]}})
}

fn start(spec: Value) -> Memory {
    let mut api = Memory::default();
    api.apply(Kind::Node, "node1", json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "a"}}}));
    api.apply(Kind::Service, "shop/pay", service(spec));
    api.settle();
    api
}

fn slices(api: &Memory) -> Vec<Value> {
    let names = api.world.names(Kind::EndpointSlice);
    names.iter().map(|n| api.object(Kind::EndpointSlice, &n.to_string()).clone()).collect()
}

fn only(api: &Memory) -> Value {
    let all = slices(api);
    assert_eq!(all.len(), 1, "{all:#?}");
    all[0].clone()
}

#[test]
fn es_01_a_slice_bears_its_service_s_name_labels_and_ownership() {
    let api = start(json!({"clusterIP": "None"}));
    let meta = &only(&api)["metadata"];
    assert_eq!(
        meta["labels"],
        json!({"kubernetes.io/service-name": "pay", "team": "pay", "service.kubernetes.io/headless": "",
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"})
    );
    assert_eq!(meta["ownerReferences"][0]["controller"], true);
    assert!(meta["name"].as_str().unwrap().starts_with("pay-"));
}

#[test]
fn es_01_labels_follow_the_service() {
    let mut api = start(json!({}));
    let patch = json!({"metadata": {"labels": {"team": null, "tier": "gold"}}});
    api.merge(Kind::Service, "shop/pay", &patch);
    api.settle();
    let labels = &only(&api)["metadata"]["labels"];
    assert_eq!((labels.get("team"), &labels["tier"]), (None, &json!("gold")));
}

#[test]
fn es_02_a_named_port_is_each_pod_s_own() {
    let mut api = start(json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}));
    for (name, number, protocol) in [("one", 8080, "TCP"), ("two", 9090, "TCP"), ("three", 53, "UDP")] {
        let mut object = pod(&format!("10.244.1.{}", number % 200));
        let port = json!([{"ports": [{"name": "web", "containerPort": number, "protocol": protocol}]}]);
        object["spec"]["containers"] = port;
        api.apply(Kind::Pod, &format!("shop/{name}"), object);
    }
    api.settle();
    let mut ports: Vec<Value> = slices(&api).iter().map(|s| s["ports"][0]["port"].clone()).collect();
    ports.sort_by_key(|p| p.as_i64());
    assert_eq!(ports, [Value::Null, json!(8080), json!(9090)], "a UDP port does not answer a TCP name");
}

#[test]
fn es_02_a_sidecar_s_port_counts() {
    let mut api = start(json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}));
    let mut object = pod("10.244.1.4");
    object["spec"]["initContainers"] =
        json!([{"restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 15001}]}]);
    api.apply(Kind::Pod, "shop/one", object);
    api.settle();
    assert_eq!(only(&api)["ports"][0]["port"], 15001);
}

#[test]
fn es_03_a_hundred_to_a_slice_and_a_placeholder_for_none() {
    let mut api = start(json!({}));
    let empty = only(&api);
    assert_eq!((&empty["endpoints"], empty.get("ports")), (&json!([]), Some(&Value::Null)));
    for n in 0..250 {
        api.apply(Kind::Pod, &format!("shop/p{n}"), pod(&format!("10.244.{}.{}", n / 200, n % 200)));
    }
    api.settle();
    let mut sizes: Vec<usize> =
        slices(&api).iter().map(|s| s["endpoints"].as_array().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    for n in 0..250 {
        api.remove(Kind::Pod, &format!("shop/p{n}"));
    }
    api.settle();
    assert_eq!(only(&api)["endpoints"], json!([]));
}

#[test]
fn es_04_finished_pods_and_pods_without_address_do_not_count() {
    let mut api = start(json!({}));
    let mut done = pod("10.244.1.5");
    done["status"]["phase"] = json!("Succeeded");
    api.apply(Kind::Pod, "shop/done", done);
    api.apply(
        Kind::Pod,
        "shop/new",
        json!({"metadata": {"labels": {"app": "pay"}}, "spec": {"nodeName": "node1"}}),
    );
    api.apply(Kind::Service, "shop/manual", json!({"spec": {"ports": [{"port": 80}]}}));
    let external = service(json!({"type": "ExternalName", "externalName": "example.org"}));
    api.apply(Kind::Service, "shop/away", external);
    api.settle();
    assert_eq!(only(&api)["endpoints"], json!([]));
}

#[test]
fn es_05_ready_serving_and_terminating_are_three_things() {
    let conditions = |publish: bool, ready: bool, ending: bool| {
        let mut api = start(json!({"publishNotReadyAddresses": publish}));
        let mut object = pod("10.244.1.5");
        object["status"]["conditions"][0]["status"] = json!(if ready { "True" } else { "False" });
        api.apply(Kind::Pod, "shop/one", object);
        if ending {
            api.delete(Kind::Pod, "shop/one");
        }
        api.settle();
        let c = only(&api)["endpoints"][0]["conditions"].clone();
        ["ready", "serving", "terminating"].map(|k| c[k].as_bool().unwrap())
    };
    for (publish, ready, ending, want) in [
        (false, true, false, [true, true, false]),
        (false, false, false, [false, false, false]),
        (false, true, true, [false, true, true]),
        (false, false, true, [false, false, true]),
        (true, false, false, [true, false, false]),
        (true, true, true, [true, true, true]),
    ] {
        assert_eq!(conditions(publish, ready, ending), want, "{publish} {ready} {ending}");
    }
}

#[test]
fn es_06_an_endpoint_names_its_node_zone_pod_and_own_hostname() {
    let mut api = start(json!({"clusterIP": "None"}));
    for (name, subdomain) in [("db0", "pay"), ("db1", "other")] {
        let mut object = pod(if name == "db0" { "10.244.1.5" } else { "10.244.1.6" });
        object["spec"]["hostname"] = json!(name);
        object["spec"]["subdomain"] = json!(subdomain);
        api.apply(Kind::Pod, &format!("shop/{name}"), object);
    }
    api.settle();
    let endpoints = only(&api)["endpoints"].clone();
    let of = |name: &str| {
        let all = endpoints.as_array().unwrap().iter();
        all.clone().find(|e| e["targetRef"]["name"] == name).cloned().unwrap()
    };
    assert_eq!((&of("db0")["hostname"], of("db1").get("hostname")), (&json!("db0"), None));
    assert_eq!((&of("db0")["nodeName"], &of("db0")["zone"]), (&json!("node1"), &json!("a")));
    assert_eq!(of("db0")["targetRef"]["uid"], api.object(Kind::Pod, "shop/db0")["metadata"]["uid"]);
}

#[test]
fn es_07_a_pod_of_an_unknown_node_waits_for_it() {
    let mut api = start(json!({}));
    let mut object = pod("10.244.9.5");
    object["spec"]["nodeName"] = json!("node9");
    api.apply(Kind::Pod, "shop/one", object);
    api.settle();
    assert_eq!(only(&api)["endpoints"], json!([]));
    api.apply(Kind::Node, "node9", json!({}));
    api.settle();
    assert_eq!(only(&api)["endpoints"][0]["nodeName"], "node9");
}

#[test]
fn es_08_one_pod_that_turns_costs_one_write_to_its_own_slice() {
    let mut api = start(json!({}));
    for n in 0..150 {
        api.apply(Kind::Pod, &format!("shop/p{n}"), pod(&format!("10.244.1.{n}")));
    }
    api.settle();
    let before = slices(&api);
    api.journal.clear();
    api.merge(
        Kind::Pod,
        "shop/p7",
        &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
    );
    api.settle();
    let writes: Vec<_> = api.journal.iter().filter(|j| j.contains("EndpointSlice")).collect();
    assert_eq!(writes.len(), 1, "{writes:?}");
    // A newcomer goes to the slice with room, and nothing is moved to tidy up.
    api.journal.clear();
    api.apply(Kind::Pod, "shop/late", pod("10.244.1.200"));
    api.settle();
    assert_eq!(api.journal.iter().filter(|j| j.contains("EndpointSlice")).count(), 1);
    assert_eq!(slices(&api).len(), before.len());
}

#[test]
fn es_09_what_was_written_is_not_written_again() {
    let mut api = start(json!({}));
    api.apply(Kind::Pod, "shop/one", pod("10.244.1.5"));
    api.settle();
    let name = ObjectName::new("shop", "pay");
    assert_eq!(decide(&api.world, &name, &api.settings), Decision::default());
}

#[test]
fn es_10_slices_of_an_earlier_service_go() {
    let mut api = start(json!({}));
    let before = only(&api)["metadata"]["uid"].clone();
    // Deleted and made anew before the collector looked.
    api.remove(Kind::Service, "shop/pay");
    api.apply(Kind::Service, "shop/pay", service(json!({})));
    api.settle();
    assert_ne!(only(&api)["metadata"]["uid"], before);
}

#[test]
fn es_11_the_trigger_time_is_the_earliest_cause() {
    let mut api = start(json!({}));
    let time = |api: &Memory| only(api)["metadata"]["annotations"][TRIGGER].as_str().map(str::to_owned);
    assert_eq!(
        time(&api),
        api.object(Kind::Service, "shop/pay")["metadata"]["creationTimestamp"].as_str().map(str::to_owned)
    );
    api.apply(Kind::Pod, "shop/one", pod("10.244.1.5"));
    api.settle();
    assert_eq!(time(&api).as_deref(), Some("2027-01-15T08:00:05Z"));
    api.apply(Kind::Pod, "shop/two", pod("10.244.1.6"));
    api.settle();
    api.remove(Kind::Pod, "shop/one");
    api.settle();
    assert_eq!(time(&api), None, "only a removal: not computable");
}

#[test]
fn es_12_hints_follow_the_traffic_distribution() {
    for (distribution, hints) in [
        ("PreferSameZone", json!({"forZones": [{"name": "a"}]})),
        ("PreferClose", json!({"forZones": [{"name": "a"}]})),
        ("PreferSameNode", json!({"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]})),
        ("", Value::Null),
    ] {
        let mut api = start(json!({"trafficDistribution": distribution}));
        api.apply(Kind::Pod, "shop/one", pod("10.244.1.5"));
        api.settle();
        assert_eq!(only(&api)["endpoints"][0]["hints"], hints, "{distribution}");
        api.merge(Kind::Pod, "shop/one", &json!({"status": {"conditions": []}}));
        api.settle();
        assert_eq!(only(&api)["endpoints"][0]["hints"], Value::Null, "only ready endpoints have hints");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// After any history the slices hold every serving pod once, none is too full, and nothing is left to do.
    #[test]
    fn any_history_ends_with_every_pod_once(
        steps in proptest::collection::vec((0u8..40, 0u8..4, any::<bool>()), 1..80), limit in 1usize..8,
    ) {
        let mut api = start(json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}));
        api.settings.max_endpoints_per_slice = limit;
        let mut live = std::collections::BTreeSet::new();
        for (n, action, settle) in steps {
            let name = format!("shop/p{n}");
            if action == 0 && live.remove(&n) {
                api.remove(Kind::Pod, &name);
            } else if action > 0 {
                let mut object = pod(&format!("10.244.1.{n}"));
                object["spec"]["containers"] =
                    json!([{"ports": [{"name": "web", "containerPort": 8000 + u16::from(action)}]}]);
                live.insert(n);
                api.apply(Kind::Pod, &name, object);
            }
            if settle {
                api.settle();
            }
        }
        api.settle();
        let mut seen: Vec<String> = Vec::new();
        for slice in slices(&api) {
            let endpoints = slice["endpoints"].as_array().unwrap();
            prop_assert!(endpoints.len() <= limit);
            prop_assert!(!endpoints.is_empty() || live.is_empty());
            seen.extend(endpoints.iter().map(|e| e["addresses"][0].as_str().unwrap().to_owned()));
        }
        seen.sort();
        let mut want: Vec<String> = live.iter().map(|n| format!("10.244.1.{n}")).collect();
        want.sort();
        prop_assert_eq!(seen, want);
        let decision = decide(&api.world, &ObjectName::new("shop", "pay"), &api.settings);
        prop_assert_eq!(decision, Decision::default());
    }
}
