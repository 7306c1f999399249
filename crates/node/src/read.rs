//! What a step has read of its facts, as a value: noted while it decides, and answering when it decides again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use model::HostPort;
use serde::{Deserialize, Serialize};
use types::ObjectName;

use crate::facts::{Facts, Shown, Situation};

/// Questions with their answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Read {
    #[serde(skip_serializing_if = "Option::is_none")]
    situation: Option<Situation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pods: Vec<(ObjectName, Option<Shown>)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<(HostPort, Option<String>)>,
}

impl Read {
    /// How long orphans were left alone, where that was asked.
    pub fn patience(&self) -> Option<Duration> {
        self.situation.as_ref().map(|situation| situation.orphan_grace)
    }
}

/// Facts whose answers are noted.
pub struct Noting<'a> {
    facts: &'a dyn Facts,
    read: RefCell<Read>,
}

impl<'a> Noting<'a> {
    pub fn new(facts: &'a dyn Facts) -> Self {
        Self { facts, read: RefCell::default() }
    }

    pub fn read(self) -> Read {
        self.read.into_inner()
    }
}

fn note<Q: Clone + PartialEq, A: Clone>(answers: &mut Vec<(Q, A)>, question: &Q, answer: &A) {
    if answers.iter().all(|(known, _)| known != question) {
        answers.push((question.clone(), answer.clone()));
    }
}

impl Facts for Noting<'_> {
    fn situation(&self) -> &Situation {
        let situation = self.facts.situation();
        self.read.borrow_mut().situation.get_or_insert_with(|| situation.clone());
        situation
    }

    fn generation(&self) -> u64 {
        let generation = self.facts.generation();
        self.read.borrow_mut().generation = Some(generation);
        generation
    }

    fn pod(&self, name: &ObjectName) -> Option<Shown> {
        let answer = self.facts.pod(name);
        note(&mut self.read.borrow_mut().pods, name, &answer);
        answer
    }

    fn reserved(&self, port: &HostPort) -> Option<String> {
        let answer = self.facts.reserved(port);
        note(&mut self.read.borrow_mut().ports, port, &answer);
        answer
    }
}

/// Facts that are no more than what was noted. A question that nobody asked then is noted, and answered as if nothing were
/// known.
pub struct Noted<'a> {
    read: &'a Read,
    unknown: Situation,
    unread: RefCell<BTreeSet<String>>,
}

impl<'a> Noted<'a> {
    pub fn new(read: &'a Read) -> Self {
        Self { read, unknown: Situation::default(), unread: RefCell::default() }
    }

    /// What was asked, and was not when it was recorded.
    pub fn unread(self) -> BTreeSet<String> {
        self.unread.into_inner()
    }

    fn answer<Q: PartialEq, A: Clone>(
        &self,
        answers: &[(Q, Option<A>)],
        question: &Q,
        what: String,
    ) -> Option<A> {
        match answers.iter().find(|(known, _)| known == question) {
            Some((_, answer)) => answer.clone(),
            None => {
                self.unread.borrow_mut().insert(what);
                None
            }
        }
    }
}

impl Facts for Noted<'_> {
    fn situation(&self) -> &Situation {
        self.read.situation.as_ref().unwrap_or_else(|| {
            self.unread.borrow_mut().insert("how the node stood".to_owned());
            &self.unknown
        })
    }

    fn generation(&self) -> u64 {
        self.read.generation.unwrap_or_else(|| {
            self.unread.borrow_mut().insert("which generation was next".to_owned());
            0
        })
    }

    fn pod(&self, name: &ObjectName) -> Option<Shown> {
        self.answer(&self.read.pods, name, format!("pod {name}"))
    }

    fn reserved(&self, port: &HostPort) -> Option<String> {
        self.answer(&self.read.ports, port, format!("what port {port} is kept for"))
    }
}
