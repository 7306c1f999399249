//! What there is: aggregated discovery (apidiscovery.k8s.io/v2, KEP-3352) and the older lists per group.

use http::{HeaderMap, Response};
use serde_json::{Value, json};

use crate::api::Body;
use crate::kind::{KINDS, Kind, NODE};
use crate::response;

/// Virtual resources: requests that are answered, not stored.
const REVIEWS: [(&str, &str, &str); 4] = [
    ("authentication.k8s.io", "tokenreviews", "TokenReview"),
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),
];

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Groups in the order in which kubectl prefers them.
const GROUPS: [&str; 7] = [
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "networking.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
];

/// The answer to a discovery path, if it is one.
pub(crate) fn answer(steps: &[&str], headers: &HeaderMap) -> Option<Response<Body>> {
    let aggregated = headers
        .get_all(http::header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|accept| accept.contains("g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"));
    let plain = |value: Value| Some(response::json(200, &value));
    match steps {
        ["api" | "apis"] if aggregated => {
            let groups = if steps == ["api"] { &[""][..] } else { &GROUPS[..] };
            let items: Vec<_> = groups.iter().map(|group| aggregated_group(group)).collect();
            let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
                "metadata": {}, "items": items});
            Some(response::whole(200, AGGREGATED, list.to_string()))
        }
        ["api"] => {
            plain(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
        }
        ["apis"] => {
            let groups: Vec<_> = GROUPS.iter().map(|group| group_value(group)).collect();
            plain(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group] if GROUPS.contains(group) => plain(group_value(group)),
        ["api", "v1"] => plain(resource_list("")),
        ["apis", group, "v1"] if GROUPS.contains(group) => plain(resource_list(group)),
        _ => None,
    }
}

fn of_group<'a>(group: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    KINDS.into_iter().filter(move |kind| kind.group == group)
}

fn group_value(group: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": [version], "preferredVersion": version})
}

fn aggregated_group(group: &str) -> Value {
    let reviews = REVIEWS.iter().filter(|(g, ..)| *g == group).map(|(_, plural, kind)| {
        json!({"resource": plural, "responseKind": response_kind(group, kind), "scope": "Cluster",
            "singularResource": kind.to_lowercase(), "verbs": ["create"]})
    });
    let resources: Vec<_> = of_group(group).map(aggregated_resource).chain(reviews).collect();
    let metadata = if group.is_empty() {
        json!({"creationTimestamp": null})
    } else {
        json!({"name": group, "creationTimestamp": null})
    };
    json!({"metadata": metadata, "versions": [{"version": "v1", "resources": resources, "freshness": "Current"}]})
}

fn response_kind(group: &str, kind: &str) -> Value {
    json!({"group": group, "version": "v1", "kind": kind})
}

fn aggregated_resource(kind: &'static Kind) -> Value {
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": response_kind(kind.group, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": VERBS,
    });
    let subresources: Vec<_> = kind
        .subresources
        .iter()
        .map(|sub| {
            let (group, version, name, verbs) = subresource(kind, sub);
            json!({"subresource": sub, "responseKind": {"group": group, "version": version, "kind": name}, "verbs": verbs})
        })
        .collect();
    let map = crate::object::root(&mut resource);
    for (field, words) in [("shortNames", kind.short), ("categories", kind.categories)] {
        if !words.is_empty() {
            map.insert(field.to_owned(), json!(words));
        }
    }
    if !subresources.is_empty() {
        map.insert("subresources".to_owned(), subresources.into());
    }
    resource
}

const PROXIED: &[&str] = &["create", "delete", "get", "patch", "update"];

/// Group, version, kind and verbs of a subresource.
fn subresource(
    kind: &Kind,
    sub: &str,
) -> (&'static str, &'static str, &'static str, &'static [&'static str]) {
    match sub {
        "scale" => ("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        "binding" => ("", "v1", "Binding", &["create"]),
        "exec" => ("", "v1", "PodExecOptions", &["create", "get"]),
        "log" => ("", "v1", "Pod", &["get"]),
        "proxy" if *kind == NODE => ("", "v1", "NodeProxyOptions", PROXIED),
        "proxy" => ("", "v1", "PodProxyOptions", PROXIED),
        "token" => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
        "finalize" => ("", "v1", "Namespace", &["update"]),
        _ => (kind.group, "v1", kind.kind, &["get", "patch", "update"]),
    }
}

fn resource_list(group: &str) -> Value {
    let mut resources = Vec::new();
    for kind in of_group(group) {
        let mut row = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": VERBS});
        let map = crate::object::root(&mut row);
        for (field, words) in [("shortNames", kind.short), ("categories", kind.categories)] {
            if !words.is_empty() {
                map.insert(field.to_owned(), json!(words));
            }
        }
        resources.push(row);
        for sub in kind.subresources {
            let (sub_group, version, name, verbs) = subresource(kind, sub);
            resources.push(json!({"name": format!("{}/{sub}", kind.plural), "singularName": "",
                "namespaced": kind.namespaced, "group": sub_group, "version": version, "kind": name, "verbs": verbs}));
        }
    }
    for (_, plural, kind) in REVIEWS.iter().filter(|(g, ..)| *g == group) {
        resources.push(json!({"name": plural, "singularName": kind.to_lowercase(), "namespaced": false,
            "kind": kind, "verbs": ["create"]}));
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
}
