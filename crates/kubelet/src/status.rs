//! A pod's status, from what runs. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use crate::record::Exit;

/// A container as its worker sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub name: String,
    pub image: String,
    pub restarts: u32,
    pub ready: bool,
    pub state: State,
    /// How the run before ended.
    pub last: Option<Exit>,
}

#[derive(Clone, Debug)]
pub enum State {
    Waiting { reason: String, message: String },
    Running { since: String },
    Ended(Exit),
}

/// Everything that a status says.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub pod: &'a Pod,
    pub node_addresses: &'a [String],
    pub addresses: &'a [String],
    pub sandbox: bool,
    pub containers: &'a [Seen],
    /// Set when the whole pod was refused.
    pub failure: Option<(&'a str, &'a str)>,
    pub started: &'a str,
}

/// The phase (pkg/kubelet/kubelet_pods.go, `getPhase`).
pub fn phase(view: &View<'_>) -> &'static str {
    if view.failure.is_some() {
        return "Failed";
    }
    let policy = view.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let all_ended = !view.containers.is_empty()
        && view.containers.iter().all(|container| matches!(container.state, State::Ended(_)));
    let failed = view.containers.iter().any(|c| matches!(&c.state, State::Ended(exit) if exit.code != 0));
    // A container that waits and never ran holds the pod in Pending; one that waits for its restart does not.
    let never_ran = |c: &Seen| matches!(c.state, State::Waiting { .. }) && c.last.is_none();
    match (all_ended, policy) {
        (true, "Never") if failed => "Failed",
        (true, "Never") => "Succeeded",
        (true, "OnFailure") if !failed => "Succeeded",
        _ if view.containers.is_empty() || view.containers.iter().any(never_ran) => "Pending",
        _ => "Running",
    }
}

/// `status` as it is patched.
pub fn render(view: &View<'_>) -> Value {
    let phase = phase(view);
    let ready = phase == "Running" && view.containers.iter().all(|container| container.ready);
    let done = phase == "Succeeded";
    let not_ready =
        if done { ("PodCompleted", String::new()) } else { ("ContainersNotReady", unready(view)) };
    let conditions = [
        ("PodReadyToStartContainers", view.sandbox, ("", String::new())),
        ("Initialized", true, ("", String::new())),
        ("Ready", ready, not_ready.clone()),
        ("ContainersReady", ready, not_ready),
    ];
    let old = view.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions: Vec<Value> = conditions
        .into_iter()
        .map(|(kind, is, (reason, message))| condition(view, kind, is, (reason, &message)))
        .collect();
    // The scheduler's word, and whatever else others have added.
    let ours = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
    conditions.extend(old.filter(|old| !ours.contains(&old.type_.as_str())).map(|old| json!(old)));
    let addresses: Vec<Value> = view.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "phase": phase,
        "observedGeneration": view.pod.metadata.generation,
        "reason": view.failure.map(|(reason, _)| reason),
        "message": view.failure.map(|(_, message)| message),
        "hostIP": view.node_addresses.first(),
        "hostIPs": view.node_addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        "podIP": view.addresses.first(),
        "podIPs": (!addresses.is_empty()).then_some(addresses),
        "startTime": view.started,
        "qosClass": "BestEffort",
        "conditions": conditions,
        "containerStatuses": view.containers.iter().map(|container| container_status(view, container)).collect::<Vec<_>>(),
    })
}

/// A condition keeps its transition time while it stays what it was.
fn condition(view: &View<'_>, kind: &str, is: bool, (reason, message): (&str, &str)) -> Value {
    let status = if is { "True" } else { "False" };
    let old = view.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let since = old
        .into_iter()
        .find(|old| old.type_ == kind && old.status == status)
        .and_then(|old| old.last_transition_time.as_ref())
        .map_or_else(|| json!(crate::moment::now()), |time| json!(time));
    let mut value =
        json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since});
    if !is && !reason.is_empty() {
        value["reason"] = json!(reason);
        value["message"] = json!(message);
    }
    value
}

fn unready(view: &View<'_>) -> String {
    let names: Vec<&str> = view
        .containers
        .iter()
        .filter(|container| !container.ready)
        .map(|container| container.name.as_str())
        .collect();
    format!("containers with unready status: [{}]", names.join(" "))
}

fn container_status(view: &View<'_>, container: &Seen) -> Value {
    let uid = view.pod.metadata.uid.as_deref().unwrap_or_default();
    let id = format!("plumb://{uid}-{}-{}", container.name, container.restarts);
    let state = match &container.state {
        State::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
        State::Running { since } => json!({"running": {"startedAt": since}}),
        State::Ended(exit) => json!({"terminated": terminated(exit, &id)}),
    };
    let last = container.last.as_ref().map(|exit| json!({"terminated": terminated(exit, &id)}));
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "containerID": id,
        "ready": container.ready,
        "started": matches!(container.state, State::Running { .. }),
        "restartCount": container.restarts,
        "state": state,
        "lastState": last.unwrap_or_else(|| json!({})),
    })
}

fn terminated(exit: &Exit, id: &str) -> Value {
    let reason = match (&exit.error, exit.code) {
        (Some(_), _) => "StartError",
        (None, 0) => "Completed",
        (None, _) => "Error",
    };
    json!({
        "exitCode": exit.code, "signal": exit.signal, "reason": reason, "message": exit.error,
        "startedAt": exit.started, "finishedAt": exit.finished, "containerID": id,
    })
}

/// What a container is before anything is known of it.
pub fn creating(container: &Container) -> Seen {
    Seen {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restarts: 0,
        ready: false,
        state: State::Waiting { reason: "ContainerCreating".into(), message: String::new() },
        last: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "c"}]},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .expect("a pod")
    }

    fn exit(code: i32) -> Exit {
        Exit { code, signal: None, error: None, started: "s".into(), finished: "f".into() }
    }

    fn seen(state: State, ready: bool) -> Seen {
        Seen { name: "c".into(), image: "host".into(), restarts: 0, ready, state, last: None }
    }

    fn view<'a>(pod: &'a Pod, containers: &'a [Seen]) -> View<'a> {
        View {
            pod,
            node_addresses: &[],
            addresses: &[],
            sandbox: true,
            containers,
            failure: None,
            started: "s",
        }
    }

    #[test]
    fn phases_follow_the_restart_policy() {
        for (policy, code, expected) in [
            ("Never", 0, "Succeeded"),
            ("Never", 1, "Failed"),
            ("OnFailure", 0, "Succeeded"),
            ("OnFailure", 1, "Running"),
            ("Always", 0, "Running"),
        ] {
            let (pod, containers) = (pod(policy), [seen(State::Ended(exit(code)), false)]);
            assert_eq!(phase(&view(&pod, &containers)), expected, "{policy} {code}");
        }
    }

    #[test]
    fn conditions_keep_their_time_and_those_of_others() {
        let (pod, containers) = (pod("Always"), [seen(State::Running { since: "s".into() }, true)]);
        let status = render(&view(&pod, &containers));
        let conditions = status["conditions"].as_array().expect("a list");
        let find = |kind: &str| conditions.iter().find(|c| c["type"] == kind).expect("there");
        assert_eq!(find("Ready")["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(find("PodScheduled")["status"], "True");
        assert_eq!(status["phase"], "Running");
    }

    #[test]
    fn an_unready_container_is_named() {
        let (pod, containers) = (pod("Always"), [seen(State::Running { since: "s".into() }, false)]);
        let status = render(&view(&pod, &containers));
        assert!(status.to_string().contains("containers with unready status: [c]"), "{status}");
    }
}
