//! `plumb lab down`: the anchor dies, the kernel takes the rest with it, the directory goes.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kernel::process::Signal;

use crate::lock::Lock;
use crate::rundir::RunDir;
use crate::{Name, adopt};

/// How long the kernel may take to end some hundreds of processes.
const PATIENCE: Duration = Duration::from_secs(20);

/// `plumb lab down`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub name: Name,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Ends the lab of this name; that there is none is said, and no error.
pub fn run(options: &Options) -> Result<ExitCode> {
    let name = options.name.get()?;
    let run = RunDir::of(&name)?;
    let tell = |words: &str| {
        if !options.quiet {
            println!("{words}")
        }
    };
    let gone = || {
        tell(&format!("lab {name} is not running: there is no {}", run.path().display()));
        Ok(ExitCode::SUCCESS)
    };
    // Where nobody is about to start it, either, nothing is made to find that out.
    if !run.path().exists() && !run.lock().exists() {
        return gone();
    }
    let _lock = Lock::wait(&run, |words| {
        if !options.quiet {
            eprintln!("{words}")
        }
    })?;
    if !run.path().exists() {
        return gone();
    }
    end(&run)?;
    tell(&format!("lab {name} is gone"));
    Ok(ExitCode::SUCCESS)
}

/// Kills the anchor, waits until all of its PID namespace is gone, and removes the directory.
pub fn end(run: &RunDir) -> Result<()> {
    if let Some(anchor) = adopt::anchor(run)? {
        anchor.signal(Signal::KILL)?;
        // A pid 1 is reported dead only after every other process of its namespace has been
        // (kernel/pid_namespace.c, zap_pid_ns_processes).
        if !anchor.wait_ended(PATIENCE).context("wait for the end of the lab")? {
            bail!(
                "process {} of the lab was killed and is still there after {} s; look at /proc/{}/stack",
                anchor.pid(),
                PATIENCE.as_secs(),
                anchor.pid()
            );
        }
        // Ours when the same `up` started it.
        let _ = anchor.try_wait();
    }
    run.remove()
}
