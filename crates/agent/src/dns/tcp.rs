//! DNS over TCP (RFC 7766): for answers that UDP cut, and for clients that insist.

use std::future::pending;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use types::shares::Shares;

use super::counters::{Count, Tally};
use super::{DnsError, Shared};

/// Connections at a time, and of one client; more are closed, so that nobody waits behind those who stay.
const CONNECTIONS: (usize, usize) = (2048, 64);
/// The longest query: memory is taken for what is announced.
const QUERY: usize = 4096;
/// RFC 7766 §6.2.3: seconds, not minutes.
const IDLE: Duration = Duration::from_secs(10);
/// The same while we are leaving: the first query of a fresh connection is on its way.
const LEAVING: Duration = Duration::from_millis(300);

/// A listener of the kernel crate in tokio's hands.
pub fn adopt(listener: std::net::TcpListener) -> Result<TcpListener, DnsError> {
    TcpListener::from_std(listener).map_err(DnsError::Start)
}

/// Until it is to leave; then it takes who has connected already, and ends with the last conversation.
pub async fn run(listener: TcpListener, shared: Shared) {
    let places = Shares::new(CONNECTIONS.0, CONNECTIONS.1);
    let mut conversations = JoinSet::new();
    let mut leaving = shared.leaving.clone();
    loop {
        while conversations.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = left(&mut leaving) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                if !shared.callers.read().may_ask(peer.ip()) {
                    shared.counters.add(Count::Strangers);
                    continue;
                }
                let Some(place) = places.take(peer.ip()) else {
                    shared.counters.add(Count::Crowded);
                    continue;
                };
                let shared = shared.clone();
                conversations.spawn(async move {
                    // A client that goes away in the middle is its own affair.
                    let _ = converse((stream, peer.ip()), &shared).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "DNS cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while conversations.join_next().await.is_some() {}
}

/// Resolves when the server is to leave. A server that is dropped aborts its tasks itself.
async fn left(leaving: &mut watch::Receiver<bool>) {
    if leaving.wait_for(|leaving| *leaving).await.is_err() {
        pending().await
    }
}

/// Queries one after the other until the client has no more.
async fn converse((mut stream, client): (TcpStream, IpAddr), shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut leaving = shared.leaving.clone();
    loop {
        let length = tokio::select! {
            biased;
            length = stream.read_u16() => length,
            () = tokio::time::sleep(IDLE) => return Ok(()),
            () = async { left(&mut leaving).await; tokio::time::sleep(LEAVING).await } => return Ok(()),
        };
        let length = usize::from(length?);
        if length > QUERY {
            return Ok(());
        }
        let mut query = vec![0; length];
        let Ok(read) = timeout(IDLE, stream.read_exact(&mut query)).await else { return Ok(()) };
        read?;
        shared.counters.add(Count::TcpQueries);
        let chance = kernel::udp::random().unwrap_or_default() as u32;
        let Some(answer) = shared.resolver.answer(shared, (&query, client), chance).await else {
            return Ok(());
        };
        let mut tally = Tally::default();
        tally.answer(&answer);
        shared.counters.absorb(&mut tally);
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        let Ok(written) = timeout(IDLE, stream.write_all(&framed)).await else { return Ok(()) };
        written?;
    }
}
