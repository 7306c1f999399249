//! HTTP servers that come and go with the addresses at which they are wanted.
//!
//! ```text
//!   wanted: address, what ─┬─ new ───────────> bind (not to be had: said once, tried on) ─> serve
//!                          └─ gone, or other ─> the listener closes, what was asked is still answered
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::serve::{Door, Speaker};

/// An address that is not to be had may become free, or come to an interface.
const RETRY: Duration = Duration::from_secs(2);
/// A listener that is told to close has closed after this long; who was asked something may take longer.
const CLOSING: Duration = Duration::from_secs(1);

/// What is served at one address.
pub struct Site {
    /// For the log: `health and metrics`.
    pub purpose: String,
    pub speaker: Speaker,
    /// Who gets in.
    pub door: Door,
}

/// Serves what `select` picks of `wanted`, until nobody can want anything any more.
pub async fn follow<W, T: Clone + PartialEq>(
    mut wanted: watch::Receiver<W>,
    select: impl Fn(&W) -> BTreeMap<SocketAddr, T>,
    site: impl Fn(SocketAddr, &T) -> Site,
) {
    let mut running: BTreeMap<SocketAddr, (T, Running)> = BTreeMap::new();
    loop {
        let now = select(&wanted.borrow_and_update());
        let (stay, over) =
            running.into_iter().partition(|(address, (what, _))| now.get(address) == Some(what));
        running = stay;
        close(over).await;
        for (address, what) in now {
            running.entry(address).or_insert_with(|| {
                let server = Running::start(address, site(address, &what));
                (what, server)
            });
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// A server that ends once this is dropped, when it has answered what it was asked.
struct Running {
    _stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(address: SocketAddr, site: Site) -> Self {
        let (_stop, stopped) = oneshot::channel();
        Self { _stop, task: tokio::spawn(serve(address, site, stopped)) }
    }
}

/// All at once; their addresses are free afterwards.
async fn close<T>(over: BTreeMap<SocketAddr, (T, Running)>) {
    let ended = futures::future::join_all(over.into_values().map(|(_, server)| server.task));
    // Who takes longer goes on without being waited for.
    let _ = tokio::time::timeout(CLOSING, ended).await;
}

async fn serve(
    address: SocketAddr,
    Site { purpose, speaker, door }: Site,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut said = String::new();
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                let error = error.to_string();
                if error != said {
                    tracing::error!(
                        error,
                        "bind {address} for {purpose} (is the address on an interface? who has the port? see ss -lnp)"
                    );
                    said = error;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = &mut stopped => return,
        }
    };
    tracing::info!(%address, "{purpose} are served");
    let stopped = async {
        let _ = stopped.await;
    };
    let admit = move |from: SocketAddr| door.admit(from.ip(), address.ip());
    crate::serve::serve(listener, speaker, admit, stopped).await;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::Notify;

    use super::*;
    use crate::dns::tests::inside;

    type Wanted = BTreeMap<SocketAddr, &'static str>;

    /// `/` answers what is wanted, `/slow` when it is let go.
    #[derive(Clone, Default)]
    struct Slow {
        begun: Arc<Notify>,
        let_go: Arc<Notify>,
    }

    impl Slow {
        fn follow(&self) -> watch::Sender<Wanted> {
            let (want, wanted) = watch::channel(Wanted::new());
            let this = self.clone();
            let site = move |_: SocketAddr, what: &&'static str| {
                let (this, what) = (this.clone(), *what);
                let slow = move || async move {
                    this.begun.notify_one();
                    this.let_go.notified().await;
                    "slow"
                };
                let router =
                    Router::new().route("/", get(move || async move { what })).route("/slow", get(slow));
                let door = Door::new(Default::default());
                Site { purpose: "tests".to_owned(), speaker: router.into(), door }
            };
            tokio::spawn(follow(wanted, Wanted::clone, site));
            want
        }
    }

    /// What is said, with its head.
    pub(crate) async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// Asks until there is an answer.
    pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let asked = async {
            loop {
                match ask().await {
                    Some(answer) => return answer,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(30), asked).await;
        said.unwrap_or_else(|_| panic!("not in time: {what}"))
    }

    fn body(said: &str) -> &str {
        said.split("\r\n\r\n").nth(1).unwrap_or_default()
    }

    /// `None`: until nobody listens.
    async fn says(address: SocketAddr, answer: Option<&str>) {
        let heard = async || (ask(address, "/").await.ok().as_deref().map(body) == answer).then_some(());
        until(&format!("{address} says {answer:?}"), heard).await;
    }

    #[test]
    fn servers_come_and_go_with_their_addresses() {
        inside(async || {
            let [here, there] = ["192.168.1.10:9475", "192.168.1.11:9475"].map(|text| text.parse().unwrap());
            let slow = Slow::default();
            let want = slow.follow();
            want.send_replace([(here, "one")].into());
            says(here, Some("one")).await;
            assert!(ask(there, "/").await.is_err());
            want.send_replace([(here, "one"), (there, "two")].into());
            says(there, Some("two")).await;
            assert_eq!(body(&ask(here, "/").await.unwrap()), "one");
            let asked = tokio::spawn(ask(here, "/slow"));
            slow.begun.notified().await;
            want.send_replace([(there, "three")].into());
            says(here, None).await;
            says(there, Some("three")).await;
            slow.let_go.notify_one();
            assert_eq!(body(&asked.await.unwrap().unwrap()), "slow", "it was asked before the address went");
        });
    }

    #[test]
    fn an_address_that_is_not_to_be_had_is_tried_on() {
        inside(async || {
            let [taken, away] = ["192.168.1.10:9475", "192.168.1.77:9475"].map(|text| text.parse().unwrap());
            let other = TcpListener::bind(taken).await.unwrap();
            let want = Slow::default().follow();
            want.send_replace([(taken, "taken"), (away, "away")].into());
            tokio::task::yield_now().await;
            drop(other);
            says(taken, Some("taken")).await;
            let mut ip = tokio::process::Command::new("ip");
            assert!(
                ip.args(["addr", "add", "192.168.1.77/32", "dev", "lo"]).status().await.unwrap().success()
            );
            says(away, Some("away")).await;
        });
    }
}
