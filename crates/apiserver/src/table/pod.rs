//! Pods: the STATUS column is a small science of its own.

use serde_json::Value;

use super::{AGE, Column, NAME, age, name, since};
use crate::object::{at, integer, is_being_deleted, list, text};

pub(super) const COLUMNS: [Column; 9] = [
    NAME,
    ("Ready", "string", false),
    ("Status", "string", false),
    ("Restarts", "string", false),
    AGE,
    ("IP", "string", true),
    ("Node", "string", true),
    ("Nominated Node", "string", true),
    ("Readiness Gates", "string", true),
];

pub(super) fn cells(object: &Value) -> Vec<Value> {
    let containers = list(object, &["spec", "containers"]);
    let statuses = list(object, &["status", "containerStatuses"]);
    let ready =
        statuses.iter().filter(|s| is_true(s, "ready") && at(s, &["state", "running"]).is_some()).count();
    let or_none = |text: &str| -> Value { if text.is_empty() { "<none>".into() } else { text.into() } };
    let address = list(object, &["status", "podIPs"]).first().map(|ip| text(ip, &["ip"]));
    vec![
        name(object),
        format!("{ready}/{}", containers.len()).into(),
        status(object, statuses).into(),
        restarts(statuses).into(),
        age(object),
        or_none(address.unwrap_or_else(|| text(object, &["status", "podIP"]))),
        or_none(text(object, &["spec", "nodeName"])),
        or_none(text(object, &["status", "nominatedNodeName"])),
        "<none>".into(),
    ]
}

fn is_true(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or(false)
}

/// The phase, unless a reason of the pod or of its last container that has one says more.
fn status(object: &Value, statuses: &[Value]) -> String {
    let mut status = text(object, &["status", "phase"]).to_owned();
    let own = text(object, &["status", "reason"]);
    if !own.is_empty() {
        own.clone_into(&mut status);
    }
    let mut running = false;
    for container in statuses.iter().rev() {
        let waiting = text(container, &["state", "waiting", "reason"]);
        let ended = at(container, &["state", "terminated"]);
        if !waiting.is_empty() {
            waiting.clone_into(&mut status);
        } else if let Some(ended) = ended {
            let reason = text(ended, &["reason"]);
            let signal = integer(ended, &["signal"]);
            status = match (reason, signal) {
                ("", 0) => format!("ExitCode:{}", integer(ended, &["exitCode"])),
                ("", signal) => format!("Signal:{signal}"),
                (reason, _) => reason.to_owned(),
            };
        } else if is_true(container, "ready") && at(container, &["state", "running"]).is_some() {
            running = true;
        }
    }
    if status == "Completed" && running {
        let ready = list(object, &["status", "conditions"])
            .iter()
            .any(|c| text(c, &["type"]) == "Ready" && text(c, &["status"]) == "True");
        status = if ready { "Running" } else { "NotReady" }.to_owned();
    }
    if is_being_deleted(object) {
        let finished = matches!(text(object, &["status", "phase"]), "Succeeded" | "Failed");
        if own == "NodeLost" {
            return "Unknown".to_owned();
        }
        if !finished {
            return "Terminating".to_owned();
        }
    }
    status
}

/// The sum of restarts, and when the last one was.
fn restarts(statuses: &[Value]) -> String {
    let count: i64 = statuses.iter().map(|s| integer(s, &["restartCount"])).sum();
    let last = statuses
        .iter()
        .map(|s| text(s, &["lastState", "terminated", "finishedAt"]))
        .filter(|t| !t.is_empty())
        .max();
    match last {
        Some(last) if count > 0 => format!("{count} ({} ago)", since(last)),
        _ => count.to_string(),
    }
}
