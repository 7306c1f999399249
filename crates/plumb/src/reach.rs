//! Reaching each node's agent through the API server's node proxy: nobody needs a way of their own to the nodes
//! (docs/trace.md draws it).

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use trace::exchange::Refusal;
use types::wire::{AGENT_PORT, TRACE_ACCOUNT, TRACE_AUDIENCE};

/// Seconds that a token lives: the least that Kubernetes gives.
const TOKEN_SECONDS: i64 = 600;

/// The agents of all nodes.
#[derive(Clone)]
pub struct Nodes {
    client: Client,
    /// By node: what one agent is shown opens no other's.
    tokens: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Nodes {
    /// Finds out whether tokens for the agents can be made at all.
    pub async fn new(client: Client) -> Result<Self> {
        let nodes = Self { client, tokens: Arc::default() };
        // For nobody: no agent takes it.
        nodes.make("plumb-check", None).await.map_err(|error| explain(error, &TRACE_ACCOUNT))?;
        Ok(nodes)
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
        let path = format!("v1/trace/{verb}");
        self.ask(Method::POST, node, &path, serde_json::to_vec(body)?).await
    }

    /// What the agent tells of its node.
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
        let at = || format!("ask the agent of node {node} for {path}");
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/nodes/{node}:{AGENT_PORT}/proxy/{path}"))
            .header("content-type", "application/json")
            .header("plumb-token", self.token(node).await?)
            .body(Body::from(body))?;
        let answer = self.client.send(request).await.with_context(at)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.with_context(at)?.to_bytes();
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes).with_context(at);
        }
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(refusal) => bail!("node {node}: {}", refusal.error),
            Err(_) => {
                // The API server's own refusal: a Status object, or text.
                let status_object: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let told = status_object["message"].as_str().map(str::to_owned);
                let told = told.unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned());
                bail!(
                    "{}: {status}: {told}; is the agent of {node} running, and may you use nodes/proxy?",
                    at()
                )
            }
        }
    }
}

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
