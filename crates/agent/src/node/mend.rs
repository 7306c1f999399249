//! Observe, compare, mend: after a refusal, after somebody else's change, and now and then.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use compile::Compiler;
use kstate::net::{PortOptions, Told};
use model::{Key, Kind};
use node::{Facts, Record, Wire};
use semantics::{Diagnostic, Severity};
use types::{IfName, ObjectName};

use super::Node;
use crate::datapath::{Found, Steps, Subsystem};
use crate::store::namespace_lives;
use crate::tell::Saying;
use crate::wirer;

impl Node {
    /// Remembers whether the kernel took something.
    pub(super) fn note(&mut self, subsystem: Subsystem, done: Result<()>) {
        match done {
            Ok(()) => {
                self.stale.failed.remove(&subsystem);
                self.standing.is_right(subsystem);
                if let Some(age) = self.standing.since_right() {
                    self.base.metrics.right_now(crate::clock::since_epoch().saturating_sub(age));
                }
            }
            Err(error) => drop(self.refused(subsystem, &error)),
        }
    }

    /// Whether that is news.
    fn refused(&mut self, subsystem: Subsystem, error: &anyhow::Error) -> bool {
        let error = format!("{error:#}");
        self.base.metrics.apply_failed(subsystem.name());
        let is_news = self.stale.failed.insert(subsystem, error.clone()).as_ref() != Some(&error);
        if is_news {
            tracing::error!(subsystem = subsystem.name(), error, "the kernel did not take a change");
        }
        is_news
    }

    /// Compares as a whole what the kernel refused in parts. While paused, too: that a change of the cluster
    /// arrives weighs more than what somebody changed by hand.
    pub(super) fn repair(&mut self) {
        let failed: Vec<Subsystem> = self.stale.failed.keys().copied().collect();
        for subsystem in failed {
            let began = Instant::now();
            let done = self.converge(subsystem);
            self.base.metrics.applied(subsystem.name(), began.elapsed());
            self.stale.suspected.remove(&subsystem);
            self.compared(subsystem, done, false);
        }
    }

    /// Looks where somebody may have changed something, and puts back what is ours.
    pub(super) fn mend(&mut self) {
        if self.was_contradicted() {
            self.stale.suspected.insert(Subsystem::Net);
        }
        if self.compiler.is_none() {
            return;
        }
        if self.stale.suspected.contains(&Subsystem::Nft) {
            self.loose.add(self.cluster.services.len());
        }
        let whole = self.whole().is_some();
        for subsystem in std::mem::take(&mut self.stale.suspected) {
            if !whole && (!subsystem.is_early() || !self.may_make_links()) {
                // Once everything is listed both are looked at in any case.
            } else if self.paused {
                self.only_look(subsystem);
            } else {
                let done = self.converge(subsystem);
                self.compared(subsystem, done, true);
            }
        }
        self.publish();
    }

    /// Whether the kernel has told of something that is not our own doing. A pod's veth goes with its namespace, and what we
    /// delete is no loss.
    fn was_contradicted(&mut self) -> bool {
        let coming = self.coming();
        let told = std::mem::take(&mut self.stale.told).into_iter();
        // What is being made is compared when it is there.
        let of_coming = |told: &Told| told.link().is_some_and(|link| coming.contains(link));
        let (later, told): (Vec<_>, Vec<_>) = told.partition(of_coming);
        self.stale.told = later;
        let mut news = self.base.datapath.links.contradicting(&told).into_iter();
        news.any(|told| !told.link().is_some_and(|link| self.is_let_go(link)))
    }

    /// The veths that are being made, of whichever pods.
    fn coming(&self) -> BTreeSet<IfName> {
        self.attachments.coming().map(|record| record.host_if.clone()).collect()
    }

    fn is_let_go(&self, link: &IfName) -> bool {
        self.base.datapath.links.has_veth(link) && self.who_lost(link).is_none()
    }

    /// Who only looked and found a difference has not shown that the kernel takes anything.
    fn only_look(&mut self, subsystem: Subsystem) {
        match self.differ(subsystem) {
            Ok(steps) => {
                self.stands(subsystem, &steps);
                if steps.count == 0 {
                    self.drift_ended(subsystem, &steps, false);
                    return self.note(subsystem, Ok(()));
                }
                self.base.metrics.drift(subsystem.name(), steps.count, false);
                self.drift_stands(subsystem, steps);
            }
            Err(error) => self.note(subsystem, Err(error)),
        }
    }

    /// After the kernel was made what it should be, or was not. `suspected`: what it took is what others had changed; else it
    /// is what was refused a moment ago.
    fn compared(&mut self, subsystem: Subsystem, done: Result<Steps>, suspected: bool) {
        match done {
            Ok(steps) => {
                self.stands(subsystem, &Steps::default());
                let was_told = self.tell_what_is_taken_again(subsystem, &steps);
                if suspected && steps.count > 0 {
                    self.base.metrics.drift(subsystem.name(), steps.count, true);
                }
                self.drift_ended(subsystem, &steps, suspected && steps.count > 0 && !was_told);
                self.note(subsystem, Ok(()));
            }
            // One look for each reason: a kernel that refuses is asked again every second.
            Err(error) => {
                if (self.refused(subsystem, &error) || !self.standing.has_drift(subsystem))
                    && let Ok(left) = self.differ(subsystem)
                {
                    self.stands(subsystem, &left);
                }
            }
        }
    }

    /// What differs, as long as nobody mends it.
    fn stands(&mut self, subsystem: Subsystem, left: &Steps) {
        self.base.metrics.drift_stands(subsystem.name(), left.count);
        self.standing.differs(subsystem, left);
    }

    fn converge(&mut self, subsystem: Subsystem) -> Result<Steps> {
        self.base.datapath.links.leave_out(self.coming());
        let Some(compiler) = &self.compiler else { return Ok(Steps::default()) };
        let part = self.base.datapath.part(subsystem);
        if part.is_untouched()? {
            return Ok(Steps::default());
        }
        self.base.metrics.looked(subsystem.name());
        let Found { mut steps, lost } = part.converge(compiler)?;
        lost.iter().filter_map(|name| self.rewire(name)).for_each(|step| steps.add(step));
        if subsystem == Subsystem::Net {
            self.note_ports();
            self.fit_pods().into_iter().for_each(|step| steps.add(step));
        }
        Ok(steps)
    }

    fn differ(&mut self, subsystem: Subsystem) -> Result<Steps> {
        self.base.datapath.links.leave_out(self.coming());
        let Some(compiler) = &self.compiler else { return Ok(Steps::default()) };
        self.base.metrics.looked(subsystem.name());
        let Found { mut steps, lost } = self.base.datapath.part(subsystem).differ(compiler)?;
        let lost = lost.iter().filter_map(|name| self.who_lost(name));
        lost.filter(|record| !self.is_ending(record)).for_each(|record| steps.add(veth_is_gone(record)));
        Ok(steps)
    }

    /// A kernel without some option of a pod's port does without it: the node works, with one guard less.
    pub(super) fn note_ports(&mut self) {
        let unknown = self.base.datapath.links.unknown_port_options();
        let of_bridges = unknown.without(PortOptions::CHECKSUMS);
        if !of_bridges.is_empty() {
            let message = format!(
                "its bridges have no ports that are {of_bridges}; the table bridge plumb alone keeps pods from each \
                 other's hardware addresses"
            );
            self.note_kernel(message, "Linux 5.18 or later has them".to_owned());
        }
        if let (true, Err(missing)) = (unknown.has(PortOptions::CHECKSUMS), kernel::checksums::program()) {
            let message = format!(
                "its pods' ports cannot look where checksums are to be filled in ({missing}); a pod with CAP_NET_RAW can have \
                 the kernel change a packet behind sources and policies"
            );
            let next = "a kernel with that, or pods without NET_RAW (docs/security.md)";
            self.note_kernel(message, next.to_owned());
        }
    }

    fn note_kernel(&mut self, message: String, next_step: String) {
        let finding = Diagnostic {
            object: Key::new(Kind::Node, ObjectName::cluster(&self.base.settings.node)),
            field: "kernel".to_owned(),
            severity: Severity::Note,
            message,
            next_step,
        };
        if self.standing.found.insert(finding.clone()) {
            self.raise(&finding);
        }
    }

    /// Of a veth that is gone while its pod can still use one. What we delete is no loss, nor what is not there yet, nor what
    /// went with its namespace.
    fn who_lost(&self, name: &IfName) -> Option<&Record> {
        let record = self.records().find(|record| record.host_if == *name)?;
        let handle = record.handle();
        let is_on_its_way = self.attachments.is_leaving(&handle)
            || self.attachments.coming().any(|coming| coming.handle() == handle);
        (!is_on_its_way && namespace_lives(record)).then_some(record)
    }

    /// Whether the pod is being deleted, or has ended: its veth may go at any moment, before the runtime's DEL comes.
    fn is_ending(&self, record: &Record) -> bool {
        let known = self.cluster.pods.get(&record.pod);
        match known.filter(|pod| record.uid.is_empty() || pod.uid == record.uid) {
            Some(pod) => pod.terminating || pod.phase.finished(),
            None => self.facts().is_gone(record),
        }
    }

    /// A veth that somebody deleted. A pod that is ending has its own again as long as it can use it, and that is no drift.
    fn rewire(&mut self, name: &IfName) -> Option<String> {
        let record = self.who_lost(name)?.clone();
        // Before everything is listed, too: its policies are those of the process before.
        let settings = self.compiler.as_ref().map(Compiler::settings);
        let wire = Wire::again(&record, &Facts { settings, ..self.facts() });
        let links = &mut self.base.datapath.links;
        let made = wire.and_then(|wire| wirer::make(&mut links.rtnl, &wire).map(|()| wire));
        match made.inspect(|wire| self.believe(wire)) {
            Ok(_) => (!self.is_ending(&record)).then(|| veth_is_gone(&record)),
            Err(error) => {
                tracing::warn!(veth = %name, pod = %record.pod, %error, "a pod's veth is gone and cannot be made again");
                None
            }
        }
    }

    /// While paused: told where something is new in it, which comes first then.
    fn drift_stands(&mut self, subsystem: Subsystem, steps: Steps) {
        let Some(steps) = self.standing.news_of_drift(subsystem, steps) else { return };
        let done = format!("found and left so while the agent is paused: {steps}");
        let saying = self.drift(subsystem, "DriftSeen", &done);
        tracing::warn!(subsystem = subsystem.name(), steps = steps.count, "{}", saying.message);
        self.standing.told_drift(subsystem, saying.clone());
        self.base.tell.holds(saying);
    }

    /// By the agent, in these steps, or by somebody else. `is_news`: also where nothing was told of it.
    fn drift_ended(&mut self, subsystem: Subsystem, steps: &Steps, is_news: bool) {
        let (told, known) = self.standing.end_drift(subsystem);
        if told.is_empty() && !is_news {
            return;
        }
        // What was told and is right again without the agent belongs to it.
        let all = steps.clone().and(known);
        let done = match steps.count {
            0 => format!("put back while the agent was paused, and not by it: {all}"),
            _ => format!("found and put back: {all}"),
        };
        let over = self.drift(subsystem, "DriftMended", &done);
        tracing::warn!(subsystem = subsystem.name(), steps = steps.count, "{}", over.message);
        match told.is_empty() {
            true => self.base.tell.say(over),
            false => self.base.tell.over(told, over),
        }
    }

    fn drift(&self, subsystem: Subsystem, reason: &'static str, done: &str) -> Saying {
        Saying {
            object: Key::new(Kind::Node, ObjectName::cluster(&self.base.settings.node)),
            uid: String::new(),
            normal: reason == "DriftMended",
            reason,
            message: format!("{reason}: somebody changed Plumb's {}; {done}", subsystem.name()),
        }
    }
}

fn veth_is_gone(record: &Record) -> String {
    format!("the veth {} of pod {} is gone", record.host_if, record.pod)
}

#[cfg(test)]
mod tests;
