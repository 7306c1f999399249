//! The node's loop, as [`crate::run`] starts it, without the sockets that it needs for nothing here.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernel::Netns;
use kernel::nft::Changes;
use tokio::sync::{oneshot, watch as state};

use super::load::{Load, event_of};
use super::{Notices, PATIENCE, Timed, namespace};
use crate::datapath::Datapath;
use crate::health;
use crate::inbox::{self, Input, Outbox};
use crate::metrics::Metrics;
use crate::network::Presence;
use crate::node::{Base, Node};
use crate::snapshot::{Health, Question};
use crate::tell::Tell;
use crate::{Args, Settings, datapath, dns::SharedZone, forgetter, listen, reaper, store, wirer};

pub const NODE: &str = "node1";

/// The settings with which the agent compiles.
pub fn compile_settings() -> Result<semantics::Settings> {
    let args = args(Path::new("/nonexistent"))?;
    Ok(semantics::Settings {
        service_cidrs: args.service_cidrs.clone(),
        dns_ips: args.dns_ips.clone(),
        ..semantics::Settings::new(NODE, args.cluster_cidrs.clone(), 1450)
    })
}

fn args(directory: &Path) -> Result<Args> {
    let path = |name: &str| directory.join(name).display().to_string();
    let paths = [("--data", "data"), ("--cni-conf-dir", "net.d"), ("--socket", "agent.sock")];
    let paths = paths.map(|(flag, name)| [flag.to_owned(), path(name)]);
    let node = ["--node", NODE, "--mtu", "1450"].map(str::to_owned);
    Ok(Args::of_flags(node.into_iter().chain(paths.into_iter().flatten()))?)
}

/// A running loop and an ear on what it does to the kernel.
pub struct Subject {
    outbox: Outbox,
    portid: u32,
    notices: Notices,
    /// /proc/…/schedstat of the loop's thread and of that of the tables.
    schedstats: [PathBuf; 2],
    directory: PathBuf,
    thread: Option<std::thread::JoinHandle<()>>,
    _netns: Netns,
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It would write its CNI configuration again.
        if self.outbox.send_blocking(Input::Stop)
            && let Some(thread) = self.thread.take()
        {
            // What it panicked of has been said.
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Whose files it has.
const BOOT: &str = "bench";

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Subject {
    pub fn start() -> Result<Self> {
        let netns = namespace()?;
        let unique = format!("plumb-bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&directory)?;
        let settings = Settings::new(args(&directory)?)?;
        let (outbox, inbox) = inbox::new();
        let notices = Notices(Changes::open_in(&netns)?);
        let runtime = tokio::runtime::Handle::current();
        let base = netns.run(|| {
            let _guard = runtime.enter();
            base(settings, &outbox)
        })??;
        let tables = base.datapath.backend.thread().join("schedstat");
        let portid = base.datapath.backend.portid();
        let (thread, started) = mpsc::channel();
        let inside = netns.try_clone()?;
        let running = std::thread::Builder::new().name("bench-loop".into()).spawn(move || {
            let ran = inside.run(|| {
                // Nobody waits for the name when the start has failed.
                let _ = thread.send(std::fs::read_link("/proc/thread-self"));
                Node::new(base, node::Records::default()).run(inbox);
            });
            // Nobody hears that it could not start, but who waits for its name.
            drop(ran);
        })?;
        let thread = started.recv_timeout(PATIENCE).context("the loop did not start")??;
        let schedstats = [PathBuf::from("/proc").join(thread).join("schedstat"), tables];
        Ok(Self { outbox, portid, notices, schedstats, directory, thread: Some(running), _netns: netns })
    }

    /// Lists everything; wall and CPU time until the kernel has all of it.
    pub fn load(&mut self, load: &Load) -> Result<(Duration, Duration)> {
        let events = load.events();
        let (began, before) = (Instant::now(), self.cpu()?);
        for event in events {
            self.send(Input::Watch(watch::Message::Event(event)))?;
        }
        let deadline = began + PATIENCE;
        while let Some(trouble) = self.health()?.trouble {
            if Instant::now() > deadline {
                bail!("the loop does not settle: {trouble}");
            }
        }
        let spent = (began.elapsed(), self.cpu()?.saturating_sub(before));
        self.notices.drain()?;
        Ok(spent)
    }

    /// One event, and how long until the kernel tells of the change.
    pub fn change(&mut self, json: &[u8], timed: &mut Timed) -> Result<()> {
        let before = self.cpu()?;
        let began = Instant::now();
        let event = event_of(json)?;
        self.send(Input::Watch(watch::Message::Event(event)))?;
        self.notices.wait(self.portid)?;
        timed.wall.push(began.elapsed());
        // The round is over when the loop answers: the next change must not wait for this one's DNS update.
        self.health()?;
        timed.cpu.push(self.cpu()?.saturating_sub(before));
        self.notices.drain()
    }

    fn send(&self, input: Input) -> Result<()> {
        if self.outbox.send_blocking(input) { Ok(()) } else { bail!("the loop has ended") }
    }

    fn health(&self) -> Result<Health> {
        let (answer, wait) = oneshot::channel();
        self.send(Input::Asked(Question::Health(answer)))?;
        wait.blocking_recv().context("the loop has ended")
    }

    /// CPU time of both threads so far (Documentation/scheduler/sched-stats.rst).
    fn cpu(&self) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for path in &self.schedstats {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            let first =
                text.split_whitespace().next().context("schedstat is empty: the kernel lacks SCHED_INFO")?;
            all += Duration::from_nanos(first.parse()?);
        }
        Ok(all)
    }
}

/// The loop's state, for tests that play the loop themselves.
#[cfg(test)]
pub(crate) fn held(directory: &Path) -> Result<(Node, inbox::Inbox)> {
    std::fs::create_dir_all(directory)?;
    let (outbox, inbox) = inbox::new();
    let settings = Settings::new(args(directory)?)?;
    let records = store::Store::open(&settings.args.data, BOOT)?.1;
    Ok((Node::new(base(settings, &outbox)?, records), inbox))
}

/// In the namespace of the calling thread. Its API answers nothing, since the loop asks it nothing.
fn base(settings: Settings, outbox: &Outbox) -> Result<Base> {
    let args = settings.args.clone();
    let client = kube::Client::try_from(kube::Config::new(http_nowhere()?))?;
    let metrics = Arc::new(Metrics::default());
    let answers = outbox.clone();
    let wake = move || answers.wake(Input::BackendTurned);
    let datapath = Datapath::open(settings.backend, metrics.drops.clone(), &args.dns_ips, wake)?;
    listen::start(
        outbox.clone(),
        datapath.backend.portid(),
        datapath::listening_scope(&args.dns_ips, &args.cluster_cidrs)?,
    )?;
    let zone = SharedZone::new(crate::zone_settings(&args)?);
    Ok(Base {
        store: store::Store::open(&args.data, BOOT)?.0,
        wirer: wirer::Wirer::start(outbox)?,
        reaper: reaper::Reaper::start(outbox.clone())?,
        forgetter: forgetter::Forgetter::start(outbox.clone())?,
        tell: Tell::start(client.clone(), settings.node.clone(), Arc::clone(&metrics)),
        confirm: crate::confirm::Confirm::start(client, outbox.clone()),
        metrics,
        zone,
        presence: state::channel(Presence::default()).0,
        checks: health::Wanted::new(state::channel(health::Checks::new()).0),
        api: crate::api::Api::default(),
        settings: Arc::new(settings),
        datapath,
    })
}

fn http_nowhere() -> Result<axum::http::Uri> {
    Ok("http://127.0.0.1:1".parse()?)
}
