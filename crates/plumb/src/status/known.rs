//! What the API knows of a node whose agent says nothing: whether it is Ready, since when, and when it was last heard of.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;

use serde::Serialize;

use super::show::duration;

/// In words, and in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Known {
    /// As the condition Ready has it, which follows after 40 s by default.
    pub is_ready: bool,
    pub said: String,
    /// Where the node should be (InternalIP).
    pub addresses: Vec<String>,
}

impl Known {
    /// `lease`: by which kubelets of today say that they live; a Node's own heartbeat may be five minutes old.
    pub fn of(node: &Node, lease: Option<&Lease>, now: Timestamp) -> Self {
        let ago = |then: Timestamp| duration(u64::try_from(now.duration_since(then).as_secs()).unwrap_or(0));
        let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = all.filter(|address| address.type_ == "InternalIP");
        let addresses: Vec<String> = internal.map(|address| address.address.clone()).collect();
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let Some(ready) = conditions.into_iter().find(|condition| condition.type_ == "Ready") else {
            let said = "the API has heard nothing of its kubelet yet".to_owned();
            return Self { is_ready: false, said, addresses };
        };
        let is_ready = ready.status == "True";
        let since = ready.last_transition_time.as_ref().map(|time| format!(" for {}", ago(time.0)));
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0);
        let heard = renewed.max(ready.last_heartbeat_time.as_ref().map(|time| time.0));
        let heard = heard.map(|time| format!(", and its kubelet was last heard of {} ago", ago(time)));
        let why = ready.message.as_deref().filter(|why| !is_ready && !why.is_empty());
        let said = format!(
            "the API has the node {}{}{}{}",
            if is_ready { "Ready" } else { "NotReady" },
            since.unwrap_or_default(),
            why.map(|why| format!(" ({})", why.trim_end_matches('.'))).unwrap_or_default(),
            heard.unwrap_or_default()
        );
        Self { is_ready, said, addresses }
    }
}

/// What the condition Ready of a Node says; `None`: nobody has set it yet.
pub fn ready(node: &Node) -> Option<&str> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().find(|condition| condition.type_ == "Ready").map(|condition| &*condition.status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_api_says_since_when_and_when_it_heard_last() {
        let node = |status: &str| -> Node {
            let condition = json!({"type": "Ready", "status": status, "message": "Kubelet stopped posting node status.",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:01:00Z"});
            serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"conditions": [condition]}}))
                .unwrap()
        };
        let lease: Lease =
            serde_json::from_value(json!({"spec": {"renewTime": "2026-01-01T00:00:30.000000Z"}})).unwrap();
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let known = Known::of(&node("Unknown"), Some(&lease), now);
        assert!(!known.is_ready);
        assert_eq!(
            known.said,
            "the API has the node NotReady for 60s (Kubelet stopped posting node status), and its kubelet was last \
             heard of 90s ago"
        );
        let known = Known::of(&node("True"), None, now);
        assert_eq!(
            (known.is_ready, known.said.contains("Ready for 60s, and its kubelet was last heard of 2m")),
            (true, true)
        );
        assert!(Known::of(&Node::default(), None, now).said.contains("nothing of its kubelet"));
    }
}
