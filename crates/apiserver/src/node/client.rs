//! The client's side of what the API bridges over a WebSocket: what goes to it, and whether it is still there.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::SinkExt;
use futures::stream::SplitSink;
use tokio::sync::mpsc;

/// A bridge whose other side takes nothing just now does not read, and would not hear that its client has gone. To a
/// client that is gone nothing can be written: a second ping fails at the latest.
const PULSE: Duration = Duration::from_secs(2);

/// Sends what comes until nothing more does, or the client is gone.
pub(super) async fn tell(mut client: SplitSink<WebSocket, Message>, mut messages: mpsc::Receiver<Message>) {
    let mut pulse = tokio::time::interval_at(tokio::time::Instant::now() + PULSE, PULSE);
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            _ = pulse.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(message) = message else {
            let _ = client.close().await;
            return;
        };
        if client.send(message).await.is_err() {
            return;
        }
    }
}
