//! Services, EndpointSlices and NetworkPolicies.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::metadata::{label, labels, port_name, selector, subdomain};
use super::{in_range, one_of};
use crate::invalid::Complaints;
use crate::object::{at, integer, list, text};
use crate::service_type::is_external;

pub(super) fn service(object: &Value, complaints: &mut Complaints) {
    let empty = json!({});
    let spec = at(object, &["spec"]).unwrap_or(&empty);
    let ty = text(spec, &["type"]);
    let headless = text(spec, &["clusterIP"]) == "None";
    one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], "spec.type", complaints);
    let ports = list(spec, &["ports"]);
    if ports.is_empty() && !headless && ty != "ExternalName" {
        complaints.required("spec.ports", "");
    }
    if ty == "ExternalName" {
        match text(spec, &["externalName"]) {
            "" => complaints.required("spec.externalName", ""),
            name => {
                if let Some(why) = subdomain(&name.to_lowercase()) {
                    complaints.invalid("spec.externalName", &name.into(), &why);
                }
            }
        }
        if headless || !text(spec, &["clusterIP"]).is_empty() {
            complaints.forbidden("spec.clusterIPs[0]", "may not be set when `type` is 'ExternalName'");
        }
    } else if matches!(ty, "NodePort" | "LoadBalancer") && headless {
        complaints.invalid(
            "spec.clusterIPs[0]",
            &"None".into(),
            &format!("may not be set to 'None' for {ty} services"),
        );
    }
    service_ports(ports, ty, complaints);
    affinity(spec, complaints);
    health_check(spec, ty, complaints);
    labels(spec.get("selector"), "spec.selector", complaints);
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], "spec.sessionAffinity", complaints);
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        one_of(spec, field, &["Cluster", "Local"], &format!("spec.{field}"), complaints);
    }
    if spec.get("externalTrafficPolicy").is_some() && !is_external(object) {
        let value = spec.get("externalTrafficPolicy").cloned().unwrap_or_default();
        complaints.invalid(
            "spec.externalTrafficPolicy",
            &value,
            "may only be set for externally-accessible services",
        );
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of(spec, "ipFamilyPolicy", &policies, "spec.ipFamilyPolicy", complaints);
    for (index, family) in list(spec, &["ipFamilies"]).iter().enumerate() {
        if family != "IPv4" && family != "IPv6" {
            complaints.unsupported(&format!("spec.ipFamilies[{index}]"), family, &["IPv4", "IPv6"]);
        }
    }
}

fn affinity(spec: &Value, complaints: &mut Complaints) {
    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let seconds = at(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"]);
    if let Some(seconds) = seconds.filter(|s| !s.as_i64().is_some_and(|s| (1..=86_400).contains(&s))) {
        complaints.invalid(path, seconds, "must be greater than 0 and less than 86400");
    }
}

fn health_check(spec: &Value, ty: &str, complaints: &mut Complaints) {
    let wanted = ty == "LoadBalancer" && text(spec, &["externalTrafficPolicy"]) == "Local";
    let number = integer(spec, &["healthCheckNodePort"]);
    if number != 0 && !wanted {
        let value = number.into();
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        complaints.invalid("spec.healthCheckNodePort", &value, detail);
    }
}

fn service_ports(ports: &[Value], ty: &str, complaints: &mut Complaints) {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            complaints.required(&format!("{path}.name"), "");
        } else if !name.is_empty() {
            if let Some(why) = label(name) {
                complaints.invalid(&format!("{path}.name"), &name.into(), &why);
            }
            if !names.insert(name) {
                complaints.duplicate(&format!("{path}.name"), &name.into());
            }
        }
        let number = port.get("port").cloned().unwrap_or_else(|| 0.into());
        in_range(Some(&number), 1..=65_535, &format!("{path}.port"), complaints);
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &format!("{path}.protocol"), complaints);
        port_or_name(port.get("targetPort"), &format!("{path}.targetPort"), complaints);
        let protocol = text(port, &["protocol"]);
        if !numbers.insert((number.as_i64(), protocol)) {
            let value = json!({"port": number, "protocol": protocol});
            complaints.duplicate(&path, &value);
        }
        if let Some(node) = port.get("nodePort").filter(|n| n.as_i64() != Some(0)) {
            if !node_ports.insert((node.as_i64(), protocol)) {
                complaints.duplicate(&format!("{path}.nodePort"), node);
            }
            if ty == "ClusterIP" {
                complaints
                    .forbidden(&format!("{path}.nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if !node.as_i64().is_some_and(|n| (30_000..=32_767).contains(&n)) {
                let detail =
                    "provided port is not in the valid range. The range of valid ports is 30000-32767";
                complaints.invalid(&format!("{path}.nodePort"), node, detail);
            }
        }
    }
}

/// A number in range, or the name of a container's port.
fn port_or_name(value: Option<&Value>, path: &str, complaints: &mut Complaints) {
    match value {
        Some(Value::String(name)) => {
            if let Some(why) = port_name(name) {
                complaints.invalid(path, &name.as_str().into(), why);
            }
        }
        number => in_range(number, 1..=65_535, path, complaints),
    }
}

/// An address, once given, stays; a Service may become an ExternalName or headless only by being made anew.
pub(super) fn service_change(new: &Value, before: &Value, complaints: &mut Complaints) {
    let address = |object| text(object, &["spec", "clusterIP"]).to_owned();
    let (was, is) = (address(before), address(new));
    let external = |object| text(object, &["spec", "type"]) == "ExternalName";
    if !was.is_empty() && was != is && !external(new) && !external(before) {
        complaints.invalid("spec.clusterIPs[0]", &json!([is]), "may not change once set");
    }
}

pub(super) fn slice(object: &Value, complaints: &mut Complaints) {
    match text(object, &["addressType"]) {
        "" => complaints.required("addressType", ""),
        _ => one_of(object, "addressType", &["FQDN", "IPv4", "IPv6"], "addressType", complaints),
    }
    let ty = text(object, &["addressType"]);
    let endpoints = list(object, &["endpoints"]);
    if endpoints.len() > 1000 {
        complaints.invalid("endpoints", &endpoints.len().into(), "must have at most 1000 items");
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let addresses = list(endpoint, &["addresses"]);
        if addresses.is_empty() {
            complaints.required(&path, "must contain at least 1 address");
        }
        for (at, address) in addresses.iter().enumerate() {
            let parsed = address.as_str().and_then(|a| a.parse::<std::net::IpAddr>().ok());
            let is = |family: &str| parsed.is_some_and(|ip| types::Family::of(ip).to_string() == family);
            if ["IPv4", "IPv6"].contains(&ty) && !is(ty) {
                complaints.invalid(
                    &format!("{path}[{at}]"),
                    address,
                    &format!("must be a valid {ty} address"),
                );
            }
        }
    }
    let mut names = BTreeSet::new();
    for (index, port) in list(object, &["ports"]).iter().enumerate() {
        let path = format!("ports[{index}]");
        if !names.insert(text(port, &["name"])) {
            complaints.duplicate(&format!("{path}.name"), &text(port, &["name"]).into());
        }
        in_range(port.get("port"), 1..=65_535, &format!("{path}.port"), complaints);
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &format!("{path}.protocol"), complaints);
    }
}

pub(super) fn policy(object: &Value, complaints: &mut Complaints) {
    selector(at(object, &["spec", "podSelector"]), "spec.podSelector", complaints);
    for (field, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(object, &["spec", field]).iter().enumerate() {
            let path = format!("spec.{field}[{index}]");
            for (at, port) in list(rule, &["ports"]).iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{at}]"), complaints);
            }
            for (at, peer) in list(rule, &[peers]).iter().enumerate() {
                policy_peer(peer, &format!("{path}.{peers}[{at}]"), complaints);
            }
        }
    }
    let types = list(object, &["spec", "policyTypes"]);
    if types.len() > 2 {
        complaints.invalid("spec.policyTypes", &json!(types), "may not specify more than two policyTypes");
    }
    for (index, ty) in types.iter().enumerate().filter(|(_, ty)| *ty != "Ingress" && *ty != "Egress") {
        complaints.unsupported(&format!("spec.policyTypes[{index}]"), ty, &["Egress", "Ingress"]);
    }
}

fn policy_port(port: &Value, path: &str, complaints: &mut Complaints) {
    one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &format!("{path}.protocol"), complaints);
    port_or_name(port.get("port"), &format!("{path}.port"), complaints);
    let Some(end) = port.get("endPort") else { return };
    match port.get("port") {
        None => complaints.required(&format!("{path}.port"), "must be specified when `endPort` is specified"),
        Some(Value::String(_)) => complaints.invalid(
            &format!("{path}.endPort"),
            end,
            "may not be specified when `port` is non-numeric",
        ),
        Some(first) if end.as_i64() < first.as_i64() => {
            complaints.invalid(&format!("{path}.endPort"), end, "must be greater than or equal to `port`");
        }
        Some(_) => in_range(Some(end), 1..=65_535, &format!("{path}.endPort"), complaints),
    }
}

fn policy_peer(peer: &Value, path: &str, complaints: &mut Complaints) {
    let has = |field: &str| peer.get(field).is_some();
    if !has("podSelector") && !has("namespaceSelector") && !has("ipBlock") {
        complaints.required(path, "must specify a peer");
    }
    if has("ipBlock") && (has("podSelector") || has("namespaceSelector")) {
        complaints.forbidden(path, "may not specify both ipBlock and another peer");
    }
    selector(peer.get("podSelector"), &format!("{path}.podSelector"), complaints);
    selector(peer.get("namespaceSelector"), &format!("{path}.namespaceSelector"), complaints);
    let Some(block) = peer.get("ipBlock") else { return };
    let path = format!("{path}.ipBlock");
    let cidr = text(block, &["cidr"]);
    if cidr.is_empty() {
        complaints.required(&format!("{path}.cidr"), "");
        return;
    }
    let bad = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Ok(outer) = cidr.parse::<types::IpNet>() else {
        complaints.invalid(&format!("{path}.cidr"), &cidr.into(), bad);
        return;
    };
    for (index, except) in list(block, &["except"]).iter().enumerate() {
        let path = format!("{path}.except[{index}]");
        match except.as_str().and_then(|text| text.parse::<types::IpNet>().ok()) {
            None => complaints.invalid(&path, except, bad),
            Some(inner) if !outer.contains(&inner) || inner == outer => {
                complaints.invalid(&path, except, &format!("must be a strict subset of `cidr`: {cidr:?}"));
            }
            Some(_) => {}
        }
    }
}
