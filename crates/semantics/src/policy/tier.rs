//! What judges a pod in one direction, whoever wrote it: tiers in order, each with rules in order and a default.
//!
//! ```text
//!   tier 1   rule ── Accept ──> let through in this direction; the other one still judges
//!            rule ── Deny ────> dropped
//!            rule ── Pass ──┐
//!            default ──…    │   the first rule that matches decides, and without one the default
//!   tier 2   … <────────────┘
//!   no tier left ─────────────> let through
//! ```
//!
//! A datapath needs nothing beside this: which objects a tier is made of is in its causes, for people.

use std::collections::BTreeSet;
use std::fmt;

use model::{Attachment, Cluster};
use types::{Family, IpNet, ObjectName, Protocol};

use super::network_policy;
use super::resolve::{Direction, PodPeer};
use crate::meaning::Meaning;

/// Rules of one rank. No two tiers of one identity differ, as long as they are of one direction and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    pub identity: Identity,
    pub rules: Vec<Rule>,
    pub default: Judgement,
}

/// By what tiers are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It follows from these objects. `sort`: which sort of policy they are.
    Objects { sort: &'static str, names: BTreeSet<ObjectName> },
    /// It is always the same.
    Fixed(&'static str),
}

/// One rule of one object, with what can match at all in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// None: everybody.
    pub peers: Option<Vec<PeerMatch>>,
    /// None: every port of every protocol (NP-04).
    pub ports: Option<Vec<PortMatch>>,
    pub judgement: Judgement,
}

/// What becomes of a packet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Deny,
    /// The next tier judges.
    Pass,
}

/// What a verdict comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A rule, counted from 1, of an object.
    Rule(ObjectName, usize),
    /// These objects, without one rule of theirs: none matches, or which one does is not known.
    Objects(BTreeSet<ObjectName>),
    /// The node has the pod and the API's row of it has not come (NP-40).
    UnknownPod,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMatch {
    Pods(PodPeer),
    Block { cidr: IpNet, except: Vec<IpNet> },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortMatch {
    /// Both ends inclusive; all of them when the rule names only a protocol.
    Numbers { protocol: Protocol, from: u16, to: u16 },
    /// As the destination pod calls it (NP-21).
    Name { protocol: Protocol, name: String },
}

/// Makes the tier of one sort of policy; `None`: none of them is about the pod.
type Sort = fn(&Cluster, &Attachment, Direction, Family) -> Option<Tier>;

/// All sorts, in the order in which they judge.
const SORTS: &[Sort] = &[network_policy::tier];

/// The tiers that judge a pod of this node in a direction. Without any it is open.
pub fn tiers(cluster: &Cluster, attachment: &Attachment, direction: Direction, family: Family) -> Vec<Tier> {
    SORTS.iter().filter_map(|sort| sort(cluster, attachment, direction, family)).collect()
}

impl Identity {
    /// Adds all that tells it from others.
    pub fn mean(&self, meaning: Meaning) -> Meaning {
        match self {
            Self::Fixed(word) => meaning.text(word),
            Self::Objects { names, .. } => names
                .iter()
                .fold(meaning.count(names.len()), |all, name| all.text(&name.namespace).text(&name.name)),
        }
    }

    /// What sort of tier it is, in the names of meanings.
    pub fn sort(&self) -> &'static str {
        match self {
            Self::Objects { sort, .. } => sort,
            Self::Fixed(_) => "fixed",
        }
    }
}

impl Rule {
    /// How many matches it is when written out.
    pub fn matches(&self) -> usize {
        let peers = if self.peers.is_none() { 1 } else { self.peers() };
        peers.saturating_mul(self.ports.as_ref().map_or(1, Vec::len))
    }

    /// How much it says of peers: every hole is a comparison of its own.
    pub(super) fn peers(&self) -> usize {
        let holes = |peer: &PeerMatch| match peer {
            PeerMatch::Block { except, .. } => except.len(),
            PeerMatch::Pods(_) => 0,
        };
        self.peers.iter().flatten().map(|peer| 1 + holes(peer)).sum()
    }
}

impl Cause {
    pub fn objects(&self) -> BTreeSet<ObjectName> {
        match self {
            Self::Rule(object, _) => BTreeSet::from([object.clone()]),
            Self::Objects(objects) => objects.clone(),
            Self::UnknownPod => BTreeSet::new(),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(object, rule) => write!(f, "{object} rule {rule}"),
            Self::Objects(objects) => {
                f.write_str(&objects.iter().map(ObjectName::to_string).collect::<Vec<_>>().join(", "))
            }
            Self::UnknownPod => f.write_str("the pod is not known yet"),
        }
    }
}
