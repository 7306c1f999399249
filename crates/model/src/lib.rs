//! Owns: the cluster as this program sees it: typed rows by key, which keys an event changed, the ranges it was told of.
//! Never: I/O, clocks, kernel words (no table, route or veth), and no decision about traffic.
//! In → Out: [`Event`]s from watches and from the node → [`Cluster`], changed [`Key`]s, [`Synced`].
//! Read first: [`row`], then [`Cluster::apply`].

mod announced;
mod cluster;
mod diagnostic;
pub mod from_k8s;
pub mod ranges;
pub mod row;

pub use announced::Announced;
pub use cluster::{Cluster, Event, Key, Kind, Placed, Row, Synced, Vacated};
pub use diagnostic::Diagnostic;
pub use ranges::Ranges;
pub use row::{
    Attachment, Endpoint, EndpointSlice, Hints, HostPort, IntOrName, NamedPort, Namespace, Node, Peer, Phase,
    Pod, Policy, PolicyPort, PolicyRule, Service, ServicePort, ServiceType, SlicePort, Sources,
    TrafficPolicy,
};
