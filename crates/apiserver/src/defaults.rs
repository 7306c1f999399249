//! What an object means that it does not say (pkg/apis/*/v1/defaults.go of Kubernetes 1.36).

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::object::{default, map_in, root};

/// Fills in the defaults of the kind.
pub(crate) fn apply(kind: &Kind, object: &mut Value) {
    let root = root(object);
    match kind.kind {
        "Pod" => pod_spec(map_in(root, "spec")),
        "Service" => service(map_in(root, "spec")),
        "Deployment" => deployment(root),
        "ReplicaSet" => replica_set(root),
        "NetworkPolicy" => network_policy(map_in(root, "spec")),
        "EndpointSlice" => endpoint_slice(root),
        _ => {}
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    let account = spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount")).cloned();
    let account = account.unwrap_or_else(|| "default".into());
    spec.insert("serviceAccountName".to_owned(), account.clone());
    spec.insert("serviceAccount".to_owned(), account);
    let host = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for container in items(spec, "containers") {
        default(container, "imagePullPolicy", pull_policy(container.get("image")));
        default(container, "terminationMessagePath", "/dev/termination-log");
        default(container, "terminationMessagePolicy", "File");
        for port in items(container, "ports") {
            default(port, "protocol", "TCP");
            if let (true, Some(number)) = (host, port.get("containerPort").cloned()) {
                default(port, "hostPort", number);
            }
        }
        for env in items(container, "env") {
            if let Some(Value::Object(from)) = env.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")) {
                default(from, "apiVersion", "v1");
            }
        }
        for probe in ["livenessProbe", "readinessProbe"] {
            if let Some(Value::Object(probe)) = container.get_mut(probe) {
                probe_timings(probe);
            }
        }
    }
}

fn probe_timings(probe: &mut Map<String, Value>) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default(probe, field, value);
    }
    if let Some(Value::Object(get)) = probe.get_mut("httpGet") {
        default(get, "path", "/");
        default(get, "scheme", "HTTP");
    }
}

/// `Always` for images that may change under their name.
fn pull_policy(image: Option<&Value>) -> &'static str {
    let image = image.and_then(Value::as_str).unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let changes = !image.contains('@') && (name.ends_with(":latest") || !name.contains(':'));
    if changes { "Always" } else { "IfNotPresent" }
}

fn service(spec: &mut Map<String, Value>) {
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    if spec.get("sessionAffinity").and_then(Value::as_str) == Some("ClientIP") {
        let config = map_in(spec, "sessionAffinityConfig");
        default(map_in(config, "clientIP"), "timeoutSeconds", 10_800);
    } else {
        spec.remove("sessionAffinityConfig");
    }
    for port in items(spec, "ports") {
        default(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            default(port, "targetPort", number);
        }
        // 0 and "" say nothing, as in Go.
        if matches!(port.get("targetPort"), Some(Value::Number(n)) if n.as_i64() == Some(0))
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".to_owned(), number);
        }
    }
    if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
        return;
    }
    default(spec, "internalTrafficPolicy", "Cluster");
    let external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    let typed = matches!(spec.get("type").and_then(Value::as_str), Some("NodePort" | "LoadBalancer"));
    if typed || external_ips {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec.get("type").and_then(Value::as_str) == Some("LoadBalancer") {
        default(spec, "allocateLoadBalancerNodePorts", true);
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
    default(strategy, "type", "RollingUpdate");
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
    if !spec.contains_key("policyTypes") {
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
}

/// The objects in a list field.
fn items<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}
