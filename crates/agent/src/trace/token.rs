//! Who may trace: the bearer of a token of `kube-system/plumb` that was made for this purpose alone.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use types::shares::Shares;

use crate::serve::Caller;

/// The header that carries the token: the API server's proxy keeps `Authorization` to itself.
pub const HEADER: &str = "plumb-token";
/// The audience that tokens must be made for.
pub const AUDIENCE: &str = "plumb";
/// The only subject that may.
const SUBJECT: &str = "system:serviceaccount:kube-system:plumb";
/// One trace is several requests; the API server is asked once.
const REMEMBER: Duration = Duration::from_secs(30);

/// A wrong one is not asked about again for this long.
const REFUSED: Duration = Duration::from_secs(10);
/// Wrong ones that are remembered.
const MOST: usize = 1024;
/// Reviews under way, and of one caller.
const REVIEWS: (usize, usize) = (16, 4);
/// So long a caller's place is taken by a wrong token: who guesses, guesses slowly, and the API server hears little of it.
const PENANCE: Duration = Duration::from_secs(1);

/// Asks the API server about tokens and remembers for a short time what it said.
#[derive(Clone)]
pub struct Tokens {
    client: kube::Client,
    known: Arc<Mutex<Known>>,
    reviews: Shares<Caller>,
    /// Of wrong tokens only a number is kept, which nobody can foretell.
    salt: RandomState,
}

#[derive(Default)]
struct Known {
    good: BTreeMap<String, Instant>,
    wrong: BTreeMap<u64, Instant>,
}

impl Tokens {
    pub fn new(client: kube::Client) -> Self {
        let (all, each) = REVIEWS;
        Self { client, known: Arc::default(), reviews: Shares::new(all, each), salt: RandomState::new() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.good.retain(|_, since| since.elapsed() < REMEMBER);
        known.wrong.retain(|_, since| since.elapsed() < REFUSED);
        known
    }

    pub async fn check(&self, token: &str, caller: Caller) -> Result<()> {
        if token.is_empty() {
            bail!(
                "no {HEADER} header: give a token of the service account kube-system/plumb for the audience \
                 {AUDIENCE} (`kubectl -n kube-system create token plumb --audience {AUDIENCE}`)"
            );
        }
        let number = self.salt.hash_one(token);
        {
            let known = self.known();
            if known.good.contains_key(token) {
                return Ok(());
            }
            if known.wrong.contains_key(&number) {
                bail!("the API server did not confirm the token a moment ago; make a new one");
            }
        }
        let Some(_place) = self.reviews.take(caller) else {
            bail!("too many tokens are being checked with the API server; try again in {PENANCE:?}");
        };
        let confirmed = self.review(token).await;
        match &confirmed {
            Ok(()) => drop(self.known().good.insert(token.to_owned(), Instant::now())),
            Err(error) => {
                // An API server that cannot be asked says nothing about the token.
                if error.downcast_ref::<kube::Error>().is_none() {
                    let mut known = self.known();
                    if known.wrong.len() < MOST {
                        known.wrong.insert(number, Instant::now());
                    }
                }
                tokio::time::sleep(PENANCE).await;
            }
        }
        confirmed
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// An API server that confirms the token `right`, and how often it was asked.
    fn api() -> (Tokens, Arc<AtomicU64>) {
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let bytes = request.into_body().collect_bytes().await.expect("a review");
                let review: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                let right = review["spec"]["token"] == "right";
                let status = json!({
                    "authenticated": right, "audiences": [AUDIENCE], "user": { "username": SUBJECT },
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
        (Tokens::new(kube::Client::new(service, "default")), asked)
    }

    const GUESSER: Caller = Caller(Some(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 7))));

    #[tokio::test]
    async fn who_guesses_tokens_has_few_reviews_and_others_have_theirs() {
        let (tokens, asked) = api();
        let guesses = (0..200).map(|number| {
            let tokens = tokens.clone();
            async move { tokens.check(&format!("guess{number}"), GUESSER).await }
        });
        let guessing = tokio::spawn(futures::future::join_all(guesses));
        while asked.load(Ordering::Relaxed) < REVIEWS.1 as u64 {
            tokio::task::yield_now().await;
        }
        tokens.check("right", Caller(None)).await.expect("another caller's token is confirmed");
        let guessed = guessing.await.expect("all are answered");
        assert!(guessed.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::Relaxed), REVIEWS.1 as u64 + 1);
        tokens.check("right", GUESSER).await.expect("it is remembered");
        assert_eq!(asked.load(Ordering::Relaxed), REVIEWS.1 as u64 + 1);
    }

    #[tokio::test]
    async fn a_wrong_token_is_asked_about_once() {
        let (tokens, asked) = api();
        for _ in 0..3 {
            assert!(tokens.check("wrong", GUESSER).await.is_err());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
