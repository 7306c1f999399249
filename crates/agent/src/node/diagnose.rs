//! What is wrong with objects: told once as an Event, in the log, and counted while it holds.

use std::collections::BTreeMap;

use compile::{Compiled, Severity};
use model::{Diagnostic, Key, Kind};

use super::Node;
use crate::tell::Saying;

/// Findings of the conversion, by object; those of the compiler are kept by the compiler.
#[derive(Debug, Default)]
pub struct Diagnoses(BTreeMap<Key, Vec<Diagnostic>>);

impl Diagnoses {
    pub fn all(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.values().flatten()
    }
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
            self.base.tell.say(Saying { object, uid, normal: false, reason: new.reason, message });
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
            self.raise(finding);
            self.standing.found.insert(finding.clone());
        }
        for finding in &compiled.cleared {
            self.standing.found.remove(finding);
            tracing::info!("no longer: {finding}");
        }
    }

    /// In the log and on the object.
    pub(super) fn raise(&self, finding: &compile::Diagnostic) {
        let (normal, reason) = match finding.severity {
            Severity::Note => (true, "NetworkNote"),
            Severity::Warning => (false, "NetworkDegraded"),
            Severity::Error => (false, "NetworkFailed"),
        };
        tracing::warn!("{finding}");
        let message = format!("{}: {}; {}", finding.field, finding.message, finding.next_step);
        let (object, uid) = (finding.object.clone(), self.uid(&finding.object));
        self.base.tell.say(Saying { object, uid, normal, reason, message });
    }

    /// Every agent hears of every pod, and that of its node tells of it: whoever may write a pod would make an Event for
    /// each node otherwise. One that no node has yet is told of when one has.
    fn is_elsewhere(&self, object: &Key) -> bool {
        let pod = (object.kind == Kind::Pod).then(|| self.cluster.pods.get(&object.name)).flatten();
        pod.is_some_and(|pod| pod.node.as_deref() != Some(&*self.base.settings.node))
    }

    /// Of a pod, whose name another one may have had.
    fn uid(&self, object: &Key) -> String {
        let pod = (object.kind == Kind::Pod).then(|| self.cluster.pods.get(&object.name)).flatten();
        pod.map(|pod| pod.uid.clone()).unwrap_or_default()
    }
}
