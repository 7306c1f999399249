//! The lab's own process: makes the namespaces, wires them, and keeps every process running.
//!
//! It may be killed at any moment. What it started lives on (children of the anchor by then), and its successor
//! adopts it by pid file and start time; only what is missing is started. When a holder ends, the namespaces are
//! lost: the supervisor ends too, and its successor makes that part anew.

pub mod service;
mod status;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernel::mount::Mount;
use kernel::process::{Ended, Namespaces, Process, Signal, Spawn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::plan::Plan;
use crate::rundir::RunDir;
use crate::{Internal, adopt, hold, network};

pub use status::{Entry, State, Status, StatusFile};

/// The processes that keep the namespaces, by what they keep: underlay, outside, node1 ….
pub type Holders = BTreeMap<String, Process>;

/// Runs until it is killed or a holder ends.
pub fn run(internal: &Internal) -> Result<ExitCode> {
    let run = RunDir::at(&internal.run);
    let plan = Plan::read(&run)?;
    let status = StatusFile::open(&run);
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the supervisor's loop")?
        .block_on(supervise(&run, &plan, &status));
    if let Err(error) = &outcome {
        status.failed(&format!("{error:#}"));
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn supervise(run: &RunDir, plan: &Plan, status: &StatusFile) -> Result<()> {
    let holders = holders(run, plan)?;
    let wired = network::wire(plan, &holders);
    status.holders(&holders);
    let mut tasks = tokio::task::JoinSet::new();
    for service in service::all(run, plan, &holders)? {
        let status = status.clone();
        tasks.spawn(async move { service.keep_running(&status).await });
    }
    let lost = async {
        let ends = holders.iter().map(|(name, process)| {
            Box::pin(async move {
                ended(process).await?;
                Ok::<_, anyhow::Error>(name)
            })
        });
        futures::future::select_ok(ends).await
    };
    tokio::select! {
        () = mend(run, (plan, &holders), (status, wired)) => Ok(()),
        lost = lost => {
            let (name, _) = lost?;
            bail!("the process that holds the namespaces of {name} ended; they are made anew")
        }
        Some(ended) = tasks.join_next() => match ended {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) => bail!("a service gave up"),
            Err(error) => Err(error.into()),
        }
    }
}

/// Between two tries to wire a lab that could not be wired.
const AGAIN: Duration = Duration::from_secs(1);

/// Wires the lab again whenever `plumb lab up` asks for it: what somebody has taken down in a node is up again. Only then,
/// since a lab is there to be broken; and until it succeeds. Meanwhile processes are looked after as ever.
async fn mend(
    run: &RunDir,
    (plan, holders): (&Plan, &Holders),
    (status, mut wired): (&StatusFile, Result<()>),
) {
    loop {
        match &wired {
            Ok(()) => status.wired(),
            Err(error) => status.failed(&format!("{error:#}")),
        }
        // Whoever asked may have given up.
        let _ = std::fs::remove_file(run.rewire());
        let began = Instant::now();
        while !run.rewire().exists() && (wired.is_ok() || began.elapsed() < AGAIN) {
            tokio::time::sleep(service::GLANCE).await;
        }
        wired = network::wire(plan, holders);
    }
}

/// Waits for the end of a process, and reaps it if it is ours: then how it ended is known.
pub async fn ended(process: &Process) -> Result<Option<Ended>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may close their file; a borrow cannot"
    )]
    let watched = AsyncFd::with_interest(process.as_fd(), Interest::READABLE).context("watch a process")?;
    watched.readable().await.context("watch a process")?.retain_ready();
    // ECHILD: started by a predecessor; the anchor reaps it.
    Ok(process.try_wait().ok().flatten())
}

fn holders(run: &RunDir, plan: &Plan) -> Result<Holders> {
    let mut holders = Holders::new();
    for what in ["underlay", "outside"].map(str::to_owned).into_iter().chain(plan.node_names()) {
        let file = run.pid_file(&format!("hold-{what}"));
        let holder = match adopt::living(&file)? {
            Some(process) => process,
            None => {
                service::evict(&what)?;
                start_holder(run, &what)?
            }
        };
        holders.insert(what, holder);
    }
    Ok(holders)
}

fn start_holder(run: &RunDir, what: &str) -> Result<Process> {
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let name = format!("hold-{what}");
    let mut spawn = Spawn::this_program()?
        .args(["lab", "hold", "--run"])
        .arg(run.path())
        .arg(what)
        // By which `evict` finds one that was not noted because the supervisor was killed.
        .env(crate::plan::NODE_VARIABLE, what)
        .new_namespaces(Namespaces::NET)
        .new_session()
        .output_to(run.log(&name))?
        .file(1, &writer)?;
    if crate::plan::node_number(what).is_some() {
        spawn = spawn
            .new_namespaces(Namespaces::MOUNT | Namespaces::UTS)
            .hostname(what)
            .mount(Mount::private("/")?);
    }
    let process = spawn.start().with_context(|| format!("start the holder of {what}"))?;
    drop(writer);
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).with_context(|| format!("hear from the holder of {what}"))?;
    if line.trim_end() != hold::READY {
        let _ = process.signal(Signal::KILL);
        let _ = process.wait();
        bail!("the namespaces of {what} could not be made:\n{}", run.last_lines(&name, 5));
    }
    adopt::note(&run.pid_file(&name), &process)?;
    Ok(process)
}
