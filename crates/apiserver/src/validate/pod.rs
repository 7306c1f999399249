//! Pods and the templates of pods.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::metadata::{label, port_name, qualified_name, subdomain};
use super::{address, in_range, not_negative, one_of, required};
use crate::invalid::Complaints;
use crate::object::{at, list, text};

/// A pod's spec at a path: `spec`, or `spec.template.spec`.
pub(super) fn check(spec: Option<&Value>, path: &str, complaints: &mut Complaints) {
    let empty = json!({});
    let spec = spec.unwrap_or(&empty);
    let containers = list(spec, &["containers"]);
    if containers.is_empty() {
        complaints.required(&format!("{path}.containers"), "");
    }
    let mut names = BTreeSet::new();
    for (index, one) in containers.iter().enumerate() {
        let path = format!("{path}.containers[{index}]");
        container(one, &path, complaints);
        if !text(one, &["name"]).is_empty() && !names.insert(text(one, &["name"])) {
            complaints.duplicate(&format!("{path}.name"), &text(one, &["name"]).into());
        }
    }
    host_ports(spec, path, complaints);
    host_aliases(spec, path, complaints);
    one_of(
        spec,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
        &format!("{path}.restartPolicy"),
        complaints,
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(spec, "dnsPolicy", &policies, &format!("{path}.dnsPolicy"), complaints);
    if text(spec, &["dnsPolicy"]) == "None" && list(spec, &["dnsConfig", "nameservers"]).is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        complaints.required(&format!("{path}.dnsConfig.nameservers"), detail);
    }
    dns_config(spec, path, complaints);
    let grace = spec.get("terminationGracePeriodSeconds");
    not_negative(grace, &format!("{path}.terminationGracePeriodSeconds"), complaints);
    for field in ["hostname", "subdomain"] {
        if let Some(why) = spec.get(field).and_then(Value::as_str).filter(|t| !t.is_empty()).and_then(label) {
            complaints.invalid(&format!("{path}.{field}"), &text(spec, &[field]).into(), &why);
        }
    }
    for field in ["nodeName", "serviceAccountName"] {
        if let Some(why) =
            spec.get(field).and_then(Value::as_str).filter(|t| !t.is_empty()).and_then(subdomain)
        {
            complaints.invalid(&format!("{path}.{field}"), &text(spec, &[field]).into(), &why);
        }
    }
    tolerations(spec, path, complaints);
    for field in k8s::supported::unsupported(spec, path) {
        complaints.forbidden(&field, "the lab's kubelet does not support this field; remove it");
    }
}

fn dns_config(spec: &Value, path: &str, complaints: &mut Complaints) {
    let servers = list(spec, &["dnsConfig", "nameservers"]);
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        complaints.invalid(&format!("{path}.dnsConfig.nameservers"), &json!(servers), detail);
    }
    for (index, server) in servers.iter().enumerate() {
        address::ip(server, &format!("{path}.dnsConfig.nameservers[{index}]"), &[], complaints);
    }
}

fn host_aliases(spec: &Value, path: &str, complaints: &mut Complaints) {
    for (index, alias) in list(spec, &["hostAliases"]).iter().enumerate() {
        let path = format!("{path}.hostAliases[{index}]");
        let none = Value::String(String::new());
        address::ip(alias.get("ip").unwrap_or(&none), &format!("{path}.ip"), &[], complaints);
        for (at, name) in list(alias, &["hostnames"]).iter().enumerate() {
            if let Some(why) = name.as_str().and_then(subdomain) {
                complaints.invalid(&format!("{path}.hostnames[{at}]"), name, &why);
            }
        }
    }
}

/// One socket of the node cannot be two ports of a pod; a pod of the node's network listens where it listens.
fn host_ports(spec: &Value, path: &str, complaints: &mut Complaints) {
    let on_host = spec.get("hostNetwork") == Some(&Value::Bool(true));
    let mut sockets = BTreeSet::new();
    for (index, container) in list(spec, &["containers"]).iter().enumerate() {
        for (at, port) in list(container, &["ports"]).iter().enumerate() {
            let field = format!("{path}.containers[{index}].ports[{at}].hostPort");
            let Some(number) = port.get("hostPort").filter(|number| number.as_i64() != Some(0)) else {
                continue;
            };
            let protocol = Some(text(port, &["protocol"])).filter(|text| !text.is_empty()).unwrap_or("TCP");
            let socket = format!("{protocol}/{}/{number}", text(port, &["hostIP"]));
            if on_host && port.get("containerPort") != Some(number) {
                complaints.invalid(&field, number, "must match `containerPort` when `hostNetwork` is true");
            }
            if sockets.contains(&socket) {
                complaints.duplicate(&field, &socket.as_str().into());
            }
            sockets.insert(socket);
        }
    }
}

fn tolerations(spec: &Value, path: &str, complaints: &mut Complaints) {
    for (index, toleration) in list(spec, &["tolerations"]).iter().enumerate() {
        let path = format!("{path}.tolerations[{index}]");
        let key = text(toleration, &["key"]);
        if !key.is_empty()
            && let Some(why) = qualified_name(key)
        {
            complaints.invalid(&format!("{path}.key"), &key.into(), &why);
        }
        one_of(toleration, "operator", &["Equal", "Exists"], &format!("{path}.operator"), complaints);
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !text(toleration, &["effect"]).is_empty() {
            one_of(toleration, "effect", &effects, &format!("{path}.effect"), complaints);
        }
    }
}

fn container(container: &Value, path: &str, complaints: &mut Complaints) {
    if required(container, "name", &format!("{path}.name"), complaints)
        && let Some(why) = label(text(container, &["name"]))
    {
        complaints.invalid(&format!("{path}.name"), &text(container, &["name"]).into(), &why);
    }
    required(container, "image", &format!("{path}.image"), complaints);
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(container, "imagePullPolicy", &policies, &format!("{path}.imagePullPolicy"), complaints);
    ports(container, path, complaints);
    for (index, variable) in list(container, &["env"]).iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, &["name"]);
        if name.is_empty() {
            complaints.required(&format!("{path}.name"), "");
        } else if name.contains('=') || name.chars().any(char::is_control) {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other \
                          than '='";
            complaints.invalid(&format!("{path}.name"), &name.into(), detail);
        }
        if variable.get("valueFrom").is_some() && !text(variable, &["value"]).is_empty() {
            let detail = "may not be specified when `value` is not empty";
            complaints.invalid(&format!("{path}.valueFrom"), &"".into(), detail);
        }
        field_ref(variable, &path, complaints);
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        if let Some(value) = container.get(probe) {
            check_probe(value, probe, &format!("{path}.{probe}"), complaints);
        }
    }
}

/// The fields of a pod that an environment variable can show here.
const REFERABLE: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.podIP",
    "status.podIPs",
];

fn field_ref(variable: &Value, path: &str, complaints: &mut Complaints) {
    let Some(reference) = at(variable, &["valueFrom", "fieldRef"]) else { return };
    let field = text(reference, &["fieldPath"]);
    let in_map = ["metadata.labels['", "metadata.annotations['"].iter().any(|p| field.starts_with(p));
    if field.is_empty() {
        complaints.required(&format!("{path}.valueFrom.fieldRef.fieldPath"), "");
    } else if !REFERABLE.contains(&field) && !in_map {
        let path = format!("{path}.valueFrom.fieldRef.fieldPath");
        complaints.unsupported(&path, &field.into(), &REFERABLE);
    }
}

fn ports(container: &Value, path: &str, complaints: &mut Complaints) {
    let mut names = BTreeSet::new();
    for (index, port) in list(container, &["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        match port.get("containerPort") {
            None => complaints.required(&format!("{path}.containerPort"), ""),
            number => in_range(number, 1..=65_535, &format!("{path}.containerPort"), complaints),
        }
        in_range(
            port.get("hostPort").filter(|p| p.as_i64() != Some(0)),
            1..=65_535,
            &format!("{path}.hostPort"),
            complaints,
        );
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &format!("{path}.protocol"), complaints);
        let name = text(port, &["name"]);
        if name.is_empty() {
            continue;
        }
        if let Some(why) = port_name(name) {
            complaints.invalid(&format!("{path}.name"), &name.into(), why);
        }
        if !names.insert(name) {
            complaints.duplicate(&format!("{path}.name"), &name.into());
        }
    }
}

fn check_probe(probe: &Value, kind: &str, path: &str, complaints: &mut Complaints) {
    let ways =
        ["exec", "grpc", "httpGet", "tcpSocket"].iter().filter(|way| probe.get(**way).is_some()).count();
    if ways == 0 {
        complaints.required(path, "must specify a handler type");
    }
    for way in ["httpGet", "tcpSocket"] {
        if let Some(target) = probe.get(way) {
            match target.get("port") {
                Some(Value::String(name)) => {
                    if let Some(why) = port_name(name) {
                        complaints.invalid(&format!("{path}.{way}.port"), &name.as_str().into(), why);
                    }
                }
                Some(number) => in_range(Some(number), 1..=65_535, &format!("{path}.{way}.port"), complaints),
                None => complaints.required(&format!("{path}.{way}.port"), ""),
            }
        }
    }
    if let Some(get) = probe.get("httpGet") {
        one_of(get, "scheme", &["HTTP", "HTTPS"], &format!("{path}.httpGet.scheme"), complaints);
    }
    let times =
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    for time in times {
        not_negative(probe.get(time), &format!("{path}.{time}"), complaints);
    }
    if kind == "livenessProbe"
        && let Some(value) = probe.get("successThreshold").filter(|v| v.as_i64() != Some(1))
    {
        complaints.invalid(&format!("{path}.successThreshold"), value, "must be 1");
    }
}

/// Of a pod's spec only images, a shorter grace, more tolerations and the first node name may change.
pub(super) fn check_change(new: &Value, before: &Value, complaints: &mut Complaints) {
    let frozen = |object: &Value| {
        let mut spec = at(object, &["spec"]).cloned().unwrap_or_default();
        if let Some(map) = spec.as_object_mut() {
            map.remove("tolerations");
            map.remove("terminationGracePeriodSeconds");
            if text(before, &["spec", "nodeName"]).is_empty() {
                map.remove("nodeName");
            }
            for container in map.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    container.remove("image");
                }
            }
        }
        spec
    };
    if frozen(new) != frozen(before) {
        complaints.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, \
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
             existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
             previously negative)",
        );
    }
}
