//! Services and EndpointSlices.

use std::net::IpAddr;

use k8s::networking::IntOrString;
use types::wire::SERVICE_NAME;
use types::{IpNet, ObjectName};

use super::{Converted, Report, not_empty};
use crate::Kind;
use crate::row::{
    Endpoint, EndpointSlice, Hints, Service, ServicePort, ServiceType, SlicePort, TrafficPolicy,
};

const FOREIGN_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Of EndpointSlices: kube-proxy 1.36 does not look at the Service's own (cmd/kube-proxy/app/server.go); names are answered.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The API's default timeout of ClientIP affinity, in seconds (A-01).
const AFFINITY_TIMEOUT: u32 = 10_800;

pub fn service(service: &k8s::Service) -> Converted<Service> {
    let mut report = Report::new(Kind::Service, service.metadata.object_name());
    let spec = &service.spec;
    let kind = match spec.kind.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            report.invalid("spec.type", other, "is not a Service type; treated as ClusterIP");
            ServiceType::ClusterIp
        }
    };
    let texts: Vec<&String> = match spec.cluster_ips.is_empty() {
        true => spec.cluster_ip.iter().collect(),
        false => spec.cluster_ips.iter().collect(),
    };
    let headless = kind != ServiceType::ExternalName && texts.iter().any(|text| *text == "None");
    let cluster_ips = texts
        .into_iter()
        .filter(|text| kind != ServiceType::ExternalName && !text.is_empty() && *text != "None")
        .filter_map(|text| report.parse("spec.clusterIPs", text, "the address is not served"))
        .collect();
    let external_ips = spec
        .external_ips
        .iter()
        .filter_map(|text| report.parse("spec.externalIPs", text, "the address is not served"))
        .collect();
    let internal_policy = policy("spec.internalTrafficPolicy", &spec.internal_traffic_policy, &mut report);
    let external_policy = policy("spec.externalTrafficPolicy", &spec.external_traffic_policy, &mut report);
    let row = Service {
        key: service.metadata.object_name(),
        uid: service.metadata.uid.clone(),
        created: created(service.metadata.creation_timestamp.as_deref()),
        kind,
        cluster_ips,
        headless,
        ports: service_ports(spec, &mut report),
        internal_policy,
        external_policy,
        affinity: affinity(spec, &mut report),
        external_ips,
        load_balancer_ips: load_balancer_ips(service, kind, &mut report),
        source_ranges: source_ranges(spec, &mut report),
        health_check_port: health_check_port(spec, kind, external_policy, &mut report),
        external_name: not_empty(spec.external_name.as_ref()),
        publish_not_ready: spec.publish_not_ready_addresses,
        foreign_proxy: service.metadata.labels.contains_key(FOREIGN_PROXY),
    };
    report.done(row)
}

/// `2026-11-30T03:10:20Z` (RFC 3339; the API writes UTC and whole seconds) as 20261130031020.
pub(super) fn created(timestamp: Option<&str>) -> u64 {
    let digits: String =
        timestamp.unwrap_or_default().chars().filter(char::is_ascii_digit).take(14).collect();
    if digits.len() < 14 { u64::MAX } else { digits.parse().unwrap_or(u64::MAX) }
}

/// Without `ipMode`, or with VIP, nodes answer for the address; with Proxy the load balancer does (L-01).
fn load_balancer_ips(service: &k8s::Service, kind: ServiceType, report: &mut Report) -> Vec<IpAddr> {
    if kind != ServiceType::LoadBalancer {
        return Vec::new();
    }
    let vip = |mode: Option<&str>| matches!(mode, None | Some("" | "VIP"));
    let ingress = service.status.load_balancer.ingress.iter().filter(|entry| vip(entry.ip_mode.as_deref()));
    let texts = ingress.filter_map(|entry| not_empty(entry.ip.as_ref()));
    let field = "status.loadBalancer.ingress[].ip";
    texts.filter_map(|text| report.parse(field, &text, "the address is not served")).collect()
}

/// A list of which nothing can be read opens the Service, as Kubernetes has it (L-02); the diagnostic says so.
fn source_ranges(spec: &k8s::core::ServiceSpec, report: &mut Report) -> Vec<IpNet> {
    let field = "spec.loadBalancerSourceRanges";
    let effect = "the entry is ignored; without any other, all sources pass";
    spec.load_balancer_source_ranges.iter().filter_map(|text| report.parse(field, text, effect)).collect()
}

/// Only a LoadBalancer of local policy has one.
fn health_check_port(
    spec: &k8s::core::ServiceSpec,
    kind: ServiceType,
    external: TrafficPolicy,
    report: &mut Report,
) -> Option<u16> {
    let number = spec.health_check_node_port.filter(|number| *number != 0)?;
    let wanted = kind == ServiceType::LoadBalancer && external == TrafficPolicy::Local;
    wanted
        .then(|| report.port("spec.healthCheckNodePort", number, "health checks are not answered"))
        .flatten()
}

fn service_ports(spec: &k8s::core::ServiceSpec, report: &mut Report) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for port in &spec.ports {
        let effect = "the port is not served";
        let protocol = report.protocol("spec.ports[].protocol", port.protocol.as_deref(), effect);
        let number = report.port("spec.ports[].port", port.port, effect);
        let node_port = port
            .node_port
            .filter(|number| *number != 0)
            .and_then(|number| report.port("spec.ports[].nodePort", number, "the node port is not served"));
        if let (Some(protocol), Some(number)) = (protocol, number) {
            let name = port.name.clone().unwrap_or_default();
            let target = match &port.target_port {
                Some(IntOrString::String(name)) => Some(name.as_str().into()),
                _ => None,
            };
            ports.push(ServicePort { name, protocol, port: number, node_port, target });
        }
    }
    ports
}

fn policy(field: &str, text: &Option<String>, report: &mut Report) -> TrafficPolicy {
    match text.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            report.invalid(field, other, "is neither Cluster nor Local; treated as Cluster");
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &k8s::core::ServiceSpec, report: &mut Report) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref();
            let seconds = config.and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds);
            let Some(seconds) = seconds else { return Some(AFFINITY_TIMEOUT) };
            let timeout = u32::try_from(seconds).ok().filter(|s| (1..=86_400).contains(s));
            if timeout.is_none() {
                let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                report.invalid(field, seconds, "is not within 1 to 86400; 10800 is used");
            }
            Some(timeout.unwrap_or(AFFINITY_TIMEOUT))
        }
        Some(other) => {
            report.invalid("spec.sessionAffinity", other, "is neither None nor ClientIP; treated as None");
            None
        }
    }
}

/// `row: None`: a slice that belongs to no Service or lists no addresses (FQDN, SVC-03).
pub fn endpoint_slice(slice: &k8s::EndpointSlice) -> Converted<Option<EndpointSlice>> {
    let key = slice.metadata.object_name();
    let mut report = Report::new(Kind::EndpointSlice, key.clone());
    let service = slice.metadata.labels.get(SERVICE_NAME).filter(|name| !name.is_empty());
    let wanted = !matches!(slice.address_type.as_deref(), Some("FQDN"));
    let Some(service) = service.filter(|_| wanted) else { return report.done(None) };
    let mut endpoints: Vec<_> =
        slice.endpoints.iter().filter_map(|e| endpoint(slice, &key, e, &mut report)).collect();
    endpoints.shrink_to_fit(); // there may be a hundred thousand
    let ports = slice_ports(slice, &mut report);
    let headless = slice.metadata.labels.contains_key(HEADLESS);
    report.done(Some(EndpointSlice { key, service: service.clone(), headless, ports, endpoints }))
}

/// A port without a name is legal only as the empty name; nil and 0 are ignored (SVC-03).
fn slice_ports(slice: &k8s::EndpointSlice, report: &mut Report) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for port in &slice.ports {
        let effect = "the port has no endpoints";
        let (Some(name), Some(number)) = (&port.name, port.port.filter(|number| *number != 0)) else {
            continue;
        };
        let protocol = report.protocol("ports[].protocol", port.protocol.as_deref(), effect);
        let number = report.port("ports[].port", number, effect);
        if let (Some(protocol), Some(number)) = (protocol, number) {
            ports.push(SlicePort { name: name.clone(), protocol, port: Some(number) });
        }
    }
    ports
}

fn endpoint(
    slice: &k8s::EndpointSlice,
    key: &ObjectName,
    endpoint: &k8s::discovery::Endpoint,
    report: &mut Report,
) -> Option<Endpoint> {
    let text = endpoint.addresses.first()?;
    let address: IpAddr = report.parse("endpoints[].addresses[0]", text, "the endpoint is not used")?;
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    if slice.address_type.as_deref().is_some_and(|kind| kind != family) {
        report.invalid("endpoints[].addresses[0]", text, "is not of the slice's addressType; not used");
        return None;
    }
    let conditions = &endpoint.conditions;
    let ready = conditions.ready.unwrap_or(true);
    let pod = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|target| {
        let name = target.name.as_ref()?;
        let foreign = target.namespace.as_deref().filter(|namespace| *namespace != &*key.namespace);
        Some(Box::new(
            foreign.map_or_else(|| key.sibling(name), |namespace| ObjectName::new(namespace, name)),
        ))
    });
    let names = |hints: &[k8s::discovery::Hint]| hints.iter().map(|hint| hint.name.clone()).collect();
    let hints =
        endpoint.hints.as_ref().filter(|hints| !hints.for_zones.is_empty() || !hints.for_nodes.is_empty());
    let text = |text: &Option<String>| not_empty(text.as_ref()).map(String::into_boxed_str);
    Some(Endpoint {
        address,
        node: text(&endpoint.node_name),
        hostname: text(&endpoint.hostname),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        pod,
        hints: hints.map(|h| Box::new(Hints { zones: names(&h.for_zones), nodes: names(&h.for_nodes) })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice_of(body: &str) -> Converted<Option<EndpointSlice>> {
        let head = r#""metadata":{"name":"s","namespace":"n","labels":{"kubernetes.io/service-name":"a"}}"#;
        endpoint_slice(&serde_json::from_str(&format!("{{{head},{body}}}")).unwrap())
    }

    fn service_of(spec: &str) -> Converted<Service> {
        let json = format!(r#"{{"metadata":{{"name":"a","namespace":"n"}},"spec":{spec}}}"#);
        service(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn svc_03_fqdn_nameless_and_zero_ports_and_second_addresses_are_ignored() {
        assert_eq!(slice_of(r#""addressType":"FQDN","endpoints":[{"addresses":["a.b"]}]"#).row, None);
        let row = slice_of(
            r#""addressType":"IPv4","ports":[{"port":80},{"name":"z","port":0},{"name":"n"},{"name":"","port":8080}],
               "endpoints":[{"addresses":["10.244.1.4","10.244.1.5"]}]"#,
        )
        .row
        .unwrap();
        let port = SlicePort { name: String::new(), protocol: types::Protocol::Tcp, port: Some(8080) };
        assert_eq!(row.ports, [port]);
        assert_eq!(row.endpoints.len(), 1);
        assert_eq!(row.endpoints[0].address.to_string(), "10.244.1.4");
    }

    #[test]
    fn svc_04_conditions_have_the_apis_defaults() {
        let row = slice_of(
            r#""endpoints":[{"addresses":["10.0.0.1"]},
                {"addresses":["10.0.0.2"],"conditions":{"ready":false}},
                {"addresses":["10.0.0.3"],"conditions":{"ready":false,"serving":true,"terminating":true}}],"ports":null"#,
        )
        .row
        .unwrap();
        let seen: Vec<_> = row.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(seen, [(true, true, false), (false, false, false), (false, true, true)]);
    }

    #[test]
    fn svc_02_labels_leave_services_and_slices_to_others() {
        let labelled = |label: &str| {
            let json = format!(
                r#"{{"metadata":{{"name":"s","namespace":"n","labels":{{
                "kubernetes.io/service-name":"s","{label}":""}}}},"spec":{{"clusterIP":"10.96.1.2"}}}}"#
            );
            let slice = endpoint_slice(&serde_json::from_str(&json).unwrap()).row.unwrap();
            (service(&serde_json::from_str(&json).unwrap()).row.foreign_proxy, slice.headless)
        };
        assert_eq!(labelled(FOREIGN_PROXY), (true, false));
        assert_eq!(labelled(HEADLESS), (false, true));
    }

    #[test]
    fn a_slice_of_nobody_has_no_row() {
        let slice = serde_json::from_str(r#"{"metadata":{"name":"s","namespace":"n"}}"#).unwrap();
        assert_eq!(endpoint_slice(&slice).row, None);
    }

    #[test]
    fn a_bad_endpoint_costs_only_itself() {
        let converted = slice_of(r#""endpoints":[{"addresses":["nope"]},{"addresses":["10.0.0.1"]},{}]"#);
        assert_eq!(converted.row.unwrap().endpoints.len(), 1);
        assert_eq!(converted.diagnostics.len(), 1);
    }

    #[test]
    fn headless_external_and_plain_services_differ() {
        let headless = service_of(r#"{"clusterIP":"None","ports":[{"port":80}]}"#).row;
        assert!(headless.headless && headless.cluster_ips.is_empty());
        let external = service_of(r#"{"type":"ExternalName","externalName":"x.y","clusterIP":""}"#).row;
        assert_eq!((external.kind, external.headless), (ServiceType::ExternalName, false));
        let plain = service_of(r#"{"clusterIPs":["10.96.1.2"],"ports":[{"port":53,"protocol":"UDP"}]}"#).row;
        assert_eq!(plain.cluster_ips.len(), 1);
        assert_eq!(plain.ports[0].protocol, types::Protocol::Udp);
        assert_eq!(plain.affinity, None);
    }

    #[test]
    fn l_01_only_addresses_that_nodes_answer_for_are_taken() {
        let json = r#"{"metadata":{"name":"a","namespace":"n"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.9"},
            "status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"},{"ip":"203.0.113.2","ipMode":"VIP"},
                {"ip":"203.0.113.3","ipMode":"Proxy"},{"hostname":"lb.example"}]}}}"#;
        let row = service(&serde_json::from_str(json).unwrap()).row;
        assert_eq!(
            row.load_balancer_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["203.0.113.1", "203.0.113.2"]
        );
        let plain = json.replace("\"LoadBalancer\"", "\"NodePort\"");
        assert!(service(&serde_json::from_str(&plain).unwrap()).row.load_balancer_ips.is_empty());
    }

    #[test]
    fn l_02_source_ranges_are_trimmed_and_bad_ones_named() {
        let converted = service_of(r#"{"loadBalancerSourceRanges":[" 10.0.0.0/8 ","nonsense"]}"#);
        assert_eq!(
            converted.row.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.0/8"]
        );
        assert!(converted.diagnostics[0].message.contains("nonsense"), "{:?}", converted.diagnostics);
    }

    #[test]
    fn l_05_only_a_load_balancer_of_local_policy_is_asked_for_its_health() {
        let port = |kind: &str, policy: &str| {
            let spec = format!(
                r#"{{"type":"{kind}","externalTrafficPolicy":"{policy}","healthCheckNodePort":31000}}"#
            );
            service_of(&spec).row.health_check_port
        };
        assert_eq!(port("LoadBalancer", "Local"), Some(31000));
        assert_eq!((port("LoadBalancer", "Cluster"), port("NodePort", "Local")), (None, None));
    }

    #[test]
    fn the_older_service_has_the_lower_number_and_one_of_no_age_the_highest() {
        let ages =
            [None, Some("2026-11-30T03:10:20Z"), Some("2026-11-30T03:10:21Z"), Some("today")].map(created);
        assert_eq!(ages, [u64::MAX, 20_261_130_031_020, 20_261_130_031_021, u64::MAX]);
    }

    #[test]
    fn a_target_is_kept_where_it_is_a_name() {
        let ports = r#"{"ports":[{"port":80,"targetPort":"web"},{"port":81,"targetPort":8080},{"port":82}]}"#;
        let targets: Vec<_> = service_of(ports).row.ports.into_iter().map(|port| port.target).collect();
        assert_eq!(targets, [Some("web".into()), None, None]);
    }

    #[test]
    fn a_01_affinity_defaults_to_three_hours_and_refuses_nonsense() {
        assert_eq!(service_of(r#"{"sessionAffinity":"ClientIP"}"#).row.affinity, Some(10_800));
        let bad = service_of(
            r#"{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":0}}}"#,
        );
        assert_eq!((bad.row.affinity, bad.diagnostics.len()), (Some(10_800), 1));
    }
}
