//! What the node hears of its attachments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipam::Now;
use model::Pod;
use serde::{Deserialize, Serialize};
use types::{IpNet, ObjectName};

/// Of whoever waits for a [`Reply`](crate::Reply); given by who asks, never twice.
pub type RequestId = u64;

/// A CNI request with what was found out for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub id: RequestId,
    pub request: cni::Request,
    /// The pod, from the API, when the watch had not seen it yet.
    #[serde(with = "narrow", default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Device and inode of the network namespace that lies at the request's path.
    pub netns_id: Option<(u64, u64)>,
    pub received: Now,
}

/// An attachment whose pod seems to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    pub handle: String,
    pub pod: ObjectName,
    /// Empty: any of that name.
    pub uid: String,
}

/// What the API itself says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Gone,
    There,
    /// It cannot be asked, and why.
    Unheard(String),
    /// Nobody had time to ask.
    Unasked,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Now and then: attachments whose namespace is gone, and those whose pod the API does not have, as far as is seen.
    Looked { ended: BTreeSet<String>, unshown: BTreeSet<String> },
    /// Answers [`Output::Confirm`](crate::Output::Confirm).
    Confirmed(Doubt, Answer),
    /// The kernel has forgotten the flows of these: addresses of who left, and further sources that were lost.
    Forgotten(Vec<IpNet>),
    /// The kernel has forgotten the flows of all addresses of the pools that nobody has.
    ForgottenAll,
    /// Whose pods the node's are: the subnets of its Node's pod CIDRs in their order, and how long an address rests.
    Subnets { nets: Vec<IpNet>, rest: Duration },
    /// From where else these are to be allowed to send from now on. Answered by [`Output::Granted`](crate::Output::Granted).
    Grant(BTreeMap<String, Vec<IpNet>>),
    /// From where else these may still send: the rules let them no longer from elsewhere.
    Narrow(BTreeMap<String, Vec<IpNet>>),
}

/// A pod as data: what an attachment depends on, and nothing else of it.
mod narrow {
    use model::Pod;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use types::ObjectName;

    #[derive(Serialize, Deserialize)]
    struct Narrow {
        key: ObjectName,
        uid: String,
        grace: u32,
    }

    #[expect(clippy::ref_option, reason = "serde calls it with the field")]
    pub fn serialize<S: Serializer>(pod: &Option<Pod>, serializer: S) -> Result<S::Ok, S::Error> {
        let narrow = |pod: &Pod| Narrow { key: pod.key.clone(), uid: pod.uid.clone(), grace: pod.grace };
        pod.as_ref().map(narrow).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Pod>, D::Error> {
        let narrow = Option::<Narrow>::deserialize(deserializer)?;
        Ok(narrow.map(|Narrow { key, uid, grace }| Pod { key, uid, grace, ..Pod::default() }))
    }
}
