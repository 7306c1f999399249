//! Which pod is meant, and on which node it is: a pod by its name, or one of a workload's or a Service's, as `kubectl exec`
//! takes it.

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use types::ObjectName;
use watch::Misused;

use crate::advice::Cluster;
use crate::ready;

/// What a name may be that of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    Pod,
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    Service,
}

/// What is said where a kind is none of them.
const KINDS: &str = "pod, deploy, sts, ds, rs, job or svc";

impl Kind {
    /// As kubectl writes it before the name, with its group or without.
    fn of(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let plain = word.split('.').next().unwrap_or_default();
        match plain {
            "pod" | "pods" | "po" => Some(Self::Pod),
            "deploy" | "deployment" | "deployments" => Some(Self::Deployment),
            "sts" | "statefulset" | "statefulsets" => Some(Self::StatefulSet),
            "ds" | "daemonset" | "daemonsets" => Some(Self::DaemonSet),
            "rs" | "replicaset" | "replicasets" => Some(Self::ReplicaSet),
            "job" | "jobs" => Some(Self::Job),
            "svc" | "service" | "services" => Some(Self::Service),
            _ => None,
        }
    }

    /// The kind of its pods' owner.
    fn word(self) -> &'static str {
        match self {
            Self::Any | Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::Service => "Service",
        }
    }

    /// Whether the pod is one of those that the name stands for, beside the pod of that name.
    fn has(self, name: &str, pod: &Pod) -> bool {
        let label = |key: &str| pod.labels().get(key);
        let owners = pod.owner_references().iter().filter(|owner| owner.controller == Some(true));
        let mut owners = owners.map(|owner| (owner.kind.as_str(), owner.name.as_str()));
        let is_of = |(kind, owner): (&str, &str)| match kind {
            // A Deployment's ReplicaSets have its name and the hash of their template.
            "ReplicaSet" if self == Self::ReplicaSet => owner == name,
            "ReplicaSet" => {
                let hash = label("pod-template-hash");
                let of = hash.and_then(|hash| owner.strip_suffix(hash.as_str())?.strip_suffix('-'));
                [Self::Deployment, Self::Any].contains(&self) && of == Some(name)
            }
            "StatefulSet" | "DaemonSet" | "Job" => {
                (self == Self::Any || self.word() == kind) && owner == name
            }
            _ => false,
        };
        owners.any(is_of)
    }

    /// The pod of this name first, else the first Ready one of those that the name stands for.
    fn choose<'a>(self, name: &str, pods: &'a [Pod]) -> Option<&'a Pod> {
        let by_name = |pod: &&Pod| pod.metadata.name.as_deref() == Some(name);
        let exact = pods.iter().find(by_name).filter(|_| [Self::Any, Self::Pod].contains(&self));
        exact.or_else(|| first(pods.iter().filter(|pod| self.has(name, pod))))
    }
}

/// One that answers and stays, in the order of their names.
fn first<'a>(pods: impl Iterator<Item = &'a Pod>) -> Option<&'a Pod> {
    pods.min_by_key(|pod| {
        let stays = pod.metadata.deletion_timestamp.is_none();
        let placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        (!(ready::pod(pod) && stays), !placed, pod.name_any())
    })
}

/// What was typed. `NAMESPACE/NAME`, `NAME`, `TYPE/NAME` and `NAMESPACE/TYPE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Meant<'a> {
    kind: Kind,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Meant<'a> {
    /// Every reading, the likeliest first: a namespace may have a kind's name.
    fn readings(text: &'a str, given: Option<&'a str>, default: &'a str) -> Result<Vec<Self>> {
        let here = given.unwrap_or(default);
        if text.split('/').any(str::is_empty) || given == Some("") {
            let what = if given == Some("") { "-n \"\"".to_owned() } else { format!("{text:?}") };
            bail!("{what} has an empty name; give NAME, NAMESPACE/NAME or TYPE/NAME");
        }
        let Some((first, rest)) = text.split_once('/') else {
            return Ok(vec![Self { kind: Kind::Any, namespace: here, name: text }]);
        };
        let plain = Self { kind: Kind::Any, namespace: first, name: rest };
        match (Kind::of(first), given, rest.split_once('/')) {
            (_, _, Some((word, name))) => match Kind::of(word) {
                _ if given.is_some_and(|given| given != first) => bail!(two(given, first)),
                Some(kind) => Ok(vec![Self { kind, namespace: first, name }]),
                None => bail!("{text:?}: {word} is no kind that has pods; give {KINDS}"),
            },
            (Some(kind), Some(_), None) => Ok(vec![Self { kind, namespace: here, name: rest }]),
            (Some(kind), None, None) => Ok(vec![plain, Self { kind, namespace: here, name: rest }]),
            (None, Some(namespace), None) if namespace != first => bail!(two(given, first)),
            (None, _, None) => Ok(vec![plain]),
        }
    }
}

fn two(given: Option<&str>, first: &str) -> String {
    format!(
        "{first} is neither the namespace of -n, {}, nor a kind that has pods; give {KINDS} before the name, or the \
         namespace once",
        given.unwrap_or_default()
    )
}

/// Whether it can name a pod at all, before anybody is asked.
pub fn check(text: &str, namespace: Option<&str>) -> Result<()> {
    Meant::readings(text, namespace, "default").map(drop).map_err(|error| Misused::of(error).into())
}

/// The pod and its node. Of which pod something else stands for is said to stderr.
pub async fn find(cluster: &Cluster, text: &str, namespace: Option<&str>) -> Result<(ObjectName, String)> {
    let Cluster { client, advice } = cluster;
    let readings = Meant::readings(text, namespace, client.default_namespace()).map_err(Misused::of)?;
    for (meant, left) in readings.iter().zip((0..readings.len()).rev()) {
        match look(cluster, meant).await {
            Ok(Some(pod)) => {
                let full = ObjectName::new(meant.namespace, pod.name_any());
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).with_context(|| {
                    let describe =
                        advice.kubectl(&format!("-n {} describe pod {}", meant.namespace, full.name));
                    format!("pod {full} is on no node yet; `{describe}` says why")
                })?;
                if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
                    let others =
                        advice.kubectl(&format!("get pods -A --field-selector spec.nodeName={node}"));
                    bail!(
                        "{full} uses the network of its node {node}, where no trace begins; give a pod with one of its own \
                         (`{others}` lists those of the node)"
                    );
                }
                if meant.kind == Kind::Service || *full.name != *meant.name {
                    let which = if ready::pod(&pod) { ", the first Ready one" } else { "; none is Ready" };
                    eprintln!("{text}: takes the pod {full}{which}");
                }
                return Ok((full, node));
            }
            Ok(None) if left == 0 => return Err(missing(cluster, meant).await),
            Err(error) if left == 0 => return Err(error),
            // A namespace that the user did not mean may be closed to them.
            Ok(None) | Err(_) => {}
        }
    }
    Err(anyhow!("{text:?} is no pod"))
}

/// `None`: there is none.
async fn look(cluster: &Cluster, meant: &Meant<'_>) -> Result<Option<Pod>> {
    let Meant { kind, namespace, name } = meant;
    if name.is_empty() {
        return Ok(None);
    }
    let selector = match kind {
        Kind::Service => selector(cluster, meant).await?,
        _ => String::new(),
    };
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let listed = api.list(&ListParams::default().labels(&selector)).await;
    let pods = listed
        .map_err(|error| install::explain(error, &format!("list the pods of namespace {namespace}")))?;
    Ok(match kind {
        Kind::Service => first(pods.items.iter()).cloned(),
        kind => kind.choose(name, &pods.items).cloned(),
    })
}

/// Of the Service's pods.
async fn selector(cluster: &Cluster, meant: &Meant<'_>) -> Result<String> {
    let Meant { namespace, name, .. } = meant;
    let api: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let service = match api.get_opt(name).await {
        Ok(Some(service)) => service,
        Ok(None) => {
            let list = cluster.advice.kubectl(&format!("get services -n {namespace}"));
            bail!("there is no Service {namespace}/{name}; `{list}` lists those that are")
        }
        Err(error) => return Err(install::explain(error, &format!("read the Service {namespace}/{name}"))),
    };
    let labels = service.spec.and_then(|spec| spec.selector).unwrap_or_default();
    if labels.is_empty() {
        bail!("the Service {namespace}/{name} has no selector, and so no pods of its own: give a pod");
    }
    Ok(labels_of(&labels))
}

fn labels_of(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// What is not there, and where there is something of that name.
async fn missing(cluster: &Cluster, meant: &Meant<'_>) -> Error {
    let (advice, Meant { kind, namespace, name }) = (&cluster.advice, meant);
    let everywhere: Api<Pod> = Api::all(cluster.client.clone());
    let all = everywhere.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
    let elsewhere = namespaces_with(*kind, name, &all);
    let next = match elsewhere.first() {
        Some(other) if *kind == Kind::Any => {
            format!("{name} is in {}: say {other}/{name}", elsewhere.join(", "))
        }
        Some(other) => format!("{name} is in {}: add -n {other}", elsewhere.join(", ")),
        None => {
            // Without any this user may not see them all.
            let here = all.is_empty() || all.iter().any(|pod| pod.namespace().as_deref() == Some(*namespace));
            let list = match here {
                false => advice.kubectl("get pods -A"),
                true => advice.kubectl(&format!("get pods -n {namespace}")),
            };
            format!("`{list}` lists pods")
        }
    };
    // Whoever may not ask for the namespace hears of the pod alone.
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    if matches!(namespaces.get_opt(namespace).await, Ok(None)) {
        return anyhow!("there is no namespace {namespace}; {next}");
    }
    match kind {
        Kind::Pod => anyhow!("there is no pod {namespace}/{name}; {next}"),
        Kind::Any => anyhow!("there is no pod {namespace}/{name}, and no workload of that name; {next}"),
        other => anyhow!("there is no pod of a {} {namespace}/{name}; {next}", other.word()),
    }
}

/// Other namespaces that have such a pod, as far as this user may see.
fn namespaces_with(kind: Kind, name: &str, pods: &[Pod]) -> Vec<String> {
    let has = |pod: &&Pod| !name.is_empty() && kind.choose(name, std::slice::from_ref(pod)).is_some();
    let mut found: Vec<String> = pods.iter().filter(has).filter_map(ResourceExt::namespace).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `owner`: the kind and name of its controller.
    fn pod(namespace: &str, name: &str, owner: Option<(&str, &str)>, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        let owners = owner.map(|(kind, name)| {
            json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "1", "controller": true}])
        });
        let of = json!({
            "metadata": {"namespace": namespace, "name": name, "ownerReferences": owners,
                "labels": {"pod-template-hash": "5dfc7bf44f"}},
            "spec": {"nodeName": "node1", "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        });
        serde_json::from_value(of).unwrap()
    }

    #[test]
    fn kubectls_words_are_understood() {
        let meant = |kind, namespace, name| Meant { kind, namespace, name };
        for (text, given, all) in [
            ("web", None, vec![meant(Kind::Any, "default", "web")]),
            ("web", Some("shop"), vec![meant(Kind::Any, "shop", "web")]),
            ("shop/web", None, vec![meant(Kind::Any, "shop", "web")]),
            ("shop/web", Some("shop"), vec![meant(Kind::Any, "shop", "web")]),
            ("deploy/api", Some("shop"), vec![meant(Kind::Deployment, "shop", "api")]),
            ("deployment.apps/api", Some("shop"), vec![meant(Kind::Deployment, "shop", "api")]),
            ("sts/db", Some("shop"), vec![meant(Kind::StatefulSet, "shop", "db")]),
            ("daemonset/log", Some("shop"), vec![meant(Kind::DaemonSet, "shop", "log")]),
            ("rs/api-1", Some("shop"), vec![meant(Kind::ReplicaSet, "shop", "api-1")]),
            ("jobs.batch/once", Some("shop"), vec![meant(Kind::Job, "shop", "once")]),
            ("svc/api", Some("shop"), vec![meant(Kind::Service, "shop", "api")]),
            ("shop/svc/api", None, vec![meant(Kind::Service, "shop", "api")]),
            ("pod/web", None, vec![meant(Kind::Any, "pod", "web"), meant(Kind::Pod, "default", "web")]),
            ("svc/api", None, vec![meant(Kind::Any, "svc", "api"), meant(Kind::Service, "default", "api")]),
        ] {
            assert_eq!(Meant::readings(text, given, "default").unwrap(), all, "{text}");
        }
        for (text, given, word) in [
            ("other/web", Some("shop"), "neither the namespace of -n, shop"),
            ("cronjob/web", Some("shop"), KINDS),
            ("shop/node/web", None, KINDS),
            ("other/deploy/web", Some("shop"), "neither the namespace"),
            ("", None, "an empty name"),
            ("shop/", None, "an empty name"),
            ("/web", None, "an empty name"),
            ("shop/deploy/", None, "an empty name"),
            ("web", Some(""), "-n \"\" has an empty name"),
        ] {
            let error = Meant::readings(text, given, "default").unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_kind_chooses_its_own() {
        let of = |kind, name| Some((kind, name));
        let pods = [
            pod("shop", "api-5dfc7bf44f-aaaaa", of("ReplicaSet", "api-5dfc7bf44f"), false),
            pod("shop", "api-5dfc7bf44f-p98nh", of("ReplicaSet", "api-5dfc7bf44f"), true),
            pod("shop", "api", None, false),
            pod("shop", "api-v2-7777", of("DaemonSet", "api-v2"), true),
            pod("shop", "db-0", of("StatefulSet", "db"), true),
            pod("shop", "once-x1", of("Job", "once"), false),
            pod("shop", "mirror-node1", of("Node", "node1"), true),
        ];
        for (kind, name, chosen) in [
            (Kind::Any, "api", Some("api")),
            (Kind::Pod, "api", Some("api")),
            (Kind::Deployment, "api", Some("api-5dfc7bf44f-p98nh")),
            (Kind::ReplicaSet, "api-5dfc7bf44f", Some("api-5dfc7bf44f-p98nh")),
            (Kind::ReplicaSet, "api", None),
            (Kind::DaemonSet, "api-v2", Some("api-v2-7777")),
            (Kind::Any, "api-v2", Some("api-v2-7777")),
            (Kind::StatefulSet, "db", Some("db-0")),
            (Kind::Any, "db", Some("db-0")),
            (Kind::Job, "once", Some("once-x1")),
            (Kind::Job, "db", None),
            (Kind::Pod, "ap", None),
            (Kind::Any, "node1", None),
        ] {
            let found = kind.choose(name, &pods).and_then(|pod| pod.metadata.name.as_deref());
            assert_eq!(found, chosen, "{kind:?} {name}");
        }
    }

    #[test]
    fn other_namespaces_are_named_once() {
        let pods = [
            pod("b", "web", None, true),
            pod("a", "web-0", Some(("StatefulSet", "web")), true),
            pod("a", "web", None, true),
            pod("c", "x", None, true),
        ];
        assert_eq!(namespaces_with(Kind::Any, "web", &pods), ["a", "b"]);
        assert!(namespaces_with(Kind::Any, "", &pods).is_empty());
    }
}
