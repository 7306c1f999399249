//! What a brain wants done: values that print themselves. One interpreter performs them.

use std::fmt;

use serde_json::{Value, json};
use types::ObjectName;

use crate::kind::Kind;
use crate::view::{Meta, OwnerReference};

/// One object, with the uid it must still have: a namesake made in between is somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: Kind,
    pub name: ObjectName,
    pub uid: String,
}

impl Target {
    pub fn of(kind: Kind, meta: &Meta) -> Self {
        Self { kind, name: meta.key(), uid: meta.uid.clone() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What happens to the dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
}

impl Propagation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
        }
    }
}

/// A line for `kubectl describe`. `{name}` in the note becomes the name of a created object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub about: Target,
    pub warning: bool,
    pub reason: &'static str,
    pub note: String,
    /// The controller that speaks.
    pub source: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// `done` is posted when it worked; when it did not, a `FailedCreate` about the same object is.
    Create {
        kind: Kind,
        object: Value,
        done: Option<Notice>,
    },
    /// A JSON merge patch (RFC 7386) of the object or of one subresource.
    Patch {
        target: Target,
        subresource: Option<&'static str>,
        patch: Value,
    },
    Delete {
        target: Target,
        propagation: Propagation,
        done: Option<Notice>,
    },
    /// Deletes a dependent once the API itself has confirmed that every owner is gone: the watches of two
    /// kinds are not ordered, so a young dependent may be known before its owner.
    Collect {
        target: Target,
        owners: Vec<OwnerReference>,
    },
    Bind {
        pod: Target,
        node: String,
        done: Notice,
    },
    /// Events of a namespace are not watched; they go in one request.
    DeleteEvents {
        namespace: String,
    },
    /// Removes the `kubernetes` finalizer of an empty namespace.
    Finalize {
        namespace: Target,
    },
    Post(Notice),
}

impl Write {
    pub fn patch(kind: Kind, meta: &Meta, patch: Value) -> Self {
        Self::Patch { target: Target::of(kind, meta), subresource: None, patch }
    }

    pub fn status(kind: Kind, meta: &Meta, status: &impl serde::Serialize) -> Self {
        // Serialising plain structs of strings and numbers cannot fail; Null would be an empty patch.
        let status = serde_json::to_value(status).unwrap_or(Value::Null);
        Self::Patch {
            target: Target::of(kind, meta),
            subresource: Some("status"),
            patch: json!({"status": status}),
        }
    }

    /// A status whose writer is not alone: only this version of the object may be changed.
    pub fn status_at(kind: Kind, meta: &Meta, status: Value) -> Self {
        Self::Patch {
            target: Target::of(kind, meta),
            subresource: Some("status"),
            patch: json!({"metadata": {"resourceVersion": meta.resource_version}, "status": status}),
        }
    }

    pub fn delete(kind: Kind, meta: &Meta) -> Self {
        Self::Delete { target: Target::of(kind, meta), propagation: Propagation::Background, done: None }
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { kind, object, .. } => {
                let meta = &object["metadata"];
                let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
                let name = if meta["name"].is_string() {
                    text("name")
                } else {
                    format!("{}*", text("generateName"))
                };
                write!(f, "create {kind} {}/{name}", text("namespace"))
            }
            Self::Patch { target, subresource, patch } => match subresource {
                Some(part) => write!(f, "patch {part} of {target} {patch}"),
                None => write!(f, "patch {target} {patch}"),
            },
            Self::Delete { target, propagation, .. } => write!(f, "delete {target} ({})", propagation.name()),
            Self::Collect { target, owners } => {
                let owners: Vec<_> = owners.iter().map(|o| format!("{} {}", o.kind, o.name)).collect();
                write!(f, "collect {target}, owned by {}", owners.join(", "))
            }
            Self::Bind { pod, node, .. } => write!(f, "bind {pod} to {node}"),
            Self::DeleteEvents { namespace } => write!(f, "delete events of {namespace}"),
            Self::Finalize { namespace } => write!(f, "finalize {namespace}"),
            Self::Post(notice) => {
                write!(f, "event {} about {}: {}", notice.reason, notice.about, notice.note)
            }
        }
    }
}

/// What one brain decided for one key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub writes: Vec<Write>,
    /// Time alone will change the answer after so many seconds.
    pub again_in: Option<i64>,
}

impl Decision {
    pub fn writes(writes: Vec<Write>) -> Self {
        Self { writes, again_in: None }
    }

    /// The earlier of two times wins.
    pub fn look_again(&mut self, seconds: i64) {
        let seconds = seconds.max(1);
        self.again_in = Some(self.again_in.map_or(seconds, |s| s.min(seconds)));
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for write in &self.writes {
            writeln!(f, "{write}")?;
        }
        match self.again_in {
            Some(seconds) => writeln!(f, "look again in {seconds} s"),
            None => Ok(()),
        }
    }
}
