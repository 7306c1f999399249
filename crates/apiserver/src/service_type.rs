//! What a Service must forget when its type changes: fields that only the former type has, and that the client did not
//! touch, go by themselves. So `kubectl patch` of the type alone is a whole change, as at kube-apiserver.

use serde_json::Value;

use crate::object::{at, list, map_in, root, text};

fn kind(service: &Value) -> &str {
    match text(service, &["spec", "type"]) {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn has_node_ports(service: &Value) -> bool {
    match kind(service) {
        "NodePort" => true,
        "LoadBalancer" => {
            at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false))
        }
        _ => false,
    }
}

fn has_health_check(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && text(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

/// Whether an address of it is known outside of the cluster.
pub(crate) fn is_external(service: &Value) -> bool {
    match kind(service) {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(service, &["spec", "externalIPs"]).is_empty(),
        _ => false,
    }
}

/// Whether a Service has what some fields are about.
type Has = fn(&Value) -> bool;

/// Before defaults are filled in.
pub(crate) fn forget(new: &mut Value, before: &Value) {
    let balanced = |service: &Value| kind(service) == "LoadBalancer";
    let addressed = |service: &Value| kind(service) != "ExternalName";
    let rows: [(Has, &[&str]); 4] = [
        (has_health_check, &["healthCheckNodePort"]),
        (is_external, &["externalTrafficPolicy"]),
        (balanced, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]),
        (addressed, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]),
    ];
    for (has, fields) in rows {
        if !has(before) || has(new) {
            continue;
        }
        for field in fields {
            if at(new, &["spec", field]) == at(before, &["spec", field]) {
                map_in(root(new), "spec").remove(*field);
            }
        }
    }
    let numbers = |service: &Value| -> Vec<Value> {
        list(service, &["spec", "ports"]).iter().filter_map(|port| port.get("nodePort").cloned()).collect()
    };
    let dropped = has_node_ports(before) && !has_node_ports(new) && numbers(new) == numbers(before);
    if dropped && let Some(Value::Array(ports)) = map_in(root(new), "spec").get_mut("ports") {
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
}
