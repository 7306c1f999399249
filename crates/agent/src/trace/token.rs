//! Who may trace: the bearer of a token of `kube-system/plumb` that was made for this purpose alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use tokio::sync::Mutex;

/// The header that carries the token: the API server's proxy keeps `Authorization` to itself.
pub const HEADER: &str = "plumb-token";
/// The audience that tokens must be made for.
pub const AUDIENCE: &str = "plumb";
/// The only subject that may.
const SUBJECT: &str = "system:serviceaccount:kube-system:plumb";
/// One trace is several requests; the API server is asked once.
const REMEMBER: Duration = Duration::from_secs(30);

/// Asks the API server about tokens and remembers the good ones for a short time.
#[derive(Clone)]
pub struct Tokens {
    client: kube::Client,
    good: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Tokens {
    pub fn new(client: kube::Client) -> Self {
        Self { client, good: Arc::default() }
    }

    pub async fn check(&self, token: &str) -> Result<()> {
        if token.is_empty() {
            bail!(
                "no {HEADER} header: give a token of the service account kube-system/plumb for the audience \
                 {AUDIENCE} (`kubectl -n kube-system create token plumb --audience {AUDIENCE}`)"
            );
        }
        let mut good = self.good.lock().await;
        good.retain(|_, since| since.elapsed() < REMEMBER);
        if good.contains_key(token) {
            return Ok(());
        }
        self.review(token).await?;
        good.insert(token.to_owned(), Instant::now());
        Ok(())
    }

    async fn review(&self, token: &str) -> Result<()> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = kube::Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .context("ask the API server about the token of a trace (TokenReview)")?;
        let status = answer.status.unwrap_or_default();
        let audiences = status.audiences.unwrap_or_default();
        let user = status.user.and_then(|user| user.username).unwrap_or_default();
        if status.authenticated != Some(true) || !audiences.iter().any(|audience| audience == AUDIENCE) {
            bail!(
                "the API server does not confirm the token: {}; make a new one",
                status.error.unwrap_or_else(|| "it is unknown, expired, or for another audience".into())
            );
        }
        if user != SUBJECT {
            bail!("the token is {user}'s; a trace needs one of {SUBJECT}");
        }
        Ok(())
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}
