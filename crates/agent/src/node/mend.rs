//! Observe, compare, mend: after a refusal, after somebody else's change, and now and then.

use std::time::Instant;

use anyhow::Result;
use kstate::net::PortOptions;
use model::{Key, Kind};
use semantics::{Diagnostic, Severity};
use types::{IfName, ObjectName};

use super::Node;
use crate::datapath::Steps;
use crate::inbox::Subsystem;
use crate::tell::Saying;

impl Node {
    /// Remembers whether the kernel took something.
    pub(super) fn note(&mut self, subsystem: Subsystem, done: Result<()>) {
        let Err(error) = done else {
            self.stale.failed.remove(&subsystem);
            self.standing.is_right(subsystem);
            if let Some(age) = self.standing.since_right() {
                self.base.metrics.right_now(crate::clock::since_epoch().saturating_sub(age));
            }
            return;
        };
        let error = format!("{error:#}");
        self.base.metrics.apply_failed(subsystem.name());
        if self.stale.failed.insert(subsystem, error.clone()).as_ref() != Some(&error) {
            tracing::error!(subsystem = subsystem.name(), error, "the kernel did not take a change");
        }
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
            self.note(subsystem, done.map(drop));
        }
    }

    /// Looks where somebody may have changed something, and puts back what is ours.
    pub(super) fn mend(&mut self) {
        if self.compiler.is_none() {
            return;
        }
        if self.stale.suspected.contains(&Subsystem::Nft) {
            self.loose.add(self.cluster.services.len());
        }
        for subsystem in std::mem::take(&mut self.stale.suspected) {
            let found = if self.paused { self.differ(subsystem) } else { self.converge(subsystem) };
            match found {
                Ok(steps) => {
                    let left = if self.paused { &steps } else { &Steps::default() };
                    self.base.metrics.drift_stands(subsystem.name(), left.count);
                    self.standing.differs(subsystem, left);
                    if steps.count > 0 {
                        self.drifted(subsystem, &steps);
                    }
                    // Who only looked and found a difference has not shown that the kernel takes anything.
                    if left.count == 0 {
                        self.note(subsystem, Ok(()));
                    }
                }
                Err(error) => self.note(subsystem, Err(error)),
            }
        }
        self.publish();
    }

    fn converge(&mut self, subsystem: Subsystem) -> Result<Steps> {
        let Some(compiler) = &self.compiler else { return Ok(Steps::default()) };
        if subsystem == Subsystem::Nft && self.base.datapath.nft_is_right()? {
            return Ok(Steps::default());
        }
        self.base.metrics.looked(subsystem.name());
        match subsystem {
            Subsystem::Nft => self.base.datapath.converge_nft(compiler.nft()),
            Subsystem::Net => {
                let (mut steps, lost) = self.base.datapath.converge_net(compiler.net())?;
                self.note_ports();
                lost.iter().filter_map(|name| self.rewire(name)).for_each(|step| steps.add(step));
                self.fit_pods().into_iter().for_each(|step| steps.add(step));
                Ok(steps)
            }
        }
    }

    fn differ(&mut self, subsystem: Subsystem) -> Result<Steps> {
        let Some(compiler) = &self.compiler else { return Ok(Steps::default()) };
        self.base.metrics.looked(subsystem.name());
        Ok(match subsystem {
            Subsystem::Nft => {
                let (plan, _) = self.base.datapath.differ_nft(compiler.nft())?;
                plan.ops.iter().collect()
            }
            Subsystem::Net => self.base.datapath.differ_net(compiler.net())?.steps().collect(),
        })
    }

    /// A kernel without some option of a pod's port does without it: the node works, with one guard less.
    fn note_ports(&mut self) {
        let unknown = self.base.datapath.unknown_port_options();
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

    /// A veth that somebody deleted while its pod lives; one that is being deleted by us is no loss.
    fn rewire(&mut self, name: &IfName) -> Option<String> {
        let record = self.base.store.wired().find(|record| record.host_if == *name)?.clone();
        if self.leaving.has(&record.handle()) {
            return None;
        }
        match self.create_veth(&record) {
            Ok(_) => Some(format!("make the veth {name} of pod {} again", record.pod)),
            Err(error) => {
                tracing::warn!(veth = %name, pod = %record.pod, %error, "a pod's veth is gone and cannot be made again");
                None
            }
        }
    }

    fn drifted(&mut self, subsystem: Subsystem, steps: &Steps) {
        let Steps { count, told } = steps;
        self.base.metrics.drift(subsystem.name(), *count, !self.paused);
        // A chain's rules fill many lines: its name is enough here.
        let first_line =
            |step: &String| step.lines().next().unwrap_or_default().trim_end_matches(" {").to_owned();
        let more = count - told.len();
        let mut told = told.iter().map(first_line).collect::<Vec<_>>().join("; ");
        if more > 0 {
            told = format!("{told}; and {more} more");
        }
        let (reason, verb) = if self.paused { ("DriftSeen", "would") } else { ("DriftMended", "did") };
        tracing::warn!(subsystem = subsystem.name(), steps = count, "{reason}: {told}");
        let node = &self.base.settings.node;
        self.base.tell.say(Saying {
            object: Key::new(Kind::Node, ObjectName::cluster(node)),
            uid: String::new(),
            normal: !self.paused,
            reason,
            message: format!("{reason}: somebody changed Plumb's {}; Plumb {verb}: {told}", subsystem.name()),
        });
    }
}
