//! What the agents saw of a traced packet, as plain facts: from nft's trace events, captures, conntrack, the
//! program that sent the packet, and kernel state that is not as it should be. Agents fill it; nothing here
//! judges.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use types::{IfName, Mac, Protocol};

use crate::hop::Stage;

/// Everything one node saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    pub node: String,
    pub sightings: Vec<Sighting>,
}

/// How the error of a resolver that says SERVFAIL ends.
pub const SERVFAIL: &str = "answers SERVFAIL";

/// One observation; `at` is nanoseconds on the node's CLOCK_REALTIME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Sighting {
    /// The resolver's answer inside the pod. No addresses and no error: it says that there is no such name.
    Resolved {
        at: u64,
        micros: u64,
        full_name: String,
        addresses: Vec<IpAddr>,
        step: usize,
        error: Option<String>,
    },
    /// What became of the pod's own socket.
    Sent { at: u64, source: SocketAddr, destination: SocketAddr, end: SocketEnd },
    /// A frame on a device.
    Frame { at: u64, dev: IfName, direction: Way, packet: Seen, outer: Option<Outer> },
    /// A rule of any table decided (nft trace, whose events bear no time).
    Nft { rule: Decision },
    /// The conntrack entry of the connection on this node.
    Conntrack { original: Tuple, reply: Tuple },
    /// Kernel state that is ours and is not as it should be, where it concerns this packet.
    Drift { stage: Stage, text: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum SocketEnd {
    /// It connected, or an answer came; `text` for the person: `HTTP 200`.
    Answered { text: String, micros: u64 },
    /// A reset, or ICMP port unreachable.
    Refused,
    /// ICMP unreachable of another kind.
    Unreachable,
    /// Nothing came in time.
    Silent,
    /// Connected, and a full-size request was not answered.
    Stalled,
}

impl SocketEnd {
    /// Whether the sender heard at once that it ends.
    pub fn was_told(&self) -> bool {
        matches!(self, Self::Refused | Self::Unreachable)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    In,
    Out,
}

/// The addresses of a packet. For a tunnelled one: those inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub bytes: u32,
}

/// The outside of a VXLAN packet, and the inner frame's destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outer {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub vni: u32,
    pub inner_mac: Mac,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// In place of a hook: the rule's counter rose while the flow was watched, by whichever packet of the same port or tunnel.
pub const COUNTED: &str = "counted";

/// A decision of nf_tables, of whoever's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The hook of the base chain: `prerouting`, `input`, `forward`, `output`, `postrouting`; or [`COUNTED`].
    pub hook: String,
    pub family: String,
    pub table: String,
    pub chain: String,
    /// `accept`, `drop`, `reject`, `jump n3`, …
    pub verdict: String,
    pub comment: String,
    /// The packet as the rule saw it, and where it was about to leave, when the event says so.
    pub packet: Option<Seen>,
    pub oif: Option<IfName>,
    /// It decided about the answer, not about the packet.
    #[serde(default)]
    pub answer: bool,
    /// The rule is the guard's.
    #[serde(default)]
    pub guard: bool,
}

impl Decision {
    /// Agents built before 0.2.0 was released had the guard of links in a table of its own, and do not say so.
    pub fn of_guard(&self) -> bool {
        self.guard || self.family == "inet"
    }
}
