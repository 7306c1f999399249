use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::memory::Memory;
use crate::view::condition;

fn deployment(replicas: i64, image: &str) -> Value {
    json!({"spec": {"replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn up(replicas: i64) -> Memory {
    let mut api = Memory::default();
    api.ready_node("node1");
    api.ready_node("node2");
    api.apply(Kind::Deployment, "shop/web", deployment(replicas, "v1"));
    api.settle();
    run_all(&mut api);
    api
}

/// Plays the kubelets until nothing changes any more.
fn run_all(api: &mut Memory) {
    loop {
        api.settle();
        let Some(name) = waiting(api).first().cloned() else {
            if !end_one(api) {
                return;
            }
            continue;
        };
        api.run_pod("shop", &name);
    }
}

fn waiting(api: &Memory) -> Vec<String> {
    let pods = api.active_pods();
    pods.iter()
        .filter(|p| !p.ready() && !p.spec.node_name.is_empty())
        .map(|p| p.metadata.name.clone())
        .collect()
}

fn end_one(api: &mut Memory) -> bool {
    let ending =
        api.world.all::<Pod>().find(|p| p.metadata.terminating()).map(|p| p.metadata.key().to_string());
    ending.inspect(|name| api.remove(Kind::Pod, name)).is_some()
}

fn the(api: &Memory) -> &Deployment {
    api.world.get::<Deployment>(&ObjectName::new("shop", "web")).unwrap()
}

fn reason(api: &Memory, kind: &str) -> String {
    condition(&the(api).status.conditions, kind).map(|c| c.reason.clone()).unwrap_or_default()
}

/// What `kubectl rollout status` waits for.
fn rolled_out(api: &Memory) -> bool {
    let d = the(api);
    let s = &d.status;
    let wanted = d.spec.replicas.unwrap_or(1);
    s.observed_generation >= d.metadata.generation
        && s.updated_replicas >= wanted
        && s.replicas <= s.updated_replicas
        && s.available_replicas >= s.updated_replicas
}

#[test]
fn a_new_deployment_becomes_available_and_says_so() {
    let api = up(3);
    assert!(rolled_out(&api));
    assert_eq!(reason(&api, "Available"), "MinimumReplicasAvailable");
    assert_eq!(reason(&api, "Progressing"), "NewReplicaSetAvailable");
    assert_eq!(the(&api).metadata.annotations[REVISION], "1");
    let set = api.world.all::<ReplicaSet>().next().unwrap();
    assert_eq!(set.metadata.name, format!("web-{}", set.metadata.labels[HASH]));
    let pod = api.active_pods()[0].clone();
    assert_eq!(pod.metadata.labels[HASH], set.metadata.labels[HASH]);
    let note = format!("Scaled up replica set {} from 0 to 3", set.metadata.name);
    assert!(api.events.iter().any(|e| e.note == note));
}

#[test]
fn an_update_replaces_every_pod_and_a_rollback_revives_the_old_set() {
    let mut api = up(4);
    let first = api.world.all::<ReplicaSet>().next().unwrap().metadata.name.clone();
    let v2 = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    api.merge(Kind::Deployment, "shop/web", &v2);
    run_all(&mut api);
    assert!(rolled_out(&api));
    assert_eq!(api.world.all::<ReplicaSet>().count(), 2);
    assert_eq!(the(&api).metadata.annotations[REVISION], "2");
    let v1 = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v1"}]}}}});
    api.merge(Kind::Deployment, "shop/web", &v1);
    run_all(&mut api);
    assert!(rolled_out(&api));
    let revived = api.object(Kind::ReplicaSet, &format!("shop/{first}"));
    assert_eq!(revived["spec"]["replicas"], 4);
    assert_eq!(revived["metadata"]["annotations"][REVISION], "3");
    assert_eq!(revived["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut api = up(1);
    for version in ["v2", "v3", "v4", "v5"] {
        let patch =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": version}]}}}});
        api.merge(Kind::Deployment, "shop/web", &patch);
        run_all(&mut api);
    }
    assert_eq!(api.world.all::<ReplicaSet>().count(), 3, "the latest and two old ones");
}

#[test]
fn recreate_ends_every_old_pod_before_the_first_new_one() {
    let mut api = up(2);
    let patch = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null},
        "template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    api.merge(Kind::Deployment, "shop/web", &patch);
    api.settle();
    assert_eq!(api.active_pods().len(), 0);
    assert!(end_one(&mut api));
    api.settle();
    assert_eq!(api.active_pods().len(), 0, "one old pod is still ending");
    run_all(&mut api);
    assert!(rolled_out(&api));
}

#[test]
fn a_rollout_that_does_not_move_exceeds_its_deadline() {
    let mut api = up(2);
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "bad"}]}}}});
    api.merge(Kind::Deployment, "shop/web", &patch);
    api.settings.node_grace_seconds = 3600; // the nodes are not what is tested
    api.settle();
    assert_ne!(reason(&api, "Progressing"), "ProgressDeadlineExceeded");
    api.pass(602);
    api.settle();
    assert_eq!(reason(&api, "Progressing"), "ProgressDeadlineExceeded");
    assert!(the(&api).status.available_replicas >= 2, "the old pods serve on");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut api = up(2);
    let patch = json!({"spec": {"paused": true, "replicas": 3,
        "template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    api.merge(Kind::Deployment, "shop/web", &patch);
    run_all(&mut api);
    assert_eq!(api.world.all::<ReplicaSet>().count(), 1);
    assert_eq!((api.active_pods().len(), reason(&api, "Progressing").as_str()), (3, "DeploymentPaused"));
    api.merge(Kind::Deployment, "shop/web", &json!({"spec": {"paused": false}}));
    run_all(&mut api);
    assert!(rolled_out(&api));
    assert_eq!(reason(&api, "Progressing"), "NewReplicaSetAvailable");
}

/// One pod, which is ready and has to be so for ten seconds.
fn ready_for_ten_seconds() -> Memory {
    let mut api = Memory::default();
    api.ready_node("node1");
    let mut object = deployment(1, "v1");
    object["spec"]["minReadySeconds"] = json!(10);
    api.apply(Kind::Deployment, "shop/web", object);
    run_all(&mut api);
    api
}

#[test]
fn min_ready_seconds_delay_availability() {
    let mut api = ready_for_ten_seconds();
    assert_eq!((the(&api).status.ready_replicas, the(&api).status.available_replicas), (1, 0));
    api.pass(10);
    api.settle();
    assert!(rolled_out(&api));
}

#[test]
fn min_ready_seconds_end_when_the_clock_was_set_back() {
    let mut api = ready_for_ten_seconds();
    api.set_clock(-86_400);
    api.settle();
    assert_eq!(the(&api).status.available_replicas, 0);
    api.pass(10);
    api.settle();
    assert!(rolled_out(&api));
}

#[test]
fn a_default_filled_in_by_the_server_causes_no_rollout() {
    let mut api = up(1);
    let set = api.world.all::<ReplicaSet>().next().unwrap().metadata.key().to_string();
    api.merge(
        Kind::ReplicaSet,
        &set,
        &json!({"spec": {"template": {"spec": {"dnsPolicy": "ClusterFirst"}}}}),
    );
    run_all(&mut api);
    assert_eq!(api.world.all::<ReplicaSet>().count(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Image(u8),
    Scale(i64),
    Run,
    Lose,
    End,
    Brains(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0u8..3).prop_map(Step::Image),
        1 => (0i64..6).prop_map(Step::Scale),
        6 => Just(Step::Run),
        1 => Just(Step::Lose),
        3 => Just(Step::End),
        6 => (1u8..12).prop_map(Step::Brains),
    ]
}

fn take(api: &mut Memory, step: &Step) {
    match step {
        Step::Image(n) => {
            let image = format!("v{n}");
            let patch =
                json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
            api.merge(Kind::Deployment, "shop/web", &patch);
        }
        Step::Scale(n) => api.merge(Kind::Deployment, "shop/web", &json!({"spec": {"replicas": n}})),
        Step::Run => {
            if let Some(name) = waiting(api).first().cloned() {
                api.run_pod("shop", &name);
            }
        }
        Step::Lose => {
            if let Some(name) = api.active_pods().first().map(|p| p.metadata.key().to_string()) {
                api.remove(Kind::Pod, &name);
            }
        }
        Step::End => {
            end_one(api);
        }
        Step::Brains(n) => {
            for _ in 0..*n {
                api.step();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever order users, kubelets and brains take turns in, the rollout ends complete and rests.
    #[test]
    fn it_converges_and_rests(
        steps in proptest::collection::vec(step(), 1..60), surge in 0i64..3, outage in 0i64..3,
    ) {
        let mut api = Memory::default();
        api.ready_node("node1");
        let mut object = deployment(3, "v0");
        object["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": surge, "maxUnavailable": outage});
        api.apply(Kind::Deployment, "shop/web", object);
        for step in &steps {
            take(&mut api, step);
        }
        run_all(&mut api);
        prop_assert!(rolled_out(&api), "{:?}", the(&api).status);
        prop_assert_eq!(i64::try_from(api.active_pods().len()).ok(), the(&api).spec.replicas);
        let decision = decide(&api.world, &ObjectName::new("shop", "web"), api.now);
        prop_assert!(decision.writes.is_empty(), "{}", decision);
    }

    /// During an update with a steady size, the sets never ask for more than the surge allows, and what
    /// serves never falls below what may be missing.
    #[test]
    fn an_update_keeps_both_bounds(
        replicas in 1i64..8, surge in 0i64..3, outage in 0i64..3,
        turns in proptest::collection::vec(prop_oneof![Just(Step::Run), Just(Step::End),
            (1u8..6).prop_map(Step::Brains)], 0..120),
    ) {
        let outage = if surge == 0 && outage == 0 { 1 } else { outage };
        let mut api = Memory::default();
        api.ready_node("node1");
        let mut object = deployment(replicas, "v0");
        object["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": surge, "maxUnavailable": outage});
        api.apply(Kind::Deployment, "shop/web", object);
        run_all(&mut api);
        take(&mut api, &Step::Image(1));
        for turn in &turns {
            take(&mut api, turn);
            let asked: i64 = api.world.all::<ReplicaSet>().map(ReplicaSet::replicas).sum();
            prop_assert!(asked <= replicas + surge, "asked for {} of {}+{}", asked, replicas, surge);
            let serving = api.active_pods().iter().filter(|p| p.ready()).count();
            let floor = replicas - outage.min(replicas);
            prop_assert!(i64::try_from(serving).unwrap() >= floor, "{} serve, floor {}", serving, floor);
        }
    }
}
