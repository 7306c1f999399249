//! What an object means that it does not say (pkg/apis/*/v1/defaults.go and zz_generated.defaults.go of Kubernetes 1.36),
//! and what clients find in every object because Go has no way to leave it out. Clients rely on both: kubectl reads what a
//! default has filled without looking whether it is there.

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::object::{default, map_in, root, text};

/// Fills in the defaults of the kind.
pub(crate) fn apply(kind: &Kind, object: &mut Value) {
    let root = root(object);
    match kind.kind {
        "Pod" => pod(map_in(root, "spec")),
        "Service" => {
            service(map_in(root, "spec"));
            load_balancer(object);
        }
        "Deployment" => deployment(root),
        "ReplicaSet" => replica_set(root),
        "NetworkPolicy" => network_policy(map_in(root, "spec")),
        "EndpointSlice" => endpoint_slice(root),
        "Node" => node(root),
        _ => {}
    }
}

/// Sets a field that says nothing: it is absent, or has the zero value of a Go field without a pointer.
fn unsaid(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    let says = map.get(field).is_some_and(|said| *said != json!("") && *said != json!(0));
    if !says {
        map.insert(field.to_owned(), value.into());
    }
}

/// What a pod has and a template of pods has not.
fn pod(spec: &mut Map<String, Value>) {
    default(spec, "enableServiceLinks", true);
    // The admission plugin ServiceAccount.
    if account(spec).is_none() {
        spec.insert("serviceAccountName".to_owned(), "default".into());
    }
    if spec.get("hostNetwork") == Some(&json!(true)) {
        for container in items(spec, "containers") {
            for port in items(container, "ports") {
                if let Some(number) = port.get("containerPort").cloned() {
                    unsaid(port, "hostPort", number);
                }
            }
        }
    }
    pod_spec(spec);
}

fn pod_spec(spec: &mut Map<String, Value>) {
    unsaid(spec, "restartPolicy", "Always");
    unsaid(spec, "dnsPolicy", "ClusterFirst");
    unsaid(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", json!({}));
    if let Some(account) = account(spec) {
        spec.insert("serviceAccountName".to_owned(), account.clone());
        spec.insert("serviceAccount".to_owned(), account);
    }
    for container in items(spec, "containers") {
        unsaid(container, "imagePullPolicy", pull_policy(container.get("image")));
        unsaid(container, "terminationMessagePath", "/dev/termination-log");
        unsaid(container, "terminationMessagePolicy", "File");
        default(container, "resources", json!({}));
        for port in items(container, "ports") {
            unsaid(port, "protocol", "TCP");
            // None.
            if port.get("hostPort") == Some(&json!(0)) {
                port.remove("hostPort");
            }
        }
        for env in items(container, "env") {
            if let Some(Value::Object(from)) = env.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")) {
                unsaid(from, "apiVersion", "v1");
            }
        }
        for probe in ["livenessProbe", "readinessProbe"] {
            if let Some(Value::Object(probe)) = container.get_mut(probe) {
                probe_timings(probe);
            }
        }
    }
}

/// The field has two names; the newer one counts.
fn account(spec: &Map<String, Value>) -> Option<Value> {
    let mut names = ["serviceAccountName", "serviceAccount"].iter().filter_map(|field| spec.get(*field));
    names.find(|name| **name != json!("")).cloned()
}

fn probe_timings(probe: &mut Map<String, Value>) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        unsaid(probe, field, value);
    }
    if let Some(Value::Object(get)) = probe.get_mut("httpGet") {
        unsaid(get, "path", "/");
        unsaid(get, "scheme", "HTTP");
    }
}

/// `Always` for images that may change under their name.
fn pull_policy(image: Option<&Value>) -> &'static str {
    let image = image.and_then(Value::as_str).unwrap_or_default();
    let (image, digest) = image.split_once('@').map_or((image, false), |(image, _)| (image, true));
    let name = image.rsplit('/').next().unwrap_or_default();
    let changes = name.ends_with(":latest") || !(digest || name.contains(':'));
    if changes { "Always" } else { "IfNotPresent" }
}

fn service(spec: &mut Map<String, Value>) {
    unsaid(spec, "type", "ClusterIP");
    unsaid(spec, "sessionAffinity", "None");
    if spec.get("sessionAffinity").and_then(Value::as_str) == Some("ClientIP") {
        let config = map_in(spec, "sessionAffinityConfig");
        default(map_in(config, "clientIP"), "timeoutSeconds", 10_800);
    } else {
        spec.remove("sessionAffinityConfig");
    }
    for port in items(spec, "ports") {
        unsaid(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            unsaid(port, "targetPort", number);
        }
    }
    if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
        return;
    }
    default(spec, "internalTrafficPolicy", "Cluster");
    let external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    let typed = matches!(spec.get("type").and_then(Value::as_str), Some("NodePort" | "LoadBalancer"));
    if typed || external_ips {
        unsaid(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec.get("type").and_then(Value::as_str) == Some("LoadBalancer") {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// How packets for its addresses come.
fn load_balancer(service: &mut Value) {
    if text(service, &["spec", "type"]) != "LoadBalancer" {
        return;
    }
    let Some(Value::Object(status)) = service.pointer_mut("/status/loadBalancer") else { return };
    for ingress in items(status, "ingress").filter(|ingress| ingress.contains_key("ip")) {
        default(ingress, "ipMode", "VIP");
    }
}

fn template(spec: &mut Map<String, Value>) {
    let template = map_in(spec, "template");
    // The API shows the template's absent creationTimestamp not at all (1.34 and later).
    map_in(template, "metadata");
    pod_spec(map_in(template, "spec"));
}

fn deployment(root: &mut Map<String, Value>) {
    let spec = map_in(root, "spec");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    template(spec);
    let strategy = map_in(spec, "strategy");
    unsaid(strategy, "type", "RollingUpdate");
    if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        let rolling = map_in(strategy, "rollingUpdate");
        default(rolling, "maxUnavailable", "25%");
        default(rolling, "maxSurge", "25%");
    }
}

fn replica_set(root: &mut Map<String, Value>) {
    let spec = map_in(root, "spec");
    default(spec, "replicas", 1);
    template(spec);
}

fn network_policy(spec: &mut Map<String, Value>) {
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                default(port, "protocol", "TCP");
            }
        }
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".to_owned(), types);
    }
    if !spec.contains_key("podSelector") {
        spec.insert("podSelector".to_owned(), json!({}));
    }
}

fn endpoint_slice(root: &mut Map<String, Value>) {
    for port in items(root, "ports") {
        default(port, "name", "");
        default(port, "protocol", "TCP");
    }
    for endpoint in items(root, "endpoints") {
        default(endpoint, "conditions", json!({}));
    }
}

fn node(root: &mut Map<String, Value>) {
    if let Some(Value::Object(status)) = root.get_mut("status")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        default(status, "allocatable", capacity);
    }
}

/// The objects in a list field.
fn items<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests;
