//! `plumb lab agent stop|start|restart NODE`: an agent away, to see that what it wired goes on working. `pause|resume`: one
//! that only looks, to see what a fault does that it would mend.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Subcommand;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde_json::Value;
use types::wire::AGENT_NAMESPACE;

use crate::inside::Inside;
use crate::lock::Lock;
use crate::progress::Silence;
use crate::supervise::{State, Status};
use crate::{Name, a_name, client, serving};

/// `plumb lab agent`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

impl Options {
    /// Of the lab.
    pub fn name(&self) -> &Name {
        match &self.verb {
            Verb::Stop(waited) | Verb::Start(waited) | Verb::Restart(waited) => &waited.node.name,
            Verb::Pause(pause) => &pause.node.name,
            Verb::Resume(node) => &node.name,
        }
    }
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Kill the agent and keep it stopped
    Stop(Waited),
    /// Start it again
    Start(Waited),
    /// Stop it and start it again
    Restart(Waited),
    /// Have the agent tell what others change and leave it so
    Pause(Pause),
    /// Have it mend again
    Resume(Node),
}

#[derive(clap::Args, Debug)]
struct Waited {
    #[command(flatten)]
    node: Node,
    /// Seconds to wait until it is so: a machine that is busy with ten other things takes its time
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
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
    #[arg(value_parser = a_name)]
    node: String,
}

const GLANCE: Duration = Duration::from_millis(20);

/// Until when something is waited for. Whoever waits long is told what for.
struct Patience {
    began: Instant,
    limit: Duration,
    silence: Silence,
}

impl Patience {
    fn of(seconds: u64) -> Self {
        Self { began: Instant::now(), limit: Duration::from_secs(seconds), silence: Silence::begins() }
    }

    /// How long the next question may take.
    fn left(&self) -> Duration {
        serving::left(self.began + self.limit)
    }

    /// `Err`: the time is over. Says what is waited for from time to time.
    fn goes_on(&self, what: &str, why: &str) -> Result<(), u64> {
        let waited = self.began.elapsed();
        if waited > self.limit {
            return Err(self.limit.as_secs());
        }
        if self.silence.is_over() {
            eprintln!("{what}: {why}; {} s of {}", waited.as_secs(), self.limit.as_secs());
        }
        Ok(())
    }
}

/// Of an agent, by its lab and node.
type Act = fn(&Inside, &str, &Patience) -> Result<()>;

/// Sets or clears the flag that the supervisor honours, and waits until what was asked for is true.
pub fn run(options: &Options) -> Result<ExitCode> {
    let (waited, verbs): (_, &[Act]) = match &options.verb {
        Verb::Stop(waited) => (waited, &[stop]),
        Verb::Start(waited) => (waited, &[start]),
        Verb::Restart(waited) => (waited, &[was_paused, stop, start]),
        Verb::Pause(Pause { node, no_dns }) => return pause(node, true, !no_dns),
        Verb::Resume(node) => return pause(node, false, true),
    };
    let Waited { node, timeout } = waited;
    let inside = Inside::find(&node.name.get()?)?;
    inside.check_node(&node.node)?;
    let patience = Patience::of(*timeout);
    verbs.iter().try_for_each(|verb| verb(&inside, &node.node, &patience))?;
    Ok(ExitCode::SUCCESS)
}

/// A new process knows nothing of it.
fn was_paused(inside: &Inside, node: &str, patience: &Patience) -> Result<()> {
    if is_paused(inside, node, patience.left()) {
        println!(
            "agent-{node} was paused; once it runs again, it is no longer paused and mends what differs"
        );
    }
    Ok(())
}

fn is_paused(inside: &Inside, node: &str, limit: Duration) -> bool {
    let told = status(inside, node, limit.min(serving::LOOK));
    told.is_ok_and(|told| told.is_some_and(|told| told["paused"] == Value::Bool(true)))
}

/// Of an agent that only looks, and how it goes on.
pub(crate) fn paused(inside: &Inside, node: &str, limit: Duration) -> Option<String> {
    is_paused(inside, node, limit).then(|| {
        format!(
            "{node}: its agent is paused: what others change is told and not put back; next: plumb lab agent resume --name \
             {} {node}",
            inside.plan.name
        )
    })
}

fn stop(inside: &Inside, node: &str, patience: &Patience) -> Result<()> {
    let process = format!("agent-{node}");
    let flag = inside.run.stopped(&process);
    let lock = Lock::wait(&inside.run, |words| eprintln!("{words}"))?;
    std::fs::write(&flag, "").with_context(|| format!("write {}", flag.display()))?;
    inside.kill(&process)?;
    drop(lock);
    wait_for(inside, &process, State::Stopped, patience)?;
    println!("{process} is stopped");
    Ok(())
}

fn start(inside: &Inside, node: &str, patience: &Patience) -> Result<()> {
    let process = format!("agent-{node}");
    let flag = inside.run.stopped(&process);
    let lock = Lock::wait(&inside.run, |words| eprintln!("{words}"))?;
    if flag.exists() {
        std::fs::remove_file(&flag).with_context(|| format!("remove {}", flag.display()))?;
    }
    drop(lock);
    wait_for(inside, &process, State::Running, patience)?;
    answers(inside, node, patience)?;
    println!("{process} is running");
    Ok(())
}

/// Asks the agent over its own socket, which lies in the node's /run.
fn pause(node: &Node, paused: bool, dns: bool) -> Result<ExitCode> {
    let inside = Inside::find(&node.name.get()?)?;
    inside.check_node(&node.node)?;
    let body = format!("{{\"paused\":{paused},\"dns\":{dns}}}");
    let (name, node) = (&inside.plan.name, &node.node);
    let answer = ask(&inside, node, ("POST /v1/pause", &body), serving::ANSWER).map_err(|error| {
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

/// One request over the agent's socket: what, and its body.
fn ask(inside: &Inside, node: &str, (what, body): (&str, &str), limit: Duration) -> Result<String> {
    let inner = types::wire::AGENT_SOCKET.trim_start_matches("/run/");
    let socket = inside.run.node(node).join("run").join(inner);
    let mut stream =
        UnixStream::connect(&socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(limit))?;
    let length = body.len();
    let head = format!("{what} HTTP/1.0\r\nHost: agent\r\nContent-Type: application/json");
    write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| serving::in_time(error.into(), limit))?;
    Ok(answer)
}

/// What the agent tells of its node; `None`: it is one of an earlier version, which does not.
pub(crate) fn status(inside: &Inside, node: &str, limit: Duration) -> Result<Option<Value>> {
    let answer = ask(inside, node, ("GET /v1/node/status", ""), limit)?;
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

fn wait_for(inside: &Inside, process: &str, wanted: State, patience: &Patience) -> Result<()> {
    loop {
        let status = Status::read(&inside.run);
        let state = status.processes.get(process).map(|entry| entry.state);
        let settled = state == Some(wanted) && inside.living(process).is_some() == (wanted == State::Running);
        if settled {
            return Ok(());
        }
        let is = state.map_or("unknown", State::word);
        patience.goes_on(process, &format!("it is {is} and not {} yet", wanted.word())).map_err(|seconds| {
            let (log, lab) = (inside.run.log(process), &inside.plan.name);
            anyhow!(
                "{process} is {is} and not {} after {seconds} s; its log: {}; plumb lab status --name {lab} shows whether \
                 the supervisor runs",
                wanted.word(),
                log.display()
            )
        })?;
        std::thread::sleep(GLANCE);
    }
}

/// Until the agent wires pods and has the datapath it should have, its pod in the API is Ready, and it answers there:
/// `plumb trace` and `plumb status` find it by that.
fn answers(inside: &Inside, node: &str, patience: &Patience) -> Result<()> {
    let process = format!("agent-{node}");
    let late = |seconds: u64, why: &str| {
        let (lab, log) = (&inside.plan.name, inside.run.log(&process));
        anyhow!(
            "the agent of {node} runs, but after {seconds} s {why}; its log: {}; plumb lab up --name {lab} mends what is \
             broken, and says what does not come back",
            log.display()
        )
    };
    loop {
        let why = match ask(inside, node, ("GET /healthz", ""), patience.left()) {
            Ok(answer) if is_good(&answer) => break,
            Ok(answer) => format!("it is not in order: {}", answer.lines().last().unwrap_or_default()),
            Err(error) => format!("it does not answer: {error:#}"),
        };
        patience.goes_on(&process, &why).map_err(|seconds| late(seconds, &why))?;
        std::thread::sleep(GLANCE);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let client = client::admin(&inside.run).await?;
        loop {
            let Err(error) = found(&client, node, patience.left()).await else { return Ok(()) };
            let why = watch::told(error.as_ref());
            patience.goes_on(&process, &why).map_err(|seconds| late(seconds, &why))?;
            tokio::time::sleep(GLANCE).await;
        }
    })
}

/// As others find it.
async fn found(client: &Client, node: &str, limit: Duration) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), AGENT_NAMESPACE);
    let told = "the API does not tell of its pod";
    match serving::soon(limit, pods.get_opt(&format!("plumb-{node}"))).await.context(told)? {
        Some(pod) if client::is_ready(&pod) => {
            serving::agent(client, node, limit).await.context("it does not answer at its port")
        }
        Some(_) => bail!("its pod is not Ready"),
        None => bail!("its kubelet shows no pod of it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends() {
        let mut patience = Patience::of(1);
        assert_eq!(patience.goes_on("agent-node1", "it does not answer"), Ok(()));
        patience.limit = Duration::ZERO;
        assert_eq!(patience.goes_on("agent-node1", "it does not answer"), Err(0));
    }
}
