//! The processes that are kept running, and the ones of a lost node that must go.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernel::process::{Namespaces, Process, Signal, Spawn};

use types::Family;
use types::wire::{DNS_IPS, POD_CIDRS, SERVICE_CIDRS};

use super::{Holders, StatusFile, ended};
use crate::adopt;
use crate::hold;
use crate::plan::{NODE_VARIABLE, Plan, node_address};
use crate::rundir::RunDir;

/// A process that ended is started again after this …
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// … doubling up to this while it keeps ending within [`SETTLED`].
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const SETTLED: Duration = Duration::from_secs(5);
/// The anchor, which reaps such a one, tells nobody.
const UNKNOWN: &str = "unknown: the supervisor that had started it has ended, too";
/// How soon `plumb lab agent start` and `plumb lab up` are noticed.
pub const GLANCE: Duration = Duration::from_millis(20);

/// One process and how to start it.
#[derive(Debug)]
pub struct Service {
    name: String,
    run: RunDir,
    args: Vec<String>,
    /// The node it runs in.
    node: Option<(String, OwnedFd)>,
}

/// API, outside, and per node an agent and a kubelet.
pub fn all(run: &RunDir, plan: &Plan, holders: &Holders) -> Result<Vec<Service>> {
    let here = run.path().display().to_string();
    let mut services: Vec<Service> = ["api", "outside"]
        .map(|name| Service {
            name: name.to_owned(),
            run: run.clone(),
            args: ["lab", name, "--run", &here].map(str::to_owned).to_vec(),
            node: None,
        })
        .into();
    for (number, node) in (1..=plan.nodes).zip(plan.node_names()) {
        for program in ["agent", "kubelet"] {
            let holder = holders.get(&node).with_context(|| format!("{node} has no holder"))?;
            let holder = std::os::fd::AsFd::as_fd(holder).try_clone_to_owned()?;
            let mut args = vec![program.to_owned()];
            args.extend(["--node", &node, "--kubeconfig"].map(str::to_owned));
            args.push(format!("/run/{program}.kubeconfig"));
            args.extend(addresses(program, plan, number));
            services.push(Service {
                name: format!("{program}-{node}"),
                run: run.clone(),
                args,
                node: Some((node.clone(), holder)),
            });
        }
    }
    Ok(services)
}

/// What a program of a node must know of the lab's addresses.
fn addresses(program: &str, plan: &Plan, number: u8) -> Vec<String> {
    let joined = |each: &dyn Fn(Family) -> String| {
        plan.families.list().iter().map(|family| each(*family)).collect::<Vec<_>>().join(",")
    };
    let of = |table: [&str; 2]| joined(&|family| family.pick(table).to_owned());
    let mut flags = vec![("--dns-ip", of(DNS_IPS))];
    match program {
        "kubelet" => flags.push(("--address", joined(&|family| node_address(number, family).to_string()))),
        _ => flags.extend([("--cluster-cidr", of(POD_CIDRS)), ("--service-cidr", of(SERVICE_CIDRS))]),
    }
    if program == "agent" && !plan.allow_sources.is_empty() {
        flags.push(("--allow-sources", plan.allow_sources.clone()));
    }
    flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

impl Service {
    /// Adopts or starts it, and starts it again whenever it ends; returns only on an error of the lab's own.
    pub async fn keep_running(self, status: &StatusFile) -> Result<()> {
        let mut adopted = adopt::living(&self.run.pid_file(&self.name))?;
        let (mut pause, mut restarted) = (FIRST_PAUSE, false);
        loop {
            self.wait_while_stopped(status).await;
            let process = match adopted.take() {
                Some(process) => Ok(process),
                None => self.start(),
            };
            let since = Instant::now();
            let (end, lines) = match process {
                Ok(process) => {
                    status.running(&self.name, process.pid(), restarted);
                    let end = ended(&process).await?;
                    let end = end.map_or_else(|| UNKNOWN.to_owned(), |end| end.to_string());
                    (end, self.run.last_lines(&self.name, 3))
                }
                Err(error) => ("it could not be started".to_owned(), format!("    {error:#}\n")),
            };
            status.ended(&self.name, &end, lines);
            pause = if since.elapsed() > SETTLED { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            restarted = true;
            if !self.run.stopped(&self.name).exists() {
                tokio::time::sleep(pause / 2).await;
            }
        }
    }

    async fn wait_while_stopped(&self, status: &StatusFile) {
        let flag = self.run.stopped(&self.name);
        if flag.exists() {
            status.stopped(&self.name);
            while flag.exists() {
                tokio::time::sleep(GLANCE).await;
            }
        }
    }

    fn start(&self) -> Result<Process> {
        let mut spawn = self
            .program()?
            .argv0("plumb")
            .args(&self.args)
            .new_session()
            .output_to(self.run.log(&self.name))?;
        if let Some((node, holder)) = &self.node {
            spawn = spawn
                .env(NODE_VARIABLE, node)
                .join(Namespaces::NET | Namespaces::MOUNT | Namespaces::UTS, holder)?
                .directory("/");
        }
        spawn
            .start_noted(|process| adopt::note(&self.run.pid_file(&self.name), process))
            .with_context(|| format!("start {}", self.name))
    }
}

impl Service {
    /// A kubelet runs from the node's read-only mount of this program; the holder of an earlier version has none.
    fn program(&self) -> Result<Spawn, kernel::Error> {
        let own = |node: &str| self.run.node(node).join(hold::PROGRAM.trim_start_matches('/')).is_file();
        match &self.node {
            Some((node, _)) if self.name.starts_with("kubelet-") && own(node) => {
                Ok(Spawn::program(hold::PROGRAM))
            }
            _ => Spawn::this_program(),
        }
    }
}

/// Ends every process that still runs in the namespaces of a node whose holder is gone.
pub fn evict(node: &str) -> Result<()> {
    let mark = format!("{NODE_VARIABLE}={node}");
    let mut leaving = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Opened before it is judged: a successor with the same pid cannot be meant.
        let Some(process) = Process::open(pid)? else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            process.signal(Signal::KILL)?;
            leaving.push(process);
        }
    }
    for process in leaving {
        process.wait_ended(Duration::from_secs(5))?;
        let _ = process.try_wait();
    }
    Ok(())
}
