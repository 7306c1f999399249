//! What is in the way of an installation, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The words that `--accept` takes.
pub const WORDS: [&str; 4] = ["conflist", "firewall", "kube-proxy", "version"];

/// One thing that was found before anything was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The word for `--accept`; empty where nothing but the remedy helps.
    pub word: String,
    pub object: String,
    pub cause: String,
    pub next: String,
}

impl Finding {
    /// Nothing but the remedy helps.
    pub fn fatal(object: impl Into<String>, cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self { word: String::new(), object: object.into(), cause: cause.into(), next: next.into() }
    }

    /// Whoever knows what it means may go on with `--accept WORD`.
    pub fn of(
        word: &str,
        object: impl Into<String>,
        cause: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { word: word.into(), ..Self::fatal(object, cause, next) }
    }

    pub fn is_accepted(&self, accepted: &[String]) -> bool {
        !self.word.is_empty() && accepted.contains(&self.word)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    {}", self.object, self.cause, self.next)?;
        if !self.word.is_empty() {
            write!(f, "\n    or go on in spite of it: --accept {}", self.word)?;
        }
        Ok(())
    }
}
