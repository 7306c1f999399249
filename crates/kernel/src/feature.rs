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
mod list;

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
        Err(Refused { errno: Some(libc::EPERM | libc::EACCES), answer }) => Outcome::Forbidden(answer),
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
        Self { errno: error.errno(), answer: error.to_string() }
    }
}

impl From<&Error> for Refused {
    fn from(error: &Error) -> Self {
        Self { errno: error.errno(), answer: error.to_string() }
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
        match self.outcome {
            Outcome::There => None,
            Outcome::Missing(_) => Some(self.feature.remedy()),
            Outcome::Forbidden(_) => {
                Some("run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN".to_owned())
            }
        }
    }
}

/// Why `object` (a node's agent, a lab) cannot work here: each lacking feature, what needs it, the kernel's answer and
/// the next step. `None` when nothing is lacking.
pub fn refusal(object: &str, found: &[Found]) -> Option<String> {
    let lacking: Vec<&Found> = found.iter().filter(|found| !found.is_there()).collect();
    if lacking.is_empty() {
        return None;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut text = format!("{object} cannot work with this kernel ({}):", release.trim());
    for (at, found) in lacking.iter().enumerate() {
        let same = |other: &&Found| other.outcome == found.outcome;
        // Where one thing is lacking all that builds on it gets the same answer.
        if lacking.iter().position(same) != Some(at) {
            continue;
        }
        let Feature { name, purpose, .. } = found.feature;
        let (state, answer) = (found.state(), found.answer().unwrap_or_default());
        // A string takes everything.
        let _ = write!(text, "\n  {name} ({purpose}) is {state}: {answer}");
        let behind: Vec<&str> =
            lacking.iter().skip(at + 1).copied().filter(same).map(|other| other.feature.name).collect();
        if !behind.is_empty() {
            let _ = write!(text, "\n    and with it {}", behind.join(", "));
        }
        let _ = write!(text, "\n    next: {}", found.next_step().unwrap_or_default());
    }
    text += "\n  nothing was made; `plumb features` shows the whole list";
    Some(text)
}
