//! Decides again what was recorded: what followed from each input and why, and where this version decides otherwise.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipam::Now;
use serde::Serialize;
use types::ObjectName;

use crate::attachments::Attachments;
use crate::input::{Input, RequestId};
use crate::output::{Note, Output, Reply};
use crate::pending::Pending;
use crate::read::Noted;
use crate::recording::{Beginning, Line, Said, Step, VERSION, json};

/// All of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replay {
    pub node: String,
    /// Of who recorded it, the last one, and of who decides now.
    pub recorded_by: String,
    pub decided_by: String,
    pub turns: Vec<Turn>,
    /// Lines that are none of a recording of this version, and why.
    pub unreadable: Vec<String>,
    /// Inputs behind such lines: which state they met is not known.
    pub left_out: usize,
    /// The state that a chapter ends in, where the next begins with another.
    #[serde(serialize_with = "all_in_seconds")]
    pub other_states: Vec<Now>,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// Since the machine's boot.
    #[serde(serialize_with = "in_seconds")]
    pub at: Now,
    pub heard: String,
    pub decided: Vec<Decided>,
    /// What waits, or is kept, since this input.
    pub waits: Vec<Waits>,
    /// What the recording has, where that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Vec<String>>,
    /// What this version asks, and the recorded one did not.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unread: BTreeSet<String>,
    /// Whom the input concerns.
    #[serde(skip)]
    pods: BTreeSet<ObjectName>,
}

/// A decision in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decided {
    pub what: String,
    #[serde(serialize_with = "in_words")]
    pub pod: Option<ObjectName>,
}

/// Why something is not done yet, or stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waits {
    pub why: String,
    #[serde(serialize_with = "in_words")]
    pub pod: Option<ObjectName>,
    /// As far as is recorded; `None`: it still does.
    #[serde(serialize_with = "in_seconds_if")]
    pub until: Option<Now>,
}

#[expect(clippy::ref_option, reason = "serde calls it with the field")]
fn in_words<S: serde::Serializer>(pod: &Option<ObjectName>, serializer: S) -> Result<S::Ok, S::Error> {
    pod.as_ref().map(ToString::to_string).serialize(serializer)
}

fn in_seconds<S: serde::Serializer>(at: &Now, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(at.as_secs_f64())
}

#[expect(clippy::ref_option, reason = "serde calls it with the field")]
fn in_seconds_if<S: serde::Serializer>(at: &Option<Now>, serializer: S) -> Result<S::Ok, S::Error> {
    at.as_ref().map(Now::as_secs_f64).serialize(serializer)
}

fn all_in_seconds<S: serde::Serializer>(all: &[Now], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(all.iter().map(Now::as_secs_f64))
}

impl Turn {
    /// Whether it is decided as it was.
    pub fn agrees(&self) -> bool {
        self.recorded.is_none() && self.unread.is_empty()
    }

    /// The part that concerns a pod, if any does.
    fn of(mut self, pod: &ObjectName) -> Option<Self> {
        self.decided.retain(|decided| decided.pod.as_ref() == Some(pod));
        self.waits.retain(|waits| waits.pod.as_ref() == Some(pod));
        let concerns = self.pods.contains(pod) || !self.decided.is_empty() || !self.waits.is_empty();
        concerns.then_some(self)
    }
}

impl Replay {
    /// Of the lines of a recording.
    pub fn of(text: &str) -> Self {
        let mut replay = Self { decided_by: VERSION.to_owned(), ..Self::default() };
        let mut scene = Scene::default();
        for (at, line) in text.lines().enumerate() {
            match serde_json::from_str(line) {
                Ok(Line::Begin(beginning)) => replay.begin(*beginning, &mut scene),
                Ok(Line::Step(step)) if scene.is_known => scene.play(*step, &mut replay.turns),
                Ok(Line::Step(step)) => replay.left_out += step.at.len(),
                Err(error) => {
                    scene.is_known = false;
                    replay.unreadable.push(format!("line {}: {error}", at + 1));
                }
            }
        }
        replay
    }

    fn begin(&mut self, beginning: Beginning, scene: &mut Scene) {
        let Beginning { version, node, at, state } = beginning;
        let is_other = scene.is_known && json(&scene.attachments) != json(&state);
        self.other_states.extend(is_other.then_some(at));
        (self.node, self.recorded_by) = (node, version);
        scene.know(&state);
        scene.is_known = true;
        scene.attachments = state;
    }

    /// Only what concerns one pod.
    pub fn narrow(&mut self, pod: &ObjectName) {
        self.turns = std::mem::take(&mut self.turns).into_iter().filter_map(|turn| turn.of(pod)).collect();
    }

    /// Whether this version decides all of it as it was.
    pub fn agrees(&self) -> bool {
        self.unreadable.is_empty()
            && self.left_out == 0
            && self.other_states.is_empty()
            && self.turns.iter().all(Turn::agrees)
    }
}

/// The node, again.
#[derive(Debug, Default)]
struct Scene {
    /// From a beginning on, as long as no input is missing.
    is_known: bool,
    attachments: Attachments,
    /// Each with the turn since which it is so.
    pending: BTreeMap<Pending, usize>,
    /// With orphans, as far as it was said.
    patience: Duration,
    /// Whose each attachment and each request is, or was.
    handles: BTreeMap<String, ObjectName>,
    requests: BTreeMap<RequestId, ObjectName>,
}

impl Scene {
    fn know(&mut self, state: &Attachments) {
        let records = state.records.all().iter();
        self.handles.extend(records.map(|(handle, record)| (handle.clone(), record.pod.clone())));
        self.requests.extend(state.adds.iter().map(|add| (add.id, add.record.pod.clone())));
        for waiting in &state.waiting {
            self.meet(waiting.asked.id, &waiting.attach);
        }
    }

    fn meet(&mut self, id: RequestId, attach: &cni::Attach) {
        let handle = attach.id.to_string();
        let pod = attach.pod.as_ref().map(|pod| pod.name.clone());
        if let Some(pod) = pod.or_else(|| self.handles.get(&handle).cloned()) {
            self.requests.insert(id, pod.clone());
            self.handles.insert(handle, pod);
        }
    }

    fn play(&mut self, Step { at, said }: Step, turns: &mut Vec<Turn>) {
        for now in at {
            let mut turn = self.turn(&said, now);
            self.patience = said.read.patience().unwrap_or(self.patience);
            turn.waits = self.wait(now, turns);
            turns.push(turn);
        }
    }

    /// What waits since now; what waits no more is told where it began.
    fn wait(&mut self, now: Now, turns: &mut [Turn]) -> Vec<Waits> {
        let pending = self.attachments.pending(self.patience);
        let before = std::mem::take(&mut self.pending).into_iter();
        let (lasts, over): (BTreeMap<_, _>, BTreeMap<_, _>) =
            before.partition(|(known, _)| pending.contains(known));
        self.pending = lasts;
        for (Pending { why, .. }, since) in over {
            let waits = turns.get_mut(since).into_iter().flat_map(|turn| &mut turn.waits);
            waits.filter(|waits| waits.why == why).for_each(|waits| waits.until = Some(now));
        }
        let mut new = Vec::new();
        for known in pending {
            if let Entry::Vacant(entry) = self.pending.entry(known) {
                let Pending { pod, why } = entry.key().clone();
                new.push(Waits { why, pod, until: None });
                entry.insert(turns.len());
            }
        }
        new
    }

    fn turn(&mut self, said: &Said, now: Now) -> Turn {
        let heard = said.heard.clone();
        if let Input::Asked(asked) = &heard
            && let cni::Request::Add(attach) | cni::Request::Del(attach) = &asked.request
        {
            self.meet(asked.id, attach);
        }
        let (words, pods) = (heard.to_string(), self.concerned(&heard));
        let facts = Noted::new(&said.read);
        let outputs = self.attachments.step(heard, &facts, now);
        let unread = facts.unread();
        let decided: Vec<_> = outputs
            .iter()
            .map(|output| Decided { what: output.to_string(), pod: self.whose(output) })
            .collect();
        let same = decided.iter().map(|decided| &decided.what).eq(&said.decided);
        let recorded = (!same).then(|| said.decided.clone());
        Turn { at: now, heard: words, decided, waits: Vec::new(), recorded, unread, pods }
    }

    fn concerned(&self, input: &Input) -> BTreeSet<ObjectName> {
        let handles: Vec<String> = match input {
            Input::Asked(asked) => return self.requests.get(&asked.id).cloned().into_iter().collect(),
            Input::Confirmed(doubt, _) => return BTreeSet::from([doubt.pod.clone()]),
            Input::Wired(handle, _) => vec![handle.clone()],
            Input::Unwired { handles, .. } => handles.clone(),
            Input::Grant(further) | Input::Narrow(further) => further.keys().cloned().collect(),
            Input::Started { .. }
            | Input::Round { .. }
            | Input::Saved(..)
            | Input::Followed { .. }
            | Input::Looked { .. }
            | Input::Forgotten(_)
            | Input::ForgottenAll
            | Input::Subnets { .. } => Vec::new(),
        };
        handles.iter().filter_map(|handle| self.handles.get(handle)).cloned().collect()
    }

    fn whose(&self, output: &Output) -> Option<ObjectName> {
        use model::{Event, Kind, Row};
        let of_handle = |handle: &str| self.handles.get(handle).cloned();
        match output {
            Output::Row(Event::Upsert(Row::Attachment(row))) => Some(row.pod.clone()),
            Output::Row(Event::Upsert(Row::Pod(pod))) => Some(pod.key.clone()),
            Output::Row(Event::Delete(key)) if key.kind == Kind::Attachment => of_handle(&key.name.name),
            Output::Wire(wire) => Some(wire.record.pod.clone()),
            Output::Unwire { handle, .. } => of_handle(handle),
            Output::Confirm(doubt) => Some(doubt.pod.clone()),
            Output::Reply(_, Reply::NeedPod(pod)) => Some(pod.clone()),
            Output::Reply(id, Reply::Done(_)) => self.requests.get(id).cloned(),
            Output::Note(note) => match note {
                Note::Wired { pod, .. }
                | Note::NotWired { pod, .. }
                | Note::Unwired { pod, .. }
                | Note::Ended { pod, .. }
                | Note::Released { pod, .. }
                | Note::Kept { pod, .. } => Some(pod.clone()),
                Note::NotUnwired { handle, .. } | Note::Garbage { handle } => of_handle(handle),
                Note::NotSaved(_) => None,
            },
            Output::Save(_) | Output::Row(_) | Output::PoolsMoved | Output::Granted(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
