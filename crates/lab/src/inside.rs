//! From outside into a lab: its processes carry other numbers here, so they are reached through the anchor's
//! own /proc, `/proc/<anchor>/root/proc/<pid inside>`.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use kernel::process::{Namespaces, Process, Signal, Spawn};

use crate::lost::{self, Lost, Tables};
use crate::plan::{Plan, node_address, node_number};
use crate::rundir::RunDir;
use crate::{adopt, list};

/// How long all processes of a lab take to end.
const ENDING: Duration = Duration::from_secs(1);

/// A living lab.
#[derive(Debug)]
pub struct Inside {
    pub run: RunDir,
    pub plan: Plan,
    pub anchor: Process,
}

impl Inside {
    /// The lab of this name; an error says how to start it.
    pub fn find(name: &str) -> Result<Self> {
        let run = RunDir::of(name)?;
        match adopt::anchor(&run)? {
            Some(anchor) => Ok(Self { plan: Plan::read(&run)?, run, anchor }),
            None => {
                let others: Vec<String> =
                    list::running().iter().map(|name| format!("--name {name}")).collect();
                let others = match others.is_empty() {
                    true => String::new(),
                    false => format!("; what runs is {}", others.join(", ")),
                };
                bail!("lab {name} is not running; start it with: plumb lab up --name {name}{others}")
            }
        }
    }

    /// Whether it runs no more, as after `plumb lab down`.
    pub fn has_ended(&self) -> bool {
        self.anchor.wait_ended(Duration::ZERO).unwrap_or(true)
    }

    pub fn ended(&self) -> Error {
        let name = &self.plan.name;
        anyhow!("lab {name} has ended meanwhile; plumb lab up --name {name} starts it anew")
    }

    /// What went wrong, or that the lab is not there any more, which is why. Its API goes some moments before its anchor is
    /// seen to end.
    pub fn meanwhile(&self, error: Error) -> Error {
        let unheard = error.chain().any(|cause| {
            matches!(cause.downcast_ref(), Some(kube::Error::Service(_) | kube::Error::HyperError(_)))
        });
        let patience = if unheard { ENDING } else { Duration::ZERO };
        match self.anchor.wait_ended(patience) {
            Ok(true) => self.ended(),
            _ => error,
        }
    }

    /// /proc of a process of the lab, by its number inside.
    pub fn proc(&self, pid: u32) -> PathBuf {
        format!("/proc/{}/root/proc/{pid}", self.anchor.pid()).into()
    }

    /// The number inside of the noted process, if it lives.
    pub fn living(&self, process: &str) -> Option<u32> {
        let (pid, started) = adopt::noted(&self.run.pid_file(process))?;
        let stat = std::fs::read_to_string(self.proc(pid).join("stat")).ok()?;
        let fields = stat.rsplit_once(')')?.1;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        (state != "Z" && fields.nth(18)?.parse() == Ok(started)).then_some(pid)
    }

    /// Ends the noted process. The number inside means nothing here, so it is reached by its /proc directory, which
    /// is opened before the process is judged: a successor with the same number cannot be meant.
    pub fn kill(&self, process: &str) -> Result<()> {
        let Some((pid, _)) = adopt::noted(&self.run.pid_file(process)) else { return Ok(()) };
        let Ok(directory) = File::open(self.proc(pid)) else { return Ok(()) };
        if self.living(process) == Some(pid) {
            // One that has just ended by itself is as good.
            Process::signal_entry(&directory, Signal::KILL).with_context(|| format!("kill {process}"))?;
        }
        Ok(())
    }

    /// Resident memory of a process in KiB.
    pub fn resident(&self, pid: u32) -> Option<u64> {
        let status = std::fs::read_to_string(self.proc(pid).join("status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse()
            .ok()
    }

    /// What the node has lost of its way to the others and out.
    pub fn lost(&self, node: &str) -> Vec<Lost> {
        let holder = self.living(&format!("hold-{node}"));
        let (Some(holder), Some(number)) = (holder, node_number(node)) else { return Vec::new() };
        let families = self.plan.families.list().iter();
        let own: Vec<IpAddr> = families.map(|family| node_address(number, *family)).collect();
        Tables::read(&self.proc(holder).join("net")).map(|tables| tables.lost(&own)).unwrap_or_default()
    }

    /// The same in words.
    pub fn cut_off(&self, node: &str) -> Option<String> {
        lost::told(&self.lost(node))
    }

    pub fn check_node(&self, node: &str) -> Result<()> {
        if node_number(node).is_none_or(|number| number > self.plan.nodes) {
            bail!(
                "lab {} has no node {node:?}; it has {}",
                self.plan.name,
                self.plan.node_names().join(", ")
            );
        }
        Ok(())
    }

    /// A spawn that will run inside the node. Moves this process into the lab's user namespace (of an ordinary
    /// user) for good, which wants a process of one thread.
    pub fn spawn_in(&self, node: &str, program: &str) -> Result<Spawn> {
        self.check_node(node)?;
        let holder = self
            .living(&format!("hold-{node}"))
            .with_context(|| format!("{node} is being made anew; try again in a moment"))?;
        let files = ["mnt", "net", "uts", "pid"].map(|kind| {
            let path = self.proc(holder).join("ns").join(kind);
            File::open(&path).with_context(|| format!("open {}", path.display()))
        });
        if !kernel::own::is_root() {
            self.anchor.enter_for_good(Namespaces::USER)?;
        }
        let mut spawn = Spawn::program(program).directory("/").env(crate::plan::NODE_VARIABLE, node);
        let kinds = [Namespaces::MOUNT, Namespaces::NET, Namespaces::UTS, Namespaces::PID];
        for (kind, file) in kinds.into_iter().zip(files) {
            spawn = spawn.join(kind, file?)?;
        }
        Ok(spawn)
    }
}
