//! Services, EndpointSlices and NetworkPolicies.

use serde_json::Value;

use super::{AGE, Column, NAME, age, labels_text, name, selector_text};
use crate::object::{at, integer, list, text};

pub(super) const SERVICE_COLUMNS: [Column; 7] = [
    NAME,
    ("Type", "string", false),
    ("Cluster-IP", "string", false),
    ("External-IP", "string", false),
    ("Port(s)", "string", false),
    AGE,
    ("Selector", "string", true),
];

pub(super) fn service_cells(object: &Value) -> Vec<Value> {
    let address = text(object, &["spec", "clusterIP"]);
    vec![
        name(object),
        text(object, &["spec", "type"]).into(),
        if address.is_empty() { "<none>".into() } else { address.into() },
        external_ip(object).into(),
        service_ports(object).into(),
        age(object),
        labels_text(at(object, &["spec", "selector"])).unwrap_or_else(|| "<none>".to_owned()).into(),
    ]
}

fn external_ip(object: &Value) -> String {
    let own: Vec<_> = list(object, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
    let given: Vec<_> = list(object, &["status", "loadBalancer", "ingress"])
        .iter()
        .map(|ingress| match text(ingress, &["ip"]) {
            "" => text(ingress, &["hostname"]),
            ip => ip,
        })
        .collect();
    match text(object, &["spec", "type"]) {
        "ExternalName" => text(object, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" if given.is_empty() && own.is_empty() => "<pending>".to_owned(),
        "LoadBalancer" => [given, own].concat().join(","),
        _ if own.is_empty() => "<none>".to_owned(),
        _ => own.join(","),
    }
}

fn service_ports(object: &Value) -> String {
    let ports: Vec<_> = list(object, &["spec", "ports"])
        .iter()
        .map(|port| {
            let (number, protocol) = (integer(port, &["port"]), text(port, &["protocol"]));
            match integer(port, &["nodePort"]) {
                0 => format!("{number}/{protocol}"),
                node => format!("{number}:{node}/{protocol}"),
            }
        })
        .collect();
    if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }
}

pub(super) const SLICE_COLUMNS: [Column; 5] =
    [NAME, ("AddressType", "string", false), ("Ports", "string", false), ("Endpoints", "string", false), AGE];

pub(super) fn slice_cells(object: &Value) -> Vec<Value> {
    let ports: Vec<_> = list(object, &["ports"])
        .iter()
        .map(|port| match at(port, &["port"]) {
            Some(number) => number.to_string(),
            None => "*".to_owned(),
        })
        .collect();
    let endpoints: Vec<_> = list(object, &["endpoints"])
        .iter()
        .flat_map(|endpoint| list(endpoint, &["addresses"]))
        .filter_map(Value::as_str)
        .collect();
    vec![
        name(object),
        text(object, &["addressType"]).into(),
        first(ports.iter().map(String::as_str), "<unset>").into(),
        first(endpoints.into_iter(), "<unset>").into(),
        age(object),
    ]
}

/// The first three, and how many more there are.
fn first<'a>(words: impl Iterator<Item = &'a str>, none: &str) -> String {
    let words: Vec<_> = words.collect();
    match words.len() {
        0 => none.to_owned(),
        1..=3 => words.join(","),
        n => format!("{} + {} more...", words.get(..3).unwrap_or_default().join(","), n - 3),
    }
}

pub(super) const POLICY_COLUMNS: [Column; 3] = [NAME, ("Pod-Selector", "string", false), AGE];

pub(super) fn policy_cells(object: &Value) -> Vec<Value> {
    vec![name(object), selector_text(at(object, &["spec", "podSelector"])).into(), age(object)]
}
