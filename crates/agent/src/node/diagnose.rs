//! What is wrong with objects: told once as an Event, in the log, and counted while it holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use compile::Compiled;
use model::{Diagnostic, Key, Kind};
use semantics::Severity;

use super::Node;
use crate::tell::Saying;

/// A node that joins has its addresses and its agent by then; images may have to be fetched.
pub(super) const JOINING: Duration = Duration::from_secs(30);

/// Findings of the conversion, by object; those of the compiler are kept by the compiler.
#[derive(Debug, Default)]
pub struct Diagnoses(BTreeMap<Key, Vec<Diagnostic>>);

impl Diagnoses {
    pub fn all(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.values().flatten()
    }
}

/// What a Node lacks whose agent and controllers are about to see to it: an alarm to nobody. `plumb status` has it at once.
fn is_of_joining(finding: &semantics::Diagnostic) -> bool {
    finding.object.kind == Kind::Node && finding.severity == Severity::Warning
}

impl Node {
    pub(super) fn diagnosed(&mut self, key: Key, mut found: Vec<Diagnostic>) {
        if self.is_elsewhere(&key) {
            found.clear();
        }
        let known = self.diagnoses.0.remove(&key).unwrap_or_default();
        let kind = format!("{:?}", key.kind);
        self.base.metrics.diagnostics(&kind, found.len() as i64 - known.len() as i64);
        for new in found.iter().filter(|diagnostic| !known.contains(diagnostic)) {
            tracing::warn!("{new}");
            let (object, message) = (key.clone(), new.message.clone());
            let uid = self.uid(&object);
            self.base.tell.holds(Saying { object, uid, normal: false, reason: new.reason, message });
        }
        for old in known.iter().filter(|diagnostic| !found.contains(diagnostic)) {
            let (object, message) = (key.clone(), old.message.clone());
            let uid = self.uid(&object);
            self.base.tell.no_longer(Saying { object, uid, normal: false, reason: old.reason, message });
        }
        if !found.is_empty() {
            self.diagnoses.0.insert(key, found);
        }
    }

    pub(super) fn compiled_diagnostics(&mut self, compiled: &Compiled) {
        for (findings, by) in [(&compiled.raised, 1), (&compiled.cleared, -1)] {
            // A note is about what works: nobody is to be called for it.
            for finding in findings.iter().filter(|finding| finding.severity != Severity::Note) {
                self.base.metrics.diagnostics(&format!("{:?}", finding.object.kind), by);
            }
        }
        for finding in &compiled.raised {
            match is_of_joining(finding) {
                true => drop(self.joining.insert(finding.clone(), Instant::now())),
                false => self.raise(finding),
            }
            self.standing.found.insert(finding.clone());
        }
        for finding in &compiled.cleared {
            self.standing.found.remove(finding);
            if self.joining.remove(finding).is_none() {
                self.lower(finding);
            }
        }
    }

    /// With every tick: who has not joined by now has not just begun to.
    pub(super) fn tell_who_does_not_join(&mut self) {
        let (late, young) =
            std::mem::take(&mut self.joining).into_iter().partition(|(_, since)| since.elapsed() >= JOINING);
        self.joining = young;
        late.iter().for_each(|(finding, _): (&semantics::Diagnostic, _)| self.raise(finding));
    }

    /// In the log and on the object.
    pub(super) fn raise(&self, finding: &semantics::Diagnostic) {
        tracing::warn!("{finding}");
        self.base.tell.holds(self.saying(finding));
    }

    /// It no longer holds.
    pub(super) fn lower(&self, finding: &semantics::Diagnostic) {
        tracing::info!("no longer: {finding}");
        self.base.tell.no_longer(self.saying(finding));
    }

    /// The same of something that an Event of the Node was about: that it is over is one as well.
    pub(super) fn mended(&self, finding: &semantics::Diagnostic, message: String) {
        tracing::info!("no longer: {finding}");
        let was = self.saying(finding);
        let over = Saying { normal: true, reason: "NetworkMended", message, ..was.clone() };
        self.base.tell.over(vec![was], over);
    }

    fn saying(&self, finding: &semantics::Diagnostic) -> Saying {
        let (normal, reason) = match finding.severity {
            Severity::Note => (true, "NetworkNote"),
            Severity::Warning => (false, "NetworkDegraded"),
            Severity::Error => (false, "NetworkFailed"),
        };
        let message = format!("{}: {}; {}", finding.field, finding.message, finding.next_step);
        let (object, uid) = (finding.object.clone(), self.uid(&finding.object));
        Saying { object, uid, normal, reason, message }
    }

    /// Every agent hears of every pod, and that of its node tells of it: whoever may write a pod would make an Event for
    /// each node otherwise. One that no node has yet is told of when one has.
    fn is_elsewhere(&self, object: &Key) -> bool {
        let pod = (object.kind == Kind::Pod).then(|| self.cluster.pods.get(&object.name)).flatten();
        pod.is_some_and(|pod| pod.node.as_deref() != Some(&*self.base.settings.node))
    }

    /// Of one whose name another one may have had; `kubectl describe` finds its Events by it.
    fn uid(&self, object: &Key) -> String {
        let uid = match object.kind {
            Kind::Pod => self.cluster.pods.get(&object.name).map(|pod| &pod.uid),
            Kind::Service => self.cluster.services.get(&object.name).map(|service| &service.uid),
            _ => None,
        };
        uid.cloned().unwrap_or_default()
    }
}
