//! Reaching each node's agent through the API server's proxy of its pod: nobody needs a way of their own to the nodes
//! (docs/trace.md draws it). The proxy of the Node would do, too, but whoever may use that may run commands in every
//! pod (docs/security.md).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::client::Body;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use trace::exchange::Refusal;
use types::wire::{AGENT_LABELS, AGENT_NAMESPACE, AGENT_PORT, TRACE_ACCOUNT, TRACE_AUDIENCE};

use crate::advice::{Advice, Cluster, aloud};
use crate::ready;

/// Seconds that a token lives: the least that Kubernetes gives.
const TOKEN_SECONDS: i64 = 600;

/// The agents as the API shows them.
#[derive(Clone, Debug)]
pub struct Agents(Arc<BTreeMap<String, String>>);

impl Agents {
    /// Looks for their pods.
    pub async fn find(client: &Client) -> Result<Self> {
        let labels = AGENT_LABELS.map(|(name, value)| format!("{name}={value}")).join(",");
        let pods: Api<Pod> = Api::namespaced(client.clone(), AGENT_NAMESPACE);
        let listed = pods.list(&ListParams::default().labels(&labels)).await;
        Ok(Self::of(listed.map_err(|error| install::explain(error, LIST))?.items))
    }

    /// Of several on a node, as while one is replaced: the one that answers, the newest.
    fn of(mut pods: Vec<Pod>) -> Self {
        pods.sort_by_key(|pod| {
            let stays = pod.metadata.deletion_timestamp.is_none();
            (stays, ready::pod(pod), pod.creation_timestamp().map(|time| time.0))
        });
        let named = |pod: Pod| Some((pod.spec.as_ref()?.node_name.clone()?, pod.name_any()));
        Self(Arc::new(pods.into_iter().filter_map(named).collect()))
    }

    /// The agent's pod on this node.
    pub fn pod(&self, node: &str) -> Option<&str> {
        self.0.get(node).map(String::as_str)
    }

    /// The path of something that the agent of this node serves.
    pub fn path(&self, node: &str, path: &str) -> Result<String> {
        let pod = self.pod(node).ok_or_else(|| Away(format!("{node} has no pod of Plumb's agent")))?;
        Ok(format!("/api/v1/namespaces/{AGENT_NAMESPACE}/pods/{pod}:{AGENT_PORT}/proxy/{path}"))
    }
}

/// What is asked for first; the rights are docs/trace.md's.
const LIST: &str = "list the pods of the agents (`list` on pods in kube-system; docs/trace.md has a Role)";

/// The agents of all nodes.
#[derive(Clone)]
pub struct Nodes {
    client: Client,
    advice: Advice,
    agents: Agents,
    /// By node: what one agent is shown opens no other's.
    tokens: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Nodes {
    /// Finds the agents, and whether tokens for them can be made at all.
    pub async fn new(Cluster { client, advice }: &Cluster) -> Result<Self> {
        let (client, advice) = (client.clone(), advice.clone());
        let mut nodes = Self { client, advice, agents: Agents(Arc::default()), tokens: Arc::default() };
        // For nobody: no agent takes it.
        nodes.make("plumb-check", None).await.map_err(|error| explain(error, &TRACE_ACCOUNT))?;
        nodes.agents = Agents::find(&nodes.client).await?;
        Ok(nodes)
    }

    /// What to do about an agent that does not answer.
    pub fn silent(&self, node: &str) -> String {
        self.advice.silent(node, self.agents.pod(node))
    }

    /// An agent's own words, with commands that can be pasted.
    pub fn told(&self, node: &str, words: &str) -> String {
        self.advice.of_agent(node, words)
    }

    /// The agent's pod on this node.
    pub fn pod(&self, node: &str) -> Option<&str> {
        self.agents.pod(node)
    }

    /// A token for the agent of one node, bound to its Node (KEP-4193).
    async fn token(&self, node: &str) -> Result<String> {
        let mut tokens = self.tokens.lock().await;
        if let Some(token) = tokens.get(node) {
            return Ok(token.clone());
        }
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.into()),
            ..BoundObjectReference::default()
        };
        let token = self.make(TRACE_AUDIENCE, Some(bound)).await.map_err(|error| explain(error, &node))?;
        tokens.insert(node.to_owned(), token.clone());
        Ok(token)
    }

    async fn make(&self, audience: &str, bound: Option<BoundObjectReference>) -> Result<String, kube::Error> {
        let spec = TokenRequestSpec {
            audiences: Some(vec![audience.into()]),
            bound_object_ref: bound,
            expiration_seconds: Some(TOKEN_SECONDS),
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "kube-system");
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request(TRACE_ACCOUNT, &PostParams::default(), &request).await?;
        Ok(answer.status.and_then(|status| status.token).unwrap_or_default())
    }

    /// One step of a trace.
    pub async fn post<T: Serialize, R: DeserializeOwned>(
        &self,
        node: &str,
        verb: &str,
        body: &T,
    ) -> Result<R> {
        self.post_plainly(node, verb, body).await.map_err(|error| match error.is::<Away>() {
            true => anyhow!("{error}; next: {}", self.silent(node)),
            false => error,
        })
    }

    /// The same, for whoever says at another place what to do about an agent that is away.
    pub async fn post_plainly<T: Serialize, R: DeserializeOwned>(
        &self,
        node: &str,
        verb: &str,
        body: &T,
    ) -> Result<R> {
        let path = format!("v1/trace/{verb}");
        self.ask(Method::POST, node, &path, serde_json::to_vec(body)?).await
    }

    /// What the agent tells of its node. Of one that is away [`Self::silent`] says what to do.
    pub async fn get<R: DeserializeOwned>(&self, node: &str, path: &str) -> Result<R> {
        self.ask(Method::GET, node, path, Vec::new()).await
    }

    async fn ask<R: DeserializeOwned>(
        &self,
        method: Method,
        node: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<R> {
        let at = || format!("ask the agent of {node} for {path}");
        let request = Request::builder()
            .method(method)
            .uri(self.agents.path(node, path)?)
            .header("content-type", "application/json")
            .header("plumb-token", self.token(node).await?)
            .body(Body::from(body))?;
        let (status, bytes) = aloud(&format!("the agent of {node}"), async {
            let answer = self.client.send(request).await.with_context(at)?;
            let status = answer.status();
            anyhow::Ok((status, answer.into_body().collect().await.with_context(at)?.to_bytes()))
        })
        .await?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes).with_context(at);
        }
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(refusal) => bail!("{node}: {}", self.told(node, &refusal.error)),
            Err(_) => {
                // The API server's own refusal: a Status object, or text.
                let status_object: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let told = status_object["message"].as_str().map(str::to_owned);
                let told = told.unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned());
                let told = format!("{}: {status}: {}", at(), without_next_step(&told));
                match status {
                    // Earlier versions asked the Node.
                    StatusCode::FORBIDDEN => bail!(
                        "{told}; whoever asks needs `get` and `create` on pods/proxy in kube-system, and no longer \
                         nodes/proxy (docs/trace.md has a Role)"
                    ),
                    _ => Err(Away(told).into()),
                }
            }
        }
    }
}

/// A lab's API says to kubectl where to look; whoever asks here says better what to do.
fn without_next_step(told: &str) -> &str {
    told.rsplit_once("; see `plumb lab status").map_or(told, |(what, _)| what)
}

/// Why an agent cannot be asked: it is not there, or does not answer.
#[derive(Debug)]
struct Away(String);

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Away {}

/// `of`: the account or the node that a token was wanted for.
fn explain(error: kube::Error, of: &dyn std::fmt::Display) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 404 && !status.message.contains("nodes") => anyhow!(
            "Plumb is not installed in this cluster, or in an earlier version: there is no ServiceAccount \
             kube-system/{TRACE_ACCOUNT}; `plumb install` makes it, or choose another cluster (--kubeconfig, --context)"
        ),
        error => install::explain(
            error,
            &format!(
                "make a token of the service account kube-system/{TRACE_ACCOUNT} for {of} (`create` on \
                 serviceaccounts/token there)"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: Option<&str>, (ready, leaving): (bool, bool), created: &str) -> Pod {
        let status = if ready { "True" } else { "False" };
        let mut pod = json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        });
        if leaving {
            pod["metadata"]["deletionTimestamp"] = created.into();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_lab_that_cannot_reach_an_agent_says_one_next_step() {
        let told = "pod plumb-node2 at 192.168.1.11:9475: Connection refused (os error 111)";
        assert_eq!(without_next_step(&format!("{told}; see `plumb lab status --name ci`")), told);
        assert_eq!(without_next_step(told), told);
    }

    #[test]
    fn of_a_nodes_agents_the_one_that_answers_is_asked() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let agents = Agents::of(vec![
            pod("starts", Some("a"), (false, false), new),
            pod("serves", Some("a"), (true, false), old),
            pod("ends", Some("a"), (true, true), new),
            pod("younger", Some("b"), (true, false), new),
            pod("older", Some("b"), (true, false), old),
            pod("ends-alone", Some("c"), (true, true), old),
            pod("nowhere", None, (false, false), old),
        ]);
        for (node, name) in [("a", "serves"), ("b", "younger"), ("c", "ends-alone")] {
            let path = format!("/api/v1/namespaces/kube-system/pods/{name}:9475/proxy/v1/x");
            assert_eq!(agents.path(node, "v1/x").unwrap(), path);
        }
        assert!(agents.path("d", "v1/x").unwrap_err().is::<Away>());
    }
}
