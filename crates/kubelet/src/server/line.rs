//! A connection of the API's that has become one of another protocol, and whether the API is still there.

use std::io::{self, Cursor};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncReadExt, Chain, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// What the API sends.
pub(super) struct FromApi(pub Chain<Cursor<Bytes>, OwnedReadHalf>);

/// Between two looks at a connection that nothing is read from.
const GLANCE: Duration = Duration::from_millis(500);

/// Both ways of the connection, once the answer was sent.
pub(super) async fn upgraded(upgrade: OnUpgrade) -> io::Result<(FromApi, OwnedWriteHalf)> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = downcast::<TokioIo<UnixStream>>(upgraded);
    let parts = parts.map_err(|_| io::Error::other("the connection is no unix socket"))?;
    let (reader, writer) = parts.io.into_inner().into_split();
    Ok((FromApi::new(parts.read_buf, reader), writer))
}

impl FromApi {
    /// `early`: what came with the request.
    pub(super) fn new(early: Bytes, reader: OwnedReadHalf) -> Self {
        Self(Cursor::new(early).chain(reader))
    }

    /// Until the API has closed the connection, whatever of it is not read yet; it does when its client is gone. An end of
    /// what it sends is not that: a client that has said everything still hears.
    pub(super) async fn gone(&self) {
        let stream: &UnixStream = self.0.get_ref().1.as_ref();
        let mut look = tokio::time::interval(GLANCE);
        loop {
            look.tick().await;
            // Of a socket that takes more this is known at once. One that takes nothing just now has somebody at its end.
            let state = tokio::time::timeout(Duration::ZERO, stream.ready(Interest::WRITABLE)).await;
            if matches!(state, Ok(Ok(ready)) if ready.is_write_closed()) {
                return;
            }
        }
    }
}
