//! `plumb trace`: one real packet from a pod, hop by hop, beside what the model expects of it.
//!
//! The agents do the work, each on its own node; this asks them through the API server's proxy of their pods, so it needs
//! what kubectl needs and nothing more: a kubeconfig with the rights that docs/trace.md names.

mod ask;
mod find;
mod follow;
pub mod host;
mod named;
mod show;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use ::trace::exchange::{Open, Opened};
use ::trace::observed::SocketEnd;
use ::trace::{Fact, Hop, HopResult, Observed, Outcome, Sighting, Stage, compare, way_back};
use anyhow::{Context, Result};
use clap::{Args as ClapArgs, ValueEnum};
use serde::Serialize;
use types::{Family, ObjectName};
use watch::Misused;

use crate::advice::{Advice, Cluster};
use crate::reach::Nodes;
pub use find::{check, find};
use follow::{Followed, follow};

/// `plumb trace`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The pod that sends: NAMESPACE/NAME, or NAME with -n; or TYPE/NAME for the first Ready pod of a workload or Service (deploy, sts, ds,
    /// rs, job, svc), as `kubectl exec` takes it; a workload's name alone will do
    pod: String,
    /// Where to: http://HOST[:PORT][/PATH], HOST:PORT, svc/NAME:PORT or pod/NAME:PORT (of another namespace
    /// NAMESPACE/svc/NAME:PORT; PORT may be a name), node/NAME:PORT, an address (then TCP to port 80), or ping:HOST,
    /// ping:pod/NAME, ping:node/NAME; of https:// the connection alone is traced
    target: String,
    /// Send UDP instead of TCP
    #[arg(long)]
    udp: bool,
    /// Take an IPv4 address of a name
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Take an IPv6 address of a name
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Send from this port, to follow a flow that conntrack knows
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
    /// Milliseconds to wait for an answer
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    timeout: u64,
    /// Exit with 0 only if it ends so, and with 1 otherwise
    #[arg(long, value_name = "END")]
    expect: Option<Conclusion>,
    /// The way back hop by hop, and what each node saw
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    output: lab::Output,
    /// The namespace of a pod that is given without one
    #[arg(long, short)]
    namespace: Option<String>,
    #[command(flatten)]
    reach: install::Reach,
}

/// What a trace has found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub pod: ObjectName,
    pub target: String,
    pub hops: Vec<HopResult>,
    /// Hops at which model and kernel agree, of those that were expected.
    pub agree: usize,
    pub of: usize,
    /// The first hop at which they do not.
    pub broken: Option<Broken>,
    /// Nodes of the way that could not be asked, and why.
    pub not_asked: BTreeMap<String, String>,
    /// What to do about the first of those, or what a name that is none was meant to be.
    pub next: Option<String>,
    pub conclusion: Conclusion,
    /// From the command to the end, in milliseconds.
    pub took_ms: u64,
    pub observed: Vec<Observed>,
}

impl Report {
    /// The verdict in a line.
    pub fn in_short(&self) -> String {
        match &self.broken {
            Some(broken) => {
                // Said once is enough.
                let on = format!("on {}: ", broken.node.as_deref().unwrap_or_default());
                let why = broken.why.strip_prefix(&on).unwrap_or(&broken.why);
                format!("hop {} ({}): {why}", broken.n, broken.at())
            }
            None => {
                let end = self.conclusion.word();
                format!("model and kernel agree at {} of {}: {end}", self.agree, self.of)
            }
        }
    }
}

impl Report {
    /// Where the way ends at a node that nobody had to ask, whether it answers at all.
    async fn ask_the_silent(&mut self, nodes: &Nodes) {
        let Some(node) = self.broken.as_ref().and_then(|broken| broken.node.as_ref()) else { return };
        if self.observed.iter().any(|observed| observed.node == *node) || self.not_asked.contains_key(node) {
            return;
        }
        if let Err(why) = follow::answers(nodes, node).await {
            self.not_asked.insert(node.clone(), format!("{why:#}"));
        }
    }

    /// Agents' commands are for their nodes.
    fn make_pasteable(&mut self, nodes: &Nodes) {
        for result in &mut self.hops {
            let node = result.node().to_owned();
            if let Outcome::Disagree { why } | Outcome::NotAsked { why } = &mut result.outcome {
                *why = nodes.told(&node, why);
            }
        }
        let first = self.hops.iter().find_map(|result| match &result.outcome {
            Outcome::Disagree { why } => Some(why.clone()),
            _ => None,
        });
        if let (Some(broken), Some(why)) = (&mut self.broken, first) {
            broken.why = why;
        }
    }
}

/// Where model and kernel part.
#[derive(Debug, Serialize)]
pub struct Broken {
    pub n: u8,
    pub stage: Stage,
    /// As the hop is called: at its end `pod`, `node` or `outside`.
    pub place: &'static str,
    /// The one on which it is wrong; `None`: outside of the cluster.
    pub node: Option<String>,
    pub why: String,
}

impl Broken {
    fn of(result: &HopResult, why: &str) -> Self {
        let hop = &result.hop;
        let (place, node) = match (&hop.fact, hop.stage) {
            (Fact::Pod { pod, on: Some(node), .. }, _) => {
                (if pod.is_some() { "pod" } else { "node" }, Some(node.clone()))
            }
            (Fact::Pod { pod: None, on: None, .. }, _) => ("outside", None),
            (_, stage) => (stage.word(), Some(result.node().to_owned())),
        };
        Self { n: hop.n, stage: hop.stage, place, node, why: why.to_owned() }
    }

    /// `pod on node1`
    fn at(&self) -> String {
        let Self { place, node, .. } = self;
        node.as_ref().map_or_else(|| (*place).to_owned(), |node| format!("{place} on {node}"))
    }
}

/// What the model expects at the end, or that it was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// The packet arrives and is answered.
    Delivered,
    /// A policy stops it.
    Denied,
    /// It ends at its Service, where nobody has its address, or where nobody listens on its port.
    Refused,
    /// There is no such name: nothing was sent.
    NoName,
    /// Model and kernel differ.
    #[value(skip)]
    Broken,
}

impl Conclusion {
    fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::NoName => "no-name",
            Self::Broken => "broken",
        }
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reach = args.reach.clone();
    Advice::pasteable(&reach, runtime.block_on(trace(args)))
}

async fn trace(args: Args) -> Result<ExitCode> {
    let began = Instant::now();
    let family = match (args.ipv4, args.ipv6) {
        (true, _) => Some(Family::V4),
        (_, true) => Some(Family::V6),
        _ => None,
    };
    let target = ask::parse(&args.target, args.udp, family).map_err(Misused::of)?;
    check(&args.pod, args.namespace.as_deref())?;
    let cluster = Cluster::connect(&args.reach).await?;
    let (pod, node) = find(&cluster, &args.pod, args.namespace.as_deref()).await?;
    let ask = named::aim(&cluster, &pod.namespace, target).await?;
    let nodes = Nodes::new(&cluster).await?;
    let open = Open { pod, ask, source_port: args.source_port };
    let mut report = walk(&nodes, &node, open.clone(), (&args.target, args.timeout)).await?;
    if report.conclusion == Conclusion::NoName && report.next.is_none() {
        report.next = named::hint(&cluster, &open.pod.namespace, &open.ask).await;
    }
    report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if args.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", show::Shown { report: &report, full: args.full });
    }
    let as_wanted = match args.expect {
        None => report.broken.is_none(),
        Some(wanted) => wanted == report.conclusion,
    };
    if let Some(wanted) = args.expect.filter(|_| !as_wanted) {
        eprintln!("expected: {}, and it is {}", wanted.word(), report.conclusion.word());
    }
    Ok(if as_wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One trace from a pod whose node is known.
pub async fn trace_from(
    cluster: &Cluster,
    pod: ObjectName,
    node: &str,
    (target, udp): (&str, bool),
) -> Result<Report> {
    let nodes = Nodes::new(cluster).await?;
    let ask = named::aim(cluster, &pod.namespace, ask::parse(target, udp, None)?).await?;
    let open = Open { pod, ask, source_port: None };
    walk(&nodes, node, open, (target, 1000)).await
}

async fn walk(nodes: &Nodes, node: &str, open: Open, (target, timeout): (&str, u64)) -> Result<Report> {
    let at = || format!("trace from {}, which its own node {node} has to begin", open.pod);
    let opened: Opened = nodes.post(node, "open", &open).await.with_context(at)?;
    let followed = match opened.flow {
        Some(flow) => follow(nodes, node, (&opened, flow), timeout).await?,
        None => Followed::default(),
    };
    let mut report = report(open.pod, target, &opened, followed);
    report.ask_the_silent(nodes).await;
    report.next = report.not_asked.keys().next().map(|node| nodes.silent(node));
    report.make_pasteable(nodes);
    Ok(report)
}

fn report(pod: ObjectName, target: &str, opened: &Opened, followed: Followed) -> Report {
    let mut expected: Vec<_> = opened.resolve.iter().cloned().collect();
    let mut observed = BTreeMap::new();
    observed.insert(opened.node.clone(), opened.resolved.clone());
    for part in followed.parts {
        expected.extend(part.expected.hops);
        observed.entry(part.observed.node).or_insert_with(Vec::new).extend(part.observed.sightings);
    }
    expected.extend(way_back(&expected));
    let observed: Vec<Observed> =
        observed.into_iter().map(|(node, sightings)| Observed { node, sightings }).collect();
    let hops = compare(&expected, &observed);
    let broken = hops.iter().find_map(|result| match &result.outcome {
        Outcome::Disagree { why } => Some(Broken::of(result, why)),
        _ => None,
    });
    Report {
        pod,
        target: target.to_owned(),
        next: None,
        agree: hops.iter().filter(|hop| matches!(hop.outcome, Outcome::Agree { .. })).count(),
        of: hops.len(),
        conclusion: if broken.is_some() { Conclusion::Broken } else { conclude(&expected, &observed) },
        broken,
        not_asked: followed.not_asked,
        took_ms: 0,
        hops,
        observed,
    }
}

fn conclude(expected: &[Hop], observed: &[Observed]) -> Conclusion {
    let refuses = |sighting: &Sighting| matches!(sighting, Sighting::Sent { end: SocketEnd::Refused, .. });
    let closed = || observed.iter().flat_map(|observed| &observed.sightings).any(refuses);
    match expected.last().map(|hop| &hop.fact) {
        Some(Fact::Policy { allowed: false, .. }) => Conclusion::Denied,
        Some(Fact::Refused { .. }) => Conclusion::Refused,
        Some(Fact::Resolve { .. }) | None => Conclusion::NoName,
        Some(_) if closed() => Conclusion::Refused,
        Some(_) => Conclusion::Delivered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hop of the way back is the sender's, and its fault may be another node's.
    #[test]
    fn a_fault_is_told_of_the_node_that_has_it() {
        let source = ([10, 96, 0, 9], 80).into();
        let fact = Fact::Return { source, source_before: source, steps: Vec::new() };
        let why = "on node1: the route is missing".to_owned();
        let mut result = HopResult {
            hop: Hop::new(Stage::Return, "node2", fact),
            outcome: Outcome::Disagree { why: why.clone() },
            wrong_on: Some("node1".to_owned()),
            at: None,
            took: None,
            steps: Vec::new(),
        };
        let broken = Broken::of(&result, &why);
        assert_eq!((broken.node.as_deref(), broken.at()), (Some("node1"), "return on node1".to_owned()));
        let report = Report {
            pod: ObjectName::new("shop", "web"),
            target: "http://far:8080".to_owned(),
            hops: vec![result.clone()],
            agree: 11,
            of: 12,
            broken: Some(broken),
            not_asked: BTreeMap::new(),
            next: None,
            conclusion: Conclusion::Broken,
            took_ms: 10,
            observed: Vec::new(),
        };
        assert_eq!(report.in_short(), "hop 12 (return on node1): the route is missing");
        let shown = show::Shown { report: &report, full: false }.to_string();
        for words in ["✗ on node1: the route is missing", "disagree at hop 12 (return on node1)"] {
            assert!(shown.contains(words), "{shown}");
        }
        result.wrong_on = None;
        assert_eq!(Broken::of(&result, &why).at(), "return on node2");
    }
}
