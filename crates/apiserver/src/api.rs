//! The service itself: one cloneable value, in process and behind TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;

use crate::{Credentials, Error, NodeDial, Store};

/// A failure while a body is read or written.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every response: whole, or streamed for watches and logs.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// What differs between labs.
pub struct Config {
    /// Where pods reach the API: the endpoint of the `kubernetes` Service.
    pub advertised: SocketAddr,
    /// Of which families Services have addresses.
    pub families: types::Families,
    /// The way to the nodes, for logs, exec and the node proxy.
    pub nodes: Arc<dyn NodeDial>,
    /// Whose tokens are valid; `None` when the API is only used in process.
    pub credentials: Option<Credentials>,
}

/// The API. `kube::Client::new(api.clone(), "default")` speaks to it in process, as an administrator;
/// [`crate::serve`] puts it behind TLS and tokens.
#[derive(Clone)]
pub struct Api {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) tokens: crate::review::Tokens,
}

impl Api {
    /// An API over the store, with the objects that every cluster starts with.
    pub fn new(store: Store, config: Config) -> Result<Self, Error> {
        let tokens = crate::review::Tokens::open(config.credentials.as_ref())?;
        crate::seed::plant(&store, &config).map_err(|failure| Error::Seed(failure.message))?;
        Ok(Self { inner: Arc::new(Inner { store, config, tokens }) })
    }
}

impl<B> tower_service::Service<Request<B>> for Api
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move { Ok(crate::request::answer(&api, request).await) })
    }
}
