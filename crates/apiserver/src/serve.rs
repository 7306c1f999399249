//! The API on a port: TLS, a bearer token, HTTP/1.1.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower_service::Service;
use types::shares::Shares;

use crate::status::Failure;
use crate::{Api, Body, Credentials, Error, response};

/// A peer that sends nothing for this long during the handshake or a request's head is cut off.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections of all listeners of a lab's API, and of one address: a lab's nodes, its pods and `kubectl` need a few
/// hundred, and whoever opens thousands must not take the files of the others.
const CONNECTIONS: usize = 4096;
const OF_EACH: usize = 1024;
/// Of one address whose handshake is under way, which costs more than anything else here.
const HANDSHAKES: usize = 128;

/// Serves until the future is dropped. Every listener of the lab (the caller's loopback, the underlay)
/// gets its own call; the sockets may have been made in other network namespaces.
pub async fn serve(api: Api, listener: TcpListener, credentials: Credentials) -> Result<Infallible, Error> {
    let acceptor = TlsAcceptor::from(credentials.server_config()?);
    let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
    let places = Shares::new(CONNECTIONS, OF_EACH);
    let handshakes = Shares::new(HANDSHAKES * 4, HANDSHAKES);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The peer gave up first, or files ran out: neither is a reason to stop serving others.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {
                return Err(Error::Listen { address, source: e });
            }
            Err(e) => {
                tracing::warn!(%address, error = %e, "API: accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // Who has too many is cut off before a handshake is begun.
        let (Some(place), Some(stranger)) = (places.take(from.ip()), handshakes.take(from.ip())) else {
            continue;
        };
        let (acceptor, api, credentials) = (acceptor.clone(), api.clone(), credentials.clone());
        connections.spawn(async move {
            let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else {
                return;
            };
            drop(stranger);
            connection(api, stream, credentials).await;
            drop(place);
        });
    }
}

async fn connection(api: Api, stream: TlsStream<TcpStream>, credentials: Credentials) {
    let _ = stream.get_ref().0.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (mut api, credentials) = (api.clone(), credentials.clone());
        async move { authenticated(&mut api, &credentials, request).await }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(e) = served {
        tracing::debug!(error = %e, "API: connection ended");
    }
}

async fn authenticated(
    api: &mut Api,
    credentials: &Credentials,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let token = request
        .headers()
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    match token.and_then(|token| credentials.identify(token.trim())) {
        Some(identity) => {
            request.extensions_mut().insert(identity);
            api.call(request).await
        }
        None => Ok(response::failure(&Failure::new(401, "Unauthorized", "Unauthorized"))),
    }
}
