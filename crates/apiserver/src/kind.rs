//! The kinds, as a table: a new one is a row here and a schema.

/// What `/scale`, `/status` and the rest attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// `metadata.generation` counts changes of the spec.
    pub generation: bool,
    pub subresources: &'static [&'static str],
    /// What `--field-selector` may name, besides metadata.name and metadata.namespace
    /// (ToSelectableFields of each kind's registry in kube-apiserver).
    pub fields: &'static [&'static str],
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `deployments.apps`.
    pub fn qualified(&self) -> String {
        crate::status::qualified(self.plural, self.group)
    }

    /// The row under which objects of this kind are stored.
    pub fn stored_as(&'static self) -> &'static Self {
        if self.group == NEW_EVENT.group { &EVENT } else { self }
    }

    /// Its objects have a status that only `/status` changes.
    pub fn has_status(&self) -> bool {
        self.subresources.contains(&"status")
    }

    /// The row of a group, version and plural, as in a URL.
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        KINDS.into_iter().find(|k| k.group == group && k.version == version && k.plural == plural)
    }
}

const NONE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short: &[],
    categories: &[],
    namespaced: true,
    generation: false,
    subresources: &[],
    fields: &[],
};

pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short: &["ns"],
    namespaced: false,
    subresources: &["finalize", "status"],
    fields: &["status.phase"],
    ..NONE
};
pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short: &["no"],
    namespaced: false,
    subresources: &["proxy", "status"],
    fields: &["spec.unschedulable"],
    ..NONE
};
pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short: &["po"],
    categories: &["all"],
    generation: true,
    subresources: &["binding", "exec", "log", "portforward", "proxy", "status"],
    fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    ..NONE
};
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short: &["svc"],
    categories: &["all"],
    subresources: &["proxy", "status"],
    fields: &["spec.clusterIP", "spec.type", crate::clusterip::ADDRESSES],
    ..NONE
};
pub static CONFIG_MAP: Kind =
    Kind { kind: "ConfigMap", plural: "configmaps", singular: "configmap", short: &["cm"], ..NONE };
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short: &["sa"],
    subresources: &["token"],
    ..NONE
};
pub static EVENT: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short: &["ev"],
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    ..NONE
};
/// The same objects as [`EVENT`], in the words of the newer group; stored as core/v1.
pub static NEW_EVENT: Kind = Kind {
    group: "events.k8s.io",
    fields: &["regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid", "reason", "type"],
    ..EVENT
};
pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    generation: true,
    ..NONE
};
pub static NETWORK_POLICY: Kind = Kind {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short: &["netpol"],
    generation: true,
    ..NONE
};
pub static LEASE: Kind =
    Kind { group: "coordination.k8s.io", kind: "Lease", plural: "leases", singular: "lease", ..NONE };
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short: &["deploy"],
    categories: &["all"],
    generation: true,
    subresources: &["scale", "status"],
    ..NONE
};
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short: &["rs"],
    categories: &["all"],
    generation: true,
    subresources: &["scale", "status"],
    fields: &["status.replicas"],
    ..NONE
};

/// Every kind, core first: discovery lists them in this order.
pub static KINDS: [&Kind; 13] = [
    &CONFIG_MAP,
    &EVENT,
    &NAMESPACE,
    &NODE,
    &POD,
    &SERVICE_ACCOUNT,
    &SERVICE,
    &DEPLOYMENT,
    &REPLICA_SET,
    &LEASE,
    &ENDPOINT_SLICE,
    &NEW_EVENT,
    &NETWORK_POLICY,
];
