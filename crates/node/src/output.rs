//! What follows from what was heard.

use std::net::IpAddr;

use compile::wiring::PodSide;
use model::Event;
use types::{IfName, ObjectName};

use crate::input::{Doubt, RequestId};
use crate::record::Record;

/// To be performed in their order, what follows from an answer before the rest; a process that is killed performs the first
/// of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Write [`Records`](crate::Records) as they are now. Answered by [`Input::Saved`](crate::Input::Saved) of this number.
    Save(u64),
    /// A row of this node's own, or a pod that the watch has not shown yet.
    Row(Event),
    /// Answered by [`Input::Wired`](crate::Input::Wired).
    Wire(Box<Wire>),
    /// Soon, with others. Answered by [`Input::Unwired`](crate::Input::Unwired).
    Unwire {
        handle: String,
        host_if: IfName,
    },
    /// Ask the API itself. Answered by [`Input::Confirmed`](crate::Input::Confirmed).
    Confirm(Doubt),
    Reply(RequestId, Reply),
    /// Addresses come from elsewhere now.
    PoolsMoved,
    /// Answers [`Input::Grant`](crate::Input::Grant): it is recorded, or nothing of it is.
    Granted(Result<(), String>),
    Note(Note),
}

/// A pod's interface with all that is in its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    pub record: Record,
    pub side: PodSide,
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done(Result<String, cni::Error>),
    /// The pod is not known here yet: ask the API, then again.
    NeedPod(ObjectName),
}

/// What was decided, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Wired {
        pod: ObjectName,
        ips: Vec<IpAddr>,
        host_if: IfName,
    },
    NotWired {
        pod: ObjectName,
        error: cni::Error,
    },
    Unwired {
        pod: ObjectName,
        ips: Vec<IpAddr>,
    },
    NotUnwired {
        handle: String,
        error: String,
    },
    /// A runtime does not know it.
    Garbage {
        handle: String,
    },
    /// Its pod ended while no agent ran.
    Ended {
        handle: String,
        pod: ObjectName,
    },
    /// Without a DEL: a sentence that says why.
    Released {
        pod: ObjectName,
        message: String,
    },
    /// The watch does not show its pod; `why` it stays all the same.
    Kept {
        handle: String,
        pod: ObjectName,
        why: String,
    },
    /// What was decided holds, but a process that begins anew does not know it.
    NotSaved(String),
}
