//! Pid files: how a process started by someone who may be dead by now is found again, and never confused
//! with a later one of the same number (pid and start time).

use std::path::Path;

use anyhow::{Context, Result};
use kernel::process::{Process, start_time};

use crate::rundir::{RunDir, write_whole};

/// Notes a process that was just started.
pub fn note(path: &Path, process: &Process) -> Result<()> {
    let pid = process.pid();
    let started =
        start_time(pid).with_context(|| format!("process {pid} ended as soon as it was started"))?;
    write_whole(path, &format!("{pid} {started}\n"))
}

/// The pid and start time in a pid file.
pub fn noted(path: &Path) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// The noted process, if it lives.
pub fn living(path: &Path) -> Result<Option<Process>> {
    match noted(path) {
        Some((pid, started)) => Ok(Process::open_same(pid, started)?),
        None => Ok(None),
    }
}

/// The anchor of a lab, as seen from outside.
pub fn anchor(run: &RunDir) -> Result<Option<Process>> {
    living(&run.file("anchor"))
}
