//! Owns: the lab: nodes as namespaces on one machine, the processes in them, and their life from up to down.
//! Never: touches the machine's own network namespace, and no decision of the network: agents make it.
//! In → Out: `plumb lab …` → a process tree under one anchor, a run directory, a kubeconfig.
//! Read first: [`Args`], then [`plan::Plan`], then [`supervise`].
//!
//! ```text
//! caller's PID and network namespace
//! └─ anchor            pid 1 of the lab's PID namespace (and user namespace, when not root)
//!    ├─ supervise      starts and restarts everything below; itself restarted by the anchor
//!    │  ├─ api         127.0.0.1:<port> (caller's netns) and 192.168.1.2:6443 (underlay netns)
//!    │  ├─ outside     its sockets in the outside netns, its questions asked in the caller's
//!    │  ├─ agent, kubelet        per node, inside the node's net, mount and UTS namespaces
//!    │  └─ hold underlay | outside | node1 | …       keep the namespaces alive
//!    └─ pause, shim    of pods whose kubelet was killed: they belong to nobody but their node
//! ```
//! Killing the anchor makes the kernel end every process of the PID namespace; with them go the namespaces,
//! and with those every interface, rule and mount. That is all that `down` does, whatever was killed before.

// Its `println!` does not panic when a reader goes.
#[macro_use]
extern crate kernel;

pub mod adopt;
pub mod agent;
pub mod anchor;
mod api;
mod apply;
mod client;
pub mod down;
pub mod exec;
mod expose;
mod found;
pub mod hold;
pub mod inside;
pub mod interrupt;
mod list;
mod lock;
mod logs;
mod lost;
mod network;
mod outside;
pub mod plan;
mod progress;
pub mod rundir;
mod serving;
mod share;
pub mod status;
pub mod supervise;
pub mod up;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

pub use found::Found;
pub use progress::{Silence, aloud};

/// `plumb lab …`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// The lab's name: two labs of different names run side by side.
#[derive(clap::Args, Clone, Debug)]
pub struct Name {
    /// Name of the lab [default: that of the lab's kubeconfig in KUBECONFIG, else demo]
    #[arg(long)]
    name: Option<String>,
}

impl Name {
    /// The name that was given, or that KUBECONFIG tells: whoever has a lab for kubectl means the same one here.
    pub fn get(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let told = std::env::var_os("KUBECONFIG").zip(rundir::base().ok());
        let told = told.map(|(kubeconfigs, base)| rundir::named_by(&kubeconfigs, &base)).transpose()?;
        Ok(told.flatten().unwrap_or_else(|| "demo".into()))
    }
}

/// Of a node, a process or a namespace: what is empty names none.
fn a_name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("the name is empty".into()) } else { Ok(text.to_owned()) }
}

/// For people, or for programs.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Output {
    /// As a table, or everything as JSON
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// The same as --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Table,
    Json,
}

impl Output {
    pub fn is_json(self) -> bool {
        self.json || self.output == Format::Json
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a cluster, or mend the one that runs
    Up(up::Options),
    /// End a cluster and remove all of it
    Down(down::Options),
    /// Name the labs of this user
    List(list::Options),
    /// Show the processes and nodes
    Status(status::Options),
    /// Print the path of the lab's kubeconfig
    Kubeconfig(Name),
    /// Wait until the nodes are Ready, and all Deployments and Pods
    Wait(wait::Options),
    /// Print what a process of the lab has written
    Logs(logs::Options),
    /// Run a command inside a node
    Exec(exec::Options),
    /// Have a port of 127.0.0.1 lead to a Service of the lab
    Expose(expose::Options),
    /// Stop or start the agent of a node (what it wired goes on working)
    Agent(agent::Options),
    /// Whether the kernel can do what a lab asks of it (started by `up`)
    #[command(hide = true)]
    Check(up::Check),
    /// Pid 1 of the lab
    #[command(hide = true)]
    Anchor(Internal),
    /// Starts and restarts the lab's processes
    #[command(hide = true)]
    Supervise(Internal),
    /// The API and the controllers
    #[command(hide = true)]
    Api(Internal),
    /// The servers beyond the nodes' gateway
    #[command(hide = true)]
    Outside(Internal),
    /// Keep a set of namespaces
    #[command(hide = true)]
    Hold(hold::Options),
}

/// What the lab's own processes are told: where everything else is written.
#[derive(clap::Args, Clone, Debug)]
pub struct Internal {
    #[arg(long)]
    pub run: PathBuf,
}

impl Args {
    /// What is said of one that a signal ends; `None`: it has no end, or that of its command. What has something to take
    /// back says so itself from when it has.
    pub fn interrupted(&self) -> Option<String> {
        match &self.command {
            Command::Up(_) => Some("nothing was started or changed".into()),
            Command::List(_) | Command::Status(_) | Command::Kubeconfig(_) => {
                Some("nothing was changed".into())
            }
            Command::Wait(options) => goes_on(&options.name),
            Command::Logs(options) => goes_on(&options.name),
            Command::Expose(options) => goes_on(&options.name),
            Command::Agent(options) => {
                let name = options.name().get().ok()?;
                Some(format!(
                    "plumb lab status --name {name} shows how far it came; the same command again goes on from there"
                ))
            }
            Command::Down(options) => {
                let name = options.name.get().ok()?;
                Some(format!("plumb lab down --name {name} takes away what is left of the lab"))
            }
            Command::Exec(_)
            | Command::Check(_)
            | Command::Anchor(_)
            | Command::Supervise(_)
            | Command::Api(_)
            | Command::Outside(_)
            | Command::Hold(_) => None,
        }
    }
}

fn goes_on(name: &Name) -> Option<String> {
    Some(format!("lab {} goes on, and nothing of it was changed", name.get().ok()?))
}

/// Runs the subcommand; the exit code is that of the command for `exec`.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Up(options) => up::run(&options),
        Command::Down(options) => down::run(&options),
        Command::List(options) => list::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Wait(options) => wait::run(&options),
        Command::Logs(options) => logs::run(&options),
        Command::Kubeconfig(name) => status::kubeconfig(&name),
        Command::Exec(options) => exec::run(&options),
        Command::Expose(options) => expose::run(&options),
        Command::Agent(options) => agent::run(&options),
        Command::Check(asked) => up::check(&asked),
        Command::Anchor(internal) => anchor::run(&internal),
        Command::Supervise(internal) => supervise::run(&internal),
        Command::Api(internal) => api::run(&internal),
        Command::Outside(internal) => outside::run(&internal),
        Command::Hold(options) => hold::run(&options),
    }
}
