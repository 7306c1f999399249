//! Errors as a runtime reads them: a code, what happened, and what to do.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Version;

/// 1 to 99 are the specification's, 100 and up are ours (docs/cni-errors.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    IncompatibleVersion = 1,
    UnsupportedField = 2,
    UnknownContainer = 3,
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfig = 7,
    /// CNI_NETNS is the caller's own network namespace.
    OwnNetns = 8,
    TryAgainLater = 11,
    NotAvailable = 50,
    LimitedConnectivity = 51,
    /// The interface name is taken in the pod's network namespace.
    InterfaceExists = 100,
    /// The kernel refused a step of wiring the pod.
    Kernel = 101,
    /// CHECK found something else than ADD made.
    CheckFailed = 102,
    /// The kernel did not take the policies of the pod: it was not wired, since it would have been open.
    PolicyNotApplied = 103,
    /// The address that was asked for cannot be given out.
    AddressRefused = 104,
    /// Another pod of this node has a host port that was asked for.
    HostPortTaken = 105,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    pub code: Code,
    /// What happened, to which object.
    pub msg: String,
    /// Cause and next step.
    pub details: String,
}

impl Error {
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// The JSON for stdout.
    pub fn render(&self, version: Version) -> String {
        json!({
            "cniVersion": version.as_str(),
            "code": self.code as u32,
            "msg": self.msg,
            "details": self.details,
        })
        .to_string()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI error {}: {}", self.code as u32, self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl std::error::Error for Error {}
