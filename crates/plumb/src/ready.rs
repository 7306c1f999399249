//! The condition Ready of pods and nodes.

use k8s_openapi::api::core::v1::{Node, Pod};

pub fn pod(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub fn node(node: &Node) -> bool {
    install::readiness(node).is_some_and(|ready| ready.status == "True")
}

/// Its kubelet speaks, and may yet say Ready: it does so seconds after it has a network.
pub fn node_may_be_soon(node: &Node) -> bool {
    install::readiness(node).is_none_or(|ready| ready.status == "False")
}

/// Why a node is not, in its kubelet's words.
pub fn node_says(node: &Node) -> &str {
    let said = install::readiness(node).and_then(|ready| ready.message.as_deref());
    said.unwrap_or("its kubelet has not reported yet")
}
