//! The last inputs, each with its time, what the step read and what it decided, from a state that they begin at: all that it
//! takes to decide them again.
//!
//! ```text
//!   {"begin": {version, node, at, state}}
//!   {"step": {"at": [time, …], "said": {heard, read, decided}}}      once for each time
//! ```
//! It is bounded: the oldest chapter goes when a new one begins, and each begins with the state that there is by then.

use std::collections::VecDeque;

use ipam::Now;
use serde::{Deserialize, Serialize};

use crate::attachments::Attachments;
use crate::facts::Facts;
use crate::input::Input;
use crate::output::Output;
use crate::read::{Noting, Read};

/// One line of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    Begin(Box<Beginning>),
    Step(Box<Step>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Beginning {
    pub version: String,
    pub node: String,
    pub at: Now,
    pub state: Attachments,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub at: Vec<Now>,
    pub said: Said,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    pub heard: Input,
    #[serde(default)]
    pub read: Read,
    /// As a person reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decided: Vec<String>,
}

/// How large it may grow: bytes of steps in a chapter, whose beginning comes on top, and chapters.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub chapter: usize,
    pub chapters: usize,
}

impl Default for Bounds {
    /// Some 500 pods that come and go; looks that show nothing new take no room.
    fn default() -> Self {
        Self { chapter: 512 << 10, chapters: 3 }
    }
}

/// Of one node.
#[derive(Debug, Default)]
pub struct Recording {
    node: String,
    bounds: Bounds,
    chapters: VecDeque<Chapter>,
}

#[derive(Debug)]
struct Chapter {
    /// A [`Line::Begin`], in full.
    beginning: String,
    /// A [`Said`] each, with its times.
    steps: Vec<(Vec<Now>, String)>,
    bytes: usize,
}

impl Chapter {
    /// `is_idle`: of what is the same again and again the first and the last time say all.
    fn add(&mut self, at: Now, said: String, is_idle: bool) {
        match self.steps.last_mut() {
            Some((times, last)) if *last == said => {
                match is_idle {
                    true => times.truncate(1),
                    false => self.bytes += size_of::<Now>(),
                }
                times.push(at);
            }
            _ => {
                self.bytes += said.len() + size_of::<Now>();
                self.steps.push((vec![at], said));
            }
        }
    }
}

impl Recording {
    pub fn new(node: impl Into<String>, bounds: Bounds) -> Self {
        Self { node: node.into(), bounds, chapters: VecDeque::new() }
    }

    /// What follows from an input, as [`Attachments::step`] has it; recorded.
    pub fn step(
        &mut self,
        attachments: &mut Attachments,
        input: Input,
        facts: &dyn Facts,
        now: Now,
    ) -> Vec<Output> {
        if self.chapters.back().is_none_or(|chapter| chapter.bytes >= self.bounds.chapter) {
            self.begin(attachments, now);
        }
        let facts = Noting::new(facts);
        let outputs = attachments.step(input.clone(), &facts, now);
        if outputs.is_empty() && input.does_what_follows() {
            return outputs;
        }
        let is_idle = outputs.is_empty() && matches!(input, Input::Looked { .. });
        let decided = outputs.iter().map(ToString::to_string).collect();
        let said = json(&Said { heard: input, read: facts.read(), decided });
        if let Some(chapter) = self.chapters.back_mut() {
            chapter.add(now, said, is_idle);
        }
        outputs
    }

    fn begin(&mut self, attachments: &Attachments, now: Now) {
        #[derive(Serialize)]
        struct Begin<'a> {
            begin: BeginningOf<'a>,
        }
        #[derive(Serialize)]
        struct BeginningOf<'a> {
            version: &'a str,
            node: &'a str,
            at: Now,
            state: &'a Attachments,
        }
        let begin = BeginningOf { version: VERSION, node: &self.node, at: now, state: attachments };
        let beginning = json(&Begin { begin });
        self.chapters.push_back(Chapter { beginning, steps: Vec::new(), bytes: 0 });
        self.chapters.drain(..self.chapters.len().saturating_sub(self.bounds.chapters));
    }

    /// All that is kept, a line each.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for chapter in &self.chapters {
            text += &chapter.beginning;
            text.push('\n');
            for (at, said) in &chapter.steps {
                text += &format!("{{\"step\":{{\"at\":{},\"said\":{said}}}}}\n", json(at));
            }
        }
        text
    }
}

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A value that is none as JSON is a line that nobody can read, and a replay says so.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("\"{error}\""))
}

impl Input {
    /// Whether it changes nothing where nothing follows.
    fn does_what_follows(&self) -> bool {
        matches!(self, Self::Round { .. } | Self::Followed { .. } | Self::Subnets { .. })
    }
}
