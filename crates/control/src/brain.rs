//! The brains by name, and what each is asked about.

use std::fmt;

use jiff::Timestamp;
use types::wire::POD_CIDRS;
use types::{IpNet, ObjectName};

use crate::kind::Kind;
use crate::world::World;
use crate::write::Decision;
use crate::{deployment, endpoint_slice, garbage, namespace, node_cidr, node_life, replica_set, scheduler};

/// One controller. The two that allocate from a shared pool have a single key, [`Key::Everything`], so that
/// two decisions can never take the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Brain {
    NodeCidr,
    NodeLife,
    Scheduler,
    Deployment,
    ReplicaSet,
    EndpointSlice,
    Namespace,
    Garbage,
}

impl Brain {
    pub const ALL: [Self; 8] = [
        Self::NodeCidr,
        Self::NodeLife,
        Self::Scheduler,
        Self::Deployment,
        Self::ReplicaSet,
        Self::EndpointSlice,
        Self::Namespace,
        Self::Garbage,
    ];

    /// The component name that its Events bear, as kubectl users know it.
    pub fn component(self) -> &'static str {
        match self {
            Self::NodeCidr | Self::NodeLife => "node-controller",
            Self::Scheduler => "default-scheduler",
            Self::Deployment => "deployment-controller",
            Self::ReplicaSet => "replicaset-controller",
            Self::EndpointSlice => "endpoint-slice-controller",
            Self::Namespace => "namespace-controller",
            Self::Garbage => "garbage-collector-controller",
        }
    }
}

/// What a decision is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Everything,
    Object(Kind, ObjectName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Object(kind, name) => write!(f, "{kind} {name}"),
        }
    }
}

/// What differs between clusters.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Each is cut into one prefix per node, of 24 bits on IPv4 and 64 on IPv6; the first is the primary one.
    pub cluster_cidrs: Vec<IpNet>,
    pub node_prefix_lens: [u8; 2],
    /// A node that has not been heard of for so long is not ready any more.
    pub node_grace_seconds: i64,
    pub max_endpoints_per_slice: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_cidrs: POD_CIDRS.first().and_then(|cidr| cidr.parse().ok()).into_iter().collect(),
            node_prefix_lens: [24, 64],
            node_grace_seconds: 40,
            max_endpoints_per_slice: 100,
        }
    }
}

/// Asks one brain about one key.
pub fn decide(brain: Brain, world: &World, key: &Key, at: (&Settings, Timestamp)) -> Decision {
    let (settings, now) = at;
    match (brain, key) {
        (Brain::NodeCidr, _) => node_cidr::decide(world, settings),
        (Brain::Scheduler, _) => scheduler::decide(world, now),
        (_, Key::Everything) => Decision::default(),
        (Brain::NodeLife, Key::Object(_, name)) => node_life::decide(world, &name.name, settings, now),
        (Brain::Deployment, Key::Object(_, name)) => deployment::decide(world, name, now),
        (Brain::ReplicaSet, Key::Object(_, name)) => replica_set::decide(world, name, now),
        (Brain::EndpointSlice, Key::Object(_, name)) => endpoint_slice::decide(world, name, settings),
        (Brain::Namespace, Key::Object(_, name)) => namespace::decide(world, &name.name),
        (Brain::Garbage, Key::Object(kind, name)) => garbage::decide(world, *kind, name),
    }
}
