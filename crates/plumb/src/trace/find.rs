//! Which pod is meant, and on which node it is.

use anyhow::{Context, Error, Result, anyhow};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use types::ObjectName;

use crate::advice::Cluster;

/// What a name may be that of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    Pod,
    Deployment,
}

impl Kind {
    /// As kubectl writes it before the name.
    fn of(word: &str) -> Option<Self> {
        match word {
            "pod" | "pods" | "po" => Some(Self::Pod),
            "deploy" | "deployment" | "deployments" | "deployment.apps" => Some(Self::Deployment),
            _ => None,
        }
    }

    /// A pod of this name first, then one of the Deployment's, whose names begin with it.
    fn choose(self, name: &str, pods: &[Pod]) -> Option<Pod> {
        let exact = |pod: &&Pod| self != Self::Deployment && pod.metadata.name.as_deref() == Some(name);
        let owned = |pod: &&Pod| self != Self::Pod && is_owned(pod, name);
        pods.iter().find(exact).or_else(|| pods.iter().find(owned)).cloned()
    }
}

fn is_owned(pod: &Pod, name: &str) -> bool {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let rest = pod_name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
    rest.split('-').count() <= 2 && !rest.is_empty() && pod.metadata.owner_references.is_some()
}

/// What was typed. `NAMESPACE/NAME`, `NAME`, and with a namespace `deploy/NAME` and `pod/NAME`, as kubectl takes them: without
/// one the first part is that of a namespace.
#[derive(Debug, PartialEq, Eq)]
struct Meant<'a> {
    kind: Kind,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Meant<'a> {
    fn new(text: &'a str, given: Option<&'a str>, default: &'a str) -> Self {
        let Some((first, name)) = text.split_once('/') else {
            return Self { kind: Kind::Any, namespace: given.unwrap_or(default), name: text };
        };
        match (Kind::of(first), given) {
            (Some(kind), Some(namespace)) => Self { kind, namespace, name },
            _ => Self { kind: Kind::Any, namespace: first, name },
        }
    }
}

/// The pod and its node. A name that is no pod's may be that of a Deployment.
pub async fn find(cluster: &Cluster, text: &str, namespace: Option<&str>) -> Result<(ObjectName, String)> {
    let Cluster { client, advice } = cluster;
    let meant = Meant::new(text, namespace, client.default_namespace());
    let Meant { kind, namespace, name } = meant;
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let listed = api.list(&ListParams::default()).await;
    let pods = listed.with_context(|| format!("list the pods of namespace {namespace}"))?.items;
    let Some(pod) = kind.choose(name, &pods).filter(|_| !name.is_empty()) else {
        return Err(missing(cluster, &meant, pods.is_empty()).await);
    };
    let full = ObjectName::new(namespace, pod.name_any());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).with_context(|| {
        let describe = advice.kubectl(&format!("-n {namespace} describe pod {}", full.name));
        format!("pod {full} is on no node yet; `{describe}` says why")
    })?;
    Ok((full, node))
}

/// What is not there, and where there is something of that name.
async fn missing(cluster: &Cluster, meant: &Meant<'_>, empty: bool) -> Error {
    let (advice, Meant { kind, namespace, name }) = (&cluster.advice, meant);
    if Kind::of(namespace).is_some() && empty {
        return anyhow!(
            "there is no pod {namespace}/{name}; for a {namespace} of that name give its namespace with -n, or \
             NAMESPACE/{name}"
        );
    }
    let elsewhere = elsewhere(&cluster.client, meant).await;
    let next = match elsewhere.first() {
        Some(other) => format!("{name} is in {}: say {other}/{name}", elsewhere.join(", ")),
        None => {
            let list = match empty {
                true => advice.kubectl("get pods -A"),
                false => advice.kubectl(&format!("get pods -n {namespace}")),
            };
            format!("`{list}` lists pods")
        }
    };
    // Whoever may not ask for the namespace hears of the pod alone.
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    if empty && matches!(namespaces.get_opt(namespace).await, Ok(None)) {
        return anyhow!("there is no namespace {namespace}; {next}");
    }
    match kind {
        Kind::Pod => anyhow!("there is no pod {namespace}/{name}; {next}"),
        Kind::Deployment => anyhow!("there is no pod of a Deployment {namespace}/{name}; {next}"),
        Kind::Any => anyhow!("there is no pod {namespace}/{name}, and no Deployment of that name; {next}"),
    }
}

/// Other namespaces that have such a pod, as far as this user may see.
async fn elsewhere(client: &Client, meant: &Meant<'_>) -> Vec<String> {
    let everywhere: Api<Pod> = Api::all(client.clone());
    let Ok(listed) = everywhere.list(&ListParams::default()).await else { return Vec::new() };
    namespaces_with(meant.kind, meant.name, listed.items)
}

fn namespaces_with(kind: Kind, name: &str, pods: Vec<Pod>) -> Vec<String> {
    let has = |pod: &Pod| !name.is_empty() && kind.choose(name, std::slice::from_ref(pod)).is_some();
    let mut found: Vec<String> = pods.into_iter().filter(has).filter_map(|pod| pod.namespace()).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, owned: bool) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some(namespace.to_owned());
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.owner_references = owned.then(|| vec![Default::default()]);
        pod
    }

    #[test]
    fn kubectls_words_are_understood_with_a_namespace() {
        for (text, given, kind, namespace, name) in [
            ("web", None, Kind::Any, "default", "web"),
            ("web", Some("shop"), Kind::Any, "shop", "web"),
            ("shop/web", None, Kind::Any, "shop", "web"),
            ("deploy/api", Some("shop"), Kind::Deployment, "shop", "api"),
            ("deployment/api", Some("shop"), Kind::Deployment, "shop", "api"),
            ("pod/web", Some("shop"), Kind::Pod, "shop", "web"),
            ("pod/web", None, Kind::Any, "pod", "web"),
        ] {
            assert_eq!(Meant::new(text, given, "default"), Meant { kind, namespace, name }, "{text}");
        }
    }

    #[test]
    fn a_kind_chooses_its_own() {
        let pods = [pod("shop", "api-5dfc7bf44f-p98nh", true), pod("shop", "api", false)];
        let chosen = |kind: Kind| kind.choose("api", &pods).and_then(|pod| pod.metadata.name);
        assert_eq!(chosen(Kind::Any).as_deref(), Some("api"));
        assert_eq!(chosen(Kind::Pod).as_deref(), Some("api"));
        assert_eq!(chosen(Kind::Deployment).as_deref(), Some("api-5dfc7bf44f-p98nh"));
        assert!(Kind::Pod.choose("ap", &pods).is_none());
    }

    #[test]
    fn other_namespaces_are_named_once() {
        let pods = vec![
            pod("b", "web", false),
            pod("a", "web-1", true),
            pod("a", "web", false),
            pod("c", "x", false),
        ];
        assert_eq!(namespaces_with(Kind::Any, "web", pods.clone()), ["a", "b"]);
        assert!(namespaces_with(Kind::Any, "", pods).is_empty());
    }
}
