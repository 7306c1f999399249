//! `plumb bench endpoints`: from a watch event to the kernel, through the very loop that every node runs.
//!
//! ```text
//!   JSON of the event ─> row ─> inbox ─> [ plumb-node: model ─> pieces ]
//!   t0 ┘                                 [ plumb-tables: plan ─> netlink ] ─> kernel ─> NEWGEN notice
//!                                                                                         └ t1
//!   floor:        the same plan, already compiled ──────────── netlink ───> kernel ─> NEWGEN notice
//! ```
//! The loop runs in a network namespace of its own, the floor in a second one that holds the same ruleset.

mod load;
mod subject;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use compile::backend::nftables::Composed;
use compile::{Compiler, Pieces};
use kernel::nft::{Changes, Nft, Notice};
use kernel::{Netns, Rtnl, net};
use kstate::net::{Op, Plan};
use model::Cluster;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use types::IfName;

use load::{Change, Load};
use subject::Subject;
#[cfg(test)]
pub(crate) use subject::held;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Services in the cluster
    #[arg(long, default_value_t = 1000)]
    pub services: u32,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10)]
    pub endpoints: u32,
    /// Changes of each kind, one after the other
    #[arg(long, default_value_t = 500)]
    pub changes: u32,
    /// Services of the cluster that is loaded as a whole; 0 leaves that out
    #[arg(long, default_value_t = 10_000)]
    pub full_load: u32,
    /// How often it is loaded
    #[arg(long, default_value_t = 3)]
    pub loads: u32,
}

/// What one kind of change cost, each time.
#[derive(Clone, Debug, Default)]
pub struct Timed {
    pub wall: Vec<Duration>,
    /// CPU time of the loop's thread and of the tables'; empty for the floor.
    pub cpu: Vec<Duration>,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    /// An endpoint has another address.
    pub replaced: Timed,
    pub replaced_floor: Timed,
    /// A Service has one endpoint more, or one less.
    pub resized: Timed,
    pub resized_floor: Timed,
    /// From the first listed object to the kernel holding all of it.
    pub full: Timed,
    pub full_floor: Timed,
}

/// So long anything may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(args: &Args) -> Result<Report> {
    ensure!(
        args.services > 0 && args.endpoints > 1,
        "nothing to measure: --services above 0, --endpoints above 1"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _guard = runtime.enter();
    let mut report = Report::default();
    let load = Load::new(args.services, args.endpoints)?;
    let mut subject = Subject::start()?;
    subject.load(&load)?;
    let mut floor = Floor::start(&load)?;
    for number in 0..args.changes {
        for (change, ours, bare) in [
            (Change::Replace, &mut report.replaced, &mut report.replaced_floor),
            (Change::Resize, &mut report.resized, &mut report.resized_floor),
        ] {
            let json = load.changed(change, number)?;
            subject.change(&json, ours)?;
            floor.change(&json, bare)?;
        }
    }
    if args.full_load > 0 {
        let load = Load::new(args.full_load, args.endpoints)?;
        for _ in 0..args.loads {
            let spent = Subject::start()?.load(&load)?;
            report.full.wall.push(spent.0);
            report.full.cpu.push(spent.1);
            report.full_floor.wall.push(Floor::start(&load)?.loading);
        }
    }
    Ok(report)
}

/// The kernel's notices of transactions in one namespace.
struct Notices(Changes);

impl Notices {
    /// Waits for the transaction of this socket.
    fn wait(&mut self, portid: u32) -> Result<()> {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            ensure!(poll(&mut fds, Some(&timeout))? > 0, "the kernel told of no change within {PATIENCE:?}");
            let ours = |notice: &Notice<_>| matches!(notice, Notice::Event(netlink::nft::Change { portid: p, .. }) if *p == portid);
            if self.0.take()?.iter().any(ours) {
                return Ok(());
            }
        }
    }

    fn drain(&mut self) -> Result<()> {
        self.0.take().map(drop).context("listen to nf_tables")
    }
}

/// The same ruleset by the same plans, without watch, model, loop or compiling.
struct Floor {
    cluster: Cluster,
    compiler: Compiler,
    tables: Composed,
    nft: Nft,
    notices: Notices,
    loading: Duration,
    _netns: Netns,
}

impl Floor {
    fn start(load: &Load) -> Result<Self> {
        let netns = Netns::fresh()?;
        let nft = Nft::open_in(&netns)?;
        let notices = Notices(Changes::open_in(&netns)?);
        let (cluster, compiler) = (Cluster::default(), Compiler::new(subject::compile_settings()?));
        let (tables, loading) = (Composed::default(), Duration::ZERO);
        let mut floor = Self { cluster, compiler, tables, nft, notices, loading, _netns: netns };
        let keys: Vec<_> = load.events().into_iter().flat_map(|event| floor.cluster.apply(event)).collect();
        floor.loading = floor.apply(&keys)?;
        floor.notices.drain()?;
        Ok(floor)
    }

    fn change(&mut self, json: &[u8], timed: &mut Timed) -> Result<()> {
        let keys = self.cluster.apply(load::event_of(json)?);
        let began = self.apply_noticed(&keys)?;
        timed.wall.push(began);
        Ok(())
    }

    fn plan(&mut self, keys: &[model::Key]) -> Result<kstate::nft::Plan> {
        let synced = self.cluster.synced().context("everything is listed")?;
        let pieces = self.compiler.update(synced, keys).pieces;
        Ok(pieces.map(|Pieces::Nftables(pieces)| self.tables.compose(pieces)).unwrap_or_default())
    }

    /// Only what happens after compiling counts.
    fn apply(&mut self, keys: &[model::Key]) -> Result<Duration> {
        let plan = self.plan(keys)?;
        let began = Instant::now();
        self.nft.apply(&plan, self.tables.ruleset())?;
        Ok(began.elapsed())
    }

    fn apply_noticed(&mut self, keys: &[model::Key]) -> Result<Duration> {
        let plan = self.plan(keys)?;
        let began = Instant::now();
        self.nft.apply(&plan, self.tables.ruleset())?;
        self.notices.wait(self.nft.portid())?;
        Ok(began.elapsed())
    }
}

/// The node's InternalIP.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 10));

/// A namespace as a machine has it: with `lo` up, and the node's address, without which the loop makes nothing.
fn namespace() -> Result<Netns> {
    const LOOPBACK: u32 = 1;
    let netns = Netns::fresh()?;
    let mut rtnl = Rtnl::open_in(&netns)?;
    rtnl.set_up(LOOPBACK)?;
    let address = Op::AddAddress { link: IfName::new("lo")?, address: ADDRESS.into() };
    let failures = net::apply(&mut rtnl, &Plan { grow: vec![address], shrink: Vec::new() })?;
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(netns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_seen_in_the_kernel() {
        let args = Args { services: 20, endpoints: 3, changes: 4, full_load: 30, loads: 1 };
        let report = run(&args).unwrap();
        for timed in [&report.replaced, &report.resized, &report.replaced_floor, &report.resized_floor] {
            assert_eq!(timed.wall.len(), 4);
        }
        assert_eq!((report.full.wall.len(), report.full_floor.wall.len()), (1, 1));
        // A thread that runs is counted up to its last tick: one change may be too short to be seen.
        assert!(report.replaced.cpu.iter().any(|cpu| !cpu.is_zero()));
    }
}
