//! Pid files: how a process started by someone who may be dead by now is found again, and never confused
//! with a later one of the same number (pid and start time).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
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

/// How long the kernel may take to end everything in a lab whose anchor was killed.
const LAST_BREATH: Duration = Duration::from_secs(30);

/// The anchor of a lab, as seen from outside. One that was just killed is waited for: it still has its number while
/// the kernel ends the processes of its PID namespace (zap_pid_ns_processes).
pub fn anchor(run: &RunDir) -> Result<Option<Process>> {
    let Some(anchor) = living(&run.file("anchor"))? else { return Ok(None) };
    if !is_ending(anchor.pid()) {
        return Ok(Some(anchor));
    }
    if !anchor.wait_ended(LAST_BREATH)? {
        bail!("the lab's anchor (pid {}) was killed and has not ended in {LAST_BREATH:?}", anchor.pid());
    }
    Ok(None)
}

/// PF_EXITING among the flags of /proc/PID/stat (proc_pid_stat(5), field 9).
fn is_ending(pid: u32) -> bool {
    const PF_EXITING: u32 = 4;
    let flags = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_ascii_whitespace().nth(6)?.parse::<u32>().ok()
    };
    flags().is_none_or(|flags| flags & PF_EXITING != 0)
}
