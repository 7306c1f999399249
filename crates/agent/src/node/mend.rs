//! Observe, compare, mend: after a refusal, after somebody else's change, and now and then.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use compile::Compiler;
use kstate::net::{PortOptions, Told};
use model::{Key, Kind};
use node::{Network, Record, Steps, Wire, drift, is_gone};
use semantics::{Diagnostic, Severity};
use types::{IfName, ObjectName};

use super::Node;
use crate::datapath::{Found, Look, Subsystem};
use crate::store::namespace_lives;
use crate::wirer;

impl Node {
    /// Remembers whether the kernel took something.
    pub(super) fn note(&mut self, subsystem: Subsystem, done: Result<()>) {
        self.found(
            subsystem,
            match done {
                Ok(()) => drift::Found::Taken,
                Err(error) => drift::Found::Refused(format!("{error:#}")),
            },
        );
    }

    /// Compares links and routes as a whole where the kernel refused them in parts; the backend does so itself. While paused,
    /// too: that a change of the cluster arrives weighs more than what somebody changed by hand.
    pub(super) fn repair(&mut self) {
        if !self.stale.failed.contains_key(&Subsystem::Net) {
            return;
        }
        let began = Instant::now();
        let done = self.converge_links();
        self.base.metrics.applied(Subsystem::Net.name(), began.elapsed());
        self.stale.suspected.remove(&Subsystem::Net);
        self.compared(Subsystem::Net, done, false);
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
        for subsystem in std::mem::take(&mut self.stale.suspected) {
            match subsystem {
                Subsystem::Nft => self.look_at_tables(),
                Subsystem::Net => self.look_at_links(),
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

    /// Before the kernel has followed all of it once, it is looked at in any case.
    fn look_at_tables(&mut self) {
        let backend = &mut self.base.datapath.backend;
        let why = if self.paused { Look::Only } else { Look::Mend };
        if backend.has_followed() && !backend.look(why) {
            self.stale.suspected.insert(Subsystem::Nft);
        }
    }

    fn look_at_links(&mut self) {
        if !self.may_make_links() {
            return;
        }
        match self.paused {
            true => {
                let found = self.differ_links();
                self.only_looked(Subsystem::Net, found);
            }
            false => {
                let done = self.converge_links();
                self.compared(Subsystem::Net, done, true);
            }
        }
    }

    pub(super) fn only_looked(&mut self, subsystem: Subsystem, found: Result<Steps>) {
        let found = found.map(drift::Found::Seen);
        self.found(subsystem, found.unwrap_or_else(|error| drift::Found::Refused(format!("{error:#}"))));
    }

    /// After the kernel was made what it should be, or was not. `suspected`: what it took is what others had changed; else it
    /// is what was refused a moment ago.
    pub(super) fn compared(&mut self, subsystem: Subsystem, done: Result<Steps>, suspected: bool) {
        let found = done.map(|steps| drift::Found::Mended { steps, suspected });
        self.found(subsystem, found.unwrap_or_else(|error| drift::Found::Unmended(format!("{error:#}"))));
    }

    fn converge_links(&mut self) -> Result<Steps> {
        self.base.datapath.links.leave_out(self.coming());
        let Some(compiler) = &self.compiler else { return Ok(Steps::default()) };
        self.base.metrics.looked(Subsystem::Net.name());
        let Found { mut steps, lost } = self.base.datapath.links.converge(compiler.net())?;
        lost.iter().filter_map(|name| self.rewire(name)).for_each(|step| steps.add(step));
        self.note_ports();
        self.fit_pods().into_iter().for_each(|step| steps.add(step));
        Ok(steps)
    }

    pub(super) fn differ_links(&mut self) -> Result<Steps> {
        self.base.datapath.links.leave_out(self.coming());
        let Some(compiler) = &self.compiler else { return Ok(Steps::default()) };
        self.base.metrics.looked(Subsystem::Net.name());
        let Found { mut steps, lost } = self.base.datapath.links.differ(compiler.net())?;
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

    /// Of a veth that is gone while its pod can still use one. What we delete is no loss, nor what went with its namespace, nor
    /// what an ADD is about to make.
    fn who_lost(&self, name: &IfName) -> Option<&Record> {
        let record = self.records().find(|record| record.host_if == *name)?;
        let handle = record.handle();
        let stands = !self.attachments.is_leaving(&handle) && !self.attachments.is_coming(&handle);
        (stands && namespace_lives(record)).then_some(record)
    }

    /// Whether the pod is being deleted, or has ended: its veth may go at any moment, before the runtime's DEL comes.
    fn is_ending(&self, record: &Record) -> bool {
        let known = self.cluster.pods.get(&record.pod);
        match known.filter(|pod| record.uid.is_empty() || pod.uid == record.uid) {
            Some(pod) => pod.terminating || pod.phase.finished(),
            None => is_gone(record, &self.facts()),
        }
    }

    /// A veth that somebody deleted. A pod that is ending has its own again as long as it can use it, and that is no drift.
    fn rewire(&mut self, name: &IfName) -> Option<String> {
        let record = self.who_lost(name)?.clone();
        // Before everything is listed, too: its policies are those of the process before.
        let settings = self.compiler.as_ref().map(Compiler::settings);
        let network = settings.map(|settings| Network::new(&self.cluster, settings));
        let wire = Wire::again(&record, network.as_ref());
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
}

fn veth_is_gone(record: &Record) -> String {
    format!("the veth {} of pod {} is gone", record.host_if, record.pod)
}

#[cfg(test)]
mod tests;
