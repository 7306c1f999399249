//! What the node hears of its attachments.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipam::Now;
use model::{Cluster, Pod};
use semantics::Settings;
use types::ObjectName;

/// Of whoever waits for a [`Reply`](crate::Reply); given by who asks, never twice.
pub type RequestId = u64;

/// A CNI request with what was found out for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub id: RequestId,
    pub request: cni::Request,
    /// The pod, from the API, when the watch had not seen it yet.
    pub pod: Option<Pod>,
    /// Device and inode of the network namespace that lies at the request's path.
    pub netns_id: Option<(u64, u64)>,
    pub received: Now,
}

/// An attachment whose pod seems to be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub handle: String,
    pub pod: ObjectName,
    /// Empty: any of that name.
    pub uid: String,
}

/// What the API itself says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Gone,
    There,
    /// It cannot be asked, and why.
    Unheard(String),
    /// Nobody had time to ask.
    Unasked,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The process begins. `veths`: attachments whose veth is there; `namespaces`: those whose network namespace is.
    Started { veths: BTreeSet<String>, namespaces: BTreeSet<String> },
    /// ADD, DEL or GC.
    Asked(Box<Asked>),
    /// What changed since the last round is known: requests that came too early may be served. `trouble`: why the node
    /// cannot serve, for who waited in vain.
    Round { trouble: Option<String> },
    /// Answers [`Output::Save`](crate::Output::Save), before anything else is heard.
    Saved(u64, Result<(), String>),
    /// The kernel has followed the rows of these generations: it refuses the policies, or it cannot forget flows of who had
    /// pods' addresses before.
    Followed { through: u64, refused: Option<String>, unforgotten: Option<String> },
    /// Answers [`Output::Wire`](crate::Output::Wire).
    Wired(String, Result<(), cni::Error>),
    /// Answers [`Output::Unwire`](crate::Output::Unwire), of several together. `namespaces`: those whose namespace lives on.
    Unwired { handles: Vec<String>, deleted: Result<(), String>, namespaces: BTreeSet<String> },
    /// Now and then: which attachments' veths and namespaces are there.
    Looked { veths: BTreeSet<String>, namespaces: BTreeSet<String> },
    /// Answers [`Output::Confirm`](crate::Output::Confirm).
    Confirmed(Doubt, Answer),
    /// The kernel has forgotten the flows of these.
    Forgotten(Vec<IpAddr>),
    /// The kernel has forgotten the flows of all addresses of the pools that nobody has.
    ForgottenAll,
}

/// What else the node knows.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub node: &'a str,
    pub cluster: &'a Cluster,
    /// `None` before everything was listed and its rules are on their way.
    pub settings: Option<&'a Settings>,
    /// Pods are listed, and their watch is not broken.
    pub hears_pods: bool,
    /// Rows that are output now come to the kernel with this generation.
    pub generation: u64,
    /// Nothing is mended: whoever looks into a node wants it left as it is.
    pub paused: bool,
    /// How long an attachment that nobody owns is left alone.
    pub orphan_grace: Duration,
}
