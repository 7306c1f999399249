//! Attachments that nobody will ever DEL: killed runtimes and kubelets forget sandboxes, a node's agent must not.
//!
//! ```text
//!   namespace gone      its veth went with it: record, address and rules are given back
//!   pod gone (from a    the API is asked for it; then its veth is deleted, its rules go; the address is held while the
//!   synced API)         namespace lives, in which it still is, and then rests
//!   neither is known    nothing happens
//! ```
//! Both have to be seen twice, a grace apart: a DEL may be on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipam::Now;
use serde::{Deserialize, Serialize};

use crate::attachments::{Attachments, Saving};
use crate::facts::{Facts, Situation};
use crate::input::{Answer, Doubt, Input};
use crate::output::{Note, Output};
use crate::record::Record;

/// How often attachments are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A namespace does not come back; its DEL may be on its way.
const NAMESPACE_GRACE: Duration = Duration::from_secs(10);

/// What of an attachment is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Lost {
    Namespace,
    Pod,
}

fn lost(namespace_lives: bool, pod_is_gone: bool) -> Option<Lost> {
    match namespace_lives {
        false => Some(Lost::Namespace),
        true => pod_is_gone.then_some(Lost::Pod),
    }
}

/// Something was lost at that moment, as far as can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Suspicion {
    lost: Lost,
    since: Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Suspect(Suspicion),
    Release(Suspicion),
}

/// `grace`: how long this may last before it is believed.
fn judge(
    lost: Option<Lost>,
    before: Option<Suspicion>,
    now: Now,
    grace: impl Fn(Lost) -> Duration,
) -> Verdict {
    let Some(lost) = lost else { return Verdict::Keep };
    match before.filter(|before| before.lost == lost) {
        None => Verdict::Suspect(Suspicion { lost, since: now }),
        Some(before) if now.saturating_sub(before.since) >= grace(lost) => Verdict::Release(before),
        Some(before) => Verdict::Suspect(before),
    }
}

/// A pod's containers may go on for its own grace period after somebody has deleted it by force.
fn grace(record: &Record, patience: Duration) -> impl Fn(Lost) -> Duration {
    let pod = Duration::from_secs(record.grace.into()).saturating_add(patience);
    move |lost| match lost {
        Lost::Namespace => patience.min(NAMESPACE_GRACE),
        Lost::Pod => pod,
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Orphans {
    suspects: BTreeMap<String, Suspicion>,
    /// The API is being asked for their pods.
    doubted: BTreeSet<String>,
    /// Their veths are being deleted without a DEL.
    taken: BTreeSet<String>,
    looked: Option<Now>,
}

impl Orphans {
    /// Whether a departure was ours; asked once.
    pub(crate) fn was_taken(&mut self, handle: &str) -> bool {
        self.taken.remove(handle)
    }
}

/// Whether the API has the attachment's pod no longer, or another one of the name. No: it is not heard, or this is no pod of it.
pub fn is_gone(record: &Record, facts: &dyn Facts) -> bool {
    if record.pod.namespace.is_empty() || !facts.situation().hears_pods {
        return false;
    }
    let known = facts.pod(&record.pod);
    !known.is_some_and(|pod| record.uid.is_empty() || pod.uid == record.uid)
}

impl Attachments {
    /// Whether it is time for [`Input::Looked`](crate::Input::Looked).
    pub fn wants_to_look(&self, facts: &dyn Facts, now: Now) -> bool {
        let early = self.orphans.looked.is_some_and(|at| now.saturating_sub(at) < LOOK);
        !early && !facts.situation().paused && facts.situation().network.is_some()
    }

    /// What is seen of the attachments whose namespaces have `ended`.
    pub fn look(&self, ended: BTreeSet<String>, facts: &dyn Facts) -> Input {
        let unshown = self.records.wired().filter(|record| is_gone(record, facts));
        Input::Looked { ended, unshown: unshown.map(Record::handle).collect() }
    }

    pub(crate) fn look_for_orphans(
        &mut self,
        ended: &BTreeSet<String>,
        unshown: &BTreeSet<String>,
        facts: &dyn Facts,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let Situation { network, paused, orphan_grace, .. } = facts.situation();
        if *paused || network.is_none() {
            return;
        }
        self.orphans.looked = Some(now);
        self.free_held(ended, now, out);
        let before = std::mem::take(&mut self.orphans.suspects);
        let (mut doomed, mut doubts) = (Vec::new(), Vec::new());
        for record in self.records.wired() {
            let handle = record.handle();
            if self.leaving.has(&handle) || self.adds.iter().any(|add| add.record.handle() == handle) {
                continue;
            }
            let lost = lost(!ended.contains(&handle), unshown.contains(&handle));
            match judge(lost, before.get(&handle).copied(), now, grace(record, *orphan_grace)) {
                Verdict::Keep => {}
                Verdict::Suspect(suspicion) => drop(self.orphans.suspects.insert(handle, suspicion)),
                Verdict::Release(suspicion) if suspicion.lost == Lost::Pod => {
                    self.orphans.suspects.insert(handle.clone(), suspicion);
                    let doubt = Doubt { handle, pod: record.pod.clone(), uid: record.uid.clone() };
                    doubts.push(doubt);
                }
                Verdict::Release(suspicion) => doomed.push((record.clone(), suspicion)),
            }
        }
        for (record, suspicion) in doomed {
            self.release_orphan(&record, suspicion, now, out);
        }
        for doubt in doubts {
            if self.orphans.doubted.insert(doubt.handle.clone()) {
                out.push(Output::Confirm(doubt));
            }
        }
    }

    /// What the watch does not show is believed to be gone only when the API itself says so. Else its time begins anew.
    pub(crate) fn confirmed(
        &mut self,
        doubt: &Doubt,
        answer: Answer,
        facts: &dyn Facts,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let Doubt { handle, pod, .. } = doubt;
        self.orphans.doubted.remove(handle);
        let suspicion = self.orphans.suspects.get(handle).filter(|suspicion| suspicion.lost == Lost::Pod);
        let Some(suspicion) = suspicion.copied() else { return };
        let record = self.records.all().get(handle).filter(|record| !record.cut_off);
        let record = record.filter(|record| record.pod == doubt.pod && record.uid == doubt.uid).cloned();
        let kept = |why: String| Note::Kept { handle: handle.clone(), pod: pod.clone(), why };
        match (answer, record) {
            _ if facts.situation().paused || self.leaving.has(handle) => {}
            (Answer::Gone, Some(record)) if is_gone(&record, facts) => {
                self.orphans.suspects.remove(handle);
                self.release_orphan(&record, suspicion, now, out);
            }
            (Answer::Gone | Answer::Unasked, _) => {}
            (Answer::There, _) => {
                self.orphans.suspects.remove(handle);
                out.push(Output::Note(kept("the API has the pod".to_owned())));
            }
            (Answer::Unheard(why), _) => {
                self.orphans.suspects.remove(handle);
                out.push(Output::Note(kept(format!("the API cannot be asked for the pod: {why}"))));
            }
        }
    }

    fn release_orphan(&mut self, record: &Record, suspicion: Suspicion, now: Now, out: &mut Vec<Output>) {
        let Record { pod, ips, host_if, netns, .. } = record;
        let (handle, ips) = (record.handle(), list(ips));
        let seconds = now.saturating_sub(suspicion.since).as_secs();
        let why = match suspicion.lost {
            Lost::Namespace => format!(
                "its network namespace {netns} has been gone for {seconds} s; {ips} may be given out again after \
                 its rest"
            ),
            Lost::Pod => format!(
                "its pod has not been in the API for {seconds} s; {host_if} was deleted, and {ips} is held while \
                 the network namespace {netns} lives"
            ),
        };
        let message =
            format!("attachment {handle} of pod {pod} was released though the runtime sent no DEL: {why}");
        out.push(Output::Note(Note::Released { pod: pod.clone(), message }));
        self.orphans.taken.insert(handle.clone());
        self.depart(handle, None, out);
    }

    /// Addresses whose namespaces have ended meanwhile.
    fn free_held(&mut self, ended: &BTreeSet<String>, now: Now, out: &mut Vec<Output>) {
        let ended = |(handle, record): &(&String, &Record)| record.cut_off && ended.contains(*handle);
        let ended: Vec<String> =
            self.records.all().iter().filter(ended).map(|(handle, _)| handle.clone()).collect();
        for handle in &ended {
            self.records.release(handle, now);
        }
        if !ended.is_empty() {
            self.save(Saving::Other, out);
        }
    }

    /// In the same words as long as the reason is the same.
    pub(crate) fn why_kept(&self, handle: &str, record: &Record, patience: Duration) -> Option<String> {
        let (ips, netns) = (list(&record.ips), &record.netns);
        if record.cut_off {
            return Some(format!("{ips} is held while the network namespace {netns} lives"));
        }
        let Suspicion { lost, since } = self.orphans.suspects.get(handle)?;
        let why = match lost {
            Lost::Namespace => format!("its network namespace {netns} is gone"),
            Lost::Pod => "the API does not have its pod".to_owned(),
        };
        let (since, grace) = (since.as_secs_f64(), grace(record, patience)(*lost).as_secs());
        Some(format!("{ips} of {handle} is kept for {grace} s from {since:.3} on: {why}"))
    }

    /// Why each address is held that no pod has, each in a sentence.
    pub fn held(&self, patience: Duration, now: Now) -> Vec<String> {
        let mut held = Vec::new();
        for (handle, record) in self.records.all() {
            let Record { pod, ips, netns, .. } = record;
            let ips = list(ips);
            let left = |suspicion: &Suspicion| {
                let grace = grace(record, patience)(suspicion.lost);
                grace.saturating_sub(now.saturating_sub(suspicion.since)).as_secs() + LOOK.as_secs()
            };
            match self.orphans.suspects.get(handle) {
                _ if record.cut_off => held.push(format!(
                    "{ips} is held while the network namespace {netns} lives: its pod {pod} is gone; end what runs \
                     in it"
                )),
                Some(s) if s.lost == Lost::Namespace => held.push(format!(
                    "{ips} is held for pod {pod}, whose network namespace {netns} is gone, for {} s more",
                    left(s)
                )),
                Some(s) => held.push(format!(
                    "{ips} is held for pod {pod}, which the API does not have, for {} s more",
                    left(s)
                )),
                None => {}
            }
        }
        held
    }
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
