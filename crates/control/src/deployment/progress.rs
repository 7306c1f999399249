//! The status: counts, and the two conditions that `kubectl rollout status` and `kubectl wait` read.

use super::Rollout;
use crate::view::{Condition, Deployment, DeploymentStatus, ReplicaSet, condition};
use crate::write::Decision;

fn new_condition(kind: &str, holds: Option<bool>, reason: &str, message: String) -> Condition {
    let status = match holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    Condition {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        ..Condition::default()
    }
}

impl Rollout<'_> {
    /// The counts and the Available condition as they are now.
    pub(super) fn status(&self) -> DeploymentStatus {
        let sum = |of: fn(&super::Count) -> i64| self.sets.iter().map(|s| of(&self.count(s))).sum::<i64>();
        let available = sum(|c| c.available);
        let asked: i64 = self.sets.iter().map(|s| s.replicas()).sum();
        let mut status = DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: sum(|c| c.active),
            updated_replicas: self.latest.map_or(0, |l| self.count(l).active),
            ready_replicas: sum(|c| c.ready),
            available_replicas: available,
            unavailable_replicas: (asked - available).max(0),
            collision_count: self.deployment.status.collision_count,
            conditions: self.deployment.status.conditions.clone(),
        };
        let enough = available >= self.replicas() - self.max_unavailable();
        let (reason, message) = if enough {
            ("MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        self.set_condition(&mut status, new_condition("Available", Some(enough), reason, message.into()));
        status
    }

    /// Sets a condition unless it says the same already; its transition is dated by its status alone.
    pub(super) fn set_condition(&self, status: &mut DeploymentStatus, mut to: Condition) {
        let known = condition(&status.conditions, &to.kind);
        if known.is_some_and(|c| c.status == to.status && c.reason == to.reason) {
            return;
        }
        let same = known.filter(|c| c.status == to.status);
        to.last_update_time = Some(self.now);
        to.last_transition_time = same.and_then(|c| c.last_transition_time).or(Some(self.now));
        status.conditions.retain(|c| c.kind != to.kind);
        status.conditions.push(to);
    }

    pub(super) fn complete(&self, status: &DeploymentStatus) -> bool {
        let wanted = self.replicas();
        self.latest.is_some()
            && [status.updated_replicas, status.replicas, status.available_replicas] == [wanted; 3]
    }

    /// The Progressing condition, which exists only with a deadline.
    pub(super) fn progress(&self, status: &mut DeploymentStatus, decision: &mut Decision) {
        let Some(deadline) = self.deployment.spec.progress_deadline_seconds else {
            status.conditions.retain(|c| c.kind != "Progressing");
            return;
        };
        let known = condition(&status.conditions, "Progressing").cloned();
        let reason = known.as_ref().map_or("", |c| c.reason.as_str());
        if self.deployment.spec.paused {
            let paused = "Deployment is paused".to_owned();
            self.set_condition(status, new_condition("Progressing", None, "DeploymentPaused", paused));
            return;
        }
        if reason == "DeploymentPaused" {
            let resumed = "Deployment is resumed".to_owned();
            self.set_condition(status, new_condition("Progressing", None, "DeploymentResumed", resumed));
            decision.look_again(deadline);
            return;
        }
        let finished = reason == "NewReplicaSetAvailable" && status.replicas == status.updated_replicas;
        if finished {
            return;
        }
        let told = |what: &str| {
            let (name, latest) = (&self.deployment.metadata.name, self.latest);
            latest.map_or_else(
                || format!("Deployment \"{name}\" {what}."),
                |l: &ReplicaSet| format!("ReplicaSet \"{}\" {what}.", l.metadata.name),
            )
        };
        if self.complete(status) {
            let message = told("has successfully progressed");
            let done = new_condition("Progressing", Some(true), "NewReplicaSetAvailable", message);
            self.set_condition(status, done);
        } else if moved(self.deployment, status) {
            // The same reason again, but later: the deadline counts from the last step.
            status.conditions.retain(|c| c.kind != "Progressing");
            let mut to =
                new_condition("Progressing", Some(true), "ReplicaSetUpdated", told("is progressing"));
            let running = known.filter(|c| c.holds());
            to.last_update_time = Some(self.now);
            to.last_transition_time = running.and_then(|c| c.last_transition_time).or(Some(self.now));
            status.conditions.push(to);
            decision.look_again(deadline + 1);
        } else if self.latest.is_some() && reason.is_empty() {
            let message = self.latest.map(|l| format!("Found new replica set \"{}\"", l.metadata.name));
            let found = message.unwrap_or_default();
            self.set_condition(status, new_condition("Progressing", Some(true), "FoundNewReplicaSet", found));
            decision.look_again(deadline + 1);
        } else if let Some(since) = known.as_ref().and_then(|c| c.last_update_time)
            && reason != "ProgressDeadlineExceeded"
        {
            let left = deadline - self.clock.since(since);
            if left < 0 && reason != "NewReplicaSetAvailable" {
                let message = told("has timed out progressing");
                let late = new_condition("Progressing", Some(false), "ProgressDeadlineExceeded", message);
                self.set_condition(status, late);
            } else if left >= 0 {
                decision.look_again(left + 1);
            }
        }
    }
}

/// A step forward since the last status: more new pods, fewer old ones, more ready or available ones.
fn moved(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let before = &deployment.status;
    let old = |s: &DeploymentStatus| s.replicas - s.updated_replicas;
    status.updated_replicas > before.updated_replicas
        || old(status) < old(before)
        || status.ready_replicas > before.ready_replicas
        || status.available_replicas > before.available_replicas
}
