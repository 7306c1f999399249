//! Whether a container without a readiness probe has run long enough to count: it is Ready as soon as it is started, and may
//! end in the next moment.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

/// For so long.
const STEADY: Duration = Duration::from_secs(2);
/// Starts are told in whole seconds, cut: so old by its status is at least [`STEADY`].
const STEADY_AS_TOLD: SignedDuration = SignedDuration::from_secs(3);

/// When one who waits first saw each start of a container: its pod, its name and how often it was started before.
#[derive(Debug, Default)]
pub struct Seen(RefCell<BTreeMap<(String, String, i32), Instant>>);

/// This moment, by the clock that starts are told by and by one that nobody sets.
#[derive(Clone, Copy)]
pub(super) struct Clock<'a> {
    pub told: Timestamp,
    pub own: Instant,
    pub seen: &'a Seen,
}

impl<'a> Clock<'a> {
    pub fn now(seen: &'a Seen) -> Self {
        Self { told: Timestamp::now(), own: Instant::now(), seen }
    }

    /// A container whose readiness says no more than that it was started, and only just.
    pub fn unsteady(self, pod: &Pod) -> Option<&str> {
        let probed = |name: &str| {
            let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            containers.any(|container| container.name == name && container.readiness_probe.is_some())
        };
        let all = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        // All of them are looked at: each counts from when it was first seen.
        let unsteady: Vec<&ContainerStatus> =
            all.filter(|one| !probed(&one.name)).filter(|one| !self.is_steady(pod, one)).collect();
        unsteady.first().map(|one| one.name.as_str())
    }

    fn is_steady(self, pod: &Pod, container: &ContainerStatus) -> bool {
        let running = container.state.as_ref().and_then(|state| state.running.as_ref());
        let Some(started) = running.and_then(|running| running.started_at.as_ref()) else { return false };
        let start = (pod.uid().unwrap_or_default(), container.name.clone(), container.restart_count);
        let seen = *self.seen.0.borrow_mut().entry(start).or_insert(self.own);
        self.own.saturating_duration_since(seen) >= STEADY
            || self.told.duration_since(started.0) >= STEADY_AS_TOLD
    }
}
