//! `plumb bench lab`: a lab of two nodes, as a person at a shell sees it, and what its processes weigh.

pub mod pods;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::lab::inside::Inside;
use ::lab::rundir::RunDir;
use anyhow::{Context, Result, bail, ensure};
use kernel::Netns;

use super::figures::{Figure, Table};
use super::floor::{self, Bare};
use super::idle::Idle;
use pods::Pods;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Labs that are started and ended, one after the other
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Pods that are applied one after the other, of each kind
    #[arg(long, default_value_t = 20)]
    pods: u32,
    /// Pods that run when the API process is weighed
    #[arg(long, default_value_t = 100)]
    weight: u32,
    /// Traces
    #[arg(long, default_value_t = 10)]
    traces: u32,
}

/// After this much quiet a process is idle.
const QUIET: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Times {
    up: Vec<Duration>,
    down: Vec<Duration>,
    up_floor: Vec<Duration>,
    down_loaded: Vec<Duration>,
    down_floor: Vec<Duration>,
    unprobed: Vec<Duration>,
    probed: Vec<Duration>,
    pod_floor: Vec<Duration>,
    trace: Vec<Duration>,
    trace_floor: Vec<Duration>,
    weights: Vec<(String, Weight, &'static str)>,
    idle: Weight,
}

pub fn run(args: &Args) -> Result<Table> {
    ensure!(args.rounds > 0, watch::Misused("nothing to measure: --rounds must be above 0".into()));
    let mut times = Times::default();
    for round in 0..args.rounds {
        let (up, down) = floor::cluster()?;
        times.up_floor.push(up);
        times.down_floor.push(down);
        let lab = Lab::up(&mut times.up)?;
        if round + 1 == args.rounds {
            inside(args, &lab, &mut times)?;
        }
        // With all its pods the last one is another thing.
        let last = round + 1 == args.rounds;
        lab.down(if last { &mut times.down_loaded } else { &mut times.down })?;
    }
    Ok(table(&times))
}

fn inside(args: &Args, lab: &Lab, times: &mut Times) -> Result<()> {
    std::thread::sleep(QUIET);
    let idle = Idle::start(&lab.kubeconfig)?;
    times.idle = Weight::of(&PathBuf::from(format!("/proc/{}", idle.pid())))?;
    drop(idle);
    times.weights.push(("RSS of the agent, idle".into(), lab.weight("agent-node1")?, "≤ 30 MB"));
    times.weights.push(("RSS of the API process, no pods".into(), lab.weight("api")?, "–"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut node = Bare::new(Netns::fresh()?)?;
    let [from, to] = runtime.block_on(async {
        let pods = Pods::new(&lab.kubeconfig).await?;
        for number in 0..args.pods {
            pods.ready(&mut times.unprobed, &format!("unprobed-{number}"), false).await?;
            pods.ready(&mut times.probed, &format!("probed-{number}"), true).await?;
            times.pod_floor.push(floor::pod(&mut node, number)? + pods.round_trip().await?);
        }
        pods.service().await?;
        Ok::<_, anyhow::Error>([pods.place("unprobed-0").await?, pods.place("probed-0").await?])
    })?;
    let netns = lab.netns(&from.0, &from.2)?;
    for _ in 0..args.traces {
        times.trace.push(lab.command(&["trace", "default/unprobed-0", "http://bench:8080"])?);
        times.trace_floor.push(floor::request(&netns, &format!("http://{}:8080", to.1))?);
    }
    let count = args.weight;
    runtime.block_on(async { Pods::new(&lab.kubeconfig).await?.fill(2 * args.pods, count).await })?;
    std::thread::sleep(QUIET);
    for (what, process, target) in
        [("API process", "api", "≤ 60 MB"), ("agent", "agent-node1", "–"), ("kubelet", "kubelet-node1", "–")]
    {
        times.weights.push((format!("RSS of the {what}, {count} pods"), lab.weight(process)?, target));
    }
    Ok(())
}

fn table(times: &Times) -> Table {
    let mut table = Table::new("two nodes");
    let exec = "before exec of the command → it has ended";
    let kernel = "the kernel's part alone: processes, namespaces, a bridge, pairs";
    let ready = "the API has answered the POST → our watch shows Ready";
    let get = "a process in the pod's namespace that only GETs from the same pod";
    let pod = "two processes, namespaces, a pair, one word with the API";
    table.measure("lab of 2 nodes, up", (exec, &times.up), (kernel, &times.up_floor), "≤ 5 s");
    table.measure("lab of 2 nodes, down", (exec, &times.down), (kernel, &times.down_floor), "–");
    table.measure(
        "lab of 2 nodes, down, full of pods",
        (exec, &times.down_loaded),
        (kernel, &times.down_floor),
        "–",
    );
    let (unprobed, probed) = ((ready, &times.unprobed[..]), (ready, &times.probed[..]));
    table.measure("applied pod → Ready", unprobed, (pod, &times.pod_floor), "≤ 0.5 s");
    table.measure("the same with httpGet readiness", probed, (pod, &times.pod_floor), "≤ 0.5 s");
    table.measure("trace through a Service", (exec, &times.trace), (get, &times.trace_floor), "≤ 1 s");
    for (what, weight, target) in &times.weights {
        table.note(format!("{what}: {weight}; idle tokio and TLS: {}  (target: {target})", times.idle));
        table.figure(Figure {
            what: what.clone(),
            measured: weight.to_string(),
            floor: format!("an idle process with tokio and TLS {}", times.idle),
            ratio: weight.rss / times.idle.rss,
            target: (*target).to_owned(),
        });
    }
    table
}

/// Resident memory in MB, and the part of it that no file backs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weight {
    pub rss: f64,
    anonymous: f64,
}

impl std::fmt::Display for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MB ({:.1} MB anonymous)", self.rss, self.anonymous)
    }
}

impl Weight {
    pub fn of(process: &Path) -> Result<Self> {
        let status = std::fs::read_to_string(process.join("status"))?;
        let megabytes = |field: &str| -> Option<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            Some(kib / 1024.0)
        };
        let [rss, anonymous] = ["VmRSS:", "RssAnon:"].map(|field| megabytes(field).unwrap_or(f64::NAN));
        Ok(Self { rss, anonymous })
    }
}

/// A running lab; it goes with the value, also after an error.
pub struct Lab {
    pub name: String,
    program: PathBuf,
    pub kubeconfig: PathBuf,
    gone: bool,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.gone && self.command(&["lab", "down", "--name", &self.name]).is_err() {
            eprintln!("plumb: lab {} could not be ended; plumb lab down --name {}", self.name, self.name);
        }
    }
}

impl Lab {
    pub fn up(times: &mut Vec<Duration>) -> Result<Self> {
        let name = format!("bench-{}", std::process::id());
        let kubeconfig = RunDir::of(&name)?.kubeconfig();
        let lab = Self { name, program: std::env::current_exe()?, kubeconfig, gone: false };
        times.push(lab.command(&["lab", "up", "--name", &lab.name])?);
        Ok(lab)
    }

    pub fn down(mut self, times: &mut Vec<Duration>) -> Result<()> {
        times.push(self.command(&["lab", "down", "--name", &self.name])?);
        self.gone = true;
        Ok(())
    }

    /// Runs this program.
    pub fn command(&self, words: &[&str]) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command.args(words).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        let began = Instant::now();
        let output = command.output()?;
        let took = began.elapsed();
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("plumb {}: {}", words.join(" "), String::from_utf8_lossy(&said));
        }
        Ok(took)
    }

    fn weight(&self, process: &str) -> Result<Weight> {
        let inside = Inside::find(&self.name)?;
        let pid = inside.living(process).with_context(|| format!("{process} does not run"))?;
        Weight::of(&inside.proc(pid))
    }

    /// A pod's network namespace, as its node keeps it.
    pub fn netns(&self, node: &str, name: &str) -> Result<PathBuf> {
        Ok(self.holder(node)?.join("root/run/netns").join(name))
    }

    /// A node's own network namespace.
    pub fn node(&self, node: &str) -> Result<PathBuf> {
        Ok(self.holder(node)?.join("ns/net"))
    }

    /// In /proc: the process that holds the node's namespaces.
    fn holder(&self, node: &str) -> Result<PathBuf> {
        let inside = Inside::find(&self.name)?;
        let holder = inside.living(&format!("hold-{node}")).context("the node has no holder")?;
        Ok(inside.proc(holder))
    }
}
