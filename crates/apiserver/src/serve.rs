//! The API on a port: TLS, a bearer token, HTTP/1.1.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use crate::status::Failure;
use crate::{Api, Body, Credentials, Error, response};

/// A peer that sends nothing for this long during the handshake or a request's head is cut off.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the future is dropped. Every listener of the lab (the caller's loopback, the underlay)
/// gets its own call; the sockets may have been made in other network namespaces.
pub async fn serve(api: Api, listener: TcpListener, credentials: Credentials) -> Result<Infallible, Error> {
    let acceptor = TlsAcceptor::from(credentials.server_config()?);
    let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
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
        connections.spawn(connection(api.clone(), stream, acceptor.clone(), credentials.clone()));
    }
}

async fn connection(api: Api, stream: TcpStream, acceptor: TlsAcceptor, credentials: Credentials) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
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
