//! `plumb bench dns`: CPU that one query costs our UDP thread, beside a bare echo with the same system calls.
//!
//! ```text
//!   cpu B: client ── 64 queries ──> 127.0.0.1 ──> cpu A: echo thread   (round 1, 3, 5 …)
//!                 <─ 64 answers ──            └─> cpu A: dns-udp thread (round 2, 4, 6 …)
//! ```
//!
//! Measured from the moment the server thread runs to the moment it sleeps, as the scheduler counts it
//! (/proc/self/task/TID/schedstat), so that other load on the machine changes the rate but hardly the figure.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dns::{Name, Settings, Type, message};
use kernel::udp::Batch;
use model::{
    Cluster, Endpoint, EndpointSlice, Event, Key, Kind, Namespace, Row, Service, ServicePort, SlicePort,
};
use types::{ObjectName, Protocol};

use super::{Counters, DnsConfig, Shared, SharedZone, forward, udp};

/// Queries that are under way at a time.
const WINDOW: usize = 64;
/// Endpoints of each headless service; every tenth service is headless.
const ENDPOINTS: u32 = 20;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Services in the zone, one in ten headless with 20 endpoints.
    #[arg(long, default_value_t = 5000)]
    pub services: u32,
    /// Rounds of each kind.
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Milliseconds of a round.
    #[arg(long, default_value_t = 500)]
    pub millis: u64,
}

/// Nanoseconds of CPU per answered query, one figure a round.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Figures {
    pub nanoseconds: Vec<f64>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub names: usize,
    pub queries: u64,
    pub dns: Figures,
    pub echo: Figures,
}

impl Figures {
    pub fn median(&self) -> f64 {
        let mut sorted = self.nanoseconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn spread(&self) -> (f64, f64) {
        let fold =
            |with: fn(f64, f64) -> f64| self.nanoseconds.iter().copied().reduce(with).unwrap_or(f64::NAN);
        (fold(f64::min), fold(f64::max))
    }
}

impl Report {
    /// How many times an echo one query costs.
    pub fn ratio(&self) -> f64 {
        self.dns.median() / self.echo.median()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, figures) in [("dns answer", &self.dns), ("bare echo", &self.echo)] {
            let (low, high) = figures.spread();
            let (median, rounds) = (figures.median(), figures.nanoseconds.len());
            writeln!(
                f,
                "{what:10}  {median:6.0} ns CPU per query, median of {rounds} ({low:.0} to {high:.0})"
            )?;
        }
        let (ratio, names, queries) = (self.ratio(), self.names, self.queries);
        write!(
            f,
            "ratio       {ratio:.2} (target: at most 1.50), {names} names, {queries} queries, UDP over lo"
        )
    }
}

/// Runs it on a thread of its own, because it pins CPUs.
pub fn run(args: &Args) -> Result<Report> {
    ensure!(args.rounds > 0 && args.millis > 0, "nothing to measure: --rounds and --millis must be above 0");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| measure(args));
        thread.join().map_err(|_| anyhow::anyhow!("the measurement panicked"))?
    })
}

fn measure(args: &Args) -> Result<Report> {
    let (server_cpu, client_cpu) = kernel::udp::two_cpus()?;
    kernel::udp::pin(server_cpu)?;
    let (zone, queries) = zone(args.services)?;
    let names = zone.read().len();
    let echo = Echo::start()?;
    let dns = Dns::start(zone)?;
    kernel::udp::pin(client_cpu)?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut report = Report { names, queries: 0, dns: Figures::default(), echo: Figures::default() };
    for round in 0..=args.rounds {
        for (server, figures) in [(&echo.0, &mut report.echo), (&dns.0, &mut report.dns)] {
            let before = server.cpu()?;
            let answered = load(&client, server.address, &queries, Duration::from_millis(args.millis))?;
            let spent = server.cpu()?.saturating_sub(before);
            ensure!(answered > 0, "{} did not answer", server.name);
            // The first round warms caches and branch predictors.
            if round > 0 {
                figures.nanoseconds.push(spent as f64 / answered as f64);
                report.queries += answered;
            }
        }
    }
    Ok(report)
}

/// Sends windows of queries until the time is over; how many were answered.
fn load(client: &UdpSocket, to: SocketAddr, queries: &[Vec<u8>], time: Duration) -> Result<u64> {
    client.connect(to)?;
    let (start, mut answered, mut next) = (Instant::now(), 0, 0);
    let mut buffer = [0; 2048];
    while start.elapsed() < time {
        for _ in 0..WINDOW {
            let Some(query) = queries.get(next % queries.len()) else { break };
            client.send(query)?;
            next += 1;
        }
        for _ in 0..WINDOW {
            match client.recv(&mut buffer) {
                Ok(_) => answered += 1,
                // One was lost; the rest of its window is not waited for.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("the client cannot receive"),
            }
        }
    }
    Ok(answered)
}

/// A server thread that is measured.
struct Measured {
    name: &'static str,
    address: SocketAddr,
    socket: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    schedstat: std::path::PathBuf,
}

impl Measured {
    /// CPU time so far, in nanoseconds (Documentation/scheduler/sched-stats.rst).
    fn cpu(&self) -> Result<u64> {
        let path = &self.schedstat;
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let first =
            text.split_whitespace().next().context("schedstat is empty: the kernel lacks SCHED_INFO")?;
        Ok(first.parse()?)
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        kernel::udp::wake(&self.socket);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// The thread of this name that belongs to us.
fn schedstat(name: &str) -> Result<std::path::PathBuf> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        for task in std::fs::read_dir("/proc/self/task").context("read /proc/self/task")? {
            let path = task?.path();
            let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            if comm.trim_end() == name {
                return Ok(path.join("schedstat"));
            }
        }
        // A thread names itself after it has started.
        ensure!(Instant::now() < deadline, "thread {name} did not start");
        std::thread::yield_now();
    }
}

struct Echo(Measured);

impl Echo {
    fn start() -> Result<Self> {
        let socket = Arc::new(kernel::udp::bind(([127, 0, 0, 1], 0).into())?);
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, over) = (Arc::clone(&socket), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("bench-echo".into()).spawn(move || {
            let mut batch = Batch::new();
            while !over.load(Ordering::Acquire) {
                if batch.receive(&ours).is_ok() {
                    batch.reply(&ours, |query, _, out| match out.get_mut(..query.len()) {
                        Some(out) => {
                            out.copy_from_slice(query);
                            query.len()
                        }
                        None => 0,
                    });
                }
            }
        })?;
        let (name, address) = ("bench-echo", socket.local_addr()?);
        let schedstat = schedstat(name)?;
        Ok(Self(Measured { name, address, socket, stop, thread: Some(thread), schedstat }))
    }
}

struct Dns(Measured);

impl Dns {
    /// The very thread that serves pods, under a name of its own.
    fn start(zone: SharedZone) -> Result<Self> {
        let socket = Arc::new(kernel::udp::bind(([127, 0, 0, 1], 0).into())?);
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(Counters::default());
        let resolver =
            forward::Resolver::new(&DnsConfig::new(vec![address]), Vec::new(), Arc::clone(&counters));
        let (resolver, callers) = (Arc::new(resolver), zone.callers.clone());
        let (_, leaving) = tokio::sync::watch::channel(false);
        let shared = Shared { zone, counters, resolver, stop: Arc::clone(&stop), leaving, callers };
        // Nobody takes orders: the queries are all about the cluster.
        let thread = udp::spawn("bench-dns", Arc::clone(&socket), shared, forward::Desk::closed())?;
        let (name, schedstat) = ("bench-dns", schedstat("bench-dns")?);
        Ok(Self(Measured { name, address, socket, stop, thread: Some(thread), schedstat }))
    }
}

/// A zone, and queries about it as clusters ask them: 55 % A, 15 % AAAA without data, 20 % names that are not
/// there (search lists), 5 % endpoints, 5 % SRV.
fn zone(services: u32) -> Result<(SharedZone, Vec<Vec<u8>>)> {
    let (cluster, keys) = cluster(services);
    let zone = SharedZone::new(Settings::new("cluster.local")?);
    zone.update(&cluster, &keys);
    let mut queries = Vec::new();
    for number in 0..2000u32 {
        // Any spread over services will do, as long as it is the same in every run.
        let service = number.wrapping_mul(7919) % services;
        let headless = service - service % 10;
        let base = format!("s{service}.team.svc.cluster.local");
        let (name, kind) = match number % 20 {
            0..=10 => (base, Type::A),
            11..=13 => (base, Type::AAAA),
            14..=17 => (format!("s{service}.team.svc.cluster.local.team.svc.cluster.local"), Type::A),
            18 => (format!("e{}.s{headless}.team.svc.cluster.local", number % ENDPOINTS), Type::A),
            _ => (format!("_http._tcp.{base}"), Type::SRV),
        };
        queries.push(message::encode_query(number as u16, &Name::parse(&name)?, kind));
    }
    Ok((zone, queries))
}

fn cluster(services: u32) -> (Cluster, Vec<Key>) {
    let mut cluster = Cluster::default();
    let mut keys = Vec::new();
    let mut apply = |event| keys.extend(cluster.apply(event));
    Kind::ALL.into_iter().for_each(|kind| apply(Event::Start(kind)));
    apply(Event::Upsert(Row::Namespace(Namespace { name: "team".into(), ..Namespace::default() })));
    for number in 0..services {
        let headless = number % 10 == 0;
        let address = std::net::Ipv4Addr::from_bits(0x0a60_0100 + number);
        let key = ObjectName::new("team", format!("s{number}"));
        apply(Event::Upsert(Row::Service(Box::new(Service {
            key: key.clone(),
            headless,
            cluster_ips: if headless { Vec::new() } else { vec![address.into()] },
            ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
            ..Service::default()
        }))));
        if headless {
            let endpoints = (0..ENDPOINTS).map(|index| endpoint(number, index)).collect();
            apply(Event::Upsert(Row::EndpointSlice(EndpointSlice {
                key: key.clone(),
                service: key.name.to_string(),
                ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: Some(8080) }],
                endpoints,
                ..EndpointSlice::default()
            })));
        }
    }
    Kind::ALL.into_iter().for_each(|kind| apply(Event::Done(kind)));
    (cluster, keys)
}

fn endpoint(service: u32, index: u32) -> Endpoint {
    Endpoint {
        hostname: Some(format!("e{index}").into()),
        ..Endpoint::ready(std::net::Ipv4Addr::from_bits(0x0af4_0000 + service * ENDPOINTS + index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_measures_both_servers() {
        let report = run(&Args { services: 50, rounds: 1, millis: 30 }).unwrap();
        assert!(report.queries > 0 && report.ratio() > 0.0, "{report}");
        assert!(report.to_string().contains("ns CPU per query"));
    }
}
