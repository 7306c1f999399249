//! `plumb bench soak`: pods, Services and policies that come, change and go ten times a second, for minutes. Nothing
//! may fail, and the agents may not grow.
//!
//! ```text
//!   changer ── 10/s ──> API          caller ── every 50 ms ──> Service echo ──> server
//!   watcher <── /metrics of every agent, through the API ── resident memory, failures
//! ```

mod change;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::{Api, Client, ResourceExt};

use super::lab::{Lab, pods};
use crate::reach::Agents;
use change::Changer;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How long
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Seconds after which the memory is taken that the end is compared with
    #[arg(long, default_value_t = 60)]
    warm_up: u64,
    /// How much larger the agents may be at the end, in percent
    #[arg(long, default_value_t = 5.0)]
    growth: f64,
    /// A cluster that runs Plumb [default: a lab of its own]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// What pods run: an image whose entrypoint is `plumb demo`
    #[arg(long, default_value = "plumb.local/demo")]
    image: String,
}

const RATE: u32 = 10;

pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.warm_up < args.seconds, watch::Misused("--warm-up is shorter than --seconds".into()));
    let lab = match &args.kubeconfig {
        Some(_) => None,
        None => Some(Lab::up(&mut Vec::new())?),
    };
    let kubeconfig = args.kubeconfig.as_ref().or(lab.as_ref().map(|lab| &lab.kubeconfig));
    let kubeconfig = kubeconfig.context("a cluster is given or made")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let client = pods::client(kubeconfig).await?;
        let mut changer = Changer::new(client.clone(), &args.image).await?;
        let outcome = soak(args, &client, &mut changer).await;
        changer.clean_up().await?;
        outcome
    })?;
    print!("{outcome}");
    if let Some(lab) = lab {
        lab.down(&mut Vec::new())?;
    }
    Ok(if outcome.is_well(args) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn soak(args: &Args, client: &Client, changer: &mut Changer) -> Result<Outcome> {
    let mut outcome = Outcome { before: look(client).await?, ..Outcome::default() };
    let began = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    // A busy machine gets fewer changes, never many at once.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while began.elapsed() < Duration::from_secs(args.seconds) {
        tick.tick().await;
        if let Err(error) = changer.step().await {
            outcome.errors.push(format!("after {:.0} s: {error:#}", began.elapsed().as_secs_f64()));
        }
        if outcome.warm.is_empty() && began.elapsed() >= Duration::from_secs(args.warm_up) {
            outcome.warm = look(client).await?;
        }
    }
    outcome.changes = changer.changes();
    outcome.after = look(client).await?;
    outcome.errors.extend(changer.failed_calls().await?);
    Ok(outcome)
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default)]
struct Agent {
    /// MB.
    resident: f64,
    /// Counters of [`FAILURES`] by series: the metric with its labels.
    failures: BTreeMap<String, f64>,
}

const RESIDENT: &str = "plumb_process_resident_memory_bytes";

/// Counters of what should never happen.
const FAILURES: [&str; 4] = [
    "plumb_apply_failures_total",
    "plumb_cni_errors_total",
    "plumb_events_dropped_total",
    "plumb_watch_troubles_total",
];

async fn look(client: &Client) -> Result<BTreeMap<String, Agent>> {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let (mut agents, found) = (BTreeMap::new(), Agents::find(client).await?);
    for node in nodes.list(&kube::api::ListParams::default()).await? {
        let name = node.name_any();
        let request = http::Request::get(found.path(&name, "metrics")?).body(Vec::new())?;
        let text = client.request_text(request).await;
        let agent = text.map_err(anyhow::Error::from).and_then(|text| agent(&text));
        agents.insert(name.clone(), agent.with_context(|| format!("metrics of {name}'s agent"))?);
    }
    Ok(agents)
}

/// From the OpenMetrics text.
fn agent(text: &str) -> Result<Agent> {
    let values = |metric: &'static str| {
        text.lines().filter_map(move |line| {
            let rest = line.strip_prefix(metric)?;
            // The metric itself, not one whose name goes on.
            let (labels, value) = rest.starts_with([' ', '{']).then(|| rest.rsplit_once(' '))??;
            Some((format!("{metric}{labels}"), value.parse::<f64>().ok()?))
        })
    };
    let resident = values(RESIDENT).next().with_context(|| format!("the agent tells no {RESIDENT}"))?.1;
    let failures = FAILURES.into_iter().flat_map(values).collect();
    Ok(Agent { resident: resident / f64::from(1 << 20), failures })
}

#[derive(Debug, Default)]
struct Outcome {
    changes: u32,
    before: BTreeMap<String, Agent>,
    warm: BTreeMap<String, Agent>,
    after: BTreeMap<String, Agent>,
    errors: Vec<String>,
}

impl Outcome {
    /// In percent, of each node's agent.
    fn growth(&self) -> impl Iterator<Item = (&str, f64)> {
        self.after.iter().filter_map(|(node, after)| {
            let warm = self.warm.get(node)?.resident;
            Some((node.as_str(), 100.0 * (after.resident / warm - 1.0)))
        })
    }

    /// Node, series, and by how much it rose.
    fn failures(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.after.iter().flat_map(|(node, after)| {
            let before = self.before.get(node);
            after.failures.iter().filter_map(move |(series, value)| {
                let rose = value - before.and_then(|before| before.failures.get(series)).unwrap_or(&0.0);
                (rose != 0.0).then_some((node.as_str(), series.as_str(), rose))
            })
        })
    }

    fn is_well(&self, args: &Args) -> bool {
        let bounded = |(_, growth): (&str, f64)| growth <= args.growth;
        self.errors.is_empty()
            && self.failures().next().is_none()
            && !self.after.is_empty()
            && self.growth().all(bounded)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} changes, {} errors, {} failures counted by agents",
            self.changes,
            self.errors.len(),
            self.failures().map(|(_, _, rose)| rose).sum::<f64>()
        )?;
        for (node, series, rose) in self.failures() {
            writeln!(f, "agent of {node}: {series} rose by {rose}")?;
        }
        for (node, growth) in self.growth() {
            let at =
                |agents: &BTreeMap<String, Agent>| agents.get(node).map_or(f64::NAN, |agent| agent.resident);
            writeln!(
                f,
                "agent of {node}: {:.1} MB before, {:.1} MB warm, {:.1} MB at the end: {growth:+.1} %",
                at(&self.before),
                at(&self.warm),
                at(&self.after)
            )?;
        }
        for error in self.errors.iter().take(20) {
            writeln!(f, "  {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP plumb_process_resident_memory_bytes x\nplumb_process_resident_memory_bytes 20971520\n\
        plumb_cni_errors_total{command=\"ADD\",code=\"11\"} 2\nplumb_cni_errors_totals 9\n\
        plumb_apply_failures_total{subsystem=\"nft\"} 1\n";

    fn outcome(warm: f64, after: Agent) -> Outcome {
        let of = |agent: Agent| BTreeMap::from([("node1".to_owned(), agent)]);
        let warm = Agent { resident: warm, ..Agent::default() };
        Outcome { before: of(warm.clone()), warm: of(warm), after: of(after), ..Outcome::default() }
    }

    fn args() -> Args {
        Args { seconds: 2, warm_up: 1, growth: 5.0, kubeconfig: None, image: String::new() }
    }

    #[test]
    fn an_agents_own_words_are_read() {
        let agent = agent(METRICS).unwrap();
        assert!(super::agent("x 1").is_err());
        let series = [
            "plumb_apply_failures_total{subsystem=\"nft\"}",
            "plumb_cni_errors_total{command=\"ADD\",code=\"11\"}",
        ];
        let failures = BTreeMap::from([(series[0].to_owned(), 1.0), (series[1].to_owned(), 2.0)]);
        assert_eq!((agent.resident, agent.failures), (20.0, failures));
    }

    #[test]
    fn growth_failures_and_errors_are_not_well() {
        let quiet = |resident| Agent { resident, ..Agent::default() };
        assert!(outcome(20.0, quiet(20.9)).is_well(&args()));
        assert!(!outcome(20.0, quiet(21.1)).is_well(&args()));
        let failures = BTreeMap::from([("plumb_cni_errors_total{code=\"11\"}".to_owned(), 1.0)]);
        let failing = outcome(20.0, Agent { resident: 20.0, failures });
        assert!(!failing.is_well(&args()));
        assert!(failing.to_string().contains("node1: plumb_cni_errors_total{code=\"11\"} rose by 1"));
        let mut failed = outcome(20.0, quiet(20.0));
        failed.errors.push("a call failed".into());
        assert!(!failed.is_well(&args()) && failed.to_string().contains("a call failed"));
    }
}
