//! `plumb lab agent stop|start|restart NODE`: an agent away, to see that what it wired goes on working. `pause|resume`: one
//! that only looks, to see what a fault does that it would mend.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Subcommand;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;
use types::wire::AGENT_NAMESPACE;

use crate::inside::Inside;
use crate::lock::Lock;
use crate::supervise::{State, Status};
use crate::{Name, client};

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
    /// Stop it and start it again
    Restart(Node),
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

/// A machine that is busy with ten other things takes its time, as for `up`.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of one answer.
const ANSWER: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(20);

/// Of an agent, by its lab and node.
type Act = fn(&Inside, &str) -> Result<()>;

/// Sets or clears the flag that the supervisor honours, and waits until what was asked for is true.
pub fn run(options: &Options) -> Result<ExitCode> {
    let (node, verbs): (_, &[Act]) = match &options.verb {
        Verb::Stop(node) => (node, &[stop]),
        Verb::Start(node) => (node, &[start]),
        Verb::Restart(node) => (node, &[stop, start]),
        Verb::Pause(Pause { node, no_dns }) => return pause(node, true, !no_dns),
        Verb::Resume(node) => return pause(node, false, true),
    };
    let inside = Inside::find(&node.name.get())?;
    inside.check_node(&node.node)?;
    verbs.iter().try_for_each(|verb| verb(&inside, &node.node))?;
    Ok(ExitCode::SUCCESS)
}

fn stop(inside: &Inside, node: &str) -> Result<()> {
    let process = format!("agent-{node}");
    let flag = inside.run.stopped(&process);
    let lock = Lock::wait(&inside.run)?;
    std::fs::write(&flag, "").with_context(|| format!("write {}", flag.display()))?;
    inside.kill(&process)?;
    drop(lock);
    wait_for(inside, &process, State::Stopped, Instant::now() + PATIENCE)?;
    println!("{process} is stopped");
    Ok(())
}

fn start(inside: &Inside, node: &str) -> Result<()> {
    let process = format!("agent-{node}");
    let flag = inside.run.stopped(&process);
    let lock = Lock::wait(&inside.run)?;
    if flag.exists() {
        std::fs::remove_file(&flag).with_context(|| format!("remove {}", flag.display()))?;
    }
    drop(lock);
    let deadline = Instant::now() + PATIENCE;
    wait_for(inside, &process, State::Running, deadline)?;
    answers(inside, node, deadline)?;
    println!("{process} is running");
    Ok(())
}

/// Asks the agent over its own socket, which lies in the node's /run.
fn pause(node: &Node, paused: bool, dns: bool) -> Result<ExitCode> {
    let inside = Inside::find(&node.name.get())?;
    inside.check_node(&node.node)?;
    let body = format!("{{\"paused\":{paused},\"dns\":{dns}}}");
    let (name, node) = (&inside.plan.name, &node.node);
    let answer = ask(&inside, node, "POST /v1/pause", &body).map_err(|error| {
        match inside.run.stopped(&format!("agent-{node}")).exists() {
            true => anyhow!("the agent of {node} is stopped; plumb lab agent start --name {name} {node} starts it"),
            false => anyhow!(
                "the agent of {node} does not answer: {error:#}; plumb lab status --name {name} shows whether it runs, \
                 plumb lab logs --name {name} --tail 50 {node} agent what it has said"
            ),
        }
    })?;
    if !is_good(&answer) {
        bail!("the agent of {node} refuses: {}", answer.lines().last().unwrap_or_default());
    }
    println!("agent-{node} {}", if paused { "only looks" } else { "mends again" });
    Ok(ExitCode::SUCCESS)
}

/// One request over the agent's socket.
fn ask(inside: &Inside, node: &str, what: &str, body: &str) -> Result<String> {
    let inner = types::wire::AGENT_SOCKET.trim_start_matches("/run/");
    let socket = inside.run.node(node).join("run").join(inner);
    let mut stream =
        UnixStream::connect(&socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let length = body.len();
    let head = format!("{what} HTTP/1.0\r\nHost: agent\r\nContent-Type: application/json");
    write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What the agent tells of its node; `None`: it is one of an earlier version, which does not.
pub(crate) fn status(inside: &Inside, node: &str) -> Result<Option<Value>> {
    let answer = ask(inside, node, "GET /v1/node/status", "")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("its answer is none in HTTP")?;
    match is_good(head) {
        true => Ok(Some(serde_json::from_str(body).context("read its answer")?)),
        false if head.split(' ').nth(1) == Some("404") => Ok(None),
        false => bail!("{}", body.trim_end()),
    }
}

fn is_good(answer: &str) -> bool {
    answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200")
}

fn wait_for(inside: &Inside, process: &str, wanted: State, deadline: Instant) -> Result<()> {
    loop {
        let status = Status::read(&inside.run);
        let state = status.processes.get(process).map(|entry| entry.state);
        let settled = state == Some(wanted) && inside.living(process).is_some() == (wanted == State::Running);
        if settled {
            return Ok(());
        }
        if Instant::now() > deadline {
            let (seconds, log) = (PATIENCE.as_secs(), inside.run.log(process));
            bail!("{process} is {state:?} and not {wanted:?} after {seconds} s; its log: {}", log.display());
        }
        std::thread::sleep(GLANCE);
    }
}

/// Until the agent wires pods and has the datapath it should have, and its pod in the API is Ready: `plumb trace` and
/// `plumb status` find it by that.
fn answers(inside: &Inside, node: &str, deadline: Instant) -> Result<()> {
    let late = |why: &str| {
        let (seconds, log) = (PATIENCE.as_secs(), inside.run.log(&format!("agent-{node}")));
        anyhow!("the agent of {node} runs, but after {seconds} s {why}; its log: {}", log.display())
    };
    loop {
        let why = match ask(inside, node, "GET /healthz", "") {
            Ok(answer) if is_good(&answer) => break,
            Ok(answer) => answer.lines().last().unwrap_or_default().to_owned(),
            Err(error) => format!("it does not answer: {error:#}"),
        };
        if Instant::now() > deadline {
            return Err(late(&why));
        }
        std::thread::sleep(GLANCE);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let pods: Api<Pod> = Api::namespaced(client::admin(&inside.run).await?, AGENT_NAMESPACE);
        loop {
            let why = match pods.get_opt(&format!("plumb-{node}")).await {
                Ok(Some(pod)) if client::is_ready(&pod) => return Ok(()),
                Ok(Some(_)) => "its pod is not Ready".to_owned(),
                Ok(None) => "its kubelet shows no pod of it".to_owned(),
                Err(error) => format!("the API does not tell of its pod: {}", watch::told(&error)),
            };
            if Instant::now() > deadline {
                return Err(late(&why));
            }
            tokio::time::sleep(GLANCE).await;
        }
    })
}
