//! Which fields of a pod this kubelet carries out. Everything else is refused by its path, never ignored.

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::Value;

/// What may stand at each level. `*` steps into every element of a list.
///
/// Fields that only say what happens here anyway (imagePullPolicy, terminationMessagePath, schedulerName …) are
/// accepted because API servers fill them in by default.
const SUPPORTED: &[&str] = &[
    "nodeName",
    "nodeSelector",
    "hostname",
    "subdomain",
    "hostNetwork",
    "hostAliases",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "dnsPolicy",
    "dnsConfig",
    "tolerations",
    "schedulerName",
    "serviceAccount",
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "preemptionPolicy",
    "priority",
    "affinity.podAntiAffinity",
    "topologySpreadConstraints",
    "containers.*.name",
    "containers.*.image",
    "containers.*.imagePullPolicy",
    "containers.*.command",
    "containers.*.args",
    "containers.*.workingDir",
    "containers.*.env.*.name",
    "containers.*.env.*.value",
    "containers.*.env.*.valueFrom.fieldRef",
    "containers.*.ports",
    "containers.*.stdin",
    "containers.*.tty",
    "containers.*.terminationMessagePath",
    "containers.*.terminationMessagePolicy",
    "containers.*.readinessProbe.*",
    "containers.*.livenessProbe.*",
];

/// Of a probe: httpGet and tcpSocket with their times.
const PROBE: &[&str] = &[
    "httpGet",
    "tcpSocket",
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
];

/// The first field that is not supported, as `spec.containers[0].volumeMounts`.
pub fn unsupported(spec: &PodSpec) -> Option<String> {
    let value = serde_json::to_value(spec).ok()?;
    walk(&value, "", "spec")
}

fn walk(value: &Value, pattern: &str, path: &str) -> Option<String> {
    // Empty lists and maps (`securityContext: {}`, `resources: {}`) ask for nothing.
    let nothing = match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Null => true,
        _ => false,
    };
    if nothing || is_supported(pattern) {
        return None;
    }
    let leads_on =
        pattern.is_empty() || SUPPORTED.iter().any(|known| known.starts_with(&format!("{pattern}.")));
    let join = |key: &str| if pattern.is_empty() { key.to_owned() } else { format!("{pattern}.{key}") };
    match value {
        Value::Object(map) if leads_on => {
            map.iter().find_map(|(key, inner)| walk(inner, &join(key), &format!("{path}.{key}")))
        }
        Value::Array(list) if leads_on => list
            .iter()
            .enumerate()
            .find_map(|(index, inner)| walk(inner, &join("*"), &format!("{path}[{index}]"))),
        _ => Some(path.to_owned()),
    }
}

fn is_supported(pattern: &str) -> bool {
    SUPPORTED.iter().any(|known| match known.strip_suffix("Probe.*") {
        Some(stem) => pattern
            .strip_prefix(stem)
            .and_then(|rest| rest.strip_prefix("Probe."))
            .is_some_and(|field| PROBE.contains(&field)),
        None => *known == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: Value) -> Option<String> {
        unsupported(&serde_json::from_value(json).expect("a pod spec"))
    }

    #[test]
    fn what_a_common_manifest_says_is_supported() {
        let spec = serde_json::json!({
            "containers": [{
                "name": "c", "image": "host", "command": ["true"], "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "value": "b"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}, "resources": {},
            }],
            "securityContext": {}, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
        });
        assert_eq!(check(spec), None);
    }

    #[test]
    fn everything_else_is_named() {
        for (spec, path) in [
            (serde_json::json!({"containers": [], "volumes": [{"name": "v"}]}), "spec.volumes"),
            (
                serde_json::json!({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
                "spec.containers[0].volumeMounts",
            ),
            (
                serde_json::json!({"containers": [{"name": "c"}, {"name": "d", "readinessProbe": {"exec": {"command": ["x"]}}}]}),
                "spec.containers[1].readinessProbe.exec",
            ),
            (
                serde_json::json!({"containers": [{"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"key": "k", "name": "n"}}}]}]}),
                "spec.containers[0].env[0].valueFrom.secretKeyRef",
            ),
            (
                serde_json::json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}),
                "spec.containers[0].resources",
            ),
            (serde_json::json!({"containers": [], "hostPID": true}), "spec.hostPID"),
            (serde_json::json!({"containers": [], "initContainers": [{"name": "i"}]}), "spec.initContainers"),
        ] {
            assert_eq!(check(spec).as_deref(), Some(path));
        }
    }
}
