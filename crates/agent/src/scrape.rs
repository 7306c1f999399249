//! Who may read the metrics of an agent that was told to be strict (`--secure-metrics`): who comes by TLS with a token that
//! may `get` the path /metrics, as kubelets and the controllers of most projects have it.
//!
//! ```text
//!   GET /metrics ─ no TLS ─> 403      no token, or a wrong one ─> 401      RBAC does not let it ─> 403
//!                                     the API server could not be asked ─> 503
//! ```

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use prometheus_client::metrics::counter::Counter;

use crate::reviews::{Refused, Reviews};
use crate::serve::{Caller, Encrypted};

/// What RBAC calls it.
pub const PATH: &str = "/metrics";
/// Longer than between two scrapes: a Prometheus costs the API server two questions in this time, for each node.
const REMEMBER: Duration = Duration::from_secs(120);

/// Asks the API server who may.
#[derive(Clone)]
pub struct Readers {
    client: kube::Client,
    reviews: Reviews,
}

impl Readers {
    /// `refused` counts the tokens that the API server was not asked about.
    pub fn new(client: kube::Client, refused: Counter) -> Self {
        Self { client, reviews: Reviews::new(REMEMBER, refused) }
    }

    async fn check(&self, token: &str, caller: Caller) -> Result<(), Refused> {
        self.reviews.check(token, caller, self.review(token)).await
    }

    async fn review(&self, token: &str) -> Result<(), Refused> {
        let spec = TokenReviewSpec { audiences: None, token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = kube::Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(unasked("about the token of a scrape (TokenReview)"))?;
        let status = answer.status.unwrap_or_default();
        let (true, Some(user)) = (status.authenticated == Some(true), status.user) else {
            return Err(Refused::Wrong(format!(
                "the API server does not confirm the token: {}",
                status.error.unwrap_or_else(|| "it is unknown, expired, or for another audience".into())
            )));
        };
        self.may_read(user).await
    }

    async fn may_read(&self, user: UserInfo) -> Result<(), Refused> {
        let name = user.username.clone().unwrap_or_default();
        let spec = SubjectAccessReviewSpec {
            user: user.username,
            groups: user.groups,
            uid: user.uid,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(PATH.into()),
                verb: Some("get".into()),
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = kube::Api::<SubjectAccessReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(unasked("who may read metrics (SubjectAccessReview)"))?;
        match answer.status.is_some_and(|status| status.allowed) {
            true => Ok(()),
            false => Err(Refused::Denied(format!(
                "{name} may not get /metrics: bind it to a ClusterRole with nonResourceURLs [/metrics] and the verb get"
            ))),
        }
    }
}

/// Lets those through who may.
pub async fn check(readers: Readers, request: Request, next: Next) -> Response {
    if request.extensions().get::<Encrypted>().is_none() {
        let why =
            "this agent serves its metrics by TLS alone (--secure-metrics): ask https, at the same port\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let Some(token) = bearer(request.headers()) else {
        return unauthorized("show a token: Authorization: Bearer TOKEN\n".into());
    };
    let caller = request.extensions().get().copied().unwrap_or(Caller(None));
    match readers.check(token, caller).await {
        Ok(()) => next.run(request).await,
        Err(Refused::Wrong(why)) => unauthorized(format!("{why}\n")),
        Err(Refused::Denied(why)) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
        Err(Refused::Unknown(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// What the API server did not say.
pub(crate) fn unasked(what: &'static str) -> impl FnOnce(kube::Error) -> Refused {
    move |error| Refused::Unknown(format!("ask the API server {what}: {:#}", anyhow::Error::new(error)))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::trim).filter(|token| !token.is_empty())
}

fn unauthorized(why: String) -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], why).into_response()
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Readers")
    }
}

#[cfg(test)]
mod tests;
