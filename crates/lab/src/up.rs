//! `plumb lab up`: starts a lab, or mends the one that runs, and waits until its nodes are Ready.

mod launch;
pub mod wait;
pub mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use types::Families;

use crate::plan::{MAX_NODES, Plan};
use crate::rundir::RunDir;
use crate::{Name, adopt, apply, client, down};

/// `plumb lab up`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    name: Name,
    /// How many nodes [default: 2, or as many as the running lab has]
    #[arg(long)]
    nodes: Option<u8>,
    /// Of which families nodes, pods and Services have addresses: ipv4, ipv6 or dual [default: ipv4, or those of the
    /// running lab]
    #[arg(long)]
    families: Option<Families>,
    /// Addresses and prefixes that pods may send from beside their own, where their annotation
    /// plumb.dev/allowed-sources asks for it, with commas between [default: none, or those of the running lab]
    #[arg(long, value_name = "PREFIX")]
    allow_sources: Option<String>,
    #[command(flatten)]
    manifests: apply::Manifests,
    /// Show a directory of this machine to all nodes and pods, as PATH and read-only for pods (may be given several
    /// times) [default: none, or those of the running lab]
    #[arg(long = "mount", value_name = "DIR:PATH")]
    mounts: Vec<String>,
    /// Keep the API's objects in this directory, also after `down`
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// A lab takes a second or two; a machine that is busy with ten other things, more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Progress, one line per step, with the time since the start.
pub struct Progress(Instant);

impl Progress {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn seconds(&self) -> u64 {
        self.0.elapsed().as_secs()
    }

    pub fn step(&self, what: &str) {
        println!("{:>7.2} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// Everything that can be wrong with the input is found before anything is started; a lab that cannot be started is
/// removed again, while one that ran before stays.
pub fn run(options: &Options) -> Result<ExitCode> {
    let progress = Progress::start();
    let manifests = apply::read(&options.manifests)?;
    let name = options.name.get();
    let run = RunDir::of(&name)?;
    let adopted = adopt::anchor(&run)?.is_some();
    let _lock = if adopted {
        let lock = down::lock(&run)?;
        check_same(&run, options)?;
        progress.step(&format!("lab {name} runs already; mending what is broken"));
        launch::mend(&run)?;
        lock
    } else {
        launch::check_kernel(&name, options.families.unwrap_or_default())?;
        let (plan, plugin) = launch::plan(options, &run)?;
        // What a lab that was killed has left.
        run.remove()?;
        run.create(&plan.node_names())?;
        let lock = down::lock(&run)?;
        launched(&run, launch::start(&run, &plan))?;
        progress.step(&format!("lab {}: {} nodes, {}", plan.name, plan.nodes, run.path().display()));
        drop(plugin);
        lock
    };
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?
        .block_on(finish(&run, &manifests, &progress));
    match outcome {
        Err(error) if !adopted && !matches!(error, Failed::Manifest(_)) => {
            launched(&run, Err(error.into()))?;
        }
        other => other?,
    }
    println!("\nexport KUBECONFIG={}", run.kubeconfig().display());
    Ok(ExitCode::SUCCESS)
}

/// `plumb lab check`
#[derive(clap::Args, Debug)]
pub struct Check {
    #[command(flatten)]
    name: Name,
    /// Of which families the lab is to be
    #[arg(long, default_value_t)]
    families: Families,
}

/// `plumb lab check`: whether this kernel can do what a lab asks of it.
pub fn check(asked: &Check) -> ExitCode {
    launch::check(&asked.name.get(), asked.families)
}

/// Nothing is half made: a failed start is taken back.
fn launched(run: &RunDir, outcome: Result<()>) -> Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    match down::end(run) {
        Ok(()) => Err(error.context("the lab did not start, and nothing of it is left")),
        Err(left) => {
            Err(error
                .context(format!("the lab did not start; and its remains could not be removed: {left:#}")))
        }
    }
}

/// Where `up` failed: a manifest that the API refuses says nothing against the lab.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Lab(anyhow::Error),
    #[error(transparent)]
    Manifest(anyhow::Error),
}

async fn finish(run: &RunDir, manifests: &[apply::Item], progress: &Progress) -> Result<(), Failed> {
    wait::nodes_ready(run, Instant::now() + PATIENCE, progress).await.map_err(Failed::Lab)?;
    if manifests.is_empty() {
        return Ok(());
    }
    let client = client::admin(run).await.map_err(Failed::Lab)?;
    for item in manifests {
        progress.step(&apply::apply(&client, item).await.map_err(Failed::Manifest)?);
    }
    let waited: Vec<_> = manifests.iter().filter_map(workloads::Workload::of).collect();
    let deadline = Instant::now() + PATIENCE;
    workloads::ready(&client, &waited, deadline, progress).await.map_err(Failed::Manifest)
}

fn check_same(run: &RunDir, options: &Options) -> Result<()> {
    let plan = Plan::read(run)?;
    if let Some(nodes) = options.nodes.filter(|nodes| *nodes != plan.nodes) {
        bail!(
            "lab {} runs with {} nodes and cannot become one of {nodes}; `plumb lab down --name {}` first",
            plan.name,
            plan.nodes,
            plan.name
        );
    }
    if let Some(families) = options.families.filter(|families| *families != plan.families) {
        bail!(
            "lab {} runs with {} and cannot become {families}; `plumb lab down --name {}` first",
            plan.name,
            plan.families,
            plan.name
        );
    }
    if let Some(sources) = options.allow_sources.as_ref().filter(|sources| **sources != plan.allow_sources) {
        bail!(
            "lab {} runs with --allow-sources {:?} and cannot get {sources:?}; `plumb lab down --name {}` first",
            plan.name,
            plan.allow_sources,
            plan.name
        );
    }
    let mounts = launch::mounts(options)?;
    if !mounts.is_empty() && mounts != plan.mounts {
        let has: Vec<String> = plan.mounts.iter().map(ToString::to_string).collect();
        bail!(
            "lab {} runs with --mount {:?} and cannot get another; `plumb lab down --name {}` first",
            plan.name,
            has.join(" "),
            plan.name
        );
    }
    if let Some(data) = &options.data {
        let wanted = launch::data_file(data)?;
        if wanted != plan.data {
            bail!("lab {} keeps its data in {}, not in {}", plan.name, plan.data.display(), wanted.display());
        }
    }
    Ok(())
}

fn check_nodes(nodes: u8) -> Result<u8> {
    if nodes == 0 || nodes > MAX_NODES {
        bail!("--nodes {nodes}: a lab has 1 to {MAX_NODES} nodes");
    }
    Ok(nodes)
}
