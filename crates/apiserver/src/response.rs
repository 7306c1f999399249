//! Responses: JSON whole, or a stream.

use bytes::Bytes;
use futures::Stream;
use http::{Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::Value;

use crate::api::{Body, BodyError};
use crate::status::Failure;

pub(crate) const JSON: &str = "application/json";

/// A whole body.
pub(crate) fn whole(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    with_body(code, content_type, body)
}

pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    whole(code, JSON, value.to_string())
}

pub(crate) fn failure(failure: &Failure) -> Response<Body> {
    json(failure.code, &failure.to_value())
}

/// A body that is sent as it comes.
pub(crate) fn streamed<S>(content_type: &str, chunks: S) -> Response<Body>
where
    S: Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
{
    use futures::StreamExt;
    let body = StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync();
    with_body(200, content_type, body)
}

pub(crate) fn with_body(code: u16, content_type: &str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = header::HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}
