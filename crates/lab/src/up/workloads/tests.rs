//! What counts as Ready, as done and as failed.

use serde_json::json;

use super::*;

fn pod(status: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "job", "namespace": "shop"}, "status": status}))
        .expect("a pod")
}

#[test]
fn a_pod_that_has_failed_says_its_exit_code_and_where_its_words_are() {
    let ended = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 3, "reason": "Error"}}});
    assert_eq!(
        pod_stand(&pod(json!({"phase": "Failed", "containerStatuses": [ended]})), Timestamp::now()),
        Stand::Hopeless(
            "pod job: it has failed: container main ended with exit code 3".into(),
            Some("-n shop logs job -c main".into())
        )
    );
    assert_eq!(
        pod_stand(&pod(json!({"phase": "Failed", "reason": "Evicted"})), Timestamp::now()),
        Stand::Hopeless("pod job: Evicted".into(), Some("-n shop describe pod job".into()))
    );
}

#[test]
fn ready_for_a_moment_is_not_ready_without_a_probe() {
    let at = |text: &str| text.parse::<Timestamp>().expect("a time");
    let running = |name: &str| {
        json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:10Z"}}})
    };
    let ready = pod(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [running("main")]}));
    let just = Stand::Waiting("container main has just been started, and has no readiness probe".into());
    assert_eq!(pod_stand(&ready, at("2026-01-01T00:00:11.9Z")), just);
    assert_eq!(pod_stand(&ready, at("2026-01-01T00:00:12Z")), Stand::Ready);
    assert_eq!(pod_stand(&ready, at("2026-01-01T00:00:00Z")), Stand::Ready);
    let mut probed = ready.clone();
    let probe = json!({"containers": [{"name": "main", "readinessProbe": {}}]});
    probed.spec = serde_json::from_value(probe).expect("a spec");
    assert_eq!(pod_stand(&probed, at("2026-01-01T00:00:10Z")), Stand::Ready);
    assert_eq!(pod_stand(&pod(json!({"phase": "Succeeded"})), Timestamp::now()), Stand::Succeeded);
}

#[test]
fn one_that_cannot_be_started_as_it_is_written_is_not_waited_for() {
    for reason in ["ErrImagePull", "CreateContainerConfigError", "StartError"] {
        let waits = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": "no such command"}}});
        let stand =
            pod_stand(&pod(json!({"phase": "Pending", "containerStatuses": [waits]})), Timestamp::now());
        let said = format!("pod job: {reason}: no such command");
        assert_eq!(stand, Stand::Hopeless(said, Some("-n shop describe pod job".into())));
    }
}

#[test]
fn one_that_ends_again_and_again_says_its_exit_code() {
    let crashing = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 1s restarting failed container=main"}},
        "lastState": {"terminated": {"exitCode": 7}}});
    assert_eq!(
        pod_stand(&pod(json!({"phase": "Running", "containerStatuses": [crashing]})), Timestamp::now()),
        Stand::Hopeless(
            "pod job: CrashLoopBackOff: back-off 1s restarting failed container=main, which ended with exit code 7".into(),
            Some("-n shop logs job -c main --previous".into())
        )
    );
}

#[test]
fn a_deployment_is_ready_with_its_pods_own_word() {
    let waits = || Stand::Waiting("it is Pending".into());
    let crashes = || Stand::Hopeless("pod a: CrashLoopBackOff".into(), None);
    let stand = |have, pods: Vec<Stand>| deployment_stand(Some(have), 2, pods.into_iter());
    assert_eq!(stand(2, vec![Stand::Ready, Stand::Ready]), Stand::Ready);
    assert_eq!(stand(2, vec![Stand::Ready, waits()]), waits());
    assert_eq!(stand(1, vec![Stand::Ready, crashes()]), crashes());
    assert_eq!(stand(2, vec![crashes(), Stand::Ready]), Stand::Waiting("pod a: CrashLoopBackOff".into()));
    assert_eq!(stand(1, vec![Stand::Ready]), Stand::Waiting("1 of 2 pods are available".into()));
    let unseen = deployment_stand(None, 0, std::iter::empty());
    assert_eq!(unseen, Stand::Waiting("its controller has not seen it yet".into()));
    let of = |owner: &str, deployment| {
        let mut pod = pod(json!({"phase": "Running"}));
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "1"}]);
        pod.metadata.owner_references = serde_json::from_value(owner).expect("owners");
        is_of(&pod, deployment)
    };
    assert!(of("web-5d5", "web") && !of("web-api-5d5", "web") && !of("webs-5d5", "web"));
}

#[test]
fn what_is_late_says_its_last_warning() {
    let event = |kind: &str, name: &str, type_: &str, second: u8, message: &str| -> Event {
        serde_json::from_value(json!({"metadata": {}, "involvedObject": {"kind": kind, "name": name},
            "type": type_, "reason": "FailedCreatePodSandBox", "message": message,
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z")}))
        .expect("an Event")
    };
    let events = [
        event("Pod", "net", "Warning", 9, "no address is free"),
        event("Pod", "net", "Warning", 3, "an earlier one"),
        event("Pod", "net", "Normal", 10, "scheduled"),
        event("Pod", "network", "Warning", 11, "another's"),
        event("Pod", "net-5d5-x", "Warning", 8, "of a Deployment's"),
    ];
    let of = |kind| Workload { kind, namespace: "a".into(), name: "net".into(), shown: String::new() };
    assert_eq!(
        last_warning(&events, &of(Kind::Pod), "it is Pending").as_deref(),
        Some("; the last warning: FailedCreatePodSandBox: no address is free")
    );
    assert_eq!(
        last_warning(&events, &of(Kind::Deployment), "it is Pending").as_deref(),
        Some("; the last warning of net-5d5-x: FailedCreatePodSandBox: of a Deployment's")
    );
    assert_eq!(last_warning(&[], &of(Kind::Pod), ""), None);
    // What its status says already is not said again.
    assert_eq!(last_warning(&events, &of(Kind::Pod), "no address is free"), None);
}

#[test]
fn all_that_is_not_ready_is_named() {
    let workloads: Vec<Workload> = (1..=12)
        .map(|n| Workload {
            kind: Kind::Pod,
            namespace: "a".into(),
            name: String::new(),
            shown: format!("pod a/p{n}"),
        })
        .collect();
    let lacking = |count: usize| -> Vec<Lacking<'_>> {
        let of =
            |workload| Lacking { workload, why: "it is Pending".into(), next: "; kubectl tells more".into() };
        workloads.iter().take(count).map(of).collect()
    };
    assert_eq!(
        told(&lacking(1), "is not Ready after 1 s").to_string(),
        "pod a/p1 is not Ready after 1 s: it is Pending; kubectl tells more"
    );
    assert_eq!(
        told(&lacking(2), "will not become Ready").to_string(),
        "2 will not become Ready:\n  pod a/p1: it is Pending; kubectl tells more\n  pod a/p2: it is Pending; kubectl tells \
         more"
    );
    let many = told(&lacking(12), "is not Ready after 60 s").to_string();
    assert!(many.starts_with("12 are not Ready after 60 s:\n  pod a/p1: "), "{many}");
    assert!(many.contains("\n  pod a/p10: ") && many.ends_with("\n  and 2 more"), "{many}");
}
