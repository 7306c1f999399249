//! How many pods each ReplicaSet may have: rolling, recreating, and scaling in the middle of a rollout.

use std::cmp::Reverse;

use serde_json::json;

use super::{DESIRED, MAX, Rollout};
use crate::brain::Brain;
use crate::kind::Kind;
use crate::view::ReplicaSet;
use crate::write::{Notice, Target, Write};

impl Rollout<'_> {
    pub(super) fn scaled_notice(&self, set: &str, from: i64, to: i64) -> Notice {
        let way = if to > from { "up" } else { "down" };
        Notice {
            about: Target::of(Kind::Deployment, &self.deployment.metadata),
            warning: false,
            reason: "ScalingReplicaSet",
            note: format!("Scaled {way} replica set {set} from {from} to {to}"),
            source: Brain::Deployment.component(),
        }
    }

    /// A set gets a size, and the note for which total it got it.
    fn resize(&self, set: &ReplicaSet, to: i64) -> Vec<Write> {
        let from = set.replicas();
        let sizes = self.sizes();
        let noted = |key: &str| set.metadata.annotations.get(key).map(String::as_str) == sizes[key].as_str();
        if from == to && noted(DESIRED) && noted(MAX) {
            return Vec::new();
        }
        let mut patch = json!({"metadata": {"annotations": sizes}});
        if from != to {
            patch["spec"]["replicas"] = json!(to);
        }
        let mut writes = vec![Write::patch(Kind::ReplicaSet, &set.metadata, patch)];
        if from != to {
            writes.push(Write::Post(self.scaled_notice(&set.metadata.name, from, to)));
        }
        writes
    }

    fn total(&self) -> i64 {
        self.sets.iter().map(|s| s.replicas()).sum()
    }

    fn active(&self) -> Vec<&ReplicaSet> {
        self.sets.iter().copied().filter(|s| s.replicas() > 0).collect()
    }

    /// Recreate makes the new set only when the last old pod is gone, those that are ending included.
    pub(super) fn may_start(&self) -> bool {
        !self.recreates() || self.old().all(|s| s.replicas() == 0 && self.count(s).alive == 0)
    }

    /// The size of a set that does not exist yet.
    pub(super) fn first_size(&self) -> i64 {
        if self.recreates() {
            return self.replicas();
        }
        let room = self.replicas() + self.max_surge() - self.total();
        room.clamp(0, self.replicas().max(0))
    }

    pub(super) fn recreate(&self) -> Vec<Write> {
        if !self.may_start() {
            let old = self.old().filter(|s| s.replicas() > 0);
            return old.flat_map(|s| self.resize(s, 0)).collect();
        }
        self.latest.map(|latest| self.resize(latest, self.replicas())).unwrap_or_default()
    }

    /// One step of a rolling update: first up to the surge, then down to what may be missing.
    pub(super) fn roll(&self) -> Vec<Write> {
        let Some(latest) = self.latest else { return Vec::new() };
        let wanted = self.replicas();
        let room = wanted + self.max_surge() - self.total();
        let up = if latest.replicas() > wanted {
            wanted
        } else {
            latest.replicas() + room.clamp(0, wanted - latest.replicas())
        };
        let writes = self.resize(latest, up);
        if up != latest.replicas() {
            return writes;
        }
        writes.into_iter().chain(self.shrink_old(latest)).collect()
    }

    /// Old pods that serve nobody go first, in all old sets; then serving ones, oldest set first, as long as
    /// enough stay available. The new set's unavailable pods count as missing.
    fn shrink_old(&self, latest: &ReplicaSet) -> Vec<Write> {
        let floor = self.replicas() - self.max_unavailable();
        let available = |s: &ReplicaSet| self.count(s).available.min(s.replicas());
        let mut budget = self.total() - floor - (latest.replicas() - available(latest));
        let mut spare = self.sets.iter().map(|s| available(s)).sum::<i64>() - floor;
        let old: Vec<&ReplicaSet> = self.old().filter(|s| s.replicas() > 0).collect();
        let mut writes = Vec::new();
        let mut sick: Vec<i64> = Vec::new();
        for set in &old {
            let n = (set.replicas() - available(set)).min(budget).max(0);
            budget -= n;
            sick.push(n);
        }
        for (set, sick) in old.into_iter().zip(sick) {
            let well = available(set).min(budget).min(spare).max(0);
            let well = if set.replicas() - sick - well >= 0 { well } else { 0 };
            budget -= well;
            spare -= well;
            writes.extend(self.resize(set, set.replicas() - sick - well));
        }
        writes
    }

    /// The Deployment's size changed since its sets got theirs.
    pub(super) fn was_scaled(&self) -> bool {
        let wanted = self.replicas().to_string();
        self.active().iter().any(|s| s.metadata.annotations.get(DESIRED).is_some_and(|d| *d != wanted))
    }

    /// Scaling: one active set takes it all; in the middle of a rollout each set takes its share.
    pub(super) fn scale(&self) -> Vec<Write> {
        let active = self.active();
        let only = match active.as_slice() {
            [] => self.latest.or_else(|| self.old().last()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(set) = only {
            return self.resize(set, self.replicas());
        }
        if self.latest.is_some_and(|l| self.saturated(l)) {
            return self.old().filter(|s| s.replicas() > 0).flat_map(|s| self.resize(s, 0)).collect();
        }
        if self.recreates() { Vec::new() } else { self.share(active) }
    }

    fn saturated(&self, latest: &ReplicaSet) -> bool {
        let noted = latest.metadata.annotations.get(DESIRED).and_then(|d| d.parse::<i64>().ok());
        let wanted = self.replicas();
        noted == Some(wanted) && latest.replicas() == wanted && self.count(latest).available == wanted
    }

    /// In proportion to the sizes, largest first; what rounding leaves goes to the largest.
    fn share(&self, mut active: Vec<&ReplicaSet>) -> Vec<Write> {
        let allowed = if self.replicas() > 0 { self.replicas() + self.max_surge() } else { 0 };
        let change = allowed - active.iter().map(|s| s.replicas()).sum::<i64>();
        // Of equal ones the youngest grows first, and the oldest shrinks first.
        active.sort_by_key(|s| (Reverse(s.replicas()), s.metadata.creation_timestamp));
        if change > 0 {
            active.sort_by_key(|s| (Reverse(s.replicas()), Reverse(s.metadata.creation_timestamp)));
        }
        let mut given = 0;
        let mut sizes: Vec<i64> = Vec::new();
        for set in &active {
            let part = self.proportion(set, change - given);
            given += part;
            sizes.push(set.replicas() + part);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + change - given).max(0);
        }
        active.into_iter().zip(sizes).flat_map(|(set, size)| self.resize(set, size)).collect()
    }

    fn proportion(&self, set: &ReplicaSet, left: i64) -> i64 {
        if left == 0 || set.replicas() == 0 {
            return 0;
        }
        if self.replicas() == 0 {
            return (-set.replicas()).max(left);
        }
        let before = set.metadata.annotations.get(MAX).and_then(|m| m.parse::<i64>().ok());
        let before = before.filter(|b| *b > 0).unwrap_or_else(|| self.total()).max(1);
        let scaled = set.replicas() * (self.replicas() + self.max_surge());
        let part = (scaled * 2 + before) / (before * 2) - set.replicas();
        if left > 0 { part.clamp(0, left) } else { part.clamp(left, 0) }
    }
}
