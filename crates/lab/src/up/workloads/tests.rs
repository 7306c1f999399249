//! What counts as Ready, as done and as failed.

use serde_json::json;

use k8s_openapi::api::core::v1::Event;

use super::lacking::{Lacking, last_warning, probe_failure, told};
use super::*;

fn pod(status: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "job", "namespace": "shop"}, "status": status}))
        .expect("a pod")
}

fn now(pod: &Pod) -> Stand {
    pod_stand(pod, Clock::now(&Seen::default()))
}

#[test]
fn a_pod_that_has_failed_says_its_exit_code_and_where_its_words_are() {
    let ended = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 3, "reason": "Error"}}});
    assert_eq!(
        now(&pod(json!({"phase": "Failed", "containerStatuses": [ended]}))),
        Stand::Hopeless(
            "pod job: it has failed: container main ended with exit code 3".into(),
            Some("-n shop logs job -c main".into())
        )
    );
    assert_eq!(
        now(&pod(json!({"phase": "Failed", "reason": "Evicted"}))),
        Stand::Hopeless("pod job: Evicted".into(), Some("-n shop describe pod job".into()))
    );
}

#[test]
fn a_pod_that_runs_and_is_not_ready_names_the_probe() {
    let probed = |probe: &str, started: bool| -> Pod {
        let main = json!({"name": "main", "image": "", "imageID": "", "ready": false, "started": started,
            "restartCount": 0, "state": {"running": {}}});
        serde_json::from_value(json!({"metadata": {"name": "web"},
            "spec": {"containers": [{"name": "main", probe: {"tcpSocket": {"port": 80}}}]},
            "status": {"phase": "Running", "containerStatuses": [main]}}))
        .expect("a pod")
    };
    let says = |probe: &str| Stand::Waiting(format!("the {probe} probe of container main has not passed"));
    assert_eq!(now(&probed("readinessProbe", true)), says("readiness"));
    assert_eq!(now(&probed("startupProbe", false)), says("startup"));
    assert_eq!(now(&probed("livenessProbe", true)), Stand::Waiting("it is Running".into()));
}

#[test]
fn ready_for_a_moment_is_not_ready_without_a_probe() {
    let running = |restarts: u8| {
        let main = json!({"name": "main", "image": "", "imageID": "", "ready": true, "restartCount": restarts,
            "state": {"running": {"startedAt": "2026-01-01T00:00:10Z"}}});
        pod(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [main]}))
    };
    let just = Stand::Waiting("container main has just been started, and has no readiness probe".into());
    let began = Instant::now();
    let stand = |pod: &Pod, seen: &Seen, told: &str, after: u64| {
        let told = format!("2026-01-01T00:00:{told}Z").parse().expect("a time");
        pod_stand(pod, Clock { told, own: began + Duration::from_millis(after), seen })
    };
    // It may have been started at 10.99: only what it is told to be three seconds old is at least two.
    for (told, expected) in [("10", &just), ("12", &just), ("12.99", &just), ("13", &Stand::Ready)] {
        assert_eq!(&stand(&running(0), &Seen::default(), told, 0), expected, "{told}");
    }
    // Who has seen it run for two seconds knows, whatever the clock that others set says; a new start is another.
    let seen = Seen::default();
    for (restarts, after, expected) in [
        (0, 0, &just),
        (0, 1_999, &just),
        (0, 2_000, &Stand::Ready),
        (1, 2_000, &just),
        (1, 4_000, &Stand::Ready),
    ] {
        for told in ["05", "11.5"] {
            assert_eq!(&stand(&running(restarts), &seen, told, after), expected, "{restarts} {after} {told}");
        }
    }
    let mut probed = running(0);
    let probe = json!({"containers": [{"name": "main", "readinessProbe": {}}]});
    probed.spec = serde_json::from_value(probe).expect("a spec");
    assert_eq!(stand(&probed, &Seen::default(), "10", 0), Stand::Ready);
    assert_eq!(now(&pod(json!({"phase": "Succeeded"}))), Stand::Succeeded);
}

#[test]
fn one_that_cannot_be_started_as_it_is_written_is_not_waited_for() {
    for reason in ["ErrImagePull", "CreateContainerConfigError", "StartError"] {
        let waits = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": "no such command"}}});
        let stand = now(&pod(json!({"phase": "Pending", "containerStatuses": [waits]})));
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
        now(&pod(json!({"phase": "Running", "containerStatuses": [crashing]}))),
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
    let have = |updated, available| Some(Have { updated, available });
    let stand = |count, pods: Vec<Stand>| deployment_stand(have(count, count), 2, pods.into_iter());
    assert_eq!(stand(2, vec![Stand::Ready, Stand::Ready]), Stand::Ready);
    assert_eq!(stand(2, vec![Stand::Ready, waits()]), waits());
    assert_eq!(stand(1, vec![Stand::Ready, crashes()]), crashes());
    assert_eq!(stand(2, vec![crashes(), Stand::Ready]), Stand::Waiting("pod a: CrashLoopBackOff".into()));
    assert_eq!(stand(1, vec![Stand::Ready]), Stand::Waiting("1 of 2 pods are available".into()));
    let told = "1 of 2 pods are available: it is Pending";
    assert_eq!(stand(1, vec![Stand::Ready, waits()]), Stand::Waiting(told.into()));
    let old = deployment_stand(have(0, 2), 2, [Stand::Ready, Stand::Ready].into_iter());
    assert_eq!(old, Stand::Waiting("0 of 2 pods are of its newest template".into()));
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
    let lacking = |count: usize| -> Vec<Lacking> {
        let of = |n| Lacking {
            shown: format!("pod a/p{n}"),
            why: "it is Pending".into(),
            next: "; kubectl tells more".into(),
        };
        (1..=count).map(of).collect()
    };
    assert_eq!(
        told(&[("is not Ready after 1 s", lacking(1))]),
        "pod a/p1 is not Ready after 1 s: it is Pending; kubectl tells more"
    );
    assert_eq!(
        told(&[("will not become Ready", lacking(2)), ("is not Ready yet", vec![])]),
        "2 will not become Ready:\n  pod a/p1: it is Pending; kubectl tells more\n  pod a/p2: it is Pending; kubectl tells \
         more"
    );
    let many = told(&[("is not Ready after 60 s", lacking(12))]);
    assert!(many.starts_with("12 are not Ready after 60 s:\n  pod a/p1: "), "{many}");
    assert!(many.contains("\n  pod a/p10: ") && many.ends_with("\n  and 2 more"), "{many}");
    let both = |hopeless, waiting| {
        told(&[("will not become Ready", lacking(hopeless)), ("is not Ready yet", lacking(waiting))])
    };
    assert_eq!(
        both(1, 1),
        "pod a/p1 will not become Ready: it is Pending; kubectl tells more\npod a/p1 is not Ready yet: it is Pending; \
         kubectl tells more"
    );
    let some = both(8, 5);
    assert!(some.contains("\n5 are not Ready yet:\n  pod a/p1: "), "{some}");
    assert!(some.ends_with("\n  and 3 more") && some.matches("it is Pending").count() == 10, "{some}");
    assert!(both(10, 1).ends_with("\n1 more is not Ready yet"), "{}", both(10, 1));
    assert!(both(11, 3).ends_with("\n  and 1 more\n3 more are not Ready yet"), "{}", both(11, 3));
}

#[test]
fn an_end_by_a_probe_is_told_as_that() {
    let event = |pod: &str, reason: &str, message: &str| -> Event {
        serde_json::from_value(json!({"metadata": {}, "involvedObject": {"kind": "Pod", "name": pod},
            "type": "Warning", "reason": reason, "message": message, "lastTimestamp": "2026-01-01T00:00:01Z"}))
        .expect("an Event")
    };
    let failed = [
        event("web", "BackOff", "Back-off restarting"),
        event("web", "Unhealthy", "Liveness probe failed: HTTP 500"),
        event("other", "Unhealthy", "Liveness probe failed: HTTP 404"),
    ];
    let crashes = "pod web: CrashLoopBackOff: back-off, which ended with exit code 143";
    assert_eq!(probe_failure(&failed, crashes).as_deref(), Some("Liveness probe failed: HTTP 500"));
    assert_eq!(probe_failure(&failed, "pod web: StartError: no such command"), None);
    assert_eq!(
        probe_failure(&[event("web", "Unhealthy", "Readiness probe failed: HTTP 500")], crashes),
        None
    );
}

#[test]
fn a_deployment_that_is_paused_is_told_to_be() {
    let deployment = |paused: bool| -> Deployment {
        serde_json::from_value(json!({"spec": {"paused": paused, "selector": {}, "template": {}}}))
            .expect("a Deployment")
    };
    let lacks = || deployment_stand(Some(Have { updated: 0, available: 0 }), 1, std::iter::empty());
    assert_eq!(as_paused(&deployment(false), lacks()), lacks());
    let Stand::Waiting(why) = as_paused(&deployment(true), lacks()) else { panic!("it waits") };
    assert!(why.starts_with("it is paused") && why.ends_with("0 of 1 pods are available"), "{why}");
    assert_eq!(as_paused(&deployment(true), Stand::Ready), Stand::Ready);
}
