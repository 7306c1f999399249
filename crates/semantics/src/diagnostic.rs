//! What could not be done as an object asks, said so that a person can act on it.

use std::fmt;

use model::{Key, Kind};

/// How bad it is for traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The object works; something about it is worth knowing.
    Note,
    /// A part of the object does not work, and fails closed.
    Warning,
    /// Nothing of the object works.
    Error,
}

/// One finding. Equal findings are one: the agent makes one Event, one log line and one metric of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    pub object: Key,
    /// Path of the field, as in the object (`spec.ports[0].nodePort`), or the stage when no field is to blame.
    pub field: String,
    pub severity: Severity,
    /// What happens to traffic now.
    pub message: String,
    /// What a person can do.
    pub next_step: String,
}

impl Diagnostic {
    /// The finding without what to do about it.
    pub fn what(&self) -> String {
        let kind = match self.object.kind {
            Kind::Node => "node",
            Kind::Namespace => "namespace",
            Kind::Pod => "pod",
            Kind::Service => "service",
            Kind::EndpointSlice => "endpointslice",
            Kind::Policy => "networkpolicy",
            Kind::Attachment => "attachment",
        };
        format!("{kind} {}: {}: {}", self.object.name, self.field, self.message)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what(), self.next_step)
    }
}
