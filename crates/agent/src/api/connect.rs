//! One address of the API, over connections that are missed when they are gone.
//!
//! ```text
//!   server ends, or its machine says so     FIN or RST: at once
//!   machine or way gone, we have sent       TCP_USER_TIMEOUT: not acknowledged for GONE
//!   machine or way gone, we only listen     SO_KEEPALIVE asks when it was quiet; no answer for GONE
//!   it takes packets, and says nothing      QUIET
//! ```
//! A watch only listens. kube-rs's own client leaves all but the first and the last to the defaults of TCP: two hours.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{ConfigExt, retry::RetryPolicy};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// An address that does not take the connection within this time is not the one.
const CONNECT: Duration = Duration::from_secs(3);
/// Quiet for this long, a connection is asked whether it lives, and then every [`AGAIN`].
const ASK: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(1);
/// Nothing heard for this long after something was sent or asked: it is gone. tcp(7): with TCP_USER_TIMEOUT it is the
/// time and not the number of questions that counts.
const GONE: Duration = Duration::from_secs(5);
/// Watches are quiet for minutes; kube-rs asks the server to end them before this.
const QUIET: Duration = Duration::from_secs(330);

/// A server that is busy (429, 503, 504) is asked again this often within a request. kube-rs would double its waits up
/// to 1000 s, and then a watch sleeps long after the server has found its store again.
const RETRIES: u32 = 3;
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What `Client::try_from` builds, but for the socket's options and the patience with a busy server.
pub fn client(config: Config) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        return Client::try_from(config); // refused there, in its words: no feature for proxies is built in
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(ASK));
    tcp.set_keepalive_interval(Some(AGAIN));
    tcp.set_tcp_user_timeout(Some(GONE));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(QUIET));
    let retry = RetryPolicy::new(RETRY.0, RETRY.1, RETRIES, true)
        .map_err(|error| kube::Error::Service(Box::new(error)))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(retry))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}
