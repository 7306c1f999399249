//! `plumb status`: what each node's agent says of itself, what is wrong with it, and what to do about it.
//!
//! The agents are asked through the API server's proxy of their pods ([`crate::reach`]), all at once, each for so long and
//! no longer: one that does not answer is a line like the others.

mod judge;
mod known;
mod show;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use agent::report::NodeStatus;
use anyhow::{Result, bail};
use clap::ValueEnum;
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;

use crate::advice::{Advice, Cluster};
use crate::reach::Nodes;

use judge::About;
pub use judge::Problem;
use known::Known;

/// `plumb status`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Look again every two seconds, until it is interrupted
    #[arg(long, short)]
    watch: bool,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// The same as --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
    #[command(flatten)]
    reach: install::Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// An agent that has not answered by then counts as one that does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// Agents that are asked at once.
const AT_ONCE: usize = 32;
const EVERY: Duration = Duration::from_secs(2);

/// All nodes at one moment.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Whether nothing is wrong.
    pub ok: bool,
    pub nodes: Vec<NodeLine>,
    /// What is worth knowing and harms nothing that works.
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct NodeLine {
    pub node: String,
    /// What the agent says; `None` when it says nothing.
    pub agent: Option<NodeStatus>,
    /// By the API; only where the agent says nothing.
    pub known: Option<Known>,
    pub problems: Vec<Problem>,
    /// The API has the node NotReady, while its agent answers: nothing of Plumb's, and no pod comes there.
    pub not_ready: Option<NotReady>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotReady {
    pub what: String,
    pub next: String,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Advice::pasteable(&args.reach, runtime.block_on(status(&args)))
}

async fn status(args: &Args) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.reach).await?;
    loop {
        let status = look(&cluster).await?;
        print(&status, args)?;
        if !args.watch || !kernel::out::heard() {
            return Ok(if status.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Asks every node.
pub async fn look(cluster: &Cluster) -> Result<Status> {
    let listed = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await;
    let nodes = listed.map_err(|error| install::explain(error, "list the nodes of the cluster"))?.items;
    if nodes.is_empty() {
        bail!(
            "the cluster has no nodes; `{}` shows them once a kubelet has registered one",
            cluster.advice.kubectl("get nodes")
        );
    }
    // A fresh token in every round: it lives for ten minutes, a watch for hours.
    let agents = Nodes::new(cluster).await?;
    let asked = nodes.iter().map(|node| ask((cluster, &agents), node));
    let lines: Vec<NodeLine> = futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
    let notes = judge::notes(&lines);
    Ok(Status { ok: lines.iter().all(|line| line.problems.is_empty()), nodes: lines, notes })
}

async fn ask((cluster, agents): (&Cluster, &Nodes), object: &Node) -> NodeLine {
    let node = object.name_any();
    let asked = tokio::time::timeout(PATIENCE, agents.get::<NodeStatus>(&node, "v1/node/status")).await;
    let answer = match asked {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let condition = known::ready(object).unwrap_or("Unknown");
    let known = match answer {
        Ok(_) if condition == "True" => Known { is_ready: true, ..Known::default() },
        _ => known(cluster, object).await,
    };
    let about = About { node: &node, pod: agents.pod(&node), known: &known, advice: &cluster.advice };
    let problems = about.problems(&answer);
    let not_ready = about.not_ready(answer.is_ok(), problems.is_empty());
    let agent = answer.ok();
    let known = agent.is_none().then_some(known);
    NodeLine { node, agent, known, problems, not_ready }
}

/// Who may not read leases is told less.
async fn known(cluster: &Cluster, node: &Node) -> Known {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let name = node.name_any();
    let lease = tokio::time::timeout(PATIENCE, leases.get(&name)).await;
    Known::of(node, lease.ok().and_then(Result::ok).as_ref(), Timestamp::now())
}

fn print(status: &Status, args: &Args) -> Result<()> {
    let mut out = kernel::out::stdout();
    match if args.json { Format::Json } else { args.output } {
        // One line each, so that a reader of the stream knows where one ends.
        Format::Json if args.watch => writeln!(out, "{}", serde_json::to_string(status)?)?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(status)?)?,
        Format::Yaml => write!(out, "---\n{}", serde_saphyr::to_string(status)?)?,
        Format::Table => {
            if args.watch && std::io::stdout().is_terminal() {
                // Home, and clear what was there (ECMA-48 CUP and ED).
                write!(out, "\x1b[H\x1b[2J")?;
            }
            write!(out, "{}", show::Table(status))?;
        }
    }
    Ok(out.flush()?)
}
