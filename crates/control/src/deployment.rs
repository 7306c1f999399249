//! Deployments: a ReplicaSet per pod template, and a rollout from the old ones to the new one.
//!
//! Counts come from the pods themselves, not from the ReplicaSets' statuses: one write less between a pod that
//! became ready and the next step, and never an outdated number.

mod progress;
mod revision;
mod scale;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;
use types::ObjectName;

use crate::kind::Kind;
use crate::replica_set::{adopt, release};
use crate::view::{Deployment, OwnerReference, Pod, ReplicaSet};
use crate::world::{Clock, World};
use crate::write::{Decision, Write};

pub(crate) const HASH: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// The pods of one ReplicaSet, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub active: i64,
    pub ready: i64,
    pub available: i64,
    /// Not finished yet, those that are ending included.
    pub alive: i64,
}

/// One Deployment with everything a decision about it reads.
pub(crate) struct Rollout<'a> {
    pub deployment: &'a Deployment,
    /// All ReplicaSets of this Deployment, oldest first.
    pub sets: Vec<&'a ReplicaSet>,
    /// The one that has the Deployment's template.
    pub latest: Option<&'a ReplicaSet>,
    counts: BTreeMap<&'a str, Count>,
    pub now: Timestamp,
    pub clock: Clock,
}

pub fn decide(world: &World, name: &ObjectName, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(deployment) = world.get::<Deployment>(name) else { return decision };
    let Some(sets) = claim(world, deployment, &mut decision) else { return decision };
    let rollout = Rollout::observe(world, deployment, sets, now, &mut decision);
    let mut status = rollout.status();
    if !deployment.metadata.terminating() {
        if deployment.spec.paused || rollout.was_scaled() {
            decision.writes.extend(rollout.revise());
            decision.writes.extend(rollout.scale());
        } else if rollout.latest.is_none() && rollout.may_start() {
            decision.writes.extend(rollout.start(world, &mut status));
        } else {
            decision.writes.extend(rollout.revise());
            decision.writes.extend(if rollout.recreates() { rollout.recreate() } else { rollout.roll() });
        }
        rollout.progress(&mut status, &mut decision);
        if rollout.complete(&status) {
            decision.writes.extend(rollout.forget());
        }
    }
    if status != deployment.status {
        decision.writes.push(Write::status(Kind::Deployment, &deployment.metadata, &status));
    }
    decision
}

/// The ReplicaSets of a Deployment, oldest first; None when its selector cannot be read.
fn claim<'a>(
    world: &'a World,
    deployment: &Deployment,
    decision: &mut Decision,
) -> Option<Vec<&'a ReplicaSet>> {
    let selector = deployment.spec.selector.selector()?;
    let meta = &deployment.metadata;
    let mut sets = Vec::new();
    for set in world.within::<ReplicaSet>(&meta.namespace) {
        let matches = selector.matches(&set.metadata.labels);
        match set.metadata.controller() {
            Some(owner) if owner.uid == meta.uid && matches => sets.push(set),
            Some(owner) if owner.uid == meta.uid => {
                decision.writes.push(release(Kind::ReplicaSet, &set.metadata, &meta.uid));
            }
            None if matches && !meta.terminating() && !set.metadata.terminating() => {
                let owner = OwnerReference::controller(Kind::Deployment, meta);
                decision.writes.push(adopt(Kind::ReplicaSet, &set.metadata, owner));
                sets.push(set);
            }
            _ => {}
        }
    }
    sets.sort_by_key(|s| (s.metadata.creation_timestamp, revision::of(s), s.metadata.name.clone()));
    Some(sets)
}

impl<'a> Rollout<'a> {
    fn observe(
        world: &'a World,
        deployment: &'a Deployment,
        sets: Vec<&'a ReplicaSet>,
        now: Timestamp,
        decision: &mut Decision,
    ) -> Self {
        let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
        for pod in world.within::<Pod>(&deployment.metadata.namespace) {
            let Some(owner) = pod.metadata.controller() else { continue };
            let Some(set) = sets.iter().find(|s| s.metadata.uid == owner.uid) else { continue };
            let count = counts.entry(&set.metadata.uid).or_default();
            count.alive += i64::from(!pod.finished());
            if !pod.active() {
                continue;
            }
            count.active += 1;
            count.ready += i64::from(pod.ready());
            match pod.available(deployment.spec.min_ready_seconds, world.clock(now)) {
                Ok(()) => count.available += 1,
                Err(Some(missing)) => decision.look_again(missing),
                Err(None) => {}
            }
        }
        let latest = revision::latest(deployment, &sets);
        Self { deployment, sets, latest, counts, now, clock: world.clock(now) }
    }

    pub fn count(&self, set: &ReplicaSet) -> Count {
        self.counts.get(set.metadata.uid.as_str()).copied().unwrap_or_default()
    }

    pub fn is_latest(&self, set: &ReplicaSet) -> bool {
        self.latest.is_some_and(|l| l.metadata.uid == set.metadata.uid)
    }

    /// Those of earlier templates, oldest first.
    pub fn old(&self) -> impl DoubleEndedIterator<Item = &'a ReplicaSet> {
        self.sets.iter().copied().filter(|s| !self.is_latest(s))
    }

    pub fn replicas(&self) -> i64 {
        self.deployment.spec.replicas.unwrap_or(1)
    }

    pub fn recreates(&self) -> bool {
        self.deployment.spec.strategy.kind == "Recreate"
    }

    pub fn max_surge(&self) -> i64 {
        if self.recreates() {
            return 0;
        }
        let surge = self.deployment.spec.strategy.rolling_update.max_surge.as_ref();
        surge.map_or_else(|| (self.replicas() * 25 + 99) / 100, |s| s.of(self.replicas(), true))
    }

    /// Both bounds zero would never move; then one pod may be missing, as in kube-controller-manager.
    pub fn max_unavailable(&self) -> i64 {
        if self.recreates() || self.replicas() == 0 {
            return 0;
        }
        let outage = self.deployment.spec.strategy.rolling_update.max_unavailable.as_ref();
        let outage = outage.map_or_else(|| self.replicas() * 25 / 100, |u| u.of(self.replicas(), false));
        let outage = if outage == 0 && self.max_surge() == 0 { 1 } else { outage };
        outage.min(self.replicas())
    }

    /// Old ReplicaSets without pods beyond revisionHistoryLimit, lowest revision first.
    fn forget(&self) -> Vec<Write> {
        let Some(limit) = self.deployment.spec.revision_history_limit else { return Vec::new() };
        let mut old: Vec<_> = self.old().filter(|s| !s.metadata.terminating()).collect();
        old.sort_by_key(|s| revision::of(s));
        let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let spent = |s: &&&ReplicaSet| s.replicas() == 0 && self.count(s).alive == 0;
        let spent = old.iter().take(excess).filter(spent);
        spent.map(|s| Write::delete(Kind::ReplicaSet, &s.metadata)).collect()
    }

    /// A set's bookkeeping: how many pods were wanted when it got its size.
    pub fn sizes(&self) -> serde_json::Value {
        json!({
            DESIRED: self.replicas().to_string(),
            MAX: (self.replicas() + self.max_surge()).to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
