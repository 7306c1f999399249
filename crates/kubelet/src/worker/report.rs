//! Writes a pod's status to the API, newest only, without ever being waited for: an API that is away stops no pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::containers::Containers;
use crate::runtime::Runtime;
use crate::status::{View, creating, render};

const PAUSE: Duration = Duration::from_millis(200);
/// Before somebody else's word about a pod is replaced: he may go on saying it for a while.
const CONTRADICT: Duration = Duration::from_secs(1);

pub struct Report {
    api: Api<Pod>,
    name: String,
    uid: String,
    newest: watch::Sender<Option<Value>>,
}

impl Report {
    pub fn start(client: Client, pod: &Pod) -> Self {
        let api: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
        let (newest, receiver) = watch::channel(None);
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        tokio::spawn(write(api.clone(), name.clone(), uid.clone(), receiver));
        Self { api, name, uid, newest }
    }

    pub fn creating(&self, pod: &Pod, runtime: &Runtime, started: &str) {
        let containers: Vec<_> = pod.spec.iter().flat_map(|spec| &spec.containers).map(creating).collect();
        let view = View {
            pod,
            node_addresses: &runtime.addresses,
            addresses: &[],
            sandbox: false,
            containers: &containers,
            failure: None,
            started,
        };
        self.say(render(&view));
    }

    pub fn running(&self, pod: &Pod, runtime: &Runtime, containers: &Containers, started: &str) {
        let seen = containers.seen();
        let view = View {
            pod,
            node_addresses: &runtime.addresses,
            addresses: containers.addresses(),
            sandbox: true,
            containers: &seen,
            failure: None,
            started,
        };
        let status = render(&view);
        self.contradict(pod, &status);
        self.say(status);
    }

    pub fn failed(&self, pod: &Pod, runtime: &Runtime, failure: (&str, &str), started: &str) {
        let view = View {
            pod,
            node_addresses: &runtime.addresses,
            addresses: &[],
            sandbox: false,
            containers: &[],
            failure: Some(failure),
            started,
        };
        self.say(render(&view));
    }

    fn say(&self, status: Value) {
        self.newest.send_if_modified(|newest| {
            let changed = newest.as_ref().map(without_times) != Some(without_times(&status));
            if changed {
                *newest = Some(status);
            }
            changed
        });
    }

    /// Says once more that the pod is ready where somebody else has said since that it is not: the controller that gives up
    /// a silent node takes all its pods for unready, and for this kubelet nothing has changed.
    fn contradict(&self, pod: &Pod, status: &Value) {
        if !is_taken_for_unready(pod, status) {
            return;
        }
        let (newest, status) = (self.newest.clone(), status.clone());
        tokio::spawn(async move {
            tokio::time::sleep(CONTRADICT).await;
            newest.send_if_modified(|newest| {
                let holds = newest.as_ref().map(without_times) == Some(without_times(&status));
                if holds {
                    *newest = Some(status);
                }
                holds
            });
        });
    }

    /// Tells the API that nothing of the pod is left here: it may forget it.
    pub async fn delete(self) {
        let Self { api, name, uid, newest } = self;
        drop(newest);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
            ..DeleteParams::default()
        };
        loop {
            match api.delete(&name, &params).await {
                Ok(_) => return,
                // Gone already, or a new pod has its name.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    tracing::debug!(pod = name, %error, "the end of a pod cannot be told yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// The pod's object says so for a reason that is none of a kubelet's.
fn is_taken_for_unready(pod: &Pod, status: &Value) -> bool {
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    let is_ready = status["conditions"].as_array().into_iter().flatten().any(ready);
    let told = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let others = |reason: &str| !["ContainersNotReady", "PodCompleted"].contains(&reason);
    let denied = |condition: &PodCondition| {
        condition.type_ == "Ready"
            && condition.status == "False"
            && condition.reason.as_deref().is_some_and(others)
    };
    is_ready && told.into_iter().any(denied)
}

/// Two statuses that differ in transition times only say the same.
fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastTransitionTime");
        }
    }
    status
}

async fn write(api: Api<Pod>, name: String, uid: String, mut newest: watch::Receiver<Option<Value>>) {
    while newest.changed().await.is_ok() {
        loop {
            let Some(status) = newest.borrow_and_update().clone() else { break };
            // The uid makes it a conflict when another pod has the name by now.
            let patch = json!({"metadata": {"uid": uid}, "status": status});
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                    tracing::debug!(pod = name, message = status.message, "a status was refused");
                    break;
                }
                Err(error) => {
                    tracing::debug!(pod = name, %error, "a status cannot be written yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_say_is_contradicted() {
        let pod = |reason: &str| -> Pod {
            let condition = json!({"type": "Ready", "status": "False", "reason": reason});
            let pod = json!({"metadata": {"name": "web"}, "status": {"conditions": [condition]}});
            serde_json::from_value(pod).expect("a pod")
        };
        let says = |status: &str| json!({"conditions": [{"type": "Ready", "status": status}]});
        assert!(is_taken_for_unready(&pod("NodeNotReady"), &says("True")));
        assert!(!is_taken_for_unready(&pod("NodeNotReady"), &says("False")));
        assert!(!is_taken_for_unready(&pod("ContainersNotReady"), &says("True")), "an object of before");
        assert!(!is_taken_for_unready(&Pod::default(), &says("True")));
    }
}
