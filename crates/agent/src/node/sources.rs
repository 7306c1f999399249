//! Further sources: a pod has one when its record says so, and nobody gets one as long as the kernel may know flows that
//! another began from there.
//!
//! ```text
//!   due (guard/further.rs) ─┬─ lost, or another's still ─> withheld
//!                           └─ recorded ─────────────────> rules
//!   due no longer ─> rules ─> recorded as lost ─> its flows forgotten (flows.rs) ─> anybody's
//! ```
//! So a pod that gets one has no flow there that it did not begin, nothing that it begins is forgotten, and no process that is
//! killed in between leaves a source whose flows nobody forgets.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use model::{Event, Key, Kind, Row};
use semantics::further;
use semantics::{Diagnostic, Severity};
use types::range::without;
use types::wire::SOURCES_ANNOTATION;
use types::{Family, IpNet, ObjectName};

use super::Node;
use crate::datapath::Subsystem;

/// By attachment.
type Nets = BTreeMap<String, Vec<IpNet>>;

#[derive(Debug, Default)]
pub struct Sources {
    /// What each attachment may send from, beside its own addresses, by the rules that were compiled last.
    granted: Nets,
    /// Whether that is recorded.
    recorded: Option<Result<(), String>>,
    /// The same, by those that the kernel follows or has followed last.
    sent: Nets,
    /// What cannot be granted because it cannot be recorded.
    unrecorded: BTreeSet<Diagnostic>,
}

impl Sources {
    pub(super) fn granted_now(&mut self, done: Result<(), String>) {
        self.recorded = Some(done);
    }

    /// What was compiled is on its way.
    pub fn send(&mut self) {
        self.sent.clone_from(&self.granted);
    }

    /// By any rules that the kernel has or will have.
    fn any(&self, handle: &str) -> Vec<IpNet> {
        let all = of(&self.granted, handle).iter().chain(of(&self.sent, handle)).copied().collect();
        IpNet::aggregate(&all)
    }
}

fn of<'a>(nets: &'a Nets, handle: &str) -> &'a [IpNet] {
    nets.get(handle).map(Vec::as_slice).unwrap_or_default()
}

fn all_without(nets: &[IpNet], others: &[IpNet]) -> Vec<IpNet> {
    nets.iter().flat_map(|net| without(*net, others)).collect()
}

/// Who gets what more.
#[derive(Debug, Default, PartialEq, Eq)]
struct Share {
    grown: Nets,
    withheld: Nets,
}

/// `had`: what each attachment has by its record. Nobody gets what is lost, or is about to be because another one has it and
/// it is not due to him any more.
fn share(due: &Nets, had: &Nets, lost: &BTreeSet<IpNet>) -> Share {
    let ends = had.iter().flat_map(|(handle, had)| all_without(had, of(due, handle)));
    let owed: Vec<IpNet> = lost.iter().copied().chain(ends).collect();
    let mut share = Share::default();
    for (handle, nets) in due {
        let new = all_without(nets, of(had, handle));
        let free = if had.contains_key(handle) { all_without(&new, &owed) } else { Vec::new() };
        share.withheld.insert(handle.clone(), all_without(&new, &free));
        if !free.is_empty() {
            share.grown.insert(handle.clone(), free);
        }
    }
    share
}

fn cannot_record(pod: &ObjectName, nets: &[IpNet], error: &str) -> Diagnostic {
    let nets = nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Diagnostic {
        object: Key::new(Kind::Pod, pod.clone()),
        field: format!("metadata.annotations[{SOURCES_ANNOTATION}]"),
        severity: Severity::Warning,
        message: format!("the pod may not send from {nets} yet: its node cannot record that it may: {error}"),
        next_step: "see that the agent's data directory is writable and has room".to_owned(),
    }
}

impl Node {
    /// Before the rules are compiled: who gets what. What a pod gets is recorded first, so that the kernel never has a rule
    /// that no record has.
    pub(super) fn grant_sources(&mut self) {
        let due = self.due_sources();
        let records = self.attachments.records().all().iter();
        let had: Nets = records.map(|(handle, record)| (handle.clone(), record.further.clone())).collect();
        let Share { grown, mut withheld } = share(&due, &had, self.attachments.records().lost());
        let unrecorded = self.record_sources(&grown, &had).err();
        if unrecorded.is_some() {
            for (handle, nets) in &grown {
                withheld.entry(handle.clone()).or_default().extend(nets);
            }
        }
        self.tell_unrecorded(unrecorded.map(|error| (error, &grown)));
        self.withhold(&withheld);
        let granted = |(handle, nets): (String, Vec<IpNet>)| {
            let granted = all_without(&nets, of(&withheld, &handle));
            (handle, granted)
        };
        self.sources.granted = due.into_iter().map(granted).collect();
    }

    fn due_sources(&self) -> Nets {
        let Some(compiler) = &self.compiler else { return Nets::new() };
        let asking = self.cluster.pods_with_sources();
        let attachments = self.cluster.attachments.values().filter(|one| asking.contains(&one.pod));
        attachments
            .map(|one| {
                let of = |family| further::due((&self.cluster, compiler.settings()), one, family);
                (one.container.clone(), Family::ALL.into_iter().flat_map(of).collect())
            })
            .collect()
    }

    /// All of it or nothing.
    fn record_sources(&mut self, grown: &Nets, had: &Nets) -> Result<(), String> {
        if grown.is_empty() {
            return Ok(());
        }
        let all = |(handle, more): (&String, &Vec<IpNet>)| {
            let all = of(had, handle).iter().chain(more).copied().collect();
            (handle.clone(), IpNet::aggregate(&all))
        };
        self.hear(node::Input::Grant(grown.iter().map(all).collect()));
        self.sources.recorded.take().unwrap_or_else(|| Err("nobody said so".to_owned()))
    }

    fn tell_unrecorded(&mut self, failure: Option<(String, &Nets)>) {
        let now: BTreeSet<Diagnostic> = match failure {
            Some((error, grown)) => {
                let of = |(handle, nets): (&String, &Vec<IpNet>)| {
                    let record = self.attachments.records().all().get(handle)?;
                    Some(cannot_record(&record.pod, nets, &error))
                };
                grown.iter().filter_map(of).collect()
            }
            None => BTreeSet::new(),
        };
        let before = std::mem::replace(&mut self.sources.unrecorded, now.clone());
        self.base.metrics.diagnostics("Pod", now.len() as i64 - before.len() as i64);
        for finding in now.difference(&before) {
            self.raise(finding);
            self.standing.found.insert(finding.clone());
        }
        for finding in before.difference(&now) {
            self.standing.found.remove(finding);
            self.lower(finding);
        }
    }

    /// The rows say it, for the compiler.
    fn withhold(&mut self, withheld: &Nets) {
        let rows = self.cluster.attachments.values().filter_map(|row| {
            let nets = of(withheld, &row.container);
            (row.withheld != nets).then(|| {
                let mut row = row.clone();
                row.withheld = nets.to_vec();
                row
            })
        });
        for row in rows.collect::<Vec<_>>() {
            self.apply(Event::Upsert(Row::Attachment(row)));
        }
    }

    /// After the rules were applied: what pods may send from no longer.
    pub(super) fn lose_sources(&mut self) {
        if self.stale.failed.contains_key(&Subsystem::Nft) {
            return;
        }
        let granted = |handle: &str| self.sources.any(handle);
        let all = self.attachments.records().all().iter();
        let less = all.filter(|(handle, record)| !all_without(&record.further, &granted(handle)).is_empty());
        let less: Nets = less.map(|(handle, _)| (handle.clone(), granted(handle))).collect();
        if !less.is_empty() {
            self.hear(node::Input::Narrow(less));
        }
    }

    /// With every tick: what could not be recorded.
    pub(super) fn look_after_sources(&mut self) {
        if !self.sources.unrecorded.is_empty() {
            self.grant_withheld();
        }
    }

    /// In this round, for those that wait.
    pub(super) fn grant_withheld(&mut self) {
        let waiting = self.cluster.attachments.values().filter(|row| !row.withheld.is_empty());
        let key = |container: &str| Key::new(Kind::Attachment, ObjectName::cluster(container));
        self.changed.extend(waiting.map(|row| key(&row.container)));
    }
}
