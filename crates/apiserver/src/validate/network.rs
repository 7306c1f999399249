//! Services, NetworkPolicies, and the networks of Nodes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::metadata::{label, labels, port_name, qualified_name, selector, subdomain};
use super::{address, in_range, one_of};
use crate::invalid::Complaints;
use crate::object::{at, integer, list, text};
use crate::service_type::is_external;

pub(super) fn service(object: &Value, before: Option<&Value>, complaints: &mut Complaints) {
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
        external_name(spec, complaints);
    } else if matches!(ty, "NodePort" | "LoadBalancer") && headless {
        complaints.invalid(
            "spec.clusterIPs[0]",
            &"None".into(),
            &format!("may not be set to 'None' for {ty} services"),
        );
    }
    service_ports(ports, ty, complaints);
    addresses(spec, before, complaints);
    source_ranges(spec, before, complaints);
    balancer_fields(spec, ty, complaints);
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
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    one_of(spec, "trafficDistribution", &distributions, "spec.trafficDistribution", complaints);
    let families = list(spec, &["ipFamilies"]);
    for (index, family) in families.iter().enumerate() {
        if families.iter().take(index).any(|other| other == family) {
            complaints.duplicate(&format!("spec.ipFamilies[{index}]"), family);
        }
        if family != "IPv4" && family != "IPv6" {
            complaints.unsupported(&format!("spec.ipFamilies[{index}]"), family, &["IPv4", "IPv6"]);
        }
    }
}

/// One closing dot says that the name is whole; capitals are no DNS-1123 name.
fn external_name(spec: &Value, complaints: &mut Complaints) {
    let name = text(spec, &["externalName"]);
    match name.strip_suffix('.').unwrap_or(name) {
        "" => complaints.required("spec.externalName", ""),
        name => {
            if let Some(why) = subdomain(name) {
                complaints.invalid("spec.externalName", &name.into(), &why);
            }
        }
    }
    let has_address = !text(spec, &["clusterIP"]).is_empty() || !list(spec, &["clusterIPs"]).is_empty();
    let fields = [
        ("clusterIPs", has_address),
        ("ipFamilies", !list(spec, &["ipFamilies"]).is_empty()),
        ("ipFamilyPolicy", spec.get("ipFamilyPolicy").is_some()),
    ];
    for (field, _) in fields.into_iter().filter(|(_, given)| *given) {
        complaints.forbidden(&format!("spec.{field}"), "may not be set for ExternalName services");
    }
}

/// What a list of the object held before.
fn had<'a>(before: Option<&'a Value>, path: &[&str]) -> &'a [Value] {
    before.map_or(&[], |before| list(before, path))
}

fn addresses(spec: &Value, before: Option<&Value>, complaints: &mut Complaints) {
    if text(spec, &["type"]) != "ExternalName" {
        let single = spec.get("clusterIP").filter(|ip| *ip != "").cloned();
        let listed = list(spec, &["clusterIPs"]);
        let all = if listed.is_empty() { single.as_slice() } else { listed };
        let known = had(before, &["spec", "clusterIPs"]);
        for (index, value) in all.iter().enumerate().filter(|(index, ip)| *index > 0 || **ip != "None") {
            address::ip(value, &format!("spec.clusterIPs[{index}]"), known, complaints);
        }
    }
    for (index, value) in list(spec, &["externalIPs"]).iter().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        if let Some(found) = address::ip(value, &field, had(before, &["spec", "externalIPs"]), complaints) {
            address::endpoint(found, value, &field, complaints);
        }
    }
}

/// The field is spelled so in kube-apiserver's messages. Blanks around a range belong to the API.
fn source_ranges(spec: &Value, before: Option<&Value>, complaints: &mut Complaints) {
    let path = "spec.LoadBalancerSourceRanges";
    let ranges = list(spec, &["loadBalancerSourceRanges"]);
    if !ranges.is_empty() && text(spec, &["type"]) != "LoadBalancer" {
        complaints.forbidden(path, BALANCED_ONLY);
    }
    let known = had(before, &["spec", "loadBalancerSourceRanges"]);
    for (index, value) in ranges.iter().enumerate() {
        let text = value.as_str().unwrap_or_default().trim();
        address::cidr_text(text, value, &format!("{path}[{index}]"), (known, complaints));
    }
}

const BALANCED_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";

fn balancer_fields(spec: &Value, ty: &str, complaints: &mut Complaints) {
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if spec.get(field).is_some() && ty != "LoadBalancer" {
            complaints.forbidden(&format!("spec.{field}"), BALANCED_ONLY);
        }
    }
    let class = spec.get("loadBalancerClass").filter(|_| ty == "LoadBalancer");
    if let Some(why) = class.and_then(Value::as_str).and_then(qualified_name) {
        complaints.invalid("spec.loadBalancerClass", &text(spec, &["loadBalancerClass"]).into(), &why);
    }
}

/// What a load balancer says of itself in the status.
pub(super) fn load_balancer(new: &Value, before: &Value, complaints: &mut Complaints) {
    let path = ["status", "loadBalancer", "ingress"];
    let (ingress, known) = (list(new, &path), list(before, &path));
    if ingress == known {
        return;
    }
    if !ingress.is_empty() && text(new, &["spec", "type"]) != "LoadBalancer" {
        let why = "may only be used when `spec.type` is 'LoadBalancer'";
        return complaints.forbidden("status.loadBalancer.ingress", why);
    }
    let known: Vec<Value> = known.iter().filter_map(|one| one.get("ip").cloned()).collect();
    for (index, one) in ingress.iter().enumerate() {
        let path = format!("status.loadBalancer.ingress[{index}]");
        if let Some(ip) = one.get("ip").filter(|ip| *ip != "") {
            address::ip(ip, &format!("{path}.ip"), &known, complaints);
            one_of(one, "ipMode", &["Proxy", "VIP"], &format!("{path}.ipMode"), complaints);
        } else if one.get("ipMode").is_some() {
            complaints.forbidden(&format!("{path}.ipMode"), "may not be specified when `ip` is not set");
        }
        let name = text(one, &["hostname"]);
        if let Some(why) = Some(name).filter(|name| !name.is_empty()).and_then(subdomain) {
            complaints.invalid(&format!("{path}.hostname"), &name.into(), &why);
        }
        if name.parse::<std::net::IpAddr>().is_ok() {
            let why = "must be a DNS name, not an IP address";
            complaints.invalid(&format!("{path}.hostname"), &name.into(), why);
        }
    }
}

/// The pods' ranges of a node: at most one of each family, and given once.
pub(super) fn node(object: &Value, before: Option<&Value>, complaints: &mut Complaints) {
    let path = ["spec", "podCIDRs"];
    let (ranges, known) = (list(object, &path), had(before, &path));
    let nets: Vec<_> = (0..)
        .zip(ranges)
        .filter_map(|(index, value)| {
            address::cidr(value, &format!("spec.podCIDRs[{index}]"), known, complaints)
        })
        .collect();
    let families: BTreeSet<_> = nets.iter().map(|net| types::Family::of(net.addr())).collect();
    if families.len() < nets.len() {
        let why = "may specify no more than one CIDR for each IP family";
        complaints.invalid("spec.podCIDRs", &json!(ranges), why);
    }
    if !known.is_empty() && known != ranges {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        complaints.forbidden("spec.podCIDRs", why);
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
        if let Some(why) = port.get("appProtocol").and_then(Value::as_str).and_then(qualified_name) {
            complaints.invalid(&format!("{path}.appProtocol"), &text(port, &["appProtocol"]).into(), &why);
        }
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

pub(super) fn policy(object: &Value, before: Option<&Value>, complaints: &mut Complaints) {
    let known = before.map(ranges).unwrap_or_default();
    selector(at(object, &["spec", "podSelector"]), "spec.podSelector", complaints);
    for (field, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(object, &["spec", field]).iter().enumerate() {
            let path = format!("spec.{field}[{index}]");
            for (at, port) in list(rule, &["ports"]).iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{at}]"), complaints);
            }
            for (at, peer) in list(rule, &[peers]).iter().enumerate() {
                policy_peer(peer, &format!("{path}.{peers}[{at}]"), &known, complaints);
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

/// Every range that a policy names.
fn ranges(policy: &Value) -> Vec<Value> {
    let rules = ["ingress", "egress"].iter().flat_map(|field| list(policy, &["spec", field]));
    let peers = rules.flat_map(|rule| ["from", "to"].map(|field| list(rule, &[field])).concat());
    let blocks = peers.filter_map(|peer| peer.get("ipBlock").cloned());
    blocks
        .flat_map(|block| {
            let cidr = block.get("cidr").cloned();
            list(&block, &["except"]).iter().cloned().chain(cidr).collect::<Vec<_>>()
        })
        .collect()
}

fn policy_peer(peer: &Value, path: &str, known: &[Value], complaints: &mut Complaints) {
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
    let Some(outer) = address::cidr(&cidr.into(), &format!("{path}.cidr"), known, complaints) else { return };
    for (index, except) in list(block, &["except"]).iter().enumerate() {
        let path = format!("{path}.except[{index}]");
        let Some(inner) = address::cidr(except, &path, known, complaints) else { continue };
        if !outer.contains(&inner) || inner == outer {
            complaints.invalid(&path, except, "must be a strict subset of `cidr`");
        }
    }
}
