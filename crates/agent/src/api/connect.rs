//! One address of the API, over connections that are missed when they are gone.
//!
//! ```text
//!   server ends, or its machine says so     FIN or RST: at once
//!   machine or way gone, we have sent       TCP_USER_TIMEOUT: not acknowledged for GONE
//!   machine or way gone, we only listen     SO_KEEPALIVE asks when it was quiet; no answer for GONE
//!   it takes packets, and does not answer   WATCHES, ANSWERS, OBJECTS
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
    /// Before and within the answer to a request for one object, or that writes one. kube-apiserver lets it wait 15 s at
    /// most, and a webhook 10 s by default. A connection may have ceased to carry what is larger than an MTU that
    /// shrank: it is closed then, and a new one agrees on the new size.
    pub objects: Duration,
    /// Within an answer. kube-rs allows bookmarks, which kube-apiserver sends to a quiet watch every minute
    /// (storage/cacher, defaultBookmarkFrequency), the lab's every half. Where etcd does not tell its progress
    /// (--watch-progress-notify-interval) there may be none for a kind that nobody changes: such a watch is begun again.
    pub quiet: Duration,
}

pub const PATIENCE: Patience =
    Patience { watches: WATCHES, answers: ANSWERS, objects: OBJECTS, quiet: QUIET };
const WATCHES: Duration = Duration::from_secs(30);
const ANSWERS: Duration = Duration::from_secs(75);
const OBJECTS: Duration = Duration::from_secs(30);
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
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http = |quiet| {
        let mut connector = TimeoutConnector::new(https.clone());
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_read_timeout(Some(quiet));
        // An idle connection has been quiet, too, when it is used again.
        connector.set_reset_reader_on_write(true);
        legacy::Client::builder(TokioExecutor::new()).build(connector)
    };
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
        .service(Answering { http: http(patience.quiet), objects: http(patience.objects), patience });
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
    /// With less patience, for single objects.
    objects: S,
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
        match self.http.poll_ready(context) {
            Poll::Ready(Ok(())) => self.objects.poll_ready(context).map_err(Into::into),
            other => other.map_err(Into::into),
        }
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let (http, waited) = match Asked::of(&request) {
            Asked::Watch => (&mut self.http, self.patience.watches),
            Asked::List => (&mut self.http, self.patience.answers),
            Asked::Object => (&mut self.objects, self.patience.objects),
        };
        let answer = http.call(request);
        Box::pin(async move {
            match tokio::time::timeout(waited, answer).await {
                Ok(answered) => answered.map_err(Into::into),
                Err(_) => Err(Silent { waited }.into()),
            }
        })
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Watch,
    List,
    /// One object, read or written.
    Object,
}

impl Asked {
    fn of<R>(request: &Request<R>) -> Self {
        let (method, uri) = (request.method(), request.uri());
        if uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("watch="))) {
            return Self::Watch;
        }
        // Of what is no object, such as /version, nothing is known.
        match names_object(uri.path()) {
            true => Self::Object,
            false if method.is_safe() || method == http::Method::DELETE => Self::List,
            false => Self::Object,
        }
    }
}

/// Whether a path goes on behind the resource: `/api/v1[/namespaces/NAMESPACE]/RESOURCE/NAME`, the same with
/// `/apis/GROUP/VERSION`; a server may be below a path of its own.
fn names_object(path: &str) -> bool {
    let rest = match (path.split_once("/apis/"), path.split_once("/api/v1/")) {
        (Some((_, rest)), _) => rest.splitn(3, '/').nth(2).unwrap_or_default(),
        (None, Some((_, rest))) => rest,
        (None, None) => return false,
    };
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    let of_namespace = parts.len() == 3 && parts.first() == Some(&"namespaces");
    parts.len() > 1 && !of_namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_for_an_object_a_list_or_a_watch() {
        for (method, uri, asked) in [
            ("GET", "/api/v1/pods?limit=500&watch=true", Asked::Watch),
            ("GET", "/api/v1/pods", Asked::List),
            ("GET", "/api/v1/namespaces/shop/pods", Asked::List),
            ("GET", "/api/v1/namespaces", Asked::List),
            ("GET", "/apis/discovery.k8s.io/v1/endpointslices", Asked::List),
            ("GET", "/version", Asked::List),
            ("GET", "/api/v1/namespaces/shop", Asked::Object),
            ("GET", "/api/v1/namespaces/shop/pods/web", Asked::Object),
            ("GET", "/prefix/api/v1/nodes/node1", Asked::Object),
            ("PATCH", "/api/v1/nodes/node1/status", Asked::Object),
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", Asked::Object),
            ("POST", "/api/v1/namespaces/shop/events", Asked::Object),
        ] {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            assert_eq!(Asked::of(&request), asked, "{method} {uri}");
        }
    }
}
