//! What is wrong with an object, in words its author understands.

use std::fmt;

use crate::Key;

/// One bad thing in one object. The agent tells it once as a Kubernetes Event on the object, in its log and in
/// its metrics; the other objects go on (law 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Diagnostic {
    pub object: Key,
    /// UpperCamelCase, as a Kubernetes Event's reason: `InvalidField`, `Unsupported`.
    pub reason: &'static str,
    /// Field, cause, effect, next step.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {}: {}", self.object.kind, self.object.name, self.reason, self.message)
    }
}
