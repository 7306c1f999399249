//! Is an object one that the cluster can work with? Complaints are kube-apiserver's, field by field
//! (pkg/apis/*/validation of Kubernetes 1.36).

mod address;
mod metadata;
mod network;
mod pod;
mod slice;
mod workload;

use serde_json::Value;

use crate::invalid::Complaints;
use crate::kind::Kind;
use crate::object::{at, text};

/// A new object.
pub(crate) fn create(kind: &Kind, object: &Value, complaints: &mut Complaints) {
    check(kind, object, None, complaints);
}

/// `before`: addresses that an object was once allowed stay allowed to it.
fn check(kind: &Kind, object: &Value, before: Option<&Value>, complaints: &mut Complaints) {
    metadata::check(kind, object, complaints);
    match kind.kind {
        "Pod" => pod::check(at(object, &["spec"]), "spec", complaints),
        "Node" => network::node(object, before, complaints),
        "Service" => network::service(object, before, complaints),
        "NetworkPolicy" => network::policy(object, before, complaints),
        "EndpointSlice" => slice::check(object, before, complaints),
        "Deployment" => workload::deployment(object, complaints),
        "ReplicaSet" => workload::replica_set(object, complaints),
        "ConfigMap" => workload::config_map(object, complaints),
        _ => {}
    }
}

/// A changed object.
pub(crate) fn update(kind: &Kind, new: &Value, before: &Value, complaints: &mut Complaints) {
    // What was stored is not judged again: only a change can be wrong.
    let spec = |object| at(object, &["spec"]);
    if kind.kind == "Service" {
        network::load_balancer(new, before, complaints);
    }
    if kind.kind != "EndpointSlice" && spec(new).is_some() && spec(new) == spec(before) {
        metadata::check(kind, new, complaints);
        return;
    }
    check(kind, new, Some(before), complaints);
    match kind.kind {
        "Pod" => pod::check_change(new, before, complaints),
        "Service" => network::service_change(new, before, complaints),
        "Deployment" | "ReplicaSet" => immutable(new, before, &["spec", "selector"], complaints),
        "EndpointSlice" => immutable(new, before, &["addressType"], complaints),
        "ConfigMap" if at(before, &["immutable"]) == Some(&Value::Bool(true)) => {
            for field in ["data", "binaryData", "immutable"] {
                if at(new, &[field]) != at(before, &[field]) {
                    complaints.forbidden(field, "field is immutable when `immutable` is set");
                }
            }
        }
        _ => {}
    }
}

fn immutable(new: &Value, before: &Value, path: &[&str], complaints: &mut Complaints) {
    let (now, was) = (at(new, path), at(before, path));
    if now != was {
        let value = now.cloned().unwrap_or_default();
        complaints.invalid(&path.join("."), &value, "field is immutable");
    }
}

/// A number that must lie in a range.
fn in_range(
    value: Option<&Value>,
    range: std::ops::RangeInclusive<i64>,
    field: &str,
    complaints: &mut Complaints,
) {
    let Some(value) = value else { return };
    if !value.as_i64().is_some_and(|n| range.contains(&n)) {
        let detail = format!("must be between {} and {}, inclusive", range.start(), range.end());
        complaints.invalid(field, value, &detail);
    }
}

fn not_negative(value: Option<&Value>, field: &str, complaints: &mut Complaints) {
    if let Some(value) = value.filter(|v| v.as_i64().is_none_or(|n| n < 0)) {
        complaints.invalid(field, value, "must be greater than or equal to 0");
    }
}

fn one_of(object: &Value, name: &str, allowed: &[&str], field: &str, complaints: &mut Complaints) {
    if let Some(value) = object.get(name).filter(|v| !v.as_str().is_some_and(|v| allowed.contains(&v))) {
        complaints.unsupported(field, value, allowed);
    }
}

fn required(object: &Value, name: &str, field: &str, complaints: &mut Complaints) -> bool {
    let missing = text(object, &[name]).is_empty();
    if missing {
        complaints.required(field, "");
    }
    !missing
}

#[cfg(test)]
mod tests;
