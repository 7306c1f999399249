//! Objects → rows, with the API's defaults filled in. What cannot be read is left out or fails closed, and
//! comes back as a [`Diagnostic`] that names the field: one bad value never costs the rest of its object.

mod policy;
mod service;

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use types::{IpNet, ObjectName, Protocol};

pub use policy::policy;
pub use service::{endpoint_slice, service};

use crate::row::{NamedPort, Namespace, Node, Phase, Pod, Sources};
use crate::{Announced, Diagnostic, Key, Kind};

const ZONE: &str = "topology.kubernetes.io/zone";

/// A value that lacks what its diagnostics name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    pub row: T,
    pub diagnostics: Vec<Diagnostic>,
}

/// Collects what is wrong with one object.
struct Report {
    object: Key,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    fn new(kind: Kind, name: ObjectName) -> Self {
        Self { object: Key::new(kind, name), diagnostics: Vec::new() }
    }

    fn add(&mut self, reason: &'static str, message: String) {
        self.diagnostics.push(Diagnostic { object: self.object.clone(), reason, message });
    }

    fn invalid(&mut self, field: &str, value: impl Display, effect: &str) {
        self.add("InvalidField", format!("{field}: {value:?} {effect}", value = value.to_string()));
    }

    /// A word in its own type, or `None` and a diagnostic.
    fn parse<T: FromStr>(&mut self, field: &str, text: &str, effect: &str) -> Option<T>
    where
        T::Err: Display,
    {
        match text.trim().parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.add("InvalidField", format!("{field}: {text:?}: {error}; {effect}"));
                None
            }
        }
    }

    fn protocol(&mut self, field: &str, text: Option<&str>, effect: &str) -> Option<Protocol> {
        match text {
            None | Some("") => Some(Protocol::Tcp),
            Some(text) => self.parse(field, text, effect),
        }
    }

    /// A port from 1 to 65535.
    fn port(&mut self, field: &str, number: i64, effect: &str) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.invalid(field, number, &format!("is not a port from 1 to 65535; {effect}"));
        }
        port
    }

    fn done<T>(self, row: T) -> Converted<T> {
        Converted { row, diagnostics: self.diagnostics }
    }
}

fn not_empty(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

pub fn node(node: &k8s::Node) -> Converted<Node> {
    let mut report = Report::new(Kind::Node, ObjectName::cluster(&node.metadata.name));
    let (mut addresses, mut others) = (Vec::new(), Vec::new());
    for address in &node.status.addresses {
        let effect = "the address is ignored";
        let mut read = || report.parse::<IpAddr>("status.addresses", &address.address, effect);
        match &*address.kind {
            "InternalIP" => addresses.extend(read()),
            "ExternalIP" => others.extend(read()),
            // Names, which may be addresses.
            _ => others.extend(address.address.parse::<IpAddr>().ok()),
        }
    }
    others.retain(|address| !addresses.contains(address));
    let spec = &node.spec;
    let cidrs: Vec<&String> = match spec.pod_cidrs.is_empty() {
        true => spec.pod_cidr.iter().filter(|cidr| !cidr.is_empty()).collect(),
        false => spec.pod_cidrs.iter().collect(),
    };
    let pod_cidrs = cidrs
        .into_iter()
        .filter_map(|cidr| report.parse("spec.podCIDRs", cidr, "no pod of this node is reachable through it"))
        .collect();
    let announced = announced(&node.metadata.annotations, &mut report);
    let zone = not_empty(node.metadata.labels.get(ZONE));
    let network_unavailable = node
        .status
        .conditions
        .iter()
        .any(|condition| condition.kind == "NetworkUnavailable" && condition.status == "True");
    let name = node.metadata.name.clone();
    let doomed = spec.taints.iter().any(|taint| taint.key == DOOMED);
    let leaving = doomed || node.metadata.deletion_timestamp.is_some();
    report.done(Node { name, addresses, others, pod_cidrs, zone, announced, network_unavailable, leaving })
}

fn announced(annotations: &k8s::Annotations, report: &mut Report) -> Announced {
    let vtep_mac = annotations.vtep_mac.as_ref().and_then(|mac| {
        let field = format!("metadata.annotations[{}]", types::wire::VTEP_MAC_ANNOTATION);
        report.parse(&field, mac, "no tunnel to this node; its agent will publish it again")
    });
    Announced { vtep_mac }
}

/// The API server sets the label of the name; one that does not must not break selectors by name (NP-07).
pub fn namespace(namespace: &k8s::Namespace) -> Converted<Namespace> {
    let report = Report::new(Kind::Namespace, ObjectName::cluster(&namespace.metadata.name));
    let name = namespace.metadata.name.clone();
    let mut labels = namespace.metadata.labels.clone();
    labels.entry("kubernetes.io/metadata.name".into()).or_insert_with(|| name.clone());
    report.done(Namespace { name, labels })
}

pub fn pod(pod: &k8s::Pod) -> Converted<Pod> {
    let mut report = Report::new(Kind::Pod, pod.metadata.object_name());
    let status = &pod.status;
    let texts: Vec<&String> = match status.pod_ips.is_empty() {
        true => status.pod_ip.iter().collect(),
        false => status.pod_ips.iter().map(|entry| &entry.ip).collect(),
    };
    let mut ips: Vec<_> = texts
        .into_iter()
        .filter(|text| !text.is_empty())
        .filter_map(|text| report.parse("status.podIPs", text, "the address is ignored"))
        .collect();
    ips.shrink_to_fit(); // of tens of thousands of pods
    let phase = match status.phase.as_deref() {
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        _ => Phase::Pending,
    };
    let ports = named_ports(&pod.spec, &mut report);
    let sources = sources(&pod.metadata, &mut report);
    report.done(Pod {
        key: pod.metadata.object_name(),
        uid: uid_of_runtime(&pod.metadata),
        node: not_empty(pod.spec.node_name.as_ref()),
        ips,
        host_network: pod.spec.host_network,
        labels: Arc::new(pod.metadata.labels.clone()),
        phase,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ready: status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True"),
        grace: pod
            .spec
            .termination_grace_period_seconds
            .map_or(GRACE, |grace| u32::try_from(grace).unwrap_or(0)),
        ports,
        hostname: not_empty(pod.spec.hostname.as_ref()),
        subdomain: not_empty(pod.spec.subdomain.as_ref()),
        sources,
    })
}

/// Addresses and prefixes; one with host bits means its network, as in a policy (NP-34).
fn sources(metadata: &k8s::Meta, report: &mut Report) -> Option<Box<Sources>> {
    let field = format!("metadata.annotations[{}]", types::wire::SOURCES_ANNOTATION);
    let entries = metadata.annotations.allowed_sources.as_ref()?.split(',').map(str::trim);
    let mut net = |text: &str| match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => {
            report.parse::<IpNet>(&field, text, "the pod may not send from there").map(|net| net.trunc())
        }
    };
    let mut nets: Vec<IpNet> = entries.filter(|text| !text.is_empty()).filter_map(&mut net).collect();
    nets.shrink_to_fit();
    let created = service::created(metadata.creation_timestamp.as_deref());
    (!nets.is_empty()).then(|| Box::new(Sources { created, nets }))
}

/// The cluster autoscaler's, before it removes the node; kube-proxy looks for it, too.
const DOOMED: &str = "ToBeDeletedByClusterAutoscaler";

/// `DefaultTerminationGracePeriodSeconds` of Kubernetes' API.
const GRACE: u32 = 30;

/// A static pod runs under the hash of its manifest as its uid; its mirror in the API has another one and names that
/// hash. Runtimes give the first.
fn uid_of_runtime(metadata: &k8s::Meta) -> String {
    let annotations = &metadata.annotations;
    let mirror = annotations.config_mirror.as_ref();
    let named = mirror.and_then(|mirror| annotations.config_hash.as_ref().or(Some(mirror)));
    named.unwrap_or(&metadata.uid).clone()
}

/// Of containers and of init containers that keep running beside them (NP-22).
fn named_ports(spec: &k8s::core::PodSpec, report: &mut Report) -> Vec<NamedPort> {
    let sidecars = spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut named = Vec::new();
    for port in spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports) {
        let Some(name) = not_empty(port.name.as_ref()) else { continue };
        let effect = format!("the port name {name:?} means nothing");
        let protocol =
            report.protocol("spec.containers[].ports[].protocol", port.protocol.as_deref(), &effect);
        let number = report.port("spec.containers[].ports[].containerPort", port.container_port, &effect);
        if let (Some(protocol), Some(port)) = (protocol, number) {
            named.push(NamedPort { name, protocol, port });
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_of(json: &str) -> Converted<Pod> {
        pod(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn node_reads_internal_addresses_cidrs_and_the_vtep() {
        let json = r#"{"metadata":{"name":"n1","annotations":{"plumb.dev/vtep-mac":"02:00:00:00:00:01"}},
            "spec":{"podCIDR":"10.244.1.0/24"},
            "status":{"addresses":[{"type":"Hostname","address":"n1"},{"type":"InternalIP","address":"192.168.1.10"},
                                   {"type":"InternalIP","address":"nonsense"},
                                   {"type":"ExternalIP","address":"203.0.113.7"},{"type":"ExternalIP","address":"2001:db8::7"},
                                   {"type":"Hostname","address":"192.168.1.10"},{"type":"ExternalDNS","address":"198.51.100.7"}]}}"#;
        let converted = node(&serde_json::from_str(json).unwrap());
        let ips = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(converted.row.addresses, ips(&["192.168.1.10"]));
        assert_eq!(converted.row.others, ips(&["203.0.113.7", "2001:db8::7", "198.51.100.7"]));
        assert_eq!(converted.row.pod_cidrs.len(), 1);
        assert_eq!(
            converted.row.announced.vtep_mac.map(|m| m.to_string()).as_deref(),
            Some("02:00:00:00:00:01")
        );
        assert_eq!(converted.diagnostics.len(), 1);
        assert!(converted.diagnostics[0].message.contains("nonsense"));
    }

    #[test]
    fn np_07_a_namespace_has_the_label_of_its_name() {
        let row = namespace(&serde_json::from_str(r#"{"metadata":{"name":"shop"}}"#).unwrap()).row;
        assert_eq!(row.labels.get("kubernetes.io/metadata.name").map(String::as_str), Some("shop"));
    }

    #[test]
    fn np_22_ports_of_sidecars_count_and_of_plain_init_containers_do_not() {
        let converted = pod_of(
            r#"{"metadata":{"name":"p","namespace":"n"},"spec":{
                "containers":[{"ports":[{"name":"http","containerPort":80},{"containerPort":81}]}],
                "initContainers":[{"restartPolicy":"Always","ports":[{"name":"mesh","containerPort":15001}]},
                                  {"ports":[{"name":"once","containerPort":1}]}]}}"#,
        );
        let names: Vec<&str> = converted.row.ports.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["http", "mesh"]);
        assert_eq!(converted.row.ports[0].protocol, Protocol::Tcp);
    }

    #[test]
    fn a_node_that_is_about_to_go_is_leaving() {
        let of = |json: &str| node(&serde_json::from_str(json).unwrap()).row.leaving;
        assert!(!of(
            r#"{"metadata":{"name":"n"},"spec":{"taints":[{"key":"other","effect":"NoSchedule"}]}}"#
        ));
        assert!(of(
            r#"{"metadata":{"name":"n"},"spec":{"taints":[{"key":"ToBeDeletedByClusterAutoscaler"}]}}"#
        ));
        assert!(of(r#"{"metadata":{"name":"n","deletionTimestamp":"2026-01-01T00:00:00Z"}}"#));
    }

    #[test]
    fn a_mirror_pod_has_the_uid_of_its_static_pod() {
        let annotated = |annotations: &str| {
            let json =
                format!(r#"{{"metadata":{{"name":"p","uid":"api","annotations":{{{annotations}}}}}}}"#);
            pod_of(&json).row.uid
        };
        let hash = r#""kubernetes.io/config.hash":"h""#;
        assert_eq!(annotated(""), "api");
        assert_eq!(annotated(hash), "api", "without the other one it is no mirror");
        assert_eq!(annotated(&format!(r#"{hash},"kubernetes.io/config.mirror":"h""#)), "h");
        assert_eq!(annotated(r#""kubernetes.io/config.mirror":"m""#), "m");
    }

    #[test]
    fn further_sources_are_addresses_and_prefixes_of_either_family() {
        let of = |text: &str| {
            let annotation = format!(r#""{}":"{text}""#, types::wire::SOURCES_ANNOTATION);
            pod_of(&format!(
                r#"{{"metadata":{{"name":"p","creationTimestamp":"2026-11-30T03:10:20Z","annotations":{{{annotation}}}}}}}"#
            ))
        };
        let all = of("198.51.100.7, 203.0.113.9/24,2001:db8::7,,2001:db8:1::/48");
        let sources = all.row.sources.expect("sources");
        let nets: Vec<String> = sources.nets.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["198.51.100.7/32", "203.0.113.0/24", "2001:db8::7/128", "2001:db8:1::/48"]);
        assert_eq!((sources.created, all.diagnostics.len()), (20_261_130_031_020, 0));
        let some = of("198.51.100.7,198.51.100.8-9");
        assert_eq!(some.row.sources.map(|sources| sources.nets.len()), Some(1));
        assert!(
            some.diagnostics.len() == 1 && some.diagnostics[0].message.contains("8-9"),
            "{:?}",
            some.diagnostics
        );
        assert!(of("").row.sources.is_none());
    }

    #[test]
    fn a_pod_has_kubernetes_grace_unless_it_says_its_own() {
        let of = |spec: &str| pod_of(&format!(r#"{{"metadata":{{"name":"p"}},"spec":{spec}}}"#)).row.grace;
        assert_eq!(of("{}"), 30);
        assert_eq!(of(r#"{"terminationGracePeriodSeconds":0}"#), 0);
        assert_eq!(of(r#"{"terminationGracePeriodSeconds":600}"#), 600);
        assert_eq!(of(r#"{"terminationGracePeriodSeconds":-1}"#), 0);
    }

    #[test]
    fn a_bad_port_is_named_and_the_pod_stays() {
        let converted = pod_of(
            r#"{"metadata":{"name":"p","namespace":"n"},"spec":{"containers":[
                {"ports":[{"name":"x","containerPort":99999},{"name":"y","containerPort":80,"protocol":"QUIC"}]}]},
                "status":{"podIP":"10.244.1.4","phase":"Running",
                          "conditions":[{"type":"Ready","status":"True"}]}}"#,
        );
        assert!(converted.row.ports.is_empty());
        assert!(converted.row.ready);
        assert_eq!(converted.row.ips.len(), 1);
        assert_eq!(converted.diagnostics.len(), 2, "{:?}", converted.diagnostics);
    }
}
