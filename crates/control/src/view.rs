//! What the controllers read of each object, and nothing else. Unknown fields are dropped at the border;
//! a Deployment's pod template stays whole, because it is copied, not understood.

mod meta;
mod network;
mod node;
mod pod;
mod workload;

pub use meta::{Condition, LabelSelector, Meta, OwnerReference, SelectorRequirement, condition};
pub use network::{
    Endpoint, EndpointConditions, EndpointSlice, Hints, Named, PortTarget, Service, ServicePort, ServiceSpec,
    SlicePort, TargetRef,
};
pub use node::{Lease, LeaseSpec, Namespace, NamespaceSpec, Node, NodeSpec, NodeStatus, Taint};
pub use pod::{
    Affinity, AntiAffinity, AntiAffinityTerm, Container, ContainerPort, Pod, PodIp, PodSpec, PodStatus,
    SpreadConstraint, Toleration,
};
pub use workload::{
    Deployment, DeploymentSpec, DeploymentStatus, IntOrPercent, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus,
    RollingUpdate, Strategy,
};

use serde::Deserialize;

/// A kind of which only the metadata matters: it can be owned, and it dies with its namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Other {
    pub metadata: Meta,
}
