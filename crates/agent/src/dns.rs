//! DNS on this node: the cluster's names from the zone, all others from the node's own resolvers.
//!
//! ```text
//!   pod ── udp 53 ─> [udp thread] ── cluster's name ──> answer at once
//!                        └─ any other ─> [forward] ── cache ─ upstream udp ─(TC)─ tcp
//!   pod ── tcp 53 ─> [tcp task] ── the same two ways
//!   other nodes' pods, whose agent is away ─> the same on <node>:9476, for nodes and pods only
//! ```

pub mod bench;
mod callers;
pub mod counters;
mod face;
mod forward;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dns::{Edit, Settings, Zone};
use model::{Cluster, Key, Kind};
use tokio::sync::watch;

pub use counters::{Count, Counters};
pub use face::{DnsFace, PAUSED};

/// Where to serve and whom to ask.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The cluster's DNS addresses, one of each family, with their port. Sockets are bound to these very addresses,
    /// so that answers leave from them and so that the rule for nodes without a local server (`socket wildcard 0`)
    /// sees them.
    pub addresses: Vec<SocketAddr>,
    /// Where pods of other nodes ask while their own agent is away: the node's addresses, port 9476. Nobody but
    /// nodes and pods is answered there.
    pub peers: Vec<SocketAddr>,
    /// The node's resolv.conf.
    pub resolv_conf: PathBuf,
    /// Port of the upstreams; 53 but in tests.
    pub upstream_port: u16,
    /// Messages of upstreams that are kept at most.
    pub cache: usize,
}

impl DnsConfig {
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self {
            addresses,
            peers: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            upstream_port: 53,
            cache: 8192,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error(
        "DNS cannot serve on {protocol} {address}: the port is taken, likely by another DNS server on this node \
         (CoreDNS or NodeLocal DNSCache with hostNetwork, dnsmasq, unbound, systemd-resolved); see `ss -lnp sport = \
         :{port}`, then stop it or bind it to its own address: {source}",
        port = address.port()
    )]
    Taken { protocol: &'static str, address: SocketAddr, source: kernel::Error },
    #[error("DNS cannot serve on {protocol} {address}: {source}{}", port_right(source))]
    Bind { protocol: &'static str, address: SocketAddr, source: kernel::Error },
    #[error("DNS cannot start: {0}")]
    Start(#[source] std::io::Error),
    #[error("DNS cannot start: {0}")]
    Kernel(#[from] kernel::Error),
}

/// EACCES of bind(2): what opens a port below 1024, and how it is given.
fn port_right(error: &kernel::Error) -> &'static str {
    const EACCES: i32 = rustix::io::Errno::ACCESS.raw_os_error();
    match error.errno() {
        Some(EACCES) => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: add it to the container's capabilities, or `sysctl -w \
             net.ipv4.ip_unprivileged_port_start=53` on the node"
        }
        _ => "",
    }
}

/// The zone as it is shared between the watch that writes it and the servers that read it. A reader holds the
/// lock for one batch of queries, the writer while one change's entries move.
#[derive(Clone, Debug)]
pub struct SharedZone {
    zone: Arc<RwLock<Zone>>,
    callers: callers::Callers,
}

impl SharedZone {
    pub fn new(settings: Settings) -> Self {
        let callers = callers::Callers::new(&settings.ranges);
        let zone = Arc::new(RwLock::new(Zone::new(settings)));
        Self { zone, callers }
    }

    /// Takes over changed keys. Whether any answer changed.
    pub fn update(&self, cluster: &Cluster, keys: &[Key]) -> bool {
        if keys.iter().any(|key| key.kind == Kind::Node) {
            self.callers.update(cluster);
        }
        let settings = self.read().settings().clone();
        let edit = Edit::compile(&settings, cluster, keys);
        // RFC 1982 serials are 32 bits; Unix time fits until 2106.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32);
        self.zone.write().unwrap_or_else(PoisonError::into_inner).apply(edit, now)
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sockets, threads and tasks of a running server; dropping it ends them all.
#[derive(Debug)]
pub struct DnsServer {
    pub counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    leaving: watch::Sender<bool>,
    listeners: Vec<SocketAddr>,
}

/// What every server shares.
#[derive(Clone, Debug)]
struct Shared {
    zone: SharedZone,
    counters: Arc<Counters>,
    resolver: Arc<forward::Resolver>,
    stop: Arc<AtomicBool>,
    /// Takes no more connections, and ends the ones it has.
    leaving: watch::Receiver<bool>,
    /// Who may ask.
    callers: callers::Callers,
}

/// Starts serving. Needs a running tokio runtime. The address need not be on an interface yet.
pub fn serve(config: DnsConfig, zone: SharedZone) -> Result<DnsServer, DnsError> {
    let addresses: Vec<SocketAddr> = config.addresses.iter().chain(&config.peers).copied().collect();
    let own: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
    let counters = Arc::new(Counters::default());
    let resolver = forward::Resolver::new(&config, own, Arc::clone(&counters));
    let stop = Arc::new(AtomicBool::new(false));
    let (leaving, told) = watch::channel(false);
    let callers = zone.callers.clone();
    let shared = Shared {
        zone,
        counters: Arc::clone(&counters),
        resolver: Arc::new(resolver),
        stop: Arc::clone(&stop),
        leaving: told,
        callers,
    };
    let bound = addresses.into_iter().map(bind).collect::<Result<Vec<_>, DnsError>>()?;
    let mut server = DnsServer {
        counters,
        stop,
        sockets: Vec::new(),
        threads: Vec::new(),
        tasks: Vec::new(),
        leaving,
        listeners: Vec::new(),
    };
    for (socket, listener) in bound {
        server.listeners.push(listener.local_addr().map_err(DnsError::Start)?);
        server.tasks.push(tokio::spawn(tcp::run(tcp::adopt(listener)?, shared.clone())));
        let socket = Arc::new(socket);
        let (sender, task) = forward::spawn(Arc::clone(&socket), shared.clone());
        server.tasks.push(task);
        server.threads.push(udp::spawn("dns-udp", Arc::clone(&socket), shared.clone(), sender)?);
        server.sockets.push(socket);
    }
    Ok(server)
}

fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener), DnsError> {
    let failed = |protocol, address, source: kernel::Error| match source.errno() {
        Some(errno) if errno == EADDRINUSE => DnsError::Taken { protocol, address, source },
        _ => DnsError::Bind { protocol, address, source },
    };
    let listener = kernel::udp::listen(address).map_err(|e| failed("tcp", address, e))?;
    // With port 0 (tests) both protocols get the same port.
    let address = listener.local_addr().map_err(DnsError::Start)?;
    let socket = kernel::udp::bind(address).map_err(|e| failed("udp", address, e))?;
    Ok((socket, listener))
}

/// A packet that has found its socket is in the socket's queue after this long.
const ARRIVAL: Duration = Duration::from_millis(20);
/// How long clients are waited for that have been promised an answer; kubelet gives the agent 5 s.
const FAREWELL: Duration = Duration::from_secs(3);

/// `EADDRINUSE` on Linux, all architectures but MIPS, PA-RISC, SPARC and Alpha.
const EADDRINUSE: i32 = 98;

impl DnsServer {
    /// Where it serves, UDP and TCP alike; the cluster's addresses first.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.listeners
    }

    /// Ends it without losing a query: what comes from now on goes the way of a node without an agent, what is here
    /// already is answered, and what upstreams were asked too, for as long as clients of a leaving agent are waited for.
    pub async fn leave(mut self) {
        for socket in &self.sockets {
            if let Err(error) = kernel::udp::turn_away(socket) {
                tracing::warn!(%error, "DNS leaves, and some queries may be lost");
            }
        }
        self.leaving.send_replace(true);
        tokio::time::sleep(ARRIVAL).await;
        for socket in &self.sockets {
            kernel::udp::end(socket);
        }
        // Each ends by itself when it has no more to do.
        let answered = async {
            for task in &mut self.tasks {
                let _ = task.await;
            }
        };
        if tokio::time::timeout(FAREWELL, answered).await.is_err() {
            tracing::warn!("DNS leaves while upstreams still owe answers");
        }
        self.stop().await;
    }

    /// Ends it and waits until its ports are free. Dropping it ends it too, but its TCP ports only when the
    /// runtime has come round to it.
    pub async fn stop(mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        for task in &tasks {
            task.abort();
        }
        for task in tasks.into_iter().filter(|task| !task.is_finished()) {
            // Aborted, or ended by itself before.
            let _ = task.await;
        }
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        for task in &self.tasks {
            task.abort();
        }
        for socket in &self.sockets {
            kernel::udp::wake(socket);
        }
        for thread in self.threads.drain(..) {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
