//! Pid 1 of the lab: reaps orphans and restarts the supervisor. Everything dies with it, so it does nothing
//! that could fail.

use std::time::Duration;

use anyhow::{Context, Result};
use kernel::process::{Process, Spawn};
use std::process::ExitCode;

use crate::rundir::RunDir;
use crate::{Internal, adopt};

/// Between two starts of a supervisor that ends at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs until it is killed.
pub fn run(internal: &Internal) -> Result<ExitCode> {
    let run = RunDir::at(&internal.run);
    loop {
        match supervisor(&run) {
            Ok(supervisor) => reap_until(supervisor.pid())?,
            Err(error) => eprintln!("{error:#}"),
        }
        std::thread::sleep(PAUSE);
    }
}

fn supervisor(run: &RunDir) -> Result<Process> {
    let process = Spawn::this_program()?
        .args(["lab", "supervise", "--run"])
        .arg(run.path())
        .new_session()
        .output_to(run.log("supervise"))?
        .start()
        .context("the anchor cannot start the supervisor")?;
    // A supervisor that is gone already is reaped below, and its successor gets the file.
    if let Err(error) = adopt::note(&run.pid_file("supervise"), &process) {
        eprintln!("{error:#}");
    }
    Ok(process)
}

fn reap_until(supervisor: u32) -> Result<()> {
    while let Some((pid, ended)) = kernel::own::reap_next()? {
        if pid == supervisor {
            eprintln!("the supervisor ended ({ended:?}); starting another");
            return Ok(());
        }
    }
    Ok(())
}
