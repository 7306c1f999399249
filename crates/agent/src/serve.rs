//! HTTP connections, counted before anything is spent on them: so many in all, so many of each address, each for a
//! limited time and with a head of limited size.
//!
//! ```text
//!   accept ─ door: a place? ─ no ──> closed, counted
//!                             └ yes ─> http/1.1 [head within 5 s and 16 KiB] ─> router ─> place given back
//! ```
//! The node itself, whose kubelet asks for its health, has places of its own, which strangers cannot fill.

mod tls;

use std::net::IpAddr;
use std::time::Duration;

use axum::serve::Listener;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use types::shares::{Share, Shares};

pub use tls::{Encrypted, Opened, Tls};

/// A request's head is here within this time; a connection is kept without one for as long.
const HEAD: Duration = Duration::from_secs(5);
/// Bytes of a head, and of what is read ahead.
const HEAD_SIZE: usize = 16 << 10;
/// A connection ends after this long, whatever it does; the longest answer (a trace) takes some 20 s.
const LIFETIME: Duration = Duration::from_secs(60);

/// Connections of other hosts and of pods, in all and of each address.
const STRANGERS: (usize, usize) = (512, 64);
/// Connections of the node itself.
const OWN: usize = 128;
/// Connections to the unix socket, which only root can make; the runtime of a node of 500 pods may start all at once.
const LOCAL: usize = 1024;

/// Who comes in at one listener, or at several that share their places.
#[derive(Clone, Debug)]
pub struct Door {
    strangers: Shares<Option<IpAddr>>,
    own: Shares<Option<IpAddr>>,
    refused: Counter,
}

/// Who asks, for what is counted by request; none: the node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub Option<IpAddr>);

/// A connection's place.
pub type Place = Share<Option<IpAddr>>;

impl Door {
    pub fn new(refused: Counter) -> Self {
        let (all, each) = STRANGERS;
        Self { strangers: Shares::new(all, each), own: Shares::new(OWN, OWN), refused }
    }

    /// Of the unix socket.
    pub fn of_root() -> Self {
        Self { own: Shares::new(LOCAL, LOCAL), ..Self::new(Counter::default()) }
    }

    /// `here`: the address that was called; who calls from it, too, is this node.
    pub fn admit(&self, peer: IpAddr, here: IpAddr) -> Option<Place> {
        let is_own = peer == here || peer.is_loopback();
        let place = match is_own {
            true => self.own.take(None),
            false => self.strangers.take(Some(peer.to_canonical())),
        };
        self.counted(place)
    }

    pub fn admit_root(&self) -> Option<Place> {
        self.counted(self.own.take(None))
    }

    fn counted(&self, place: Option<Place>) -> Option<Place> {
        if place.is_none() {
            self.refused.inc();
        }
        place
    }
}

/// What is said at a listener: HTTP, and with a certificate HTTPS as well.
#[derive(Clone, Debug)]
pub struct Speaker {
    pub router: Router,
    pub tls: Option<Tls>,
}

impl From<Router> for Speaker {
    fn from(router: Router) -> Self {
        Self { router, tls: None }
    }
}

/// Until it is stopped; what was asked by then is still answered. `admit` says by the caller's address whether there
/// is a place.
pub async fn serve<L: Listener>(
    mut listener: L,
    speaker: impl Into<Speaker>,
    admit: impl Fn(L::Addr) -> Option<Place>,
    stopped: impl Future<Output = ()>,
) {
    let Speaker { router, tls } = speaker.into();
    let (leave, leaving) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stopped);
    loop {
        let (io, from) = tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        // Without a place it is closed at once: nothing has been read of it.
        let Some(place) = admit(from) else { continue };
        let caller = Caller(place.who().copied().flatten());
        let (router, leaving) = (router.clone().layer(Extension(caller)), leaving.clone());
        let tls = tls.clone();
        connections.spawn(async move {
            match tls {
                None => converse(io, router, leaving).await,
                Some(tls) => match tls.open(io).await {
                    Some(Opened::Plain(io)) => converse(io, router, leaving).await,
                    Some(Opened::Encrypted(io)) => {
                        converse(io, router.layer(Extension(Encrypted)), leaving).await;
                    }
                    None => {}
                },
            }
            drop(place);
        });
    }
    drop(listener);
    leave.send_replace(true);
    while connections.join_next().await.is_some() {}
}

async fn converse<I>(io: I, router: Router, mut leaving: watch::Receiver<bool>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let served = async {
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = leaving.wait_for(|leaving| *leaving) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    match tokio::time::timeout(LIFETIME, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended"),
    }
}

/// As many files as the kernel lets this process have: places are counted, files are not to run out before them.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

#[cfg(test)]
pub(crate) mod tests;
