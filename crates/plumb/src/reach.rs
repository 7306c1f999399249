//! Reaching each node's agent through the API server's node proxy: nobody needs a way of their own to the nodes
//! (docs/trace.md draws it).

use anyhow::{Context, Result, anyhow, bail};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trace::exchange::Refusal;
use types::wire::AGENT_PORT;

/// Seconds that a token lives: the least that Kubernetes gives.
const TOKEN_SECONDS: i64 = 600;

/// The agents of all nodes.
#[derive(Clone)]
pub struct Nodes {
    client: Client,
    token: String,
}

impl Nodes {
    /// With a fresh token of `kube-system/plumb` for the agents alone.
    pub async fn new(client: Client) -> Result<Self> {
        let spec = TokenRequestSpec {
            audiences: Some(vec!["plumb".into()]),
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "kube-system");
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let made = accounts.create_token_request("plumb", &PostParams::default(), &request).await;
        let answer = made.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 404 => anyhow!(
                "Plumb is not installed in this cluster: it has no ServiceAccount kube-system/plumb; `plumb install` \
                 makes it, or choose another cluster (--kubeconfig, --context)"
            ),
            error => install::explain(
                error,
                "make a token of the service account kube-system/plumb (`create` on serviceaccounts/token there)",
            ),
        })?;
        let token = answer.status.and_then(|status| status.token).context("the API server made no token")?;
        Ok(Self { client, token })
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
            .header("plumb-token", &self.token)
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
