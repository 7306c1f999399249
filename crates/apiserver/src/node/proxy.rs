//! The proxies: a request as it is, to a port of a Node or of a pod of its network.
//!
//! ```text
//!   /api/v1/nodes/NODE:PORT/proxy/PATH
//!   /api/v1/namespaces/NS/pods/POD:PORT/proxy/PATH
//! ```

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::{PATIENCE, forward, unreachable_node};
use crate::api::{Body, BodyError};
use crate::kind::{NODE, POD};
use crate::object::{at, list, text};
use crate::request::{Call, Incoming};
use crate::status::Failure;
use crate::store::Key;

/// Whom a path means, in words and as an address.
struct Destination {
    whom: String,
    to: SocketAddr,
}

pub(crate) async fn proxy<B>(call: &Call, incoming: Incoming<B>) -> Result<Response<Body>, Failure>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let Destination { whom, to } = if *call.kind == POD { pod(call)? } else { node(call)? };
    let dialled = tokio::time::timeout(PATIENCE, call.api.inner.config.nodes.tcp(to)).await;
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            return Err(unreachable_node(&format!("{whom} at {to}: {e}; see `plumb lab status`")));
        }
        Err(_) => return Err(unreachable_node(&format!("{whom} at {to} does not answer"))),
    };
    let query = incoming.parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut request = Request::builder()
        .method(incoming.parts.method)
        .uri(format!("/{}{query}", call.rest))
        .body(incoming.body.map_err(Into::into).boxed_unsync())
        .map_err(|e| Failure::bad_request(e.to_string()))?;
    *request.headers_mut() = incoming.parts.headers;
    // The token is for the API, not for the node.
    for name in [header::AUTHORIZATION, header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH]
    {
        request.headers_mut().remove(name);
    }
    if let Ok(host) = header::HeaderValue::from_str(&to.to_string()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut answer = forward(stream, request, &format!("{whom} at {to}")).await?;
    for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
        answer.headers_mut().remove(name);
    }
    Ok(answer)
}

/// `NAME`, `NAME:PORT` or `http:NAME:PORT` (SplitSchemeNamePort, apimachinery/pkg/util/net).
fn split(text: &str, default: u16) -> Result<(&str, u16), Failure> {
    let plain = text.strip_prefix("http:").unwrap_or(text);
    let (name, port) = match plain.split_once(':') {
        None => return Ok((plain, default)),
        Some(split) => split,
    };
    let port = port.parse().map_err(|_| Failure::bad_request(format!("{text:?} is not NAME:PORT")))?;
    Ok((name, port))
}

fn node(call: &Call) -> Result<Destination, Failure> {
    let (name, port) = split(&call.name, types::wire::AGENT_PORT)?;
    let (found, _) = call.api.inner.store.get(&Key::new(&NODE, "", name));
    let node = found.ok_or_else(|| Failure::not_found("", NODE.plural, name))?.value()?;
    let address = internal_address(&node)
        .ok_or_else(|| unreachable_node(&format!("node {name} has no InternalIP in its status yet")))?;
    Ok(Destination { whom: format!("node {name}"), to: SocketAddr::new(address, port) })
}

/// The API of a lab stands in the nodes' network, where pods' own addresses lead nowhere.
fn pod(call: &Call) -> Result<Destination, Failure> {
    let (name, port) = split(&call.name, 80)?;
    let (found, _) = call.api.inner.store.get(&Key::new(&POD, &call.namespace, name));
    let pod = found.ok_or_else(|| Failure::not_found("", POD.plural, name))?.value()?;
    if at(&pod, &["spec", "hostNetwork"]) != Some(&Value::Bool(true)) {
        let instead =
            "use `kubectl exec` with a client in the pod, or `plumb lab exec NODE` and the pod's own address";
        return Err(Failure::unsupported("pods/proxy of pods with a network of their own", instead));
    }
    let first = list(&pod, &["status", "podIPs"]).first();
    let address = first
        .and_then(|ip| text(ip, &["ip"]).parse().ok())
        .ok_or_else(|| unreachable_node(&format!("pod {name} has no address in its status yet")))?;
    Ok(Destination { whom: format!("pod {name}"), to: SocketAddr::new(address, port) })
}

fn internal_address(node: &Value) -> Option<IpAddr> {
    let addresses = list(node, &["status", "addresses"]).iter();
    let mut internal = addresses.filter(|a| text(a, &["type"]) == "InternalIP");
    internal.find_map(|a| text(a, &["address"]).parse().ok())
}
