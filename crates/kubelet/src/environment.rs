//! A container's environment and command line: `env`, fieldRef, and `$(VAR)` expansion. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};
use types::Family;
use types::wire::{API_IPS, PROGRAM_DIR, SPARE_DIR};

use crate::container::is_demo;

/// What a pod can learn about itself once it runs.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    pub pod_addresses: &'a [String],
    pub node_addresses: &'a [String],
}

impl Place<'_> {
    /// The cluster's first family is that of its nodes.
    fn primary(&self) -> Family {
        let first = self.node_addresses.first().and_then(|text| text.parse().ok());
        first.map_or(Family::V4, Family::of)
    }
}

/// The environment in order (later entries of one name win, as with execve's readers).
///
/// `Err` names the field that cannot be resolved.
pub fn environment(
    pod: &Pod,
    container: &Container,
    place: &Place<'_>,
) -> Result<Vec<(String, String)>, String> {
    let mut known: Vec<(String, String)> = vec![
        ("PATH".into(), path(container)),
        ("HOME".into(), "/root".into()),
        ("HOSTNAME".into(), crate::sandbox::hostname(pod)),
        // client-go's in-cluster configuration reads these two (KEP-free, since v1.0).
        ("KUBERNETES_SERVICE_HOST".into(), place.primary().pick(API_IPS).into()),
        ("KUBERNETES_SERVICE_PORT".into(), "443".into()),
    ];
    for variable in container.env.iter().flatten() {
        let value = value_of(pod, variable, place, &known)?;
        known.retain(|(name, _)| *name != variable.name);
        known.push((variable.name.clone(), value));
    }
    Ok(known)
}

/// In the demo image with this program first, and last what stands in for what the machine lacks.
fn path(container: &Container) -> String {
    const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    match is_demo(container) {
        true => format!("{PROGRAM_DIR}:{USUAL}:{SPARE_DIR}"),
        false => USUAL.to_owned(),
    }
}

fn value_of(
    pod: &Pod,
    variable: &EnvVar,
    place: &Place<'_>,
    known: &[(String, String)],
) -> Result<String, String> {
    let Some(source) = &variable.value_from else {
        return Ok(expand(variable.value.as_deref().unwrap_or_default(), known));
    };
    let Some(field) = &source.field_ref else {
        return Err(format!("env {}: valueFrom: only fieldRef is supported", variable.name));
    };
    field_of(pod, &field.field_path, place)
        .ok_or_else(|| format!("env {}: fieldRef {:?} is not supported", variable.name, field.field_path))
}

/// The fields of the downward API (kubernetes pkg/fieldpath, `ExtractFieldPathAsString`).
fn field_of(pod: &Pod, path: &str, place: &Place<'_>) -> Option<String> {
    let spec = pod.spec.as_ref();
    Some(match path {
        "metadata.name" => pod.metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => pod.metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => pod.metadata.uid.clone().unwrap_or_default(),
        "spec.nodeName" => spec?.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec?.service_account_name.clone().unwrap_or_else(|| "default".into()),
        "status.hostIP" => place.node_addresses.first().cloned().unwrap_or_default(),
        "status.hostIPs" => place.node_addresses.join(","),
        "status.podIP" => place.pod_addresses.first().cloned().unwrap_or_default(),
        "status.podIPs" => place.pod_addresses.join(","),
        _ => {
            let (map, key) = path.strip_suffix("']")?.split_once("['")?;
            let map: &Option<BTreeMap<String, String>> = match map {
                "metadata.labels" => &pod.metadata.labels,
                "metadata.annotations" => &pod.metadata.annotations,
                _ => return None,
            };
            map.as_ref().and_then(|map| map.get(key).cloned()).unwrap_or_default()
        }
    })
}

/// `command` and `args` with `$(VAR)` replaced; `$$(VAR)` is the text `$(VAR)`; an unknown one stays as it is
/// (kubernetes third_party/forked/golang/expansion).
pub fn command_line(container: &Container, environment: &[(String, String)]) -> Vec<String> {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    words.map(|word| expand(word, environment)).collect()
}

fn expand(text: &str, known: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            match known.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_follows_kubernetes() {
        let known = vec![("A".to_owned(), "1".to_owned())];
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }

    #[test]
    fn the_downward_api_reads_the_pod() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "w"}},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "args": ["--at=$(IP)"], "env": [
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "URL", "value": "http://$(IP):80"}]}]},
        }))
        .expect("a pod");
        let container = &pod.spec.as_ref().expect("spec").containers[0];
        let place = Place { pod_addresses: &["10.244.1.4".into()], node_addresses: &["192.168.1.10".into()] };
        let environment = environment(&pod, container, &place).expect("resolves");
        let get = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("URL"), Some("http://10.244.1.4:80"));
        assert_eq!(get("APP"), Some("w"));
        assert_eq!(command_line(container, &environment), ["--at=10.244.1.4"]);
    }
}
