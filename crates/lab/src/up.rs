//! `plumb lab up`: starts a lab, or mends the one that runs, and waits until its nodes are Ready.

mod launch;
pub mod mended;
pub mod wait;
pub mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use kernel::interrupt::Interrupted;
use kube::Client;
use types::Families;

use crate::inside::Inside;
use crate::interrupt;
use crate::lock::Lock;
use crate::plan::{MAX_NODES, Plan};
use crate::progress::Progress;
use crate::rundir::RunDir;
use crate::{Name, Output, adopt, apply, client, down, share};

/// `plumb lab up`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    name: Name,
    /// How many nodes [default: 2, or as many as the running lab has]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: Option<u8>,
    /// Of which families nodes, pods and Services have addresses: ipv4, ipv6 or dual [default: ipv4, or those of the
    /// running lab]
    #[arg(long)]
    families: Option<Families>,
    /// Addresses and prefixes that pods may send from beside their own, where their annotation
    /// plumb.dev/allowed-sources asks for it, with commas between [default: none, or those of the running lab]
    #[arg(long, value_name = "PREFIX")]
    allow_sources: Option<String>,
    /// The length of each node's IPv4 pod CIDR, as kube-controller-manager has this flag: of 28, a node has 13 addresses for
    /// pods [default: 24, or that of the running lab]
    #[arg(long, value_name = "LENGTH", value_parser = clap::value_parser!(u8).range(24..=28))]
    node_cidr_mask_size: Option<u8>,
    #[command(flatten)]
    manifests: apply::Manifests,
    /// Show a directory of this machine to all nodes and pods, as PATH and read-only for pods (may be given several
    /// times) [default: none, or those of the running lab]
    #[arg(long = "mount", value_name = "DIR:PATH")]
    mounts: Vec<String>,
    /// Keep the API's objects in this directory, also after `down`
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Seconds to wait for the nodes, and again so many for what a manifest brings: a lab takes a second or two, on a
    /// machine that is busy with ten others more
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
}

/// Everything that can be wrong with the input is found before anything is started; a lab that cannot be started is
/// removed again, while one that ran before stays.
pub fn run(options: &Options) -> Result<ExitCode> {
    let progress = Progress::start(options.output, options.quiet);
    let run = RunDir::of(&options.name.get()?)?;
    let outcome = up(options, &run, &progress);
    progress.end(&run, outcome)
}

fn up(options: &Options, run: &RunDir, progress: &Progress) -> Result<ExitCode> {
    let found = apply::read(&options.manifests)?;
    let patience = Duration::from_secs(options.timeout);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    // From here on a `down` waits, and takes away what comes of this.
    let lock = Lock::wait(run, |words| progress.held_up(words))?;
    let manifests = runtime.block_on(rehearsed(options, run, found))?;
    if adopt::anchor(run)?.is_none() {
        launch::check_kernel(&run.name(), options.families.unwrap_or_default())?;
    }
    // From here on there may be something to take back.
    kernel::interrupt::is_heard();
    let adopted = adopt::anchor(run)?.is_some();
    let mended = match adopted {
        true => adopt(options, run, progress)?,
        false => start(options, run, progress).map(|()| false)?,
    };
    let ready = runtime.block_on(interrupt::or(async {
        let deadline = Instant::now() + patience;
        wait::Nodes { run, stays: adopted, deadline, progress }.ready().await?;
        if mended {
            mended::in_order(run, deadline, progress).await?;
        }
        client::admin(run).await
    }));
    let client = match ready {
        Err(error) => return unready((run, progress), adopted, error),
        Ok(client) => client,
    };
    // A manifest that the API refuses says nothing against the lab, and what it brings may take its time: meanwhile others
    // may do with the lab what they like.
    drop(lock);
    let inside = Inside::find(&run.name())?;
    let applied = apply_all(&client, run, &manifests, (patience, progress));
    match runtime.block_on(interrupt::or(applied)) {
        Err(error) if !error.is::<Interrupted>() => return Err(inside.meanwhile(error)),
        Err(error) => return interrupted((run, progress), error),
        Ok(()) => mended::notes(&inside, progress),
    }
    progress.ready(run);
    Ok(ExitCode::SUCCESS)
}

async fn rehearsed(options: &Options, run: &RunDir, found: apply::Found) -> Result<Vec<apply::Item>> {
    let (families, known) = match adopt::anchor(run)? {
        Some(_) => (Plan::read(run)?.families, apply::Known::Part),
        // What is kept of an earlier lab is known when this one runs.
        None if options.data.is_some() => (options.families.unwrap_or_default(), apply::Known::Part),
        None => (options.families.unwrap_or_default(), apply::Known::All),
    };
    found.rehearsed(families, known).await
}

/// Nodes that are not Ready, or a person who does not wait for them any longer.
fn unready((run, progress): (&RunDir, &Progress), adopted: bool, error: Error) -> Result<ExitCode> {
    match error.downcast_ref::<Interrupted>() {
        _ if adopted => interrupted((run, progress), error),
        None => launched(run, Err(error)).map(|()| ExitCode::FAILURE),
        Some(signal) => {
            let name = run.name();
            down::end(run).with_context(|| {
                format!("interrupted; lab {name} did not end: plumb lab down --name {name} tries again")
            })?;
            told(progress, &format!("interrupted: lab {name} was still starting, and nothing of it is left"));
            Ok(ExitCode::from(signal.exit_code()))
        }
    }
}

/// Of a lab that runs: it stays, whatever it was that failed.
fn interrupted((run, progress): (&RunDir, &Progress), error: Error) -> Result<ExitCode> {
    let Some(signal) = error.downcast_ref::<Interrupted>().copied() else { return Err(error) };
    let name = run.name();
    let again = "the same command again goes on from there";
    told(
        progress,
        &format!(
            "interrupted: lab {name} goes on running with what it has; {again}, plumb lab down --name {name} takes it away"
        ),
    );
    Ok(ExitCode::from(signal.exit_code()))
}

/// What is no error of the program's.
fn told(progress: &Progress, why: &str) {
    eprintln!("plumb: {why}");
    progress.fails(why);
}

/// Whether nodes have got something back.
fn adopt(options: &Options, run: &RunDir, progress: &Progress) -> Result<bool> {
    check_same(run, options)?;
    progress.step(&format!("lab {} runs already; mending what is broken", run.name()));
    mended::mend(run, progress)
}

fn start(options: &Options, run: &RunDir, progress: &Progress) -> Result<()> {
    let (plan, plugin) = launch::plan(options, run)?;
    // What a lab that was killed has left.
    run.remove()?;
    let made = run.create(&plan.node_names()).and_then(|()| launch::start(run, &plan));
    launched(run, made)?;
    progress.step(&format!("lab {}: {} nodes, {}", plan.name, plan.nodes, run.path().display()));
    drop(plugin);
    Ok(())
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
pub fn check(asked: &Check) -> Result<ExitCode> {
    Ok(launch::check(&asked.name.get()?, asked.families))
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

async fn apply_all(
    client: &Client,
    run: &RunDir,
    manifests: &[apply::Item],
    (patience, progress): (Duration, &Progress),
) -> Result<()> {
    let mut wrong = Vec::new();
    for item in manifests {
        match apply::apply(client, item).await {
            Ok(outcome) => progress.applied(item.to_string(), item.namespace()?, outcome),
            // The others may be right, as for kubectl.
            Err(error) if apply::is_refused(&error) => wrong.push(error),
            Err(error) => return Err(error),
        }
    }
    apply::all_of(wrong)?;
    let waited: Vec<_> = manifests.iter().filter_map(workloads::Workload::of).collect();
    let (deadline, kubectl) = (Instant::now() + patience, run.kubectl());
    workloads::Wait { client, kubectl: &kubectl, deadline, progress, seen: workloads::Seen::default() }
        .ready(&waited)
        .await
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
        let has = match plan.allow_sources.as_str() {
            "" => "without --allow-sources".to_owned(),
            some => format!("with --allow-sources {some}"),
        };
        bail!(
            "lab {} runs {has} and cannot get {sources:?}; `plumb lab down --name {}` first",
            plan.name,
            plan.name
        );
    }
    if let Some(length) = options.node_cidr_mask_size.filter(|length| *length != plan.node_cidr_mask_size) {
        bail!(
            "the nodes of lab {} have pod CIDRs of length {} and cannot get others of {length}; `plumb lab down --name {}` \
             first",
            plan.name,
            plan.node_cidr_mask_size,
            plan.name
        );
    }
    let mounts = launch::mounts(options)?;
    if !mounts.is_empty() && !share::are_same(&mounts, &plan.mounts) {
        let has = match plan.mounts.as_slice() {
            [] => "without --mount".to_owned(),
            some => some.iter().map(|mount| format!("with --mount {mount}")).collect::<Vec<_>>().join(" "),
        };
        bail!(
            "lab {} runs {has} and cannot get another; `plumb lab down --name {}` first",
            plan.name,
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
