//! The proxies: a request as it is, to a port of a Node, of a pod, or of one of a Service's pods.
//!
//! ```text
//!   /api/v1/nodes/NODE:PORT/proxy/PATH
//!   /api/v1/namespaces/NS/pods/POD:PORT/proxy/PATH
//!   /api/v1/namespaces/NS/services/SERVICE:PORT/proxy/PATH       PORT by number or name; none is the one without a name
//! ```

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use serde_json::Value;
use types::wire::SERVICE_NAME;

use super::{PATIENCE, forward, unreachable_node};
use crate::api::{Body, BodyError};
use crate::kind::{ENDPOINT_SLICE, NODE, POD, SERVICE};
use crate::object::{at, integer, list, text};
use crate::request::{Call, Incoming};
use crate::status::Failure;
use crate::store::{Key, ListQuery};

/// Whom a path means, in words and as an address.
struct Destination {
    whom: String,
    to: SocketAddr,
    /// The node whose pod it is; without one it is an address of the nodes' own network.
    of: Option<String>,
}

pub(crate) async fn proxy<B>(call: &Call, incoming: Incoming<B>) -> Result<Response<Body>, Failure>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let Destination { whom, to, of } = match call.kind {
        kind if *kind == POD => pod(call)?,
        kind if *kind == SERVICE => service(call)?,
        _ => node(call)?,
    };
    if means_another(to.ip()) {
        return Err(Failure::bad_request(format!("address not allowed: {whom} at {to}")));
    }
    let nodes = &call.api.inner.config.nodes;
    let dialled = match of {
        Some(node) => nodes.pod(&node, to),
        None => nodes.tcp(to),
    };
    let stream = match tokio::time::timeout(PATIENCE, dialled).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            return Err(unreachable_node(&format!("{whom} at {to}: {e}; see `{}`", nodes.look())));
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

/// Addresses that are another machine's on each: no API server dials what an object says of them (IsProxyableIP,
/// pkg/proxy/util/utils.go).
fn means_another(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

fn node(call: &Call) -> Result<Destination, Failure> {
    let (name, port) = split(&call.name, types::wire::AGENT_PORT)?;
    let (found, _) = call.api.inner.store.get(&Key::new(&NODE, "", name));
    let node = found.ok_or_else(|| Failure::not_found("", NODE.plural, name))?.value()?;
    let address = internal_address(&node)
        .ok_or_else(|| unreachable_node(&format!("node {name} has no InternalIP in its status yet")))?;
    Ok(Destination { whom: format!("node {name}"), to: SocketAddr::new(address, port), of: None })
}

fn pod(call: &Call) -> Result<Destination, Failure> {
    let (name, port) = split(&call.name, 80)?;
    let (found, _) = call.api.inner.store.get(&Key::new(&POD, &call.namespace, name));
    let pod = found.ok_or_else(|| Failure::not_found("", POD.plural, name))?.value()?;
    let first = list(&pod, &["status", "podIPs"]).first();
    let address = first
        .and_then(|ip| text(ip, &["ip"]).parse().ok())
        .ok_or_else(|| unreachable_node(&format!("pod {name} has no address in its status yet")))?;
    // The API of a lab stands in the nodes' network, where pods' own addresses lead nowhere.
    let own = at(&pod, &["spec", "hostNetwork"]) != Some(&Value::Bool(true));
    let of = own.then(|| text(&pod, &["spec", "nodeName"]).to_owned());
    Ok(Destination { whom: format!("pod {name}"), to: SocketAddr::new(address, port), of })
}

/// One of the Service's ready pods, as kube-apiserver takes one (pkg/registry/core/service/storage, ResourceLocation):
/// by the name of its port, and only where an endpoint is a pod.
fn service(call: &Call) -> Result<Destination, Failure> {
    let plain = call.name.strip_prefix("http:").unwrap_or(&call.name);
    if plain.starts_with("https:") {
        return Err(Failure::unsupported("services/proxy over TLS", "use `kubectl port-forward`"));
    }
    let (name, asked) = plain.split_once(':').unwrap_or((plain, ""));
    let key = Key::new(&SERVICE, &call.namespace, name);
    let (found, _) = call.api.inner.store.get(&key);
    let service = found.ok_or_else(|| Failure::not_found("", SERVICE.plural, name))?.value()?;
    let unavailable = |why: String| Failure::new(503, "ServiceUnavailable", why);
    let mut port = asked.to_owned();
    if let Ok(number) = asked.parse::<i64>() {
        let ports = list(&service, &["spec", "ports"]);
        let found = ports.iter().find(|port| integer(port, &["port"]) == number);
        let found = found
            .ok_or_else(|| unavailable(format!("no service port {number} found for service {name:?}")))?;
        port = text(found, &["name"]).to_owned();
    }
    let resource = ENDPOINT_SLICE.qualified();
    let query = ListQuery { resource: &resource, namespace: &call.namespace, start: None, at: 0 };
    let slices = call.api.inner.store.list(&query)?.objects;
    let slices = slices.into_iter().filter_map(|(_, stored)| stored.value().ok());
    let mut all: Vec<Destination> = slices
        .filter(|slice| at(slice, &["metadata", "labels", SERVICE_NAME]) == Some(&Value::from(name)))
        .flat_map(|slice| endpoints(&slice, name, &port))
        .collect();
    if all.is_empty() {
        return Err(unavailable(format!("no endpoints available for service {:?}", call.name)));
    }
    // Any of them.
    let chance = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let place = chance.subsec_micros() as usize % all.len();
    Ok(all.swap_remove(place))
}

/// The ready pods of a slice that has a port of this name.
fn endpoints(slice: &Value, service: &str, port: &str) -> Vec<Destination> {
    let tcp = |row: &&Value| matches!(text(row, &["protocol"]), "" | "TCP") && text(row, &["name"]) == port;
    let port = list(slice, &["ports"]).iter().find(tcp).map(|row| integer(row, &["port"]));
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { return Vec::new() };
    let ready = |row: &&Value| {
        at(row, &["conditions", "ready"]) != Some(&Value::Bool(false))
            && text(row, &["targetRef", "kind"]) == "Pod"
    };
    let place = |row: &Value| {
        let address = list(row, &["addresses"]).first()?.as_str()?.parse().ok()?;
        let (pod, node) = (text(row, &["targetRef", "name"]), text(row, &["nodeName"]));
        Some(Destination {
            whom: format!("pod {pod} of service {service}"),
            to: SocketAddr::new(address, port),
            of: Some(node.to_owned()),
        })
    };
    list(slice, &["endpoints"]).iter().filter(ready).filter_map(place).collect()
}

fn internal_address(node: &Value) -> Option<IpAddr> {
    let addresses = list(node, &["status", "addresses"]).iter();
    let mut internal = addresses.filter(|a| text(a, &["type"]) == "InternalIP");
    internal.find_map(|a| text(a, &["address"]).parse().ok())
}
