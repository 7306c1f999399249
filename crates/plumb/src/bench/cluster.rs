//! `plumb bench cluster`: an agent on a real Kubernetes, and beside it, on another node of the same cluster, under the
//! same API objects and changes, kube-proxy, flannel and CoreDNS, as far as `tools/peers.sh` has built them.

mod ear;
mod load;
mod peers;
mod stage;
mod usage;
mod wide;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kernel::nft::Nft;
use kstate::nft::{TableFamily, TableId};

use super::figures::{Figure, Table};
use super::rig::beside_us;
use ear::Ear;
use load::Load;
use peers::Peers;
use stage::Stage;
use usage::{Rate, Usage, Window};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Services at scale
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Services of the small cluster
    #[arg(long, default_value_t = 100)]
    few: u32,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Endpoint changes that are timed, one after the other
    #[arg(long, default_value_t = 20)]
    changes: u32,
    /// Agent starts that are timed
    #[arg(long, default_value_t = 5)]
    starts: u32,
    /// Pods that are started on each node, one after the other
    #[arg(long, default_value_t = 10)]
    pods: u32,
    /// Nodes of the wide cluster, which are only API objects; 0 leaves it out
    #[arg(long, default_value_t = 5_000)]
    wide_nodes: u32,
    /// Pods of the wide cluster, which are only API objects
    #[arg(long, default_value_t = 50_000)]
    wide_pods: u32,
    /// Nodes that join the wide cluster, one after the other
    #[arg(long, default_value_t = 10)]
    joins: u32,
    /// Seconds of each window in which CPU is counted
    #[arg(long, default_value_t = 30)]
    window: u64,
    /// The `plumb` that is measured [default: this program]
    #[arg(long)]
    plumb: Option<PathBuf>,
    /// Where cluster.sh and peers.sh are
    #[arg(long, default_value = "tools")]
    tools: PathBuf,
}

/// So long anything may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(1);
/// After this much quiet a ruleset is whole.
const QUIET: Duration = Duration::from_secs(5);
const OURS: &str = "node1";
const PODS: &str = "10.244.0.0/16";

fn conflist() -> String {
    format!("/etc/cni/net.d/{}", types::wire::CONFLIST)
}

/// Each of ours beside that of the peers.
#[derive(Default)]
struct Found {
    usable: [Vec<Duration>; 2],
    first_pod: [Vec<Duration>; 2],
    pods: [Vec<Duration>; 2],
    start: [Option<(Duration, Usage)>; 2],
    changed: [Vec<Duration>; 2],
    cpu_per_change: [Duration; 2],
    rates: Vec<(String, [Rate; 2])>,
}

pub fn run(args: &Args) -> Result<Table> {
    ensure!(
        args.services >= args.few && args.few > 0,
        watch::Misused("--services is at least --few, and --few above 0".into())
    );
    ensure!(
        args.endpoints > 0 && args.starts > 0,
        watch::Misused("--endpoints and --starts are above 0".into())
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(args))
}

async fn measure(args: &Args) -> Result<Table> {
    let plumb = beside_us(args.plumb.as_deref(), "plumb")?;
    let mut table = many_services(args, &plumb).await?;
    if args.wide_nodes > 0 {
        for figure in wide::run(args, &plumb).await? {
            table.figure(figure);
        }
    }
    Ok(table)
}

/// Where a measurement of minutes is.
fn tell(began: Instant, what: &str) {
    eprintln!("{:>5.0} s  {what}", began.elapsed().as_secs_f64());
}

async fn many_services(args: &Args, plumb: &Path) -> Result<Table> {
    let began = Instant::now();
    tell(began, "a cluster of two nodes");
    let stage = Stage::up(&args.tools, "services", &[])?;
    let peers = Peers::find(&stage)?;
    let mut load = Load::new(&stage.kubeconfig, args.endpoints).await?;
    for node in [OURS, peers::NODE] {
        load.node(node).await?;
    }
    let bench = Bench { args, stage, peers, plumb: plumb.to_owned() };
    let mut found = Found::default();
    tell(began, "starts of the agent, of its peers, and of pods");
    bench.first_start(&load, &mut found).await?;
    bench.starts(&mut found)?;
    bench.peers.start_all(&bench.stage, PODS, &mut found.usable[1])?;
    bench.pods(&load, &mut found).await?;
    tell(began, "few Services");
    load.fill(args.few).await?;
    bench.rates(&mut load, args.few, &mut found).await?;
    tell(began, "writing many Services");
    load.fill(args.services).await?;
    tell(began, "starts with many Services");
    bench.full_starts(&mut found)?;
    tell(began, "changes with many Services");
    bench.changes(&mut load, &mut found).await?;
    bench.rates(&mut load, args.services, &mut found).await?;
    tell(began, "done with Services");
    Ok(bench.table(&found))
}

fn start_agent(stage: &Stage, plumb: &Path, pods: &str) -> Result<()> {
    let (plumb, config) = (plumb.display().to_string(), stage.inner_kubeconfig());
    let of_pods = format!("--cluster-cidr={pods}");
    stage.start(OURS, "plumb", &[&plumb, "agent", "--node", OURS, "--kubeconfig", &config, &of_pods])
}

struct Bench<'a> {
    args: &'a Args,
    stage: Stage,
    peers: Peers,
    plumb: PathBuf,
}

impl Bench<'_> {
    fn start_agent(&self) -> Result<()> {
        start_agent(&self.stage, &self.plumb, PODS)
    }

    /// Until the configuration that tells the runtime to call us is there.
    fn usable(&self) -> Result<Duration> {
        let path = self.stage.path(OURS, &conflist())?;
        let began = Instant::now();
        self.start_agent()?;
        until("the CNI configuration", || Ok(path.exists().then_some(())))?;
        Ok(began.elapsed())
    }

    /// An empty node with a pod that waits for its network.
    async fn first_start(&self, load: &Load, found: &mut Found) -> Result<()> {
        let executable = std::fs::read(self.plumb.with_file_name("plumb-cni"))
            .context("plumb-cni lies beside plumb: cargo build -p cni-plugin")?;
        for name in ["plumb-cni", "loopback"] {
            self.stage.put(OURS, &format!("/opt/cni/bin/{name}"), &executable)?;
        }
        load.pod("first", OURS, false).await?;
        let began = Instant::now();
        self.start_agent()?;
        found.first_pod[0].push(load.ready("first").await? - began);
        let began = Instant::now();
        load.pod("host", OURS, true).await?;
        found.first_pod[1].push(load.ready("host").await? - began);
        Ok(())
    }

    fn starts(&self, found: &mut Found) -> Result<()> {
        for _ in 0..self.args.starts {
            self.stage.kill(OURS, "plumb")?;
            std::fs::remove_file(self.stage.path(OURS, &conflist())?)?;
            found.usable[0].push(self.usable()?);
        }
        Ok(())
    }

    /// Pods on either node in turn, each gone from the API before the next.
    async fn pods(&self, load: &Load, found: &mut Found) -> Result<()> {
        let wired = self.peers.wire(&self.stage)?;
        for number in 0..self.args.pods {
            for (side, node) in [OURS, peers::NODE].into_iter().enumerate() {
                if side == 1 && !wired {
                    continue;
                }
                let name = format!("pod{number}-{node}");
                load.pod(&name, node, false).await?;
                let began = Instant::now();
                let running = load.ready(&name).await?;
                found.pods[side].push(running - began);
                load.end(&name).await?;
            }
        }
        Ok(())
    }

    /// Nothing of either is in the kernel; from before the start of the process to its last transaction.
    fn full_starts(&self, found: &mut Found) -> Result<()> {
        let want = (self.args.services * self.args.endpoints) as usize;
        self.stage.kill(OURS, "plumb")?;
        self.stage.inside(OURS, &["nft", "flush", "ruleset"])?;
        let ear = Ear::open(&self.stage.netns(OURS)?, "plumb")?;
        let began = Instant::now();
        self.start_agent()?;
        let table = TableId { family: TableFamily::Ip, name: "plumb".into() };
        let mut nft = Nft::open_in(&self.stage.netns(OURS)?)?;
        let mut last = ear.last(QUIET, PATIENCE)?;
        // Quiet is not the end while something is missing.
        until("every endpoint in the kernel", || {
            let observed = nft.observe(std::slice::from_ref(&table))?;
            let have = observed.ruleset.tables.get(&table);
            let have = have.and_then(|table| table.sets.get("ep")).map_or(0, |set| set.elements.len());
            if have < want {
                last = ear.last(QUIET, PATIENCE)?;
            }
            Ok((have >= want).then_some(()))
        })?;
        found.start[0] = Some((last - began, Usage::of(&[self.stage.pid(OURS, "plumb")?])?));
        if self.peers.has("kube-proxy") {
            found.start[1] = Some(self.peers.full_start(&self.stage, self.args.services)?);
        }
        Ok(())
    }

    /// From before the request to each kernel; the next one when both are quiet.
    async fn changes(&self, load: &mut Load, found: &mut Found) -> Result<()> {
        let ears = self.ears()?;
        let window = self.window()?;
        for _ in 0..self.args.changes {
            for ear in ears.iter().flatten() {
                ear.forget();
            }
            let began = load.change().await?;
            for (ear, times) in ears.iter().zip(&mut found.changed) {
                if let Some(ear) = ear {
                    times.push(ear.next(PATIENCE)? - began);
                }
            }
        }
        let spent = window.spent()?;
        found.cpu_per_change = spent.map(|used| used.cpu / self.args.changes.max(1));
        Ok(())
    }

    fn ears(&self) -> Result<[Option<Ear>; 2]> {
        let ours = Ear::open(&self.stage.netns(OURS)?, "plumb")?;
        let theirs = self.peers.has("kube-proxy").then(|| Ear::open(&self.stage.netns(peers::NODE)?, "nft"));
        Ok([Some(ours), theirs.transpose()?])
    }

    fn window(&self) -> Result<Window> {
        let (ours, theirs) = (self.stage.pid(OURS, "plumb")?, self.peers.pids(&self.stage)?);
        Window::open([&[ours], &theirs])
    }

    /// Idle, and with ten changes a second.
    async fn rates(&self, load: &mut Load, services: u32, found: &mut Found) -> Result<()> {
        let time = Duration::from_secs(self.args.window);
        tokio::time::sleep(QUIET).await;
        let window = self.window()?;
        tokio::time::sleep(time).await;
        found.rates.push((format!("{services} Services, idle"), window.close()?));
        let window = self.window()?;
        load.change_for(time).await?;
        found.rates.push((format!("{services} Services, 10 changes/s"), window.close()?));
        Ok(())
    }

    fn table(&self, found: &Found) -> Table {
        let Args { services, endpoints, .. } = self.args;
        let mut table = Table::new("a real Kubernetes");
        let process = "before the start of the process";
        table.note(format!("beside: {}", self.peers));
        table.note(format!("starts: from {process}; changes: from before the request to the API"));
        let figure = |what: String, [ours, theirs]: [&[Duration]; 2], target: &str| {
            Figure::of(&what, ours, theirs, target)
        };
        let both = |pair: &[Vec<Duration>; 2]| [pair[0].clone(), pair[1].clone()];
        for (what, pair, target) in [
            ("agent start → CNI usable; flannel's subnet file".to_owned(), both(&found.usable), "≤ 1 s"),
            ("agent start → first pod runs; a host network pod".to_owned(), both(&found.first_pod), "–"),
            ("pod, API → runs; on flannel and the reference plugins".to_owned(), both(&found.pods), "–"),
            (format!("endpoint change, API → kernel, {services} × {endpoints}"), both(&found.changed), "–"),
        ] {
            table.figure(figure(what, [&pair[0], &pair[1]], target));
        }
        let [ours, theirs] = found.cpu_per_change.map(|cpu| [cpu]);
        table.figure(figure(
            format!("the same, CPU of all processes, {services} × {endpoints}"),
            [&ours, &theirs],
            "–",
        ));
        let [ours, theirs] = found.start.map(|start| start.unwrap_or((Duration::ZERO, Usage::default())));
        let load = format!("{services} × {endpoints}");
        table.figure(figure(format!("start → {load} in the kernel"), [&[ours.0], &[theirs.0]], "–"));
        table.figure(figure(format!("the same, CPU, {load}"), [&[ours.1.cpu], &[theirs.1.cpu]], "–"));
        table.figure(megabytes(format!("RSS after it, {load}"), [ours.1.rss, theirs.1.rss]));
        for (what, [ours, theirs]) in &found.rates {
            table.figure(Figure {
                what: format!("CPU s per minute, {what}"),
                measured: format!("{:.2}", ours.per_minute),
                floor: format!("{:.2}", theirs.per_minute),
                ratio: ours.per_minute / theirs.per_minute,
                target: "≤ 0.25 times".into(),
            });
            table.figure(megabytes(format!("RSS, {what}"), [ours.rss, theirs.rss]));
        }
        table
    }
}

fn megabytes(what: String, [ours, theirs]: [f64; 2]) -> Figure {
    let (measured, floor) = (format!("{ours:.0} MB"), format!("{theirs:.0} MB"));
    Figure { what, measured, floor, ratio: ours / theirs, target: "≤ 0.25 times".into() }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(found) = look()? {
            return Ok(found);
        }
        std::thread::sleep(LOOK);
    }
    bail!("not within {PATIENCE:?}: {what}")
}
