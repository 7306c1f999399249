//! What a Prometheus operator needs to find the agents: a Service and a ServiceMonitor.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use types::wire::{AGENT_LABELS, AGENT_PORT, METRICS_SERVICE};

use super::{LABEL, NAME, NAMESPACE, metadata, value};
use crate::settings::{Settings, is_on};

/// The group of ServiceMonitors, with its version.
pub const MONITORING: &str = "monitoring.coreos.com/v1";
/// Tells this Service from others of Plumb's.
const COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "metrics");
/// Where a Prometheus has the token of its service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The Service, then the ServiceMonitor.
pub fn monitor(settings: &Settings) -> [Value; 2] {
    [service(), service_monitor(is_on(&settings.secure_metrics), &settings.metrics_cert_secret)]
}

/// Headless: it is there to be discovered, and nothing is sent to it.
fn service() -> Value {
    let mut metadata = metadata(METRICS_SERVICE, true);
    metadata.labels.get_or_insert_default().insert(COMPONENT.0.into(), COMPONENT.1.into());
    let selector = AGENT_LABELS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let port = ServicePort {
        name: Some("metrics".into()),
        port: AGENT_PORT.into(),
        target_port: Some(IntOrString::Int(AGENT_PORT.into())),
        ..ServicePort::default()
    };
    // An agent that is not ready is the one that is of interest.
    let spec = ServiceSpec {
        cluster_ip: Some("None".into()),
        publish_not_ready_addresses: Some(true),
        selector: Some(selector.into()),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    value(&Service { metadata, spec: Some(spec), ..Service::default() })
}

/// Its job is called plumb, as the alerts have it. `secret`: with the certificate and, as ca.crt, who has signed it.
fn service_monitor(secure: bool, secret: &str) -> Value {
    let mut endpoint = json!({
        "port": "metrics",
        "relabelings": [{ "sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node" }],
    });
    if secure {
        endpoint["scheme"] = "https".into();
        endpoint["bearerTokenFile"] = TOKEN.into();
        endpoint["tlsConfig"] = match secret {
            "" => json!({ "insecureSkipVerify": true }),
            secret => json!({
                "serverName": format!("{METRICS_SERVICE}.{NAMESPACE}.svc"),
                "ca": { "secret": { "name": secret, "key": "ca.crt" } },
            }),
        };
    }
    json!({
        "apiVersion": MONITORING,
        "kind": "ServiceMonitor",
        "metadata": metadata(NAME, true),
        "spec": {
            "jobLabel": LABEL,
            "namespaceSelector": { "matchNames": [NAMESPACE] },
            "selector": { "matchLabels": { LABEL: NAME, COMPONENT.0: COMPONENT.1 } },
            "endpoints": [endpoint],
        },
    })
}
