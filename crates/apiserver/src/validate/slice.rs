//! EndpointSlices (pkg/apis/discovery/validation).

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::metadata::{label, qualified_name, subdomain};
use super::{address, in_range, one_of};
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
        for field in ["forZones", "forNodes"] {
            let mut names = BTreeSet::new();
            for (at, hint) in list(endpoint, &["hints", field]).iter().enumerate() {
                if !names.insert(text(hint, &["name"])) {
                    let path = format!("{path}.hints.{field}[{at}].name");
                    complaints.duplicate(&path, &text(hint, &["name"]).into());
                }
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

fn ports(object: &Value, complaints: &mut Complaints) {
    let mut names = BTreeSet::new();
    for (index, port) in list(object, &["ports"]).iter().enumerate() {
        let path = format!("ports[{index}]");
        let name = text(port, &["name"]);
        if let Some(why) = Some(name).filter(|name| !name.is_empty()).and_then(label) {
            complaints.invalid(&format!("{path}.name"), &name.into(), &why);
        }
        if !names.insert(name) {
            complaints.duplicate(&format!("{path}.name"), &name.into());
        }
        in_range(port.get("port"), 1..=65_535, &format!("{path}.port"), complaints);
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &format!("{path}.protocol"), complaints);
        if let Some(why) = at(port, &["appProtocol"]).and_then(Value::as_str).and_then(qualified_name) {
            complaints.invalid(&format!("{path}.appProtocol"), &text(port, &["appProtocol"]).into(), &why);
        }
    }
}
