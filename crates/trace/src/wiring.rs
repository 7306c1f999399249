//! By which links of its node a pod's packets come and go.

use model::{Attachment, Cluster};
use types::{IfName, Wiring};

/// Links that all pods of a node share, of all wirings: who compares what several nodes saw does not know which each has.
pub fn links() -> impl Iterator<Item = &'static str> {
    Wiring::ALL.iter().filter_map(|wiring| wiring.link())
}

/// The link that all pods share, if there is one.
pub fn shared(wiring: Wiring) -> Option<IfName> {
    wiring.link().and_then(|link| IfName::new(link).ok())
}

/// Where the node's rules see the packets of a pod.
pub fn of_pod(pod: &Attachment) -> IfName {
    shared(pod.wiring).unwrap_or_else(|| pod.host_if.clone())
}

/// Whether packets of pods come by the link.
pub fn is_of_pods(wiring: Wiring, link: &IfName, cluster: &Cluster) -> bool {
    match shared(wiring) {
        Some(shared) => *link == shared,
        None => cluster.attachments.values().any(|pod| pod.host_if == *link),
    }
}
