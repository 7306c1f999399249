//! What a node answers: logs and exec through its kubelet's socket, its own ports by the proxies of Node and Pod.

mod client;
mod exec;
mod forward;
mod proxy;
mod spdy;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::api::Body;
use crate::kind::POD;
use crate::object::{list, text};
use crate::query::encode;
use crate::request::Call;
use crate::status::Failure;
use crate::store::Key;
use crate::{Stream, response};

pub(crate) use exec::exec;
pub(crate) use forward::port_forward;
pub(crate) use proxy::proxy;

/// A node that does not answer for this long is said not to answer: nothing hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pod that a subresource is about: its node and the container that is meant.
pub(crate) struct Place {
    pub node: String,
    pub container: String,
}

/// The pod's node, and the pod.
async fn node_of(call: &Call) -> Result<(String, Value), Failure> {
    let key = Key::new(&POD, &call.namespace, &call.name);
    let (found, revision) = call.api.inner.store.get(&key);
    call.api.inner.store.settled(revision).await?;
    let pod = found.ok_or_else(|| Failure::not_found("", POD.plural, &call.name))?.value()?;
    let node = text(&pod, &["spec", "nodeName"]).to_owned();
    if node.is_empty() {
        return Err(Failure::bad_request(format!("pod {} does not have a host assigned", call.name)));
    }
    Ok((node, pod))
}

/// Finds the pod's node, and the container that was asked for or the only one.
pub(crate) async fn place(call: &Call) -> Result<Place, Failure> {
    let (node, pod) = node_of(call).await?;
    let names: Vec<_> = list(&pod, &["spec", "containers"]).iter().map(|c| text(c, &["name"])).collect();
    let asked = call.query.get("container");
    let container = match (asked, names.as_slice()) {
        ("", [only]) => *only,
        ("", _) => {
            return Err(Failure::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                call.name,
                names.join(" ")
            )));
        }
        (asked, names) if names.contains(&asked) => asked,
        (asked, _) => {
            return Err(Failure::bad_request(format!(
                "container {asked} is not valid for pod {}",
                call.name
            )));
        }
    };
    Ok(Place { node, container: container.to_owned() })
}

/// A connection to the node's kubelet.
pub(crate) async fn kubelet(call: &Call, node: &str) -> Result<Stream, Failure> {
    let dialled = tokio::time::timeout(PATIENCE, call.api.inner.config.nodes.kubelet(node)).await;
    let why = match dialled {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "it does not answer".to_owned(),
    };
    let look = call.api.inner.config.nodes.look();
    Err(unreachable_node(&format!("the kubelet of node {node}: {why}; see `{look}`")))
}

fn unreachable_node(why: &str) -> Failure {
    Failure::new(502, "BadGateway", format!("error dialing backend: {why}"))
}

/// `kubectl logs`: text as it is written, followed for as long as the client wants it.
pub(crate) async fn log(call: &Call) -> Result<Response<Body>, Failure> {
    let place = place(call).await?;
    let mut path = format!("/containerLogs/{}/{}/{}", call.namespace, call.name, encode(&place.container));
    let mut separator = '?';
    for name in ["follow", "tailLines", "previous", "timestamps", "sinceSeconds", "sinceTime", "limitBytes"] {
        let value = call.query.get(name);
        if !value.is_empty() {
            path.push_str(&format!("{separator}{name}={}", encode(value)));
            separator = '&';
        }
    }
    let stream = kubelet(call, &place.node).await?;
    let request = Request::builder().method(Method::GET).uri(path).header(header::HOST, "kubelet");
    let request = request
        .body(Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync())
        .map_err(|e| Failure::bad_request(e.to_string()))?;
    let answer = forward(stream, request, &format!("the kubelet of node {}", place.node)).await?;
    if !answer.status().is_success() {
        let code = answer.status().as_u16();
        let body = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await;
        let text = match body {
            Ok(Ok(collected)) => String::from_utf8_lossy(&collected.to_bytes()).trim().to_owned(),
            _ => String::new(),
        };
        let reason = if code == 404 { "NotFound" } else { "BadRequest" };
        return Err(Failure::new(code, reason, text));
    }
    Ok(response::with_body(200, "text/plain", answer.into_body()))
}

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// A connection to the node's kubelet that has become one of this protocol.
async fn upgraded(call: &Call, node: &str, path: String, protocol: &str) -> Result<Upgraded, Failure> {
    let whom = format!("the kubelet of node {node}");
    let broken = |e: hyper::Error| unreachable_node(&format!("{whom}: {e}"));
    let stream = kubelet(call, node).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, "kubelet")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol)
        .body(Empty::<Bytes>::new())
        .map_err(|e| Failure::bad_request(e.to_string()))?;
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
    let answer = answer.map_err(|_| unreachable_node(&format!("{whom} does not answer")))?.map_err(broken)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(Failure::new(if code < 400 { 502 } else { code }, "BadRequest", text));
    }
    Ok(TokioIo::new(hyper::upgrade::on(answer).await.map_err(broken)?))
}

/// One HTTP/1.1 request over the stream; the answer's body streams as it comes.
async fn forward(stream: Stream, request: Request<Body>, whom: &str) -> Result<Response<Body>, Failure> {
    let broken = |e: hyper::Error| unreachable_node(&format!("{whom}: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
    let answer = answer.map_err(|_| unreachable_node(&format!("{whom} does not answer")))?.map_err(broken)?;
    Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
}
