//! Port-forward: a TCP connection inside a pod's network namespace, to its loopback, as container runtimes make it. No
//! policy is met on the way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper_util::rt::TokioIo;
use kernel::Netns;
use tokio::net::{TcpSocket, TcpStream};
use types::wire::FORWARD_PROTOCOL;

use crate::record::PodRecord;

/// Connected before it is answered, so that a port where nobody listens is told.
pub(super) async fn respond(pod: &PodRecord, name: &str, port: u16, mut request: Request) -> Response {
    let Some(pause) = pod.pause() else {
        return (StatusCode::NOT_FOUND, format!("pod {name} does not run")).into_response();
    };
    let netns = match Netns::of_pid(pause.pid()) {
        Ok(netns) => netns,
        Err(error) => return (StatusCode::NOT_FOUND, format!("pod {name}: {error}")).into_response(),
    };
    let mut stream = match connect(&netns, port).await {
        Ok(stream) => stream,
        Err(error) => {
            let why = format!("port {port} of pod {name}, at 127.0.0.1 and ::1 in it: {error}");
            return (StatusCode::BAD_GATEWAY, why).into_response();
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(client) => drop(tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut stream).await),
            Err(error) => tracing::debug!(%error, "a port-forward was not upgraded"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(FORWARD_PROTOCOL));
    response
}

/// Of a server that listens on one family only, the other refuses.
async fn connect(netns: &Netns, port: u16) -> io::Result<TcpStream> {
    match dial(netns, Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(stream) => Ok(stream),
        Err(first) => dial(netns, Ipv6Addr::LOCALHOST.into(), port).await.map_err(|_| first),
    }
}

async fn dial(netns: &Netns, address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let new = if address.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
    let socket = netns.run(new).map_err(io::Error::other)??;
    socket.connect(SocketAddr::new(address, port)).await
}
