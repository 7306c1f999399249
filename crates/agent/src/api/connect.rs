//! One address of the API, over connections that are missed when they are gone.
//!
//! ```text
//!   server ends, or its machine says so     FIN or RST: at once
//!   machine or way gone, we have sent       TCP_USER_TIMEOUT: not acknowledged for GONE
//!   machine or way gone, we only listen     SO_KEEPALIVE asks when it was quiet; no answer for GONE
//!   it takes packets, and does not answer   WATCHES, ANSWERS
//!   it takes packets, and a watch is quiet  QUIET
//! ```
//! A watch only listens. kube-rs's own client leaves all but the first and the last to the defaults of TCP: two hours.

use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use http::Request;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{ConfigExt, retry::RetryPolicy};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::util::MapRequestLayer;
use tower::{BoxError, Service, ServiceBuilder};

use super::token::TokenFile;

/// An address that does not take the connection within this time is not the one.
const CONNECT: Duration = Duration::from_secs(3);
/// Quiet for this long, a connection is asked whether it lives, and then every [`AGAIN`].
const ASK: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(1);
/// Nothing heard for this long after something was sent or asked: it is gone. tcp(7): with TCP_USER_TIMEOUT it is the
/// time and not the number of questions that counts.
const GONE: Duration = Duration::from_secs(5);

/// How long a server that takes packets may say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Before it begins a watch. kube-apiserver sends the headers before the first object, and lets a request that it is
    /// too busy for wait 15 s at most (API priority and fairness: a quarter of --request-timeout). What a server that
    /// just started still reads for a watch, it goes on reading when the watch has left: nothing is lost by asking again.
    pub watches: Duration,
    /// Before it begins any other answer. A list's headers may come after its last object was encoded, and all of that
    /// is done again for whoever asks again: never less than the 60 s (--request-timeout) after which kube-apiserver
    /// itself says 504.
    pub answers: Duration,
    /// Within an answer. kube-rs allows bookmarks, which kube-apiserver sends to a quiet watch every minute
    /// (storage/cacher, defaultBookmarkFrequency), the lab's every half. Where etcd does not tell its progress
    /// (--watch-progress-notify-interval) there may be none for a kind that nobody changes: such a watch is begun again.
    pub quiet: Duration,
}

pub const PATIENCE: Patience = Patience { watches: WATCHES, answers: ANSWERS, quiet: QUIET };
const WATCHES: Duration = Duration::from_secs(30);
const ANSWERS: Duration = Duration::from_secs(75);
const QUIET: Duration = Duration::from_secs(90);

/// A server that is busy (429, 503, 504) is asked again this often within a request. kube-rs would double its waits up
/// to 1000 s, and then a watch sleeps long after the server has found its store again.
const RETRIES: u32 = 3;
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What `Client::try_from` builds, but for the socket's options and the patience with a busy server.
pub fn client(mut config: Config, patience: Patience) -> Result<Client> {
    if config.proxy_url.is_some() {
        return Ok(Client::try_from(config)?); // refused there, in its words: no feature for proxies is built in
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(ASK));
    tcp.set_keepalive_interval(Some(AGAIN));
    tcp.set_tcp_user_timeout(Some(GONE));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(patience.quiet));
    let retry =
        RetryPolicy::new(RETRY.0, RETRY.1, RETRIES, true).context("how busy servers are asked again")?;
    let token = match (&config.auth_info.token, config.auth_info.token_file.take()) {
        (None, Some(path)) => Some(TokenFile::open(path.into())?),
        _ => None,
    };
    let sign = token.map(|file| MapRequestLayer::new(move |request: Request<_>| file.sign(request)));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(retry))
        .option_layer(sign)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Answering {
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
            patience,
        });
    Ok(Client::new(service, config.default_namespace))
}

#[derive(Debug, thiserror::Error)]
#[error(
    "no answer within {waited:?}: the API server takes connections and says nothing; it hangs or is overloaded, see its log \
     and `kubectl get --raw /readyz?verbose`"
)]
struct Silent {
    waited: Duration,
}

/// Gives up an answer that does not begin.
#[derive(Clone)]
struct Answering<S> {
    http: S,
    patience: Patience,
}

impl<S, R> Service<Request<R>> for Answering<S>
where
    S: Service<Request<R>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|pair| pair.starts_with("watch=")));
        let waited = if watches { self.patience.watches } else { self.patience.answers };
        let answer = self.http.call(request);
        Box::pin(async move {
            match tokio::time::timeout(waited, answer).await {
                Ok(answered) => answered.map_err(Into::into),
                Err(_) => Err(Silent { waited }.into()),
            }
        })
    }
}
