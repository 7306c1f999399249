//! Owns: the command line: one binary, whose subcommands are the shells.
//! Never: does anything itself; no subcommand shares state with another.
//! In → Out: argv → one shell's `run` → exit code, and errors as `cause: cause: …` with the next step.
//! Read first: [`main`].
//!
//! A library, so that the program is compiled once: this crate is where the async code of all the others is, and the image
//! links it statically, other hosts not.

// Its `println!` does not panic when a reader goes.
#[macro_use]
extern crate kernel;

mod advice;
mod alerts;
mod bench;
mod connectivity;
mod demo;
mod dns;
mod features;
mod reach;
mod ready;
mod replay;
mod status;
mod sysdump;
mod trace;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// A whole container network in one program.
#[derive(Parser)]
#[command(name = "plumb", version, arg_required_else_help = true)]
struct Plumb {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A cluster of several nodes on this machine: up, down, status, exec.
    Lab(lab::Args),
    /// Make Plumb the network of the cluster that the kubeconfig names.
    Install(install::Args),
    /// Take Plumb out of the cluster, kernel state on every node included.
    Uninstall(install::UninstallArgs),
    /// Take everything of Plumb from this machine, where `plumb uninstall` cannot (its agent must have ended).
    NodeCleanup(agent::CleanupArgs),
    /// A node's network: routes, services, policies, DNS and CNI, from the Kubernetes API to the kernel.
    Agent(agent::Args),
    /// Send a real packet from a pod and follow it hop by hop, beside what the model expects.
    Trace(trace::Args),
    /// What a pod can resolve and how it is found, or one name step by step.
    Dns(dns::Args),
    /// Each node's agent, datapath, sync, drift and DNS; what is wrong, and the next step.
    Status(status::Args),
    /// The alerts for Prometheus, with the addresses of their pages.
    Alerts(alerts::Args),
    /// What Plumb asks of the kernel, and whether this one can do it.
    Features(features::Args),
    /// Whether pods, nodes and Services reach whom they should, and nobody else.
    Connectivity(connectivity::Args),
    /// One archive that a maintainer can work from, without secrets.
    Sysdump(sysdump::Args),
    /// What each node decided about its pods and why, decided again from a sysdump; no cluster is asked.
    Replay(replay::Args),
    /// Measure: DNS, endpoint changes, CNI, the lab; each beside the floor of this machine.
    Bench(bench::Args),
    /// What the image plumb.local/demo runs: a small server and its clients.
    Demo(demo::Args),
    /// Make the agents' image of the programs in a directory.
    #[command(hide = true)]
    Image(install::image::Args),
    /// Look at this node before Plumb is installed (run by `plumb install` in a pod).
    #[command(hide = true)]
    NodeCheck(install::node_check::Args),
    /// The small kubelet of one lab node.
    #[command(hide = true)]
    Kubelet(kubelet::Args),
    /// Hold the namespaces of a pod (started by the kubelet).
    #[command(hide = true)]
    Pause(kubelet::pause::Args),
    /// Own one container's output and exit code (started by the kubelet).
    #[command(hide = true)]
    Shim(kubelet::shim::Args),
}

impl Command {
    /// What is said of one that a signal ends, where that is not left to itself: of what is left of it.
    fn interrupted(&self) -> Option<String> {
        let left = match self {
            Self::Lab(args) => return args.interrupted(),
            Self::Connectivity(_) => "nothing was made",
            Self::Status(_) | Self::Dns(_) | Self::Alerts(_) | Self::Features(_) | Self::Replay(_) => {
                "nothing was changed"
            }
            Self::Trace(_) => "nothing was changed; the agents forget the packet within 30 s",
            Self::Sysdump(_) => "nothing was changed; an archive that was begun is not whole",
            Self::NodeCleanup(_) => "the same command again takes away what is left",
            // Servers, what others start, and those that take back what they have made by themselves.
            Self::Install(_)
            | Self::Uninstall(_)
            | Self::Agent(_)
            | Self::Bench(_)
            | Self::Demo(_)
            | Self::Image(_)
            | Self::NodeCheck(_)
            | Self::Kubelet(_)
            | Self::Pause(_)
            | Self::Shim(_) => return None,
        };
        Some(left.to_owned())
    }
}

/// kubectl runs an executable of this name for `kubectl plumb …`: a link to `plumb` on the PATH is enough.
const PLUGIN: &str = "kubectl-plumb";

/// A shell in a pod of the demo image finds a link of this name where the machine has no ping of its own.
const PING: &str = "ping";

fn parse() -> Plumb {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().map(|path| std::path::Path::new(path).file_name().unwrap_or_default());
    let is_called = |name: &str| called.is_some_and(|called| called == name);
    let (as_plugin, as_ping) = (is_called(PLUGIN), is_called(PING));
    let name = if as_plugin { "kubectl plumb" } else { "plumb" };
    if as_ping {
        args.splice(..1, ["plumb", "demo", "ping"].map(OsString::from));
    }
    let command = usage::with_habits(Plumb::command().bin_name(name));
    let matches = command.clone().try_get_matches_from(&args).unwrap_or_else(|error| {
        let Some(said) = usage::said(&error, |flag| usage::range(&command, &args, flag)) else {
            usage::end(&error)
        };
        eprintln!("plumb: {said}");
        std::process::exit(error.exit_code())
    });
    Plumb::from_arg_matches(&matches).unwrap_or_else(|error| usage::end(&error))
}

/// The whole program. No async runtime here: the processes that change their namespaces must have one thread when they
/// do.
pub fn main() -> ExitCode {
    let command = parse().command;
    command.interrupted().iter().for_each(|left| kernel::interrupt::ends_with(left));
    let outcome = match command {
        Command::Lab(args) => logged(std::io::stderr, || lab::run(args)),
        Command::Agent(args) => logged(|| agent::journal::Journal, || run_agent(args)),
        Command::Install(args) => install::run(&args),
        Command::Uninstall(args) => install::run_uninstall(&args),
        Command::NodeCheck(args) => install::node_check::run(&args),
        Command::Image(args) => install::image::run(&args).map(|()| ExitCode::SUCCESS),
        Command::NodeCleanup(args) => clean_up(&args),
        Command::Status(args) => status::run(args),
        Command::Connectivity(args) => connectivity::run(args),
        Command::Sysdump(args) => sysdump::run(args),
        Command::Replay(args) => replay::run(&args),
        Command::Trace(args) => trace::run(args),
        Command::Dns(args) => dns::run(args),
        Command::Alerts(args) => alerts::run(&args),
        Command::Features(args) => features::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Kubelet(args) => logged(std::io::stderr, || kubelet::run(args)),
        Command::Shim(args) => kubelet::shim::run(args),
        Command::Pause(args) => kubelet::pause::run(args),
    };
    let code = outcome.unwrap_or_else(|error| {
        eprintln!("plumb: {}", watch::told(error.as_ref()));
        exit_code(&error)
    });
    match kernel::out::finish() {
        Ok(()) => code,
        Err(error) => {
            eprintln!("{}", usage::unwritten(error));
            ExitCode::FAILURE
        }
    }
}

/// 2: no cluster, lab or machine could do what was asked; 1: this one does not, or what was asked for does not hold.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<watch::Misused>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// kube's client reports every refused connection as an error of its own; whoever asked reports it better.
const QUIET: &str = "info,kube_client=off";

/// Logs go to stderr; PLUMB_LOG chooses what (`debug`, `kubelet=trace,info`).
fn logged<W: std::io::Write + 'static>(
    writer: impl Fn() -> W + Send + Sync + 'static,
    run: impl FnOnce() -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PLUMB_LOG").unwrap_or_else(|_| QUIET.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(writer)
        // A log that nobody reads any more is no reason to panic.
        .log_internal_errors(false)
        .init();
    run()
}

fn clean_up(args: &agent::CleanupArgs) -> anyhow::Result<ExitCode> {
    for step in agent::cleanup(args)? {
        println!("{step}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Two workers: a large list being parsed must not hold up a CNI request.
fn run_agent(args: agent::Args) -> anyhow::Result<ExitCode> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(agent::run(args));
    // The loop's thread and those that listen to the kernel end with the process: it may be killed at any moment, and
    // waiting for them, kubelet would do just that.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}
