//! Names that are not the cluster's: cache, one question upstream at a time, the next upstream when one is
//! silent or fails, TCP when an answer is cut.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dns::cache::{self, Message};
use dns::{Cache, Name, Outcome, Query, Rcode, ResolvConf, Transport, answer, message};
use futures::future::{FutureExt, WeakShared};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use types::shares::{Share, Shares};

use super::counters::{Count, Counters, Tally};
use super::{DnsConfig, Shared};

/// Questions under way at most, and of one client; above, SERVFAIL at once instead of a queue that outlives its clients.
const CONCURRENT: (usize, usize) = (1024, 128);
/// Queries of one socket that wait for those, and of one client: it may ask one thing many times.
const ORDERS: (usize, usize) = (4096, 512);
/// How long each round waits for one upstream; a client gives up after 5 s (resolv.conf(5)).
const ROUNDS: [Duration; 2] = [Duration::from_millis(1000), Duration::from_millis(1500)];
/// The whole of it.
const PATIENCE: Duration = Duration::from_millis(4800);
/// How often resolv.conf is looked at again.
const RELOAD: Duration = Duration::from_secs(5);
/// systemd-resolved's stub, and the file in which it names the real servers.
const STUB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// A query that the UDP thread hands on.
#[derive(Debug)]
pub struct Order {
    pub query: Vec<u8>,
    pub peer: SocketAddr,
    pub way: Way,
    /// Given back with the answer.
    pub place: Share<IpAddr>,
}

/// What is asked upstream.
#[derive(Debug)]
pub enum Way {
    /// The query itself.
    Forward,
    /// Where the CNAME in `ours` leads.
    Follow { ours: Vec<u8>, target: Name },
}

/// Where the UDP thread leaves orders.
pub struct Desk {
    queue: mpsc::Sender<Order>,
    places: Shares<IpAddr>,
}

impl Desk {
    /// That takes nothing.
    pub fn closed() -> Self {
        Self { queue: mpsc::channel(1).0, places: Shares::new(0, 0) }
    }

    /// Whether it is taken: a client that has too many is told so at once, and others notice nothing.
    pub fn take(&self, query: &[u8], peer: SocketAddr, way: Way) -> bool {
        let Some(place) = self.places.take(peer.ip()) else { return false };
        self.queue.try_send(Order { query: query.to_vec(), peer, way, place }).is_ok()
    }
}

/// Takes orders for one socket until its thread ends, and ends when all are carried out.
pub(super) fn spawn(socket: Arc<UdpSocket>, shared: Shared) -> (Desk, tokio::task::JoinHandle<()>) {
    let (queue, mut orders) = mpsc::channel::<Order>(ORDERS.0);
    let task = tokio::spawn(async move {
        let mut under_way = JoinSet::new();
        while let Some(order) = orders.recv().await {
            while under_way.try_join_next().is_some() {}
            let (socket, shared) = (Arc::clone(&socket), shared.clone());
            under_way.spawn(async move {
                let limit = Query::parse(&order.query).map_or(0, |query| query.udp_limit());
                let reply = shared.resolver.reply((&order.query, order.peer.ip()), order.way, limit).await;
                let mut tally = Tally::default();
                tally.answer(&reply);
                shared.counters.absorb(&mut tally);
                // A full send buffer is the same to the client as a lost datagram: it asks again.
                let _ = kernel::udp::send_now(&socket, &reply, order.peer);
                drop(order.place);
            });
        }
        while under_way.join_next().await.is_some() {}
    });
    (Desk { queue, places: Shares::new(ORDERS.0, ORDERS.1) }, task)
}

/// A question under way. The table does not keep it alive: those who wait for it do.
type Pending = WeakShared<Pin<Box<dyn Future<Output = Option<Message>> + Send>>>;

/// Asks upstreams.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("resolv_conf", &self.0.resolv_conf).finish_non_exhaustive()
    }
}

struct Inner {
    resolv_conf: PathBuf,
    port: u16,
    own: Vec<IpAddr>,
    counters: Arc<Counters>,
    cache: Mutex<Cache>,
    pending: Mutex<HashMap<Vec<u8>, Pending>>,
    upstreams: Mutex<(Option<Instant>, Vec<IpAddr>)>,
    /// Which upstream answered last: it is asked first.
    preferred: AtomicUsize,
    slots: Shares<IpAddr>,
    /// Upstreams that answer with another case than they were asked with.
    careless: Mutex<BTreeSet<SocketAddr>>,
    start: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resolver {
    /// `own`: addresses that we serve on, which are never asked.
    pub fn new(config: &DnsConfig, own: Vec<IpAddr>, counters: Arc<Counters>) -> Self {
        Self(Arc::new(Inner {
            resolv_conf: config.resolv_conf.clone(),
            port: config.upstream_port,
            own,
            counters,
            cache: Mutex::new(Cache::new(config.cache)),
            pending: Mutex::default(),
            upstreams: Mutex::default(),
            preferred: AtomicUsize::new(0),
            slots: Shares::new(CONCURRENT.0, CONCURRENT.1),
            careless: Mutex::default(),
            start: Instant::now(),
        }))
    }

    /// The whole answer for a client, SERVFAIL where no upstream has one.
    pub async fn reply(&self, (query, client): (&[u8], IpAddr), way: Way, limit: usize) -> Vec<u8> {
        self.0.counters.add(Count::Forwarded);
        let mut out = vec![0; limit];
        let length = match way {
            Way::Forward => match self.resolve(query, client).await {
                Some(message) => message.relay(query, &mut out, limit),
                None => 0,
            },
            Way::Follow { mut ours, target } => {
                let kind = Query::parse(query).map_or(dns::Type::A, |query| query.kind);
                let question = message::encode_query(0, &target, kind);
                let theirs = self.resolve(&question, client).await;
                let whole = theirs.and_then(|theirs| message::append(&ours, theirs.bytes(), limit));
                return whole.unwrap_or_else(|| {
                    // The CNAME is right even when nobody can follow it (spec 1.5).
                    if let Some(code) = ours.get_mut(3) {
                        *code = (*code & 0xf0) | Rcode::SERVFAIL.0 as u8;
                    }
                    ours
                });
            }
        };
        let length = if length == 0 { answer::plain_reply(query, &mut out, Rcode::SERVFAIL) } else { length };
        out.truncate(length);
        out
    }

    /// Answers a whole query over TCP or for a tool, from zone or upstream.
    pub(super) async fn answer(
        &self,
        shared: &Shared,
        (query, client): (&[u8], IpAddr),
        chance: u32,
    ) -> Option<Vec<u8>> {
        let limit = usize::from(u16::MAX);
        let mut out = vec![0; limit];
        let outcome = shared.zone.read().answer(query, &mut out, Transport::Tcp, chance);
        let way = match outcome {
            Outcome::Drop => return None,
            Outcome::Answered(length) => {
                out.truncate(length);
                return Some(out);
            }
            Outcome::Forward => Way::Forward,
            Outcome::Follow { length, target } => {
                out.truncate(length);
                Way::Follow { ours: out, target }
            }
        };
        Some(self.reply((query, client), way, limit).await)
    }

    /// An upstream's message for a question, from the cache if it lives there. The same question under way is
    /// asked once: that also ends loops, should an upstream lead back to us.
    async fn resolve(&self, query: &[u8], client: IpAddr) -> Option<Message> {
        let key = cache::key(query)?;
        let kept = lock(&self.0.cache).get(&key, self.seconds());
        if let Some(message) = kept {
            self.0.counters.add(Count::CacheHits);
            return Some(message);
        }
        let pending = {
            let mut all = lock(&self.0.pending);
            match all.get(&key).and_then(WeakShared::upgrade) {
                Some(pending) => pending,
                None => {
                    // Before anybody can join: who has no share left is refused alone.
                    let Some(slot) = self.0.slots.take(client) else {
                        self.0.counters.add(Count::Overload);
                        return None;
                    };
                    let pending = self.clone().ask(key.clone(), query.to_vec(), slot).boxed().shared();
                    all.extend(pending.downgrade().map(|weak| (key, weak)));
                    pending
                }
            }
        };
        pending.await
    }

    fn seconds(&self) -> u64 {
        self.0.start.elapsed().as_secs()
    }

    async fn ask(self, key: Vec<u8>, query: Vec<u8>, _slot: Share<IpAddr>) -> Option<Message> {
        // Leaves the table however this ends, so that no question is stuck.
        let _entry = Entry { inner: Arc::clone(&self.0), key: key.clone() };
        let parsed = Query::parse(&query).ok()?;
        let (name, kind) = (Name::from_wire(parsed.name)?, parsed.kind);
        let message = timeout(PATIENCE, self.rounds(&name, kind)).await.ok().flatten()?;
        lock(&self.0.cache).insert(key, message.clone(), self.seconds());
        Some(message)
    }

    /// Each upstream in turn, from the one that answered last, until one has an answer that is no failure.
    async fn rounds(&self, name: &Name, kind: dns::Type) -> Option<Message> {
        let upstreams = self.upstreams().await;
        let first = self.0.preferred.load(Ordering::Relaxed);
        let mut failure = None;
        for patience in ROUNDS {
            for turn in 0..upstreams.len() {
                let index = (first + turn) % upstreams.len();
                let Some(upstream) = upstreams.get(index) else { continue };
                let upstream = SocketAddr::new(*upstream, self.0.port);
                match self.exchange(upstream, name, kind, patience).await {
                    Some(message) if sound(&message) => {
                        self.0.preferred.store(index, Ordering::Relaxed);
                        return Some(message);
                    }
                    Some(message) => {
                        self.0.counters.add(Count::UpstreamFailures);
                        failure = Some(message);
                    }
                    None => {}
                }
            }
            // All have spoken: asking again will not change it.
            if failure.is_some() {
                break;
            }
        }
        failure
    }

    async fn exchange(
        &self,
        to: SocketAddr,
        name: &Name,
        kind: dns::Type,
        patience: Duration,
    ) -> Option<Message> {
        let id = kernel::udp::random().ok()? as u16;
        let mut query = message::encode_query(id, name, kind);
        let careless = lock(&self.0.careless).contains(&to);
        if !careless {
            message::draw_case(&mut query, name, kernel::udp::random().ok()?);
        }
        self.0.counters.add(Count::UpstreamQueries);
        let mut message = match timeout(patience, over_udp(to, &query)).await {
            Ok(Ok(message)) if !message.truncated() && (careless || message.has_case_of(&query)) => {
                Some(message)
            }
            // Cut, or of another case than ours: forged, or of an upstream that keeps none. TCP tells.
            Ok(Ok(doubtful)) => {
                self.0.counters.add(Count::UpstreamTcp);
                let whole = timeout(patience, over_tcp(to, &query)).await.ok().and_then(Result::ok).flatten();
                self.settle_doubt(to, &query, doubtful, whole)
            }
            Ok(Err(error)) => {
                self.0.counters.add(Count::UpstreamFailures);
                tracing::debug!(upstream = %to, %error, "DNS upstream cannot be reached");
                None
            }
            Err(_) => {
                self.0.counters.add(Count::UpstreamTimeouts);
                None
            }
        }?;
        message.write_name(name.wire());
        Some(message)
    }

    /// What is believed of an answer over UDP once it was asked for over TCP, too, which nobody forges who does not
    /// see it. An upstream that keeps no case and has no TCP is asked once more as it can: no worse than before.
    fn settle_doubt(
        &self,
        to: SocketAddr,
        query: &[u8],
        doubtful: Message,
        whole: Option<Message>,
    ) -> Option<Message> {
        let kept = |message: &Message| message.has_case_of(query);
        let careless = match &whole {
            Some(whole) => !kept(whole),
            None => !kept(&doubtful),
        };
        if careless && lock(&self.0.careless).insert(to) {
            tracing::info!(upstream = %to, "the DNS upstream does not keep the case of names: it is asked without");
        }
        // A cut answer is better than none: the client sees its TC.
        whole.or_else(|| Some(doubtful).filter(kept))
    }

    /// The servers of resolv.conf without ourselves, read again every few seconds.
    async fn upstreams(&self) -> Vec<IpAddr> {
        {
            let known = lock(&self.0.upstreams);
            if known.0.is_some_and(|read| read.elapsed() < RELOAD) {
                return known.1.clone();
            }
        }
        let mut servers = read_servers(&self.0.resolv_conf).await;
        if servers.contains(&STUB) {
            let behind = read_servers(BEHIND_STUB.as_ref()).await;
            if !behind.is_empty() {
                servers = behind;
            }
        }
        servers.retain(|server| !self.0.own.contains(server) && !server.is_unspecified());
        if servers.is_empty() {
            tracing::warn!(file = %self.0.resolv_conf.display(), "no DNS upstream: names outside the cluster fail");
        }
        *lock(&self.0.upstreams) = (Some(Instant::now()), servers.clone());
        servers
    }
}

async fn read_servers(path: &std::path::Path) -> Vec<IpAddr> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => ResolvConf::parse(&text).servers,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "DNS upstreams cannot be read");
            Vec::new()
        }
    }
}

/// An answer that the next upstream would hardly better.
fn sound(message: &Message) -> bool {
    matches!(message.rcode(), Rcode::NOERROR | Rcode::NXDOMAIN)
}

/// A socket of its own for each question: the kernel picks a random port, and being connected it takes answers
/// from this upstream only (RFC 5452 §9.2). Whatever does not fit the question is waited past.
async fn over_udp(to: SocketAddr, query: &[u8]) -> std::io::Result<Message> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = tokio::net::UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        if let Some(message) = Message::accept(query, bytes) {
            return Ok(message);
        }
    }
}

async fn over_tcp(to: SocketAddr, query: &[u8]) -> std::io::Result<Option<Message>> {
    let mut stream = tokio::net::TcpStream::connect(to).await?;
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(Message::accept(query, bytes))
}

/// Takes a question out of the table of those under way.
struct Entry {
    inner: Arc<Inner>,
    key: Vec<u8>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.inner.pending).remove(&self.key);
    }
}
