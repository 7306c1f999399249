//! A request's way: path → route → verb.

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::json;

use crate::api::{Api, Body, BodyError};
use crate::response;
use crate::status::Failure;

/// Answers; every failure is a Status object.
pub(crate) async fn answer<B>(api: &Api, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let answered = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz" | "/readyz" | "/livez") => Ok(response::whole(200, "text/plain", "ok")),
        (&Method::GET, "/version") => Ok(response::json(200, &version())),
        _ => Err(Failure::no_such_path()),
    };
    let _ = &api.inner.store;
    answered.unwrap_or_else(|failure| response::failure(&failure))
}

/// `kubectl version`: the level of the API that is imitated, and that it is not the real one.
fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": concat!("v1.36.0+plumb.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (Rust)", "compiler": "rustc", "platform": "linux/amd64",
    })
}
