//! The objects that an installation is, made in one place: `plumb install` applies them, `deploy/plumb.yaml` and the
//! chart are written from them.

mod admission;
mod agent;
mod metrics;

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Resource, serde::Serialize};
use serde_json::{Value, json};
use types::wire::TRACE_ACCOUNT;

use crate::settings::{Settings, is_on};

pub use agent::{
    METRICS_CERT, agent, agent_mounts, environment, node_name, readable_parent, security, sysctls,
};

pub use metrics::{MONITORING, monitor};

pub const NAMESPACE: &str = "kube-system";
/// Of every object but the DNS Service.
pub const NAME: &str = "plumb";
pub const DNS_SERVICE: &str = "kube-dns";
/// What agents ask who may read metrics, where not everybody may.
pub const ACCESS_REVIEWS: &str = "subjectaccessreviews";
/// On every object that is ours, with the value [`NAME`].
pub const LABEL: &str = "app.kubernetes.io/name";

/// In the order in which they are applied.
pub fn objects(settings: &Settings) -> Vec<Value> {
    let [policy, in_force] = admission::own_node();
    let mut all = vec![
        value(&account()),
        value(&trace_account()),
        value(&role(settings)),
        value(&binding()),
        policy,
        in_force,
        value(&dns_service(settings)),
    ];
    if settings.service_monitor == "true" {
        all.extend(monitor(settings));
    }
    all.push(value(&agent(settings)));
    all
}

/// With kind and apiVersion, which typed objects know and do not carry.
pub fn value<T: Resource + Serialize>(object: &T) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = json!(T::API_VERSION);
    value["kind"] = json!(T::KIND);
    value
}

pub fn metadata(name: &str, namespaced: bool) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: namespaced.then(|| NAMESPACE.into()),
        labels: Some([(LABEL.into(), NAME.into())].into()),
        ..ObjectMeta::default()
    }
}

fn account() -> ServiceAccount {
    ServiceAccount { metadata: metadata(NAME, true), ..ServiceAccount::default() }
}

/// Whose tokens `plumb trace` shows to the agents. Nothing is bound to it: with the agents' own account, whoever may make
/// a token to trace with could make one to be an agent with.
fn trace_account() -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(TRACE_ACCOUNT, true),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// What the agents ask of the API, and nothing else: the cluster's tests run with these rights.
fn role(settings: &Settings) -> ClusterRole {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![group.into()]),
        resources: Some(resources.iter().map(|&s| s.into()).collect()),
        verbs: verbs.iter().map(|&s| s.into()).collect(),
        ..PolicyRule::default()
    };
    let mut rules = vec![
        // The model of the cluster. `list` is for API servers that do not stream lists (KEP-3157).
        rule("", &["namespaces", "nodes", "pods", "services"], &["list", "watch"]),
        rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
        rule("networking.k8s.io", &["networkpolicies"], &["list", "watch"]),
        // A pod that is wired before the watch has shown it.
        rule("", &["pods"], &["get"]),
        // The tunnel's hardware address, and the condition NetworkUnavailable.
        rule("", &["nodes", "nodes/status"], &["patch"]),
        rule("", &["events"], &["create"]),
        // Who may trace.
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ];
    if is_on(&settings.secure_metrics) {
        // Whether the bearer of a token may get /metrics.
        rules.push(rule("authorization.k8s.io", &[ACCESS_REVIEWS], &["create"]));
    }
    ClusterRole { metadata: metadata(NAME, false), rules: Some(rules), ..ClusterRole::default() }
}

fn binding() -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata: metadata(NAME, false),
        role_ref: RoleRef {
            api_group: Some(ClusterRole::GROUP.into()),
            kind: ClusterRole::KIND.into(),
            name: NAME.into(),
        },
        subjects: Some(vec![Subject {
            kind: ServiceAccount::KIND.into(),
            name: NAME.into(),
            namespace: Some(NAMESPACE.into()),
            ..Subject::default()
        }]),
    }
}

/// Holds the address, so that no other Service gets it. It selects nothing: every agent answers there itself.
fn dns_service(settings: &Settings) -> Service {
    let port = |name: &str, protocol: &str| ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: 53,
        ..ServicePort::default()
    };
    let mut metadata = metadata(DNS_SERVICE, true);
    metadata.labels.get_or_insert_default().insert("k8s-app".into(), DNS_SERVICE.into());
    let ips: Vec<String> = settings.dns_ip.split(',').map(|ip| ip.trim().to_owned()).collect();
    let policy = if ips.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    let spec = ServiceSpec {
        cluster_ip: ips.first().cloned(),
        // Else another Service may get the second.
        cluster_ips: Some(ips),
        ip_family_policy: Some(policy.into()),
        ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
        ..ServiceSpec::default()
    };
    Service { metadata, spec: Some(spec), ..Service::default() }
}
