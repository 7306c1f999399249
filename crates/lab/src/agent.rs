//! `plumb lab agent stop|start NODE`: an agent away, to see that what it wired goes on working. `pause|resume`: one
//! that only looks, to see what a fault does that it would mend.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::Name;
use crate::inside::Inside;
use crate::supervise::{State, Status};

/// `plumb lab agent`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Kill the agent and keep it stopped
    Stop(Node),
    /// Start it again
    Start(Node),
    /// Have the agent tell what others change and leave it so
    Pause(Pause),
    /// Have it mend again
    Resume(Node),
}

#[derive(clap::Args, Debug)]
struct Pause {
    #[command(flatten)]
    node: Node,
    /// Close its DNS sockets too: the node's pods are then answered by other nodes
    #[arg(long)]
    no_dns: bool,
}

#[derive(clap::Args, Debug)]
struct Node {
    #[command(flatten)]
    name: Name,
    /// A node, such as node1
    node: String,
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Sets or clears the flag that the supervisor honours, and waits until it has.
pub fn run(options: &Options) -> Result<ExitCode> {
    let (node, stop) = match &options.verb {
        Verb::Stop(node) => (node, true),
        Verb::Start(node) => (node, false),
        Verb::Pause(Pause { node, no_dns }) => return pause(node, true, !no_dns),
        Verb::Resume(node) => return pause(node, false, true),
    };
    let inside = Inside::find(&node.name.get())?;
    inside.check_node(&node.node)?;
    let process = format!("agent-{}", node.node);
    let flag = inside.run.stopped(&process);
    if stop {
        std::fs::write(&flag, "").with_context(|| format!("write {}", flag.display()))?;
        inside.kill(&process)?;
    } else if flag.exists() {
        std::fs::remove_file(&flag).with_context(|| format!("remove {}", flag.display()))?;
    }
    wait_for(&inside, &process, if stop { State::Stopped } else { State::Running })?;
    println!("{process} is {}", if stop { "stopped" } else { "running" });
    Ok(ExitCode::SUCCESS)
}

/// Asks the agent over its own socket, which lies in the node's /run.
fn pause(node: &Node, paused: bool, dns: bool) -> Result<ExitCode> {
    let inside = Inside::find(&node.name.get())?;
    inside.check_node(&node.node)?;
    let inner = types::wire::AGENT_SOCKET.trim_start_matches("/run/");
    let socket = inside.run.node(&node.node).join("run").join(inner);
    let body = format!("{{\"paused\":{paused},\"dns\":{dns}}}");
    let answer = post(&socket, &body).with_context(|| {
        format!("ask the agent of {} at {}; is it running? (plumb lab status)", node.node, socket.display())
    })?;
    if !answer.starts_with("HTTP/1.0 200") && !answer.starts_with("HTTP/1.1 200") {
        bail!("the agent of {} refuses: {}", node.node, answer.lines().last().unwrap_or_default());
    }
    println!("agent-{} {}", node.node, if paused { "only looks" } else { "mends again" });
    Ok(ExitCode::SUCCESS)
}

fn post(socket: &Path, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head = "POST /v1/pause HTTP/1.0\r\nHost: agent\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn wait_for(inside: &Inside, process: &str, wanted: State) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = Status::read(&inside.run);
        let state = status.processes.get(process).map(|entry| entry.state);
        let settled = state == Some(wanted) && inside.living(process).is_some() == (wanted == State::Running);
        if settled {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "{process} is {state:?} and not {wanted:?} after {} s; its log: {}",
                PATIENCE.as_secs(),
                inside.run.log(process).display()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
