//! Port-forward: a TCP connection inside a pod's network namespace, to its loopback, as container runtimes make it. No
//! policy is met on the way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use kernel::Netns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpSocket, TcpStream};
use types::wire::FORWARD_PROTOCOL;

use super::line::{self, FromApi};
use crate::record::PodRecord;

/// As much as is read from the API at once.
const PIECE: usize = 32 << 10;

/// Connected before it is answered, so that a port where nobody listens is told.
pub(super) async fn respond(pod: &PodRecord, name: &str, port: u16, mut request: Request) -> Response {
    let Some(pause) = pod.pause() else {
        return (StatusCode::NOT_FOUND, format!("pod {name} does not run")).into_response();
    };
    let netns = match Netns::of_pid(pause.pid()) {
        Ok(netns) => netns,
        Err(error) => return (StatusCode::NOT_FOUND, format!("pod {name}: {error}")).into_response(),
    };
    let stream = match connect(&netns, port).await {
        Ok(stream) => stream,
        Err(error) => {
            let why = format!("port {port} of pod {name}, at 127.0.0.1 and ::1 in it: {error}");
            return (StatusCode::BAD_GATEWAY, why).into_response();
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match line::upgraded(upgrade).await {
            Ok((from_api, to_api)) => carry(from_api, to_api, stream).await,
            Err(error) => tracing::debug!(%error, "a port-forward was not upgraded"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(FORWARD_PROTOCOL));
    response
}

/// Copies both ways until the pod has said everything, or the API is gone.
async fn carry(mut from_api: FromApi, mut to_api: OwnedWriteHalf, pod: TcpStream) {
    let (mut from_pod, mut to_pod) = pod.into_split();
    let inward = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = from_api.0.read(&mut buffer).await {
            let piece = buffer.get(..length).unwrap_or_default();
            tokio::select! {
                sent = to_pod.write_all(piece) => if sent.is_err() { break },
                () = from_api.gone() => return true,
            }
        }
        // Its client has said everything, and may hear still more.
        let _ = to_pod.shutdown().await;
        from_api.gone().await;
        false
    };
    let outward = async {
        let _ = tokio::io::copy(&mut from_pod, &mut to_api).await;
        let _ = to_api.shutdown().await;
    };
    let cut_off = tokio::select! {
        cut_off = inward => cut_off,
        () = outward => false,
    };
    if cut_off {
        // What the pod has not taken is lost: it must not look like the whole.
        let _ = to_pod.as_ref().set_zero_linger();
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::net::{TcpListener, UnixStream};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A connection of the API to a server: the API's end, the server's, and the kubelet between them.
    async fn carried() -> (UnixStream, TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let to = listener.local_addr().expect("an address");
        let (pod, accepted) = tokio::join!(TcpStream::connect(to), listener.accept());
        let (api, ours) = UnixStream::pair().expect("a pair");
        let (reader, writer) = ours.into_split();
        let from_api = FromApi::new(Bytes::from_static(b"early "), reader);
        let carrying = tokio::spawn(carry(from_api, writer, pod.expect("connected")));
        (api, accepted.expect("accepted").0, carrying)
    }

    async fn ends(carrying: tokio::task::JoinHandle<()>) {
        tokio::time::timeout(DEADLINE, carrying).await.expect("it ends").expect("it does not panic");
    }

    #[tokio::test]
    async fn who_has_said_everything_still_hears() {
        let (mut api, mut server, carrying) = carried().await;
        api.write_all(b"question").await.expect("sent");
        api.shutdown().await.expect("closed");
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.expect("all of it");
        assert_eq!(heard, "early question");
        server.write_all(b"answer").await.expect("sent");
        drop(server);
        let mut answer = String::new();
        api.read_to_string(&mut answer).await.expect("all of it");
        assert_eq!(answer, "answer");
        ends(carrying).await;
    }

    #[tokio::test]
    async fn a_pod_that_does_not_read_hears_that_the_client_is_gone() {
        let (api, mut server, carrying) = carried().await;
        // Until nobody on the way takes more.
        let piece = vec![7; PIECE];
        let (mut sent, mut refused) = (0, 0);
        while refused < 10_000 {
            match api.try_write(&piece) {
                Ok(length) => (sent, refused) = (sent + length, 0),
                Err(_) => refused += 1,
            }
            tokio::task::yield_now().await;
        }
        drop(api);
        ends(carrying).await;
        let mut heard = Vec::new();
        let error = server.read_to_end(&mut heard).await.expect_err("not as if that were all");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(heard.len() < sent, "{} of {sent}", heard.len());
    }

    #[tokio::test]
    async fn a_pod_that_says_nothing_hears_that_the_client_is_gone() {
        let (mut api, mut server, carrying) = carried().await;
        api.shutdown().await.expect("closed");
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.expect("all of it");
        drop(api);
        ends(carrying).await;
    }
}
