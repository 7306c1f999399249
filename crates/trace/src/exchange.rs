//! What `plumb trace` and the agents say to each other: JSON bodies of POST requests under `/v1/trace/` of an
//! agent's HTTP port, reached through the API server's node proxy.
//!
//! ```text
//!   plumb trace          agent of the pod's node                     agent of the endpoint's node
//!     open ────────────> resolve in the pod, take a port, watch
//!     arm ───────────────────────────────────────────────────────────> watch that flow
//!     send ────────────> one real connection; expected and observed
//!     collect ───────────────────────────────────────────────────────> expected and observed there
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use types::{Family, ObjectName, Protocol};

use crate::expect::{Expected, Onward};
use crate::hop::Hop;
use crate::observed::{Observed, Sighting};

/// What a person asked for, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    pub protocol: Protocol,
    /// Which of a name's addresses to take; `None`: of the family of the pod's first address that the name has.
    #[serde(default)]
    pub family: Option<Family>,
    /// The path of an `http://` URL: a request is sent after the connection stands.
    pub http_path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub pod: ObjectName,
    pub ask: Ask,
    /// A source port to reproduce a flow with; `None`: the pod's kernel chooses.
    pub source_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    pub id: String,
    pub node: String,
    /// What the model says of the name; `None` for an address.
    pub resolve: Option<Hop>,
    /// What the resolver in the pod said, and what is wrong on the way to it.
    pub resolved: Vec<Sighting>,
    /// The flow, when there is an address to go to.
    pub flow: Option<Flow>,
    /// Nodes that the packet may come to.
    pub candidates: Vec<String>,
}

/// What agents watch for: a client's address and port, in whichever way the rest is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    pub id: String,
    pub flow: Flow,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    pub id: String,
    pub timeout_ms: u64,
}

/// Asks a further node for its part of the way. `onward: None`: the packet did not come to it; it forgets the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect {
    pub id: String,
    pub onward: Option<Onward>,
}

/// One node's part of the way, as it should be and as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    pub expected: Expected,
    pub observed: Observed,
}

/// A refusal, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}
