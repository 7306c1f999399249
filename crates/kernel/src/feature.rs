//! What this kernel can do of what Plumb asks of it: found out by doing it once, in network namespaces made for that
//! and gone afterwards. No version number and no configuration file is believed.
//!
//! ```text
//!   list (name, what for, who needs it, how to get it) ─ attempt ─> there | missing: the kernel's answer | …
//!                                                                   refusal: object, cause, next step
//! ```

use std::fmt::Write;

use crate::error::Error;
use crate::netns::Netns;

mod attempt;
mod grant;
mod list;

pub use grant::next_step;
pub(crate) use grant::next_step_of_socket;
pub use list::{FEATURES, Feature, User};

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    There,
    /// The kernel's answer.
    Missing(String),
    /// It may be there: this process may not find out, and so may not use it either.
    Forbidden(String),
}

/// A feature and how the attempt at it ended.
#[derive(Clone, Debug)]
pub struct Found {
    pub feature: &'static Feature,
    pub outcome: Outcome,
}

/// Attempts everything that one of `users` needs, in the user namespace of the calling thread. About 20 ms; blocking.
pub fn probe(users: &[User]) -> Vec<Found> {
    let wanted = FEATURES.iter().filter(|feature| feature.needed_by.iter().any(|user| users.contains(user)));
    let room = Netns::fresh();
    wanted.map(|feature| Found { feature, outcome: outcome(feature.attempt.run(&room)) }).collect()
}

fn outcome(done: Result<(), Refused>) -> Outcome {
    match done {
        Ok(()) => Outcome::There,
        Err(Refused { errno: Some(libc::EPERM | libc::EACCES | libc::EROFS), answer }) => {
            Outcome::Forbidden(answer)
        }
        Err(Refused { answer, .. }) => Outcome::Missing(answer),
    }
}

/// What the kernel said instead of doing it.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub errno: Option<i32>,
    pub answer: String,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { errno: error.errno(), answer: error.plain() }
    }
}

impl From<&Error> for Refused {
    fn from(error: &Error) -> Self {
        Self { errno: error.errno(), answer: error.plain() }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self { errno: error.raw_os_error(), answer: error.to_string() }
    }
}

impl Found {
    pub fn is_there(&self) -> bool {
        self.outcome == Outcome::There
    }

    /// `there`, `missing` or `forbidden`.
    pub fn state(&self) -> &'static str {
        match self.outcome {
            Outcome::There => "there",
            Outcome::Missing(_) => "missing",
            Outcome::Forbidden(_) => "forbidden",
        }
    }

    /// The kernel's words, where it did not do it.
    pub fn answer(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::There => None,
            Outcome::Missing(answer) | Outcome::Forbidden(answer) => Some(answer),
        }
    }

    /// What to do about it.
    pub fn next_step(&self) -> Option<String> {
        match &self.outcome {
            Outcome::There => None,
            Outcome::Missing(answer) => {
                Some(grant::limit(self.feature.name, answer).unwrap_or_else(|| self.feature.remedy()))
            }
            Outcome::Forbidden(answer) => Some(next_step(answer)),
        }
    }
}

/// One answer of the kernel, and all that it was given for.
#[derive(Debug)]
pub struct Lack<'a> {
    pub first: &'a Found,
    /// Names of the features that build on it.
    pub behind: Vec<&'static str>,
}

/// What is lacking, each answer once: where one thing is lacking all that builds on it gets the same.
pub fn lacks(found: &[Found]) -> Vec<Lack<'_>> {
    let mut lacks: Vec<Lack> = Vec::new();
    for found in found.iter().filter(|found| !found.is_there()) {
        match lacks.iter_mut().find(|lack| lack.first.outcome == found.outcome) {
            Some(lack) => lack.behind.push(found.feature.name),
            None => lacks.push(Lack { first: found, behind: Vec::new() }),
        }
    }
    lacks
}

/// `nf_tables (Services, policies, masquerade) is missing: the kernel's answer`
impl std::fmt::Display for Lack<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Feature { name, purpose, .. } = self.first.feature;
        write!(f, "{name} ({purpose}) is {}: {}", self.first.state(), self.first.answer().unwrap_or_default())
    }
}

/// Why `object` (a node's agent, a lab) cannot work here: each lacking feature, what needs it, the kernel's answer and
/// the next step. `None` when nothing is lacking.
pub fn refusal(object: &str, found: &[Found]) -> Option<String> {
    let lacks = lacks(found);
    if lacks.is_empty() {
        return None;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut text = format!("{object} cannot work with this kernel ({}):", release.trim());
    for lack in lacks {
        // A string takes everything.
        let _ = write!(text, "\n  {lack}");
        if !lack.behind.is_empty() {
            let _ = write!(text, "\n    and with it {}", lack.behind.join(", "));
        }
        let _ = write!(text, "\n    next: {}", lack.first.next_step().unwrap_or_default());
    }
    text += "\n  nothing was made; `plumb features` shows the whole list";
    Some(text)
}
