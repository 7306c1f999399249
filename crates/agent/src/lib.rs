//! Owns: one node: its loop from watch to kernel, its CNI server, its health and metrics.
//! Never: Kubernetes semantics (compile has them) or netlink bytes (kernel has them).
//! In → Out: the API's objects and CNI requests → this node's kernel state, answers, Events.
//! Read first: [`run`], then `node::Node`.

mod actual;
mod api;
pub mod bench;
mod cleanup;
mod clock;
mod confirm;
mod conflist;
mod connections;
mod datapath;
pub mod dns;
mod drops;
mod executables;
pub mod fault;
mod flows;
mod follow;
mod forgetter;
mod health;
mod http;
pub mod inbox;
pub mod journal;
mod listen;
mod metrics;
mod network;
pub mod node;
mod proxy_health;
mod reaper;
pub mod report;
mod reviews;
mod scrape;
mod serve;
mod server;
mod settings;
mod snapshot;
mod store;
mod tell;
mod trace;
mod wirer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kernel::feature::{User, probe, refusal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch as state};
use types::Family;

use crate::datapath::Datapath;
use crate::dns::SharedZone;
use crate::inbox::{Input, Outbox};
use crate::metrics::Metrics;
use crate::network::Presence;
use crate::node::{Base, Node};
use crate::server::Served;
use crate::tell::Tell;

pub use cleanup::{CleanupArgs, cleanup};
pub use settings::{Args, Settings};

/// Runs the node's agent until it is told to stop (SIGTERM, SIGINT). What it put into the kernel stays.
pub async fn run(args: Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let settings = Settings::new(args)?;
    serve::raise_file_limit();
    check_kernel(&settings)?;
    // While the API's objects come: the first port asks for it.
    drop(tokio::task::spawn_blocking(kernel::checksums::program));
    let dns = state::Sender::new(Names::Served);
    let ended = start(settings, dns.clone()).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        why = ended => {
            return why.unwrap_or_else(|_| Err(anyhow!("the agent's parts ended without a word")));
        }
    }
    // Every query that has come so far is answered; the next ones go to other nodes.
    dns.send_replace(Names::Ended);
    if tokio::time::timeout(FAREWELL, dns.closed()).await.is_err() {
        tracing::warn!("the agent ends while its DNS still has clients");
    }
    Ok(())
}

/// Longer than DNS takes leave, shorter than kubelet waits for it.
const FAREWELL: Duration = Duration::from_secs(4);

/// What is to become of the node's DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Served,
    /// By other nodes, for now.
    Paused,
    /// The agent ends.
    Ended,
}

/// Before anything is made. Without what traces need, all but traces works.
fn check_kernel(settings: &Settings) -> Result<()> {
    let (node, ranges) = (&settings.node, &settings.args.cluster_cidrs);
    let users = User::of_agent(ranges.iter().map(Family::of_net));
    if let Some(refusal) = refusal(&format!("the agent of node {node}"), &probe(&users)) {
        bail!(refusal);
    }
    for found in probe(&[User::Trace]).iter().filter(|found| !found.is_there()) {
        let (name, next) = (found.feature.name, found.next_step().unwrap_or_default());
        tracing::warn!(
            answer = found.answer(),
            next,
            "plumb trace cannot follow packets on node {node}: no {name}"
        );
    }
    Ok(())
}

type Ended = oneshot::Receiver<Result<()>>;

/// Starts every part. The receiver hears when one of them has ended, which none should.
async fn start(settings: Settings, dns: state::Sender<Names>) -> Result<Ended> {
    let args = settings.args.clone();
    let only = only_agent(&args.data)?;
    let (client, api) = api::client(&args).await?;
    if let Some(directory) = &args.cni_bin_dir
        && executables::publish(&executables::beside_agent()?, directory)?
    {
        tracing::info!(directory = %directory.display(), "CNI executables written");
    }
    let metrics = Arc::new(Metrics::default());
    let (outbox, inbox) = inbox::new();
    let answers = outbox.clone();
    let wake = move || answers.wake(Input::BackendTurned);
    let datapath = Datapath::open(settings.backend, metrics.drops.clone(), &args.dns_ips, wake)
        .context("open the kernel's network interfaces")?;
    metrics.connections.open().context("open conntrack, for metrics")?;
    let portid = datapath.backend.portid();
    listen::start(outbox.clone(), portid, datapath::listening_scope(&args.dns_ips, &args.cluster_cidrs)?)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot's id")?;
    let zone = SharedZone::new(zone_settings(&args)?);
    let (presence, seen) = state::channel(Presence::default());
    let (checks, checked) = state::channel(health::Checks::new());
    let (store, records) = store::Store::open(&args.data, &boot)?;
    let base = Base {
        store,
        wirer: wirer::Wirer::start(&outbox)?,
        reaper: reaper::Reaper::start(outbox.clone())?,
        forgetter: forgetter::Forgetter::start(outbox.clone())?,
        tell: Tell::start(client.clone(), settings.node.clone(), Arc::clone(&metrics)),
        confirm: confirm::Confirm::start(client.clone(), outbox.clone()),
        metrics: Arc::clone(&metrics),
        zone: zone.clone(),
        presence,
        checks: health::Wanted::new(checks),
        api,
        settings: Arc::new(settings),
        datapath,
    };
    let served = Served { outbox: outbox.clone(), client: client.clone(), metrics, dns };
    let socket = server::bind(&args.socket)?;
    let (report, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("plumb-node".into())
        .spawn(move || Node::new(base, records).run(inbox))
        .context("start the node's thread")?;
    tokio::spawn(watch::run(client, outbox.for_watches()));
    tokio::spawn(health::keep(checked, outbox.clone(), serve::Door::new(served.metrics.refused())));
    if args.proxy_health {
        tokio::spawn(proxy_health::keep(outbox.clone(), serve::Door::new(served.metrics.refused())));
    }
    tokio::spawn(tick(outbox));
    let sockets = tokio::spawn(server::serve(socket, served.clone()));
    let network = tokio::spawn(network::serve(seen, args, zone, served));
    tokio::spawn(async move {
        let _only = only;
        let loop_ended = tokio::task::spawn_blocking(move || thread.join());
        let why = tokio::select! {
            joined = loop_ended => Err(match joined {
                Ok(Err(_)) => anyhow!("the node's loop panicked; see above"),
                _ => anyhow!("the node's loop ended"),
            }),
            result = sockets => result.unwrap_or_else(|error| Err(error.into())),
            result = network => result.unwrap_or_else(|error| Err(error.into())),
        };
        // Nobody waits when the process is ending already.
        let _ = report.send(why);
    });
    Ok(ended)
}

/// A killed agent's process is gone after this long.
const FORMER: Duration = Duration::from_secs(2);

/// Two agents would take the CNI socket from each other and give the same address out twice.
fn only_agent(data: &Path) -> Result<std::os::fd::OwnedFd> {
    let at = || data.display();
    std::fs::create_dir_all(data).with_context(|| format!("{}: make the data directory", at()))?;
    kernel::own::lock_within(data, FORMER)?.with_context(|| {
        format!("another agent works on {}; stop that one first, or give this one a --data of its own", at())
    })
}

fn zone_settings(args: &Args) -> Result<::dns::Settings> {
    let mut settings = ::dns::Settings::new(&args.cluster_domain)
        .with_context(|| format!("--cluster-domain {:?} is not a domain name", args.cluster_domain))?;
    settings.addresses = args.dns_ips.clone();
    settings.ranges = args.cluster_cidrs.iter().chain(&args.service_cidrs).copied().collect();
    Ok(settings)
}

async fn tick(outbox: Outbox) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        if !outbox.send(Input::Tick).await {
            return;
        }
    }
}
