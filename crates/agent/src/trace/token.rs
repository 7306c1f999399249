//! Who may trace: the bearer of a token of `kube-system/plumb-trace` that was made for this purpose alone, and for this
//! node alone: an agent that was given one cannot ask another agent by it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use prometheus_client::metrics::counter::Counter;
use types::wire::{TOKEN_NODE, TRACE_ACCOUNT as ACCOUNT, TRACE_AUDIENCE as AUDIENCE};

use crate::reviews::{Refused, Reviews};
use crate::scrape::unasked;
use crate::serve::Caller;

/// The header that carries the token: the API server's proxy keeps `Authorization` to itself.
pub const HEADER: &str = "plumb-token";
/// The only subject that may, before its name.
const SUBJECT: &str = "system:serviceaccount:kube-system:";
/// The agents' own account: who traced with it before there was one for that.
const AGENTS: &str = "system:serviceaccount:kube-system:plumb";
/// One trace is several requests; the API server is asked once.
const REMEMBER: Duration = Duration::from_secs(30);

/// Asks the API server about tokens and remembers for a short time what it said.
#[derive(Clone)]
pub struct Tokens {
    client: kube::Client,
    node: Arc<str>,
    reviews: Reviews,
}

impl Tokens {
    /// `refused` counts the tokens that the API server was not asked about.
    pub fn new(client: kube::Client, node: &str, refused: Counter) -> Self {
        Self { client, node: node.into(), reviews: Reviews::new(REMEMBER, refused) }
    }

    pub async fn check(&self, token: &str, caller: Caller) -> Result<(), Refused> {
        if token.is_empty() {
            return Err(Refused::Wrong(format!(
                "no {HEADER} header: give a token of the service account kube-system/{ACCOUNT} for the audience \
                 {AUDIENCE} (`kubectl -n kube-system create token {ACCOUNT} --audience {AUDIENCE} --bound-object-kind \
                 Node --bound-object-name {}`)",
                self.node
            )));
        }
        self.reviews.check(token, caller, self.review(token)).await
    }

    async fn review(&self, token: &str) -> Result<(), Refused> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = kube::Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(unasked("about the token of a trace (TokenReview)"))?;
        judge(answer.status.unwrap_or_default(), &self.node).map_err(Refused::Wrong)
    }
}

/// What the API server says of a token, and whether that is enough for this node; else why not.
fn judge(status: TokenReviewStatus, node: &str) -> Result<(), String> {
    let audiences = status.audiences.unwrap_or_default();
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if status.authenticated != Some(true) || !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(format!(
            "the API server does not confirm the token: {}; make a new one",
            status.error.unwrap_or_else(|| "it is unknown, expired, or for another audience".into())
        ));
    }
    if name == AGENTS {
        return Err(format!(
            "the token is {name}'s, which earlier versions of plumb show: use a plumb of this agent's version ({})",
            env!("CARGO_PKG_VERSION")
        ));
    }
    if name.strip_prefix(SUBJECT) != Some(ACCOUNT) {
        return Err(format!("the token is {name}'s; a trace needs one of {SUBJECT}{ACCOUNT}"));
    }
    let bound = user.extra.unwrap_or_default().remove(TOKEN_NODE).unwrap_or_default();
    if !bound.iter().any(|bound| bound == node) {
        let bound =
            if bound.is_empty() { "no node".to_owned() } else { format!("node {}", bound.join(", ")) };
        return Err(format!(
            "the token is bound to {bound}; make one for this node (`kubectl -n kube-system create token {ACCOUNT} \
             --audience {AUDIENCE} --bound-object-kind Node --bound-object-name {node}`)"
        ));
    }
    Ok(())
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use k8s_openapi::api::authentication::v1::UserInfo;
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::reviews::UNDER_WAY;

    /// An API server that confirms the token `right`, how often it was asked, and how often it was not.
    fn api() -> (Tokens, Arc<AtomicU64>, Counter) {
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let bytes = request.into_body().collect_bytes().await.expect("a review");
                let review: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                let right = review["spec"]["token"] == "right";
                let status = json!({
                    "authenticated": right, "audiences": [AUDIENCE], "user": { "username": format!("system:serviceaccount:kube-system:{ACCOUNT}"), "extra": { TOKEN_NODE: ["node1"] } },
                });
                let answer = json!({
                    "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
                    "spec": review["spec"], "status": status,
                });
                Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(
                    answer.to_string().into_bytes(),
                )))
            }
        });
        let refused = Counter::default();
        (Tokens::new(kube::Client::new(service, "default"), "node1", refused.clone()), asked, refused)
    }

    const GUESSER: Caller = Caller(Some(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 7))));

    #[tokio::test]
    async fn who_guesses_tokens_has_few_reviews_and_others_have_theirs() {
        let (tokens, asked, refused) = api();
        let guesses = (0..200).map(|number| {
            let tokens = tokens.clone();
            async move { tokens.check(&format!("guess{number}"), GUESSER).await }
        });
        let guessing = tokio::spawn(futures::future::join_all(guesses));
        while asked.load(Ordering::Relaxed) < UNDER_WAY.1 as u64 {
            tokio::task::yield_now().await;
        }
        tokens.check("right", Caller(None)).await.expect("another caller's token is confirmed");
        let guessed = guessing.await.expect("all are answered");
        let asked_about = guessed.iter().filter(|guess| matches!(guess, Err(Refused::Wrong(_)))).count();
        let unasked = guessed.iter().filter(|guess| matches!(guess, Err(Refused::Unknown(_)))).count();
        assert_eq!((asked_about, unasked), (UNDER_WAY.1, 200 - UNDER_WAY.1));
        assert_eq!(refused.get(), 200 - UNDER_WAY.1 as u64);
        assert_eq!(asked.load(Ordering::Relaxed), UNDER_WAY.1 as u64 + 1);
        tokens.check("right", GUESSER).await.expect("it is remembered");
        assert_eq!(asked.load(Ordering::Relaxed), UNDER_WAY.1 as u64 + 1);
    }

    #[tokio::test]
    async fn a_wrong_token_is_asked_about_once() {
        let (tokens, asked, _) = api();
        let first = tokens.check("wrong", GUESSER).await.expect_err("it is wrong");
        assert!(first.to_string().ends_with("make a new one; this answer holds for 10s"), "{first}");
        for _ in 0..2 {
            assert_eq!(tokens.check("wrong", GUESSER).await, Err(first.clone()));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    fn judged(name: &str, audience: &str, node: Option<&str>) -> String {
        let extra = node.map(|node| [(TOKEN_NODE.to_owned(), vec![node.to_owned()])].into());
        let user = UserInfo { username: Some(name.into()), extra, ..UserInfo::default() };
        let status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![audience.into()]),
            user: Some(user),
            ..TokenReviewStatus::default()
        };
        judge(status, "node1").map_or_else(|why| why, |()| "taken".to_owned())
    }

    #[test]
    fn account_audience_and_node_must_be_right() {
        let own = "system:serviceaccount:kube-system:plumb-trace";
        assert_eq!(judged(own, "plumb", Some("node1")), "taken");
        for (name, audience, node, why) in [
            (own, "plumb", Some("node2"), "bound to node node2; make one for this node"),
            (own, "plumb", None, "bound to no node; make one for this node"),
            (own, "https://kubernetes.default.svc", Some("node1"), "does not confirm the token"),
            (AGENTS, "plumb", Some("node1"), "use a plumb of this agent's version"),
            ("system:serviceaccount:default:plumb-trace", "plumb", Some("node1"), "a trace needs one of"),
            ("system:serviceaccount:kube-system:plumb-trace2", "plumb", None, "a trace needs one of"),
            ("kubernetes-admin", "plumb", None, "a trace needs one of"),
        ] {
            let said = judged(name, audience, node);
            assert!(said.contains(why), "{name} {audience} {node:?}: {said}");
        }
        let unknown = judge(TokenReviewStatus::default(), "node1").expect_err("nobody");
        assert!(unknown.contains("does not confirm"), "{unknown}");
    }
}
