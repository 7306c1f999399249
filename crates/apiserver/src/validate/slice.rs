//! EndpointSlices (pkg/apis/discovery/validation).

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::metadata::{label, label_value, qualified_name, subdomain};
use super::{address, one_of};
use crate::invalid::Complaints;
use crate::object::{at, list, text};

/// `before`: endpoints that were taken once stay, whatever was asked of them then.
pub(super) fn check(object: &Value, before: Option<&Value>, complaints: &mut Complaints) {
    match text(object, &["addressType"]) {
        "" => complaints.required("addressType", ""),
        _ => one_of(object, "addressType", &["FQDN", "IPv4", "IPv6"], "addressType", complaints),
    }
    ports(object, complaints);
    let endpoints = list(object, &["endpoints"]);
    if before.is_some_and(|before| list(before, &["endpoints"]) == endpoints) {
        return;
    }
    if endpoints.len() > 1000 {
        return complaints.too_many("endpoints", endpoints.len(), 1000);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{index}]");
        addresses(endpoint, text(object, &["addressType"]), &format!("{path}.addresses"), complaints);
        for (field, judge) in [("nodeName", subdomain as fn(&str) -> Option<String>), ("hostname", label)] {
            if let Some(why) = endpoint.get(field).and_then(Value::as_str).and_then(judge) {
                complaints.invalid(&format!("{path}.{field}"), &text(endpoint, &[field]).into(), &why);
            }
        }
        hints(endpoint, &format!("{path}.hints"), complaints);
    }
}

/// Where there are too many of one kind, nothing more is looked at.
fn hints(endpoint: &Value, path: &str, complaints: &mut Complaints) {
    for (field, judge) in [("forZones", label_value as fn(&str) -> Option<String>), ("forNodes", subdomain)] {
        let hints = list(endpoint, &["hints", field]);
        if hints.len() > 8 {
            return complaints.too_many(&format!("{path}.{field}"), hints.len(), 8);
        }
        let mut names = BTreeSet::new();
        for (at, hint) in hints.iter().enumerate() {
            let (path, name) = (format!("{path}.{field}[{at}].name"), text(hint, &["name"]));
            if !names.insert(name) {
                complaints.duplicate(&path, &name.into());
            }
            if let Some(why) = judge(name) {
                complaints.invalid(&path, &name.into(), &why);
            }
        }
    }
}

fn addresses(endpoint: &Value, ty: &str, path: &str, complaints: &mut Complaints) {
    let addresses = list(endpoint, &["addresses"]);
    if addresses.is_empty() {
        complaints.required(path, "must contain at least 1 address");
    } else if addresses.len() > 100 {
        complaints.too_many(path, addresses.len(), 100);
    }
    for (index, value) in addresses.iter().enumerate() {
        let field = format!("{path}[{index}]");
        let found = match ty {
            "IPv4" => address::ip(value, &field, &[], complaints),
            "IPv6" => address::canonical_ip(value, &field, complaints),
            "FQDN" => {
                domain(value, &field, complaints);
                None
            }
            _ => None,
        };
        let Some(found) = found else { continue };
        if matches!(found, IpAddr::V4(_)) != (ty == "IPv4") {
            complaints.invalid(path, value, &format!("must be an {ty} address"));
        }
        address::endpoint(found, value, &field, complaints);
    }
}

/// A name of two labels or more (util/validation, `IsFullyQualifiedDomainName`).
fn domain(value: &Value, field: &str, complaints: &mut Complaints) {
    let name = value.as_str().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        complaints.required(field, "");
    } else if let Some(why) = subdomain(name) {
        complaints.invalid(field, &name.into(), &why);
    } else if !name.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        complaints.invalid(field, &name.into(), why);
    }
}

/// The number is not looked at (validatePorts): who reads slices must bear any.
fn ports(object: &Value, complaints: &mut Complaints) {
    let ports = list(object, &["ports"]);
    if ports.len() > 20_000 {
        return complaints.too_many("ports", ports.len(), 20_000);
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("ports[{index}]");
        let name = text(port, &["name"]);
        if let Some(why) = Some(name).filter(|name| !name.is_empty()).and_then(label) {
            complaints.invalid(&format!("{path}.name"), &name.into(), &why);
        }
        if !names.insert(name) {
            complaints.duplicate(&format!("{path}.name"), &name.into());
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &format!("{path}.protocol"), complaints);
        if let Some(why) = at(port, &["appProtocol"]).and_then(Value::as_str).and_then(qualified_name) {
            complaints.invalid(&format!("{path}.appProtocol"), &text(port, &["appProtocol"]).into(), &why);
        }
    }
}
