//! What lies on disk, so that the next kubelet finds every sandbox and container of this one.
//!
//! ```text
//! /var/lib/plumb/kubelet/<pod uid>/
//!   pod.json               name, namespace, attempt of the sandbox, its addresses
//!   pause                  pid and start time of the pause process
//!   resolv.conf hosts hostname root/
//!   <container>/<attempt>/
//!     spec.json            what the shim is told
//!     shim, pid            pid and start time of the shim and of the container's process
//!     log                  CRI format
//!     exit.json            written by the shim, last
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kernel::process::{Process, start_time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where all pods of the node are.
#[derive(Clone, Debug)]
pub struct Records(PathBuf);

impl Records {
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self(dir.to_owned()))
    }

    pub fn pod(&self, uid: &str) -> PodRecord {
        PodRecord(self.0.join(uid))
    }

    /// The uids of all pods that left something here.
    pub fn uids(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// One pod's directory.
#[derive(Clone, Debug)]
pub struct PodRecord(PathBuf);

/// `pod.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Sandbox {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub host_network: bool,
    /// Counts the sandboxes of this pod; part of the container id that CNI sees.
    pub attempt: u32,
    /// Addresses without prefix; empty until CNI has answered.
    pub addresses: Vec<String>,
    /// The network configuration list that ADD was given, for DEL (libcni caches it likewise).
    pub network: Option<serde_json::Value>,
    /// ADD's result, for CHECK and DEL.
    pub result: Option<serde_json::Value>,
    /// Host ports as the capability `portMappings` has them.
    #[serde(default)]
    pub ports: Vec<serde_json::Value>,
}

impl Sandbox {
    /// The container id that CNI sees.
    pub fn id(&self) -> String {
        format!("{}-{}", self.uid, self.attempt)
    }

    /// Where the pod's network namespace is kept, as container runtimes do.
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("plumb-{}", self.id()))
    }

    pub fn pod(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl PodRecord {
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    pub fn sandbox(&self) -> Option<Sandbox> {
        read_json(&self.file("pod.json"))
    }

    pub fn write_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        write_json(&self.file("pod.json"), sandbox)
    }

    pub fn pause(&self) -> Option<Process> {
        living(&self.file("pause"))
    }

    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(self.file("root")).with_context(|| format!("make {}", self.0.display()))
    }

    pub fn container(&self, name: &str, attempt: u32) -> ContainerRecord {
        ContainerRecord(self.0.join(name).join(attempt.to_string()))
    }

    /// The highest attempt of a container that was ever started.
    pub fn last_attempt(&self, name: &str) -> Option<u32> {
        let entries = fs::read_dir(self.0.join(name)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max()
    }

    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

/// One run of one container.
#[derive(Clone, Debug)]
pub struct ContainerRecord(PathBuf);

/// `exit.json`: how it ended.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub signal: Option<i32>,
    /// Why it could not even be started.
    pub error: Option<String>,
    /// RFC 3339.
    pub started: String,
    pub finished: String,
}

impl ContainerRecord {
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.0).with_context(|| format!("make {}", self.0.display()))
    }

    /// Forgets a run that never started; its number is free again.
    pub fn forget(&self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("remove {}: {error}", self.0.display());
        }
    }

    pub fn log(&self) -> PathBuf {
        self.file("log")
    }

    pub fn shim(&self) -> Option<Process> {
        living(&self.file("shim"))
    }

    /// The container's own process.
    pub fn process(&self) -> Option<Process> {
        living(&self.file("pid"))
    }

    pub fn exit(&self) -> Option<Exit> {
        read_json(&self.file("exit.json"))
    }
}

/// Notes a process that was just started.
pub fn note(path: &Path, process: &Process) -> Result<()> {
    // One that has ended already gets a start time that nothing matches.
    let started = start_time(process.pid()).unwrap_or(0);
    write_whole(path, &format!("{} {started}\n", process.pid()))
}

fn living(path: &Path) -> Option<Process> {
    let (pid, started) = noted(path)?;
    Process::open_same(pid, started).ok()?
}

/// Reaps a noted process that ended while nobody watched it, if it is our child.
pub fn reap(path: &Path) {
    let Some((pid, started)) = noted(path) else { return };
    // A zombie keeps its number and start time until it is reaped.
    if start_time(pid) == Some(started)
        && let Ok(Some(process)) = Process::open(pid)
    {
        // ECHILD: the anchor's.
        let _ = process.try_wait();
    }
}

fn noted(path: &Path) -> Option<(u32, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_whole(path, &serde_json::to_string(value)?)
}

/// Writes beside and renames: a reader sees the old file or the new one, never a half.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .with_context(|| format!("write {}", path.display()))
}
