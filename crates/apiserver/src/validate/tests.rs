//! Each verdict and message as kube-apiserver 1.36.3 gives it.

use serde_json::json;

use super::*;
use crate::kind;

fn verdict(kind: &str, object: &Value, before: Option<&Value>) -> Vec<String> {
    let kind = kind::KINDS.iter().find(|known| known.kind == kind).expect("a kind");
    let mut complaints = Complaints::default();
    match before {
        None => create(kind, object, &mut complaints),
        Some(before) => update(kind, object, before, &mut complaints),
    }
    complaints.0.into_iter().map(|one| format!("{} {}: {}", one.cause, one.field, one.body)).collect()
}

fn service(more: Value) -> Value {
    let mut spec = json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec})
}

fn slice(ty: &str, endpoint: Value) -> Value {
    json!({"metadata": {"name": "s"}, "addressType": ty, "endpoints": [endpoint]})
}

fn invalid(field: &str, value: &str, why: &str) -> Vec<String> {
    vec![format!("FieldValueInvalid {field}: Invalid value: {value:?}: {why}")]
}

const LOOPBACK: &str = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
const LINK_LOCAL: &str = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
const MULTICAST: &str = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const ZEROS: &str = "must not have leading 0s";
const MAPPED: &str = "must not be an IPv4-mapped IPv6 address";

#[test]
fn endpoints_are_addresses_of_their_own() {
    let field = "endpoints[0].addresses[0]";
    for (ty, address, why) in [
        ("IPv4", "127.0.0.1", LOOPBACK),
        ("IPv4", "127.255.0.9", LOOPBACK),
        ("IPv4", "0.0.0.0", "may not be unspecified (0.0.0.0)"),
        ("IPv4", "169.254.169.254", LINK_LOCAL),
        ("IPv4", "224.0.0.1", MULTICAST),
        ("IPv4", "010.1.1.1", ZEROS),
        ("IPv4", "10.1.1", BAD_IP),
        ("IPv4", "::ffff:10.1.1.1", MAPPED),
        ("IPv6", "::1", LOOPBACK),
        ("IPv6", "::", "may not be unspecified (::)"),
        ("IPv6", "fe80::1", LINK_LOCAL),
        ("IPv6", "ff02::1", MULTICAST),
        ("IPv6", "::ffff:127.0.0.1", MAPPED),
        ("IPv6", "FD00:0:0::1", "must be in canonical form (\"fd00::1\")"),
        ("IPv6", "fd00::1%eth0", BAD_IP),
        ("FQDN", "example", "should be a domain with at least two segments separated by dots"),
    ] {
        let found = verdict("EndpointSlice", &slice(ty, json!({"addresses": [address]})), None);
        assert_eq!(found, invalid(field, address, why), "{ty} {address}");
    }
    for (ty, address, family) in [("IPv4", "fd00::1", "IPv4"), ("IPv6", "10.1.1.1", "IPv6")] {
        let found = verdict("EndpointSlice", &slice(ty, json!({"addresses": [address]})), None);
        assert_eq!(
            found,
            invalid("endpoints[0].addresses", address, &format!("must be an {family} address"))
        );
    }
    // Multicast beyond the link is kube-apiserver's to take, and so here.
    for (ty, address) in
        [("IPv4", "10.1.1.1"), ("IPv4", "239.1.1.1"), ("IPv6", "fd00::1"), ("FQDN", "a.example.")]
    {
        assert_eq!(
            verdict("EndpointSlice", &slice(ty, json!({"addresses": [address]})), None),
            [""; 0],
            "{address}"
        );
    }
}

#[test]
fn names_within_slices_are_labels() {
    let upper = slice("IPv4", json!({"addresses": ["10.1.1.1"], "hostname": "A_B"}));
    let found = verdict("EndpointSlice", &upper, None);
    assert!(found[0].starts_with(
        "FieldValueInvalid endpoints[0].hostname: Invalid value: \"A_B\": a lowercase RFC 1123"
    ));
    let mut port = slice("IPv4", json!({"addresses": ["10.1.1.1"]}));
    port["ports"] = json!([{"name": "HTTP", "port": 80}]);
    let found = verdict("EndpointSlice", &port, None);
    assert!(
        found[0]
            .starts_with("FieldValueInvalid ports[0].name: Invalid value: \"HTTP\": a lowercase RFC 1123")
    );
    let many: Vec<_> = (0..1001).map(|_| json!({"addresses": ["10.1.1.1"]})).collect();
    let many = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": many});
    assert_eq!(
        verdict("EndpointSlice", &many, None),
        ["FieldValueTooMany endpoints: Too many: 1001: must have at most 1000 items"]
    );
}

#[test]
fn numbers_of_ports_are_whoever_reads_slices_to_bear_and_hints_are_few() {
    let mut ports = slice("IPv4", json!({"addresses": ["10.1.1.1"]}));
    ports["ports"] = json!([{"name": "a", "port": 0}, {"name": "b", "port": 70_000}, {"name": "c", "port": -1}, {"name": "d"}]);
    assert_eq!(verdict("EndpointSlice", &ports, None), [""; 0]);
    let hinted = |field: &str, names: &[&str]| {
        let hints: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        let endpoint = json!({"addresses": ["10.1.1.1"], "hints": {field: hints}});
        verdict("EndpointSlice", &slice("IPv4", endpoint), None)
    };
    for field in ["forZones", "forNodes"] {
        let path = format!("endpoints[0].hints.{field}");
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        assert_eq!(hinted(field, &names[..8]), [""; 0]);
        let many = format!("FieldValueTooMany {path}: Too many: 9: must have at most 8 items");
        assert_eq!(hinted(field, &names), [many]);
        let twice = format!("FieldValueDuplicate {path}[1].name: Duplicate value: \"a\"");
        assert_eq!(hinted(field, &["a", "a"]), [twice]);
    }
    for (field, name) in [("forZones", "a zone"), ("forNodes", "Node_1")] {
        let start =
            format!("FieldValueInvalid endpoints[0].hints.{field}[0].name: Invalid value: {name:?}: a ");
        let found = hinted(field, &[name]);
        assert!(found.len() == 1 && found[0].starts_with(&start), "{found:?}");
    }
}

/// Objects of an earlier version live on, and take no second bad address.
#[test]
fn what_was_taken_once_stays() {
    let old = slice("IPv4", json!({"addresses": ["127.0.0.1"]}));
    let mut relabelled = old.clone();
    relabelled["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(verdict("EndpointSlice", &relabelled, Some(&old)), [""; 0]);
    let changed = slice("IPv4", json!({"addresses": ["127.0.0.2"]}));
    assert_eq!(
        verdict("EndpointSlice", &changed, Some(&old)),
        invalid("endpoints[0].addresses[0]", "127.0.0.2", LOOPBACK)
    );
    let old = service(json!({"externalIPs": ["010.1.1.1"]}));
    let more = service(json!({"externalIPs": ["010.1.1.1", "011.1.1.1"]}));
    assert_eq!(verdict("Service", &more, Some(&old)), invalid("spec.externalIPs[1]", "011.1.1.1", ZEROS));
    let policy = |cidrs: &[&str]| {
        let from: Vec<_> = cidrs.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
        json!({"metadata": {"name": "p"}, "spec": {"podSelector": {}, "ingress": [{"from": from}]}})
    };
    let found =
        verdict("NetworkPolicy", &policy(&["10.0.0.1/8", "11.0.0.1/8"]), Some(&policy(&["10.0.0.1/8"])));
    let why = "must not have bits set beyond the prefix length";
    assert_eq!(found, invalid("spec.ingress[0].from[1].ipBlock.cidr", "11.0.0.1/8", why));
}

#[test]
fn external_addresses_are_no_special_ones() {
    for (address, why) in [
        ("127.0.0.1", LOOPBACK),
        ("::1", LOOPBACK),
        ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
        ("224.0.0.1", MULTICAST),
        ("169.254.1.1", LINK_LOCAL),
        ("fe80::9", LINK_LOCAL),
        ("abc", BAD_IP),
        ("1.2.3.4/32", BAD_IP),
        ("::ffff:1.2.3.4", MAPPED),
    ] {
        let found = verdict("Service", &service(json!({"externalIPs": ["203.0.113.9", address]})), None);
        assert_eq!(found, invalid("spec.externalIPs[1]", address, why));
    }
    for (address, why) in [("10.96.0.300", BAD_IP), ("010.96.0.3", ZEROS)] {
        for field in [json!({"clusterIP": address}), json!({"clusterIPs": [address]})] {
            assert_eq!(
                verdict("Service", &service(field), None),
                invalid("spec.clusterIPs[0]", address, why)
            );
        }
    }
}

#[test]
fn what_only_load_balancers_have() {
    let only = "Forbidden: may only be used when `type` is 'LoadBalancer'";
    for (field, named) in [
        (json!({"loadBalancerSourceRanges": ["1.2.3.0/24"]}), "LoadBalancerSourceRanges"),
        (json!({"loadBalancerClass": "a/b"}), "loadBalancerClass"),
        (json!({"allocateLoadBalancerNodePorts": false}), "allocateLoadBalancerNodePorts"),
    ] {
        let found = verdict("Service", &service(field), None);
        assert_eq!(found, [format!("FieldValueForbidden spec.{named}: {only}")]);
    }
    for (range, why) in [
        ("1.2.3.4", BAD_CIDR),
        ("1.2.3.0/33", BAD_CIDR),
        ("1.2.3.4/24", "must not have bits set beyond the prefix length"),
        ("01.2.3.0/24", "must not have leading 0s in IP or prefix length"),
        ("1.2.3.0/024", "must not have leading 0s in IP or prefix length"),
        ("::ffff:1.2.3.0/120", "must not have an IPv4-mapped IPv6 address"),
    ] {
        let object =
            service(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" fd00::/8 ", range]}));
        assert_eq!(
            verdict("Service", &object, None),
            invalid("spec.LoadBalancerSourceRanges[1]", range, why)
        );
    }
    let class = service(json!({"type": "LoadBalancer", "loadBalancerClass": "a b"}));
    assert!(verdict("Service", &class, None)[0].starts_with("FieldValueInvalid spec.loadBalancerClass: "));
    let before = service(json!({"type": "LoadBalancer"}));
    let with = |ty: &str, ingress: Value| {
        let mut object = service(json!({"type": ty}));
        object["status"] = json!({"loadBalancer": {"ingress": [ingress]}});
        object
    };
    let path = "status.loadBalancer.ingress";
    let found = verdict("Service", &with("LoadBalancer", json!({"ip": "1.2.3.4.5"})), Some(&before));
    assert_eq!(found, invalid(&format!("{path}[0].ip"), "1.2.3.4.5", BAD_IP));
    let found = verdict("Service", &with("LoadBalancer", json!({"hostname": "1.2.3.4"})), Some(&before));
    assert_eq!(
        found,
        invalid(&format!("{path}[0].hostname"), "1.2.3.4", "must be a DNS name, not an IP address")
    );
    let found = verdict("Service", &with("ClusterIP", json!({"ip": "1.2.3.4"})), Some(&service(json!({}))));
    let why = "Forbidden: may only be used when `spec.type` is 'LoadBalancer'";
    assert_eq!(found, [format!("FieldValueForbidden {path}: {why}")]);
}

#[test]
fn names_that_services_lead_to() {
    let external = |name: &str| service(json!({"type": "ExternalName", "externalName": name}));
    for good in ["outside.test", "outside.test.", "203.0.113.10", "a"] {
        assert_eq!(verdict("Service", &external(good), None), [""; 0], "{good}");
    }
    for bad in ["Outside.test", "a..b", "outside.test..", "a_b", "-a"] {
        let judged = bad.strip_suffix('.').unwrap_or(bad);
        let found = verdict("Service", &external(bad), None);
        let start = format!(
            "FieldValueInvalid spec.externalName: Invalid value: {judged:?}: a lowercase RFC 1123 subdomain"
        );
        assert!(found.len() == 1 && found[0].starts_with(&start), "{bad}: {found:?}");
    }
    for none in ["", "."] {
        assert_eq!(
            verdict("Service", &external(none), None),
            ["FieldValueRequired spec.externalName: Required value"]
        );
    }
    let mut with = external("a.b");
    with["spec"]["clusterIP"] = "10.96.0.9".into();
    let why = "Forbidden: may not be set for ExternalName services";
    assert_eq!(verdict("Service", &with, None), [format!("FieldValueForbidden spec.clusterIPs: {why}")]);
    let found = verdict("Service", &service(json!({"trafficDistribution": "Nearby"})), None);
    let known = "\"PreferClose\", \"PreferSameZone\", \"PreferSameNode\"";
    let start =
        "FieldValueNotSupported spec.trafficDistribution: Unsupported value: \"Nearby\": supported values: ";
    assert_eq!(found, [format!("{start}{known}")]);
    let found = verdict("Service", &service(json!({"ipFamilies": ["IPv4", "IPv4"]})), None);
    assert_eq!(found, ["FieldValueDuplicate spec.ipFamilies[1]: Duplicate value: \"IPv4\""]);
}

fn pod(more: Value, ports: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "host", "ports": ports}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": "p"}, "spec": spec})
}

#[test]
fn ports_of_the_node() {
    let twice = json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8080, "protocol": "TCP"}]);
    let field = "spec.containers[0].ports[1].hostPort";
    let duplicate = format!("FieldValueDuplicate {field}: Duplicate value: \"TCP//8080\"");
    assert_eq!(verdict("Pod", &pod(json!({}), twice), None), [duplicate]);
    let apart = json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8080, "protocol": "UDP"},
        {"containerPort": 82, "hostPort": 8080, "hostIP": "192.0.2.1"}]);
    assert_eq!(verdict("Pod", &pod(json!({}), apart), None), [""; 0]);
    let other = json!([{"containerPort": 80, "hostPort": 8080}]);
    let why = "must match `containerPort` when `hostNetwork` is true";
    assert_eq!(
        verdict("Pod", &pod(json!({"hostNetwork": true}), other), None),
        [format!("FieldValueInvalid spec.containers[0].ports[0].hostPort: Invalid value: 8080: {why}")]
    );
    let resolvers = pod(json!({"dnsConfig": {"nameservers": ["010.0.0.1"]}}), json!([]));
    assert_eq!(
        verdict("Pod", &resolvers, None),
        invalid("spec.dnsConfig.nameservers[0]", "010.0.0.1", ZEROS)
    );
    let alias = pod(json!({"hostAliases": [{"ip": "1.2.3", "hostnames": ["a"]}]}), json!([]));
    assert_eq!(verdict("Pod", &alias, None), invalid("spec.hostAliases[0].ip", "1.2.3", BAD_IP));
}

#[test]
fn ranges_of_policies_and_nodes() {
    let block = |block: Value| json!({"metadata": {"name": "p"}, "spec": {"podSelector": {}, "egress": [{"to": [{"ipBlock": block}]}]}});
    let path = "spec.egress[0].to[0].ipBlock";
    for (cidr, why) in [
        ("10.0.0.1", BAD_CIDR),
        ("10.0.0.0/33", BAD_CIDR),
        ("fd00::1/64", "must not have bits set beyond the prefix length"),
    ] {
        let found = verdict("NetworkPolicy", &block(json!({"cidr": cidr})), None);
        assert_eq!(found, invalid(&format!("{path}.cidr"), cidr, why));
    }
    for except in ["10.0.0.0/8", "11.0.0.0/16", "fd00::/64"] {
        let found = verdict("NetworkPolicy", &block(json!({"cidr": "10.0.0.0/8", "except": [except]})), None);
        assert_eq!(found, invalid(&format!("{path}.except[0]"), except, "must be a strict subset of `cidr`"));
    }
    let node = |cidrs: &[&str]| json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": cidrs}});
    assert_eq!(verdict("Node", &node(&["10.244.1.0/24", "fd00:1::/64"]), None), [""; 0]);
    assert_eq!(
        verdict("Node", &node(&["10.244.1.7/24"]), None),
        invalid("spec.podCIDRs[0]", "10.244.1.7/24", "must not have bits set beyond the prefix length")
    );
    let found = verdict("Node", &node(&["10.244.1.0/24", "10.244.2.0/24"]), None);
    assert!(found[0].ends_with("may specify no more than one CIDR for each IP family"), "{found:?}");
    let found = verdict("Node", &node(&["10.244.2.0/24"]), Some(&node(&["10.244.1.0/24"])));
    let why = "Forbidden: node updates may not change podCIDR except from \"\" to valid";
    assert_eq!(found, [format!("FieldValueForbidden spec.podCIDRs: {why}")]);
}
