//! The kinds that the controllers read, and how the API spells each.

use std::fmt;

/// A kind that some controller reads or that can own or be owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Namespace,
    Node,
    Lease,
    Pod,
    Service,
    EndpointSlice,
    Deployment,
    ReplicaSet,
    ConfigMap,
    ServiceAccount,
    NetworkPolicy,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Namespace,
        Self::Node,
        Self::Lease,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Deployment,
        Self::ReplicaSet,
        Self::ConfigMap,
        Self::ServiceAccount,
        Self::NetworkPolicy,
    ];

    /// `group/version`, or `v1` for the core group.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::Service
            | Self::ConfigMap
            | Self::ServiceAccount => "v1",
            Self::Lease => "coordination.k8s.io/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Deployment | Self::ReplicaSet => "apps/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Lease => "Lease",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::ConfigMap => "ConfigMap",
            Self::ServiceAccount => "ServiceAccount",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// The resource's name in a URL.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Lease => "leases",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Deployment => "deployments",
            Self::ReplicaSet => "replicasets",
            Self::ConfigMap => "configmaps",
            Self::ServiceAccount => "serviceaccounts",
            Self::NetworkPolicy => "networkpolicies",
        }
    }

    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    /// The kind an ownerReference speaks of. The group decides, not the version: references outlive versions.
    pub fn of_reference(api_version: &str, kind: &str) -> Option<Self> {
        let group = |text: &str| text.split_once('/').map_or("", |(group, _)| group).to_owned();
        Self::ALL.into_iter().find(|k| k.name() == kind && group(k.api_version()) == group(api_version))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
