use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::memory::Memory;

fn set(replicas: i64) -> Value {
    json!({"spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
        "metadata": {"labels": {"app": "web"}, "creationTimestamp": null},
        "spec": {"containers": [{"name": "c", "image": "host"}]}}}})
}

fn pods(api: &Memory) -> Vec<&Pod> {
    api.world.all::<Pod>().filter(|p| p.active()).collect()
}

#[test]
fn it_makes_what_is_missing_and_takes_what_is_too_much() {
    let mut api = Memory::default();
    api.apply(Kind::ReplicaSet, "shop/web", set(3));
    api.settle();
    assert_eq!(pods(&api).len(), 3);
    assert!(pods(&api).iter().all(|p| p.metadata.name.starts_with("web-")));
    assert_eq!(api.events.iter().filter(|e| e.reason == "SuccessfulCreate").count(), 3);
    api.merge(Kind::ReplicaSet, "shop/web", &json!({"spec": {"replicas": 1}}));
    api.settle();
    assert_eq!(pods(&api).len(), 1);
    let status = &api.object(Kind::ReplicaSet, "shop/web")["status"];
    assert_eq!((status["replicas"].as_i64(), status.get("readyReplicas")), (Some(1), None));
    assert_eq!(
        status["observedGeneration"],
        api.object(Kind::ReplicaSet, "shop/web")["metadata"]["generation"]
    );
}

#[test]
fn it_adopts_a_matching_orphan_and_releases_what_stopped_matching() {
    let mut api = Memory::default();
    api.apply(Kind::Pod, "shop/lone", json!({"metadata": {"labels": {"app": "web"}}}));
    api.apply(Kind::ReplicaSet, "shop/web", set(2));
    api.settle();
    assert_eq!(pods(&api).len(), 2);
    assert_eq!(api.object(Kind::Pod, "shop/lone")["metadata"]["ownerReferences"][0]["name"], "web");
    // Taking a pod out for a look: another replaces it, and nobody owns it.
    api.merge(Kind::Pod, "shop/lone", &json!({"metadata": {"labels": {"app": "sick"}}}));
    api.settle();
    assert_eq!(pods(&api).len(), 3);
    assert_eq!(api.object(Kind::Pod, "shop/lone")["metadata"]["ownerReferences"], json!([]));
}

#[test]
fn the_pod_that_serves_least_goes_first() {
    let mut api = Memory::default();
    api.ready_node("node1");
    api.apply(Kind::ReplicaSet, "shop/web", set(3));
    api.settle();
    let names: Vec<String> = pods(&api).iter().map(|p| p.metadata.name.clone()).collect();
    for name in names.iter().skip(1) {
        api.run_pod("shop", name);
    }
    api.merge(Kind::ReplicaSet, "shop/web", &json!({"spec": {"replicas": 2}}));
    api.settle();
    assert!(pods(&api).iter().all(|p| p.metadata.name != names[0]), "the pod that never ran is gone");
}

#[test]
fn a_finished_pod_is_replaced() {
    let mut api = Memory::default();
    api.apply(Kind::ReplicaSet, "shop/web", set(1));
    api.settle();
    let name = pods(&api)[0].metadata.name.clone();
    api.merge(Kind::Pod, &format!("shop/{name}"), &json!({"status": {"phase": "Failed"}}));
    api.settle();
    assert_eq!(pods(&api).len(), 1);
    assert_ne!(pods(&api)[0].metadata.name, name);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happened before, it ends with as many pods as were asked for last, and then asks for nothing.
    #[test]
    fn it_converges(steps in proptest::collection::vec((0i64..6, 0usize..4), 1..12)) {
        let mut api = Memory::default();
        api.apply(Kind::ReplicaSet, "shop/web", set(0));
        let mut wanted = 0;
        for (replicas, lost) in steps {
            wanted = replicas;
            api.merge(Kind::ReplicaSet, "shop/web", &json!({"spec": {"replicas": replicas}}));
            for key in api.world.names(Kind::Pod).into_iter().take(lost) {
                api.remove(Kind::Pod, &key.to_string());
            }
            api.settle();
        }
        prop_assert_eq!(i64::try_from(pods(&api).len()), Ok(wanted));
        let name = ObjectName::new("shop", "web");
        prop_assert_eq!(decide(&api.world, &name, api.now), Decision::default());
    }
}
