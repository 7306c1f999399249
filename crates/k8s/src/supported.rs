//! Which fields of a pod the lab carries out. Every other field is refused by its name, never ignored.
//! The one list of it: API, kubelet, documentation and tests read it from here.
//!
//! Fields that only say what happens anyway (imagePullPolicy, terminationMessagePath, schedulerName …) stand here
//! because API servers fill them in by default.

/// Under `spec` and `spec.template.spec`; `[]` stands for every element of a list, a path includes all below it.
pub const SUPPORTED: [&str; 40] = [
    // Where it runs.
    "nodeName",
    "nodeSelector",
    "tolerations",
    "schedulerName",
    "priority",
    "preemptionPolicy",
    "affinity.podAntiAffinity",
    "topologySpreadConstraints",
    // Its network and names.
    "hostNetwork",
    "hostname",
    "subdomain",
    "hostAliases",
    "dnsPolicy",
    "dnsConfig",
    "enableServiceLinks",
    // Its life.
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "serviceAccount",
    "serviceAccountName",
    "automountServiceAccountToken",
    // Its containers.
    "containers[].name",
    "containers[].image",
    "containers[].imagePullPolicy",
    "containers[].command",
    "containers[].args",
    "containers[].workingDir",
    "containers[].env[].name",
    "containers[].env[].value",
    "containers[].env[].valueFrom.fieldRef",
    "containers[].ports",
    "containers[].stdin",
    "containers[].tty",
    "containers[].terminationMessagePath",
    "containers[].terminationMessagePolicy",
    "containers[].readinessProbe.httpGet",
    "containers[].readinessProbe.tcpSocket",
    "containers[].readinessProbe.TIMES",
    "containers[].livenessProbe.httpGet",
    "containers[].livenessProbe.tcpSocket",
    "containers[].livenessProbe.TIMES",
];

/// What `TIMES` stands for.
pub const PROBE_TIMES: [&str; 6] = [
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
];

/// Paths below `value` (a pod's spec) that are not carried out, as they stand in the manifest. What is empty or
/// false asks for nothing.
pub fn unsupported(spec: &serde_json::Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(spec, "", path, &mut found);
    found
}

fn walk(value: &serde_json::Value, pattern: &str, path: &str, found: &mut Vec<String>) {
    use serde_json::Value;
    let asks_nothing = match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Null | Value::Bool(false) => true,
        _ => false,
    };
    if asks_nothing || is_supported(pattern) {
        return;
    }
    let leads_on = pattern.is_empty()
        || SUPPORTED.iter().any(|known| {
            known.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('.') || rest.starts_with("[]"))
        });
    match value {
        Value::Object(map) if leads_on => {
            for (key, inner) in map {
                let pattern = if pattern.is_empty() { key.clone() } else { format!("{pattern}.{key}") };
                walk(inner, &pattern, &format!("{path}.{key}"), found);
            }
        }
        Value::Array(list) if leads_on => {
            for (index, inner) in list.iter().enumerate() {
                walk(inner, &format!("{pattern}[]"), &format!("{path}[{index}]"), found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

fn is_supported(pattern: &str) -> bool {
    SUPPORTED.iter().any(|known| match known.strip_suffix("TIMES") {
        Some(stem) => pattern.strip_prefix(stem).is_some_and(|field| PROBE_TIMES.contains(&field)),
        None => *known == pattern,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_common_manifests_say_is_carried_out() {
        let spec = json!({"containers": [{"name": "c", "image": "host", "args": ["x"], "resources": {},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1}}],
            "securityContext": {}, "hostPID": false, "dnsConfig": {"nameservers": ["1.1.1.1"]}});
        assert_eq!(unsupported(&spec, "spec"), Vec::<String>::new());
    }

    #[test]
    fn the_rest_is_named_where_it_stands() {
        let spec = json!({"volumes": [{"name": "v"}], "hostPID": true, "initContainers": [{"name": "i"}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "v"}], "resources": {"limits": {"cpu": "1"}}},
                {"name": "d", "livenessProbe": {"exec": {"command": ["x"]}},
                 "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"key": "k"}}}]}]});
        let mut found = unsupported(&spec, "spec");
        found.sort();
        assert_eq!(
            found,
            [
                "spec.containers[0].resources",
                "spec.containers[0].volumeMounts",
                "spec.containers[1].env[0].valueFrom.secretKeyRef",
                "spec.containers[1].livenessProbe.exec",
                "spec.hostPID",
                "spec.initContainers",
                "spec.volumes",
            ]
        );
    }
}
