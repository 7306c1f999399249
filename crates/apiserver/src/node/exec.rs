//! `kubectl exec`: kubectl's WebSocket on one side, the kubelet's frames on the other.
//!
//! ```text
//! kubectl ── WebSocket v5.channel.k8s.io ── API ── HTTP/1.1 upgrade ── kubelet
//!   message = channel byte + payload            frame = u32 length (big endian) + the same message
//! ```

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Response, header};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::client::tell;
use super::{Place, Upgraded, place, upgraded};
use crate::api::{Body, BodyError};
use crate::query::encode;
use crate::request::{Call, Incoming};
use crate::status::Failure;

/// The protocol of the messages (KEP-4006); the kubelet's frames hold the same messages.
const PROTOCOL: &str = "v5.channel.k8s.io";
/// No message of kubectl is larger; a frame that claims to be is a broken stream.
const MAX_FRAME: usize = 1 << 20;
/// How long a peer may take to close after the other side has.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bridges an exec; anything but the WebSocket protocol is refused with what to use.
pub(crate) async fn exec<B>(call: &Call, incoming: Incoming<B>) -> Result<Response<Body>, Failure>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let mut parts = incoming.parts;
    let offered = parts.headers.get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|v| v.to_str().ok());
    if parts.method != Method::GET || !offered.is_some_and(|o| o.split(',').any(|p| p.trim() == PROTOCOL)) {
        // kubectl tries SPDY after any refusal; what was wrong with the first try must not be hidden by this. Of an exec
        // without a command the kubelet says so only where the container runs.
        match open(call, &place(call).await?, false).await {
            Err(refused) if refused.code == 400 => {}
            other => drop(other?),
        }
        return Err(Failure::bad_request(format!(
            "the lab's API speaks exec only over WebSocket with {PROTOCOL}: use kubectl 1.30 or newer"
        )));
    }
    let place = place(call).await?;
    let node = open(call, &place, true).await?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(|e| Failure::bad_request(format!("WebSocket upgrade: {e}")))?;
    let response = upgrade.protocols([PROTOCOL]).on_upgrade(|client| bridge(client, node));
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// Starts the command at the kubelet, or asks only whether one can be started.
async fn open(call: &Call, place: &Place, start: bool) -> Result<Upgraded, Failure> {
    let mut path = format!("/exec/{}/{}/{}", call.namespace, call.name, encode(&place.container));
    let mut separator = '?';
    let flags = ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|flag| call.query.is_true(flag));
    let flags = flags.map(|flag| format!("{flag}=true"));
    let words = call.query.all("command").filter(|_| start).map(|word| format!("command={}", encode(word)));
    for parameter in words.chain(flags) {
        path.push(separator);
        path.push_str(&parameter);
        separator = '&';
    }
    upgraded(call, &place.node, path, types::wire::EXEC_PROTOCOL).await
}

/// Copies messages both ways until the kubelet has sent its last.
async fn bridge(client: WebSocket, node: Upgraded) {
    let (to_client, mut from_client) = client.split();
    let (out, messages) = mpsc::channel(16);
    let (mut from_node, mut to_node) = tokio::io::split(node);
    let inward = async {
        while let Some(Ok(message)) = from_client.next().await {
            let data: Bytes = match message {
                Message::Binary(data) => data,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            let Ok(length) = u32::try_from(data.len()) else { break };
            if to_node.write_all(&length.to_be_bytes()).await.is_err()
                || to_node.write_all(&data).await.is_err()
            {
                break;
            }
        }
        // The client is gone; the kubelet learns it by the end of the stream and ends the command.
        let _ = to_node.shutdown().await;
    };
    let told = async move {
        while let Some(frame) = read_frame(&mut from_node).await {
            if out.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
        let close = CloseFrame { code: 1000, reason: "".into() };
        let _ = out.send(Message::Close(Some(close))).await;
        drop(out);
        std::future::pending().await
    };
    // Whatever the command takes or says: with its client the command goes.
    let outward = async {
        tokio::select! {
            () = told => {}
            () = tell(to_client, messages) => {}
        }
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut outward => { let _ = tokio::time::timeout(FAREWELL, inward).await; }
        () = &mut inward => { let _ = tokio::time::timeout(FAREWELL, outward).await; }
    }
}

async fn read_frame(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Bytes> {
    let length = usize::try_from(from.read_u32().await.ok()?).ok().filter(|length| *length <= MAX_FRAME)?;
    let mut frame = vec![0; length];
    from.read_exact(&mut frame).await.ok()?;
    Some(frame.into())
}
