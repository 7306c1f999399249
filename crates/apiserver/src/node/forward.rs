//! `kubectl port-forward`: connections of a person's machine to ports inside a pod.
//!
//! ```text
//! kubectl ── WebSocket SPDY/3.1+portforward.k8s.io ── API ── HTTP/1.1 upgrade, one a connection ── kubelet ── pod's lo
//! ```
//! For each connection kubectl opens two streams of one `requestid`: `data`, and `error`, on which only a failure is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::SplitStream;
use http::{Method, Response, header};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use types::wire::FORWARD_PROTOCOL;

use super::client::tell;
use super::spdy::{self, Decoder, Frame, Replies};
use super::{node_of, upgraded};
use crate::api::{Body, BodyError};
use crate::request::{Call, Incoming};
use crate::status::Failure;

/// The streams of SPDY in the messages of a WebSocket (KEP-4006).
const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// As much as is read from a pod at once.
const PIECE: usize = 32 << 10;

/// Bridges a port-forward; anything but the WebSocket protocol is refused with what to use.
pub(crate) async fn port_forward<B>(call: &Call, incoming: Incoming<B>) -> Result<Response<Body>, Failure>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let mut parts = incoming.parts;
    let offered = parts.headers.get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|v| v.to_str().ok());
    let pod = Arc::new(Pod { node: node_of(call).await?.0, call: call.again() });
    if parts.method != Method::GET || !offered.is_some_and(|o| o.split(',').any(|p| p.trim() == PROTOCOL)) {
        return Err(Failure::bad_request(format!(
            "the lab's API speaks port-forward only over WebSocket with {PROTOCOL}: use kubectl 1.31 or newer, without \
             KUBECTL_PORT_FORWARD_WEBSOCKETS=false"
        )));
    }
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(|e| Failure::bad_request(format!("WebSocket upgrade: {e}")))?;
    let response = upgrade.protocols([PROTOCOL]).on_upgrade(|client| bridge(client, pod));
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// Whose ports they are.
struct Pod {
    node: String,
    call: Call,
}

/// Until the client goes; with it go all connections, also those whose pod does not read.
async fn bridge(client: WebSocket, pod: Arc<Pod>) {
    let (to_client, from_client) = client.split();
    let (out, messages) = mpsc::channel(64);
    let mut writer = tokio::spawn(tell(to_client, messages));
    let session = Session {
        pod,
        out,
        replies: Replies::default(),
        errors: HashMap::new(),
        connections: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let gone = tokio::select! {
        () = session.read(from_client) => false,
        _ = &mut writer => true,
    };
    if !gone {
        let _ = writer.await;
    }
}

struct Session {
    pod: Arc<Pod>,
    out: mpsc::Sender<Message>,
    replies: Replies,
    /// The error stream of each `requestid`.
    errors: HashMap<String, u32>,
    /// By data stream.
    connections: HashMap<u32, Connection>,
    /// Each ends with its data stream.
    tasks: JoinSet<u32>,
}

struct Connection {
    /// What goes to the pod; `None` once the client's side is closed.
    input: Option<mpsc::Sender<Vec<u8>>>,
    error: Option<u32>,
    task: AbortHandle,
}

impl Session {
    /// Until the client closes its side.
    async fn read(mut self, mut client: SplitStream<WebSocket>) {
        let mut decoder = Decoder::new();
        while let Some(Ok(message)) = client.next().await {
            let Message::Binary(bytes) = message else { continue };
            decoder.push(&bytes);
            loop {
                match decoder.next() {
                    Ok(Some(Frame::GoAway)) => return,
                    Ok(Some(frame)) => self.take(frame).await,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "a port-forward ended");
                        return;
                    }
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers, last } => self.open(stream, &headers, last).await,
            Frame::Data { stream, bytes, last } => {
                let Some(connection) = self.connections.get_mut(&stream) else { return };
                if let Some(input) = &connection.input {
                    // A connection that has ended takes nothing more.
                    let _ = input.send(bytes).await;
                }
                if last {
                    connection.input = None;
                }
            }
            Frame::Reset { stream } => {
                let Some(connection) = self.connections.remove(&stream) else { return };
                connection.task.abort();
                // kubectl waits for the end of this one, too.
                if let Some(error) = connection.error {
                    self.send(spdy::data(error, &[], true)).await;
                }
            }
            Frame::Ping { id } => self.send(spdy::ping(id)).await,
            Frame::GoAway => {}
        }
        while let Some(ended) = self.tasks.try_join_next() {
            ended.ok().and_then(|stream| self.connections.remove(&stream));
        }
    }

    async fn open(&mut self, stream: u32, headers: &BTreeMap<String, String>, last: bool) {
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let reply = self.replies.reply(stream);
        self.send(reply).await;
        let request = header("requestid");
        if header("streamtype") == "error" {
            self.errors.insert(request, stream);
            return;
        }
        let error = self.errors.remove(&request);
        let streams = Streams { data: stream, error, out: self.out.clone() };
        let (input, output) = mpsc::channel(16);
        let (pod, port) = (Arc::clone(&self.pod), header("port"));
        let task = self.tasks.spawn(async move {
            let said = match port.parse() {
                Ok(port) => connection(&pod, port, output, &streams).await,
                Err(_) => Err(format!("{port:?} is not a port")),
            };
            streams.end(said.err()).await;
            stream
        });
        self.connections.insert(stream, Connection { input: (!last).then_some(input), error, task });
    }

    async fn send(&self, frame: Vec<u8>) {
        // Without a writer the client is gone.
        let _ = self.out.send(binary(frame)).await;
    }
}

/// The two of one connection.
struct Streams {
    data: u32,
    error: Option<u32>,
    out: mpsc::Sender<Message>,
}

impl Streams {
    /// kubectl closes its connection when `data` ends, and prints what it hears on `error`.
    async fn end(&self, why: Option<String>) {
        let why = why.unwrap_or_default();
        let error = self.error.map(|stream| spdy::data(stream, why.as_bytes(), true));
        for frame in error.into_iter().chain([spdy::data(self.data, &[], true)]) {
            let _ = self.out.send(binary(frame)).await;
        }
    }
}

fn binary(frame: Vec<u8>) -> Message {
    Message::Binary(frame.into())
}

/// Copies both ways until the pod's side has ended.
async fn connection(
    pod: &Pod,
    port: u16,
    mut input: mpsc::Receiver<Vec<u8>>,
    streams: &Streams,
) -> Result<(), String> {
    let Pod { node, call } = pod;
    let path = format!("/portForward/{}/{}/{port}", call.namespace, call.name);
    let stream = upgraded(call, node, path, FORWARD_PROTOCOL).await.map_err(|failure| failure.message)?;
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let inward = async {
        while let Some(bytes) = input.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let outward = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = from_pod.read(&mut buffer).await {
            let frame = spdy::data(streams.data, buffer.get(..length).unwrap_or_default(), false);
            if streams.out.send(binary(frame)).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut outward => {}
        () = &mut inward => outward.await,
    }
    Ok(())
}
