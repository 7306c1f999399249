//! Ctrl-C, or the end of a CI job, while `up` works: a person wants to know then what is left.

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that end a command, by number: Ctrl-C and kill(1).
const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// The signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted(u8);

impl std::error::Error for Interrupted {}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl Interrupted {
    /// As shells have it.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(128 + self.0)
    }

    pub fn of(error: &anyhow::Error) -> Option<Self> {
        error.downcast_ref().copied()
    }
}

/// From its making on signals do not end this process: they are heard by [`Self::or`], also those that come before it.
pub struct Interrupt {
    int: Option<Signal>,
    term: Option<Signal>,
}

impl Interrupt {
    /// In a runtime.
    pub fn listen() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hear = |number: u8| -> io::Result<Option<Signal>> {
            // A shell's background jobs ignore Ctrl-C, and so do commands below nohup(1).
            if ignores(&status, number) {
                return Ok(None);
            }
            signal(SignalKind::from_raw(number.into())).map(Some)
        };
        let heard = || -> io::Result<Self> { Ok(Self { int: hear(SIGINT)?, term: hear(SIGTERM)? }) };
        heard().context("listen for signals")
    }

    /// Does the work, or fails as [`Interrupted`].
    pub async fn or<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = came(&mut self.int) => Err(Interrupted(SIGINT).into()),
            () = came(&mut self.term) => Err(Interrupted(SIGTERM).into()),
            done = work => done,
        }
    }
}

async fn came(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Of /proc/self/status (proc(5), SigIgn).
fn ignores(status: &str, signal: u8) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_has_ignored_stays_ignored() {
        let status = "Name:\tplumb\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001002\n";
        assert!(ignores(status, SIGINT) && !ignores(status, SIGTERM));
        assert!(!ignores("", SIGINT));
    }

    #[tokio::test]
    async fn a_signal_ends_the_work_also_when_it_came_before() {
        let mut interrupt =
            Interrupt { int: None, term: Some(signal(SignalKind::user_defined1()).expect("heard")) };
        assert_eq!(interrupt.or(async { Ok(7) }).await.expect("nothing came"), 7);
        let own = format!("kill -USR1 {}", std::process::id());
        std::process::Command::new("sh").args(["-c", &own]).status().expect("sh is there");
        let error = interrupt.or(std::future::pending::<Result<()>>()).await.expect_err("it came");
        assert_eq!(Interrupted::of(&error), Some(Interrupted(SIGTERM)));
        assert_eq!(error.to_string(), "interrupted");
    }
}
