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
    /// What ended it last, also after it was started again: a signal or an exit code, as far as it is known.
    pub last_end: Option<String>,
    /// The end of its log at that time.
    #[serde(default)]
    pub last_lines: Option<String>,
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

    /// Nothing is wrong any more.
    pub fn wired(&self) {
        self.change(|status| status.failure = None);
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

    pub fn ended(&self, name: &str, end: &str, lines: String) {
        self.gone(name, State::Ended, |entry| {
            (entry.last_end, entry.last_lines) = (Some(end.to_owned()), Some(lines));
        });
    }

    /// What had ended it before stays.
    pub fn stopped(&self, name: &str) {
        self.gone(name, State::Stopped, |_| ());
    }

    fn gone(&self, name: &str, state: State, change: impl FnOnce(&mut Entry)) {
        self.change(|status| {
            let entry = status.processes.entry(name.to_owned()).or_insert_with(Entry::new);
            (entry.state, entry.pid) = (state, None);
            change(entry);
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
        Self { state: State::Ended, pid: None, restarts: 0, last_end: None, last_lines: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ended a process is known after it was started again, and after it was stopped for good.
    #[test]
    fn the_last_end_stays() {
        let directory = std::env::temp_dir().join(format!("plumb-status-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let run = RunDir::at(&directory);
        let file = StatusFile::open(&run);
        let entry = || Status::read(&run).processes.remove("api").expect("an entry");
        file.running("api", 7, false);
        assert_eq!(entry().last_end, None);
        file.ended("api", "signal 9 (SIGKILL)", "    its last line\n".to_owned());
        assert_eq!((entry().state, entry().pid), (State::Ended, None));
        file.running("api", 8, true);
        let again = entry();
        assert_eq!((again.state, again.restarts), (State::Running, 1));
        assert_eq!(again.last_end.as_deref(), Some("signal 9 (SIGKILL)"));
        file.stopped("api");
        let stopped = entry();
        assert_eq!((stopped.state, stopped.last_end), (State::Stopped, again.last_end));
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
