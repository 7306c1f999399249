//! What is wrong with a node, as it is told: the fact, and apart from it what a person does about it.

use std::fmt;

use semantics::Diagnostic;
use serde::{Deserialize, Serialize};

/// What a person does where nobody knows better.
pub const READ_LOG: &str = "read the agent's log from its first error on; `plumb sysdump` collects it";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Told")]
pub struct Fault {
    pub what: String,
    pub next: String,
}

impl Fault {
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into() }
    }

    /// Of which only the log says more.
    pub fn unexplained(what: impl Into<String>) -> Self {
        Self::new(what, READ_LOG)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.next)
    }
}

impl From<&Diagnostic> for Fault {
    fn from(found: &Diagnostic) -> Self {
        Self::new(found.what(), &found.next_step)
    }
}

/// As it comes over the wire: agents of before said all in one sentence.
#[derive(Deserialize)]
#[serde(untagged)]
enum Told {
    Sentence(String),
    Parts { what: String, next: String },
}

impl From<Told> for Fault {
    fn from(told: Told) -> Self {
        match told {
            Told::Sentence(what) => Self::unexplained(what),
            Told::Parts { what, next } => Self { what, next },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_agents_sentence_is_still_understood() {
        let fault = Fault::new("no route to node2", "give this machine the route");
        let text = serde_json::to_string(&fault).unwrap();
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault);
        let old: Fault = serde_json::from_str("\"node node1 has no pod CIDR yet\"").unwrap();
        assert_eq!(old, Fault::unexplained("node node1 has no pod CIDR yet"));
    }
}
