//! What the supervisor sees, written to status.json at every change, for `up` and `status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::Holders;
use crate::rundir::{RunDir, write_whole};

/// One process of the lab.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Entry {
    pub state: State,
    /// In the lab's PID namespace.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it ended last, with the end of its log.
    pub last_end: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum State {
    Running,
    /// By `plumb lab agent stop`.
    Stopped,
    /// Ended; it will be started again.
    Ended,
}

impl State {
    /// As `plumb lab status` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
        }
    }
}

/// The whole file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub processes: BTreeMap<String, Entry>,
    /// Why the supervisor itself ended last.
    pub failure: Option<String>,
}

impl Status {
    pub fn read(run: &RunDir) -> Self {
        let text = std::fs::read_to_string(run.file("status.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// The file and what was last written to it.
#[derive(Clone, Debug)]
pub struct StatusFile {
    run: RunDir,
    status: Arc<Mutex<Status>>,
}

impl StatusFile {
    /// Restart counts go on from the predecessor's.
    pub fn open(run: &RunDir) -> Self {
        Self { run: run.clone(), status: Arc::new(Mutex::new(Status::read(run))) }
    }

    pub fn failed(&self, why: &str) {
        self.change(|status| status.failure = Some(why.to_owned()));
    }

    pub fn holders(&self, holders: &Holders) {
        self.change(|status| {
            status.failure = None;
            for (what, process) in holders {
                let entry = status.processes.entry(format!("hold-{what}")).or_insert_with(Entry::new);
                (entry.state, entry.pid) = (State::Running, Some(process.pid()));
            }
        });
    }

    pub fn running(&self, name: &str, pid: u32, restarted: bool) {
        self.change(|status| {
            let entry = status.processes.entry(name.to_owned()).or_insert_with(Entry::new);
            (entry.state, entry.pid) = (State::Running, Some(pid));
            entry.restarts += u32::from(restarted);
        });
    }

    pub fn gone(&self, name: &str, state: State, why: Option<String>) {
        self.change(|status| {
            let entry = status.processes.entry(name.to_owned()).or_insert_with(Entry::new);
            (entry.state, entry.pid, entry.last_end) = (state, None, why);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut status);
        // The lab works without the file; the next change writes it again.
        let text = serde_json::to_string_pretty(&*status).unwrap_or_default();
        if let Err(error) = write_whole(&self.run.file("status.json"), &text) {
            tracing::warn!("{error:#}");
        }
    }
}

impl Entry {
    fn new() -> Self {
        Self { state: State::Ended, pid: None, restarts: 0, last_end: None }
    }
}
