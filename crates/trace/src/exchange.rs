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

use std::net::{IpAddr, SocketAddr};

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
    /// As what it may come to them under another source. Agents of earlier versions do not tell.
    #[serde(default)]
    pub masqueraded: Vec<Masqueraded>,
}

/// The flow after its node has put an address of its own in place of the client's: the port is known only afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masqueraded {
    pub source: IpAddr,
    pub destination: SocketAddr,
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
    #[serde(default)]
    pub masqueraded: Vec<Masqueraded>,
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

/// What a pod can resolve, or what becomes of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskNames {
    pub pod: ObjectName,
    pub name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub node: String,
    /// Of the pod's /etc/resolv.conf.
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub ndots: u32,
    /// The pod's /etc/hosts.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// Where no name was given: all of the cluster.
    pub known: Vec<KnownName>,
    /// Where one was: what the pod's resolver hears, name by name.
    pub tried: Vec<TriedName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownName {
    /// As short as the pod may say it, and at which step of the search it is found.
    pub name: String,
    pub step: usize,
    pub full_name: String,
    pub addresses: Vec<IpAddr>,
    pub alias: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedName {
    pub full_name: String,
    pub step: usize,
    pub family: Family,
    /// What the zone says of it.
    pub expected: String,
    /// The answer.
    pub addresses: Vec<IpAddr>,
    pub error: Option<String>,
    pub agrees: bool,
    pub micros: u64,
}

/// A refusal, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}
