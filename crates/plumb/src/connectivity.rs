//! `plumb connectivity test`: clients and servers on every node, in a namespace of their own, and whether each
//! reaches what it should and nothing else.
//!
//! ```text
//!   namespace ─> Services, policies ─> servers Ready ─> probes (with the addresses) ─> logs ─> table
//!                                                        failed ones are traced        └─> namespace removed
//! ```
//!
//! It needs what kubectl needs. Probes get their checks as arguments and answer in their logs, so that nothing has
//! to be executed in a pod and no pod reached from here.

mod asked;
mod cast;
mod checks;
mod show;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::{Api, Client, ResourceExt};
use lab::interrupt;
use serde::Serialize;
use types::ObjectName;

use crate::advice::{Advice, Cluster};
use crate::demo::probe::{Check, Outcome};
use crate::{ready, trace};
use cast::Cast;
use checks::{FORGER, Plan, Planned, TESTS};
use show::{Progress, Table};
use stage::Stage;

/// `plumb connectivity`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Deploy clients and servers, check who reaches whom, and remove them again
    Test(Test),
}

#[derive(Clone, Debug, clap::Args)]
struct Test {
    /// Only these tests: names with commas between them, * for anything
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these nodes
    #[arg(long, value_delimiter = ',')]
    nodes: Vec<String>,
    /// Name the tests and what each proves
    #[arg(long)]
    list: bool,
    /// Leave everything there at the end, for traces
    #[arg(long)]
    keep: bool,
    /// Every check, also those that hold
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    output: lab::Output,
    /// The namespace to make
    #[arg(long, short, default_value = NAMESPACE)]
    namespace: String,
    /// An image with `plumb` on its PATH [default: that of the DaemonSet kube-system/plumb; in a lab, which has
    /// none, plumb.local/demo]
    #[arg(long)]
    image: Option<String>,
    /// HOST:PORT beyond the cluster that takes TCP connections; one of each family with a comma between them
    /// [default in a lab: its outside]
    #[arg(long, value_delimiter = ',')]
    outside: Vec<String>,
    /// A name beyond the cluster [default in a lab: outside.test]
    #[arg(long)]
    outside_name: Option<String>,
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// A port that is free on the nodes
    #[arg(long, default_value_t = 29475, value_parser = clap::value_parser!(u16).range(1..))]
    host_port: u16,
    /// Seconds that a check may take to hold
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    settle: u64,
    /// Seconds until pods that are not Ready end the test
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(..=86_400))]
    patience: u64,
    #[command(flatten)]
    reach: install::Reach,
}

const NAMESPACE: &str = "plumb-connectivity";
const LAB_IMAGE: &str = "plumb.local/demo";
/// Where a lab's outside answers, and the name that it knows (`lab::plan`, `lab::outside::dns`).
const LAB_OUTSIDE: [&str; 2] = ["203.0.113.10:80", "[2001:db8::10]:80"];
const LAB_NAME: &str = "outside.test";
/// After the last check was given up, a log may come late on a busy machine.
const ANSWERS: Duration = Duration::from_secs(50);
const GLANCE: Duration = Duration::from_millis(200);
/// So many failed checks are traced: one cause seldom needs more.
const TRACED: usize = 12;

/// One check and what came of it.
#[derive(Debug, Serialize)]
pub struct Done {
    pub test: String,
    pub pod: String,
    pub on: String,
    pub to: String,
    pub family: String,
    pub ok: bool,
    /// What was seen, or why that is not what it should be.
    pub said: String,
    pub tries: u32,
    pub took_ms: u64,
    /// Where a trace of the same packet found model and kernel to part.
    pub finding: Option<String>,
    /// The command that traces it, where its pods were kept (`--keep`).
    pub trace: Option<String>,
    /// Where they were not: the same test with pods that stay. They have other addresses, so that its own report says how
    /// to trace it.
    pub again: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub ok: bool,
    /// Why nothing was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub checks: Vec<Done>,
    /// What was not tested, and why.
    pub skipped: BTreeSet<(String, String)>,
    pub took_ms: u64,
    /// Both families were tested.
    pub dual: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Verb::Test(test) = args.verb;
    if test.list {
        return list(test.output.is_json());
    }
    if let Some(unknown) =
        test.only.iter().find(|pattern| TESTS.iter().all(|(name, ..)| !matches(pattern, name)))
    {
        bail!(watch::Misused(format!(
            "there is no test {unknown}; plumb connectivity test --list names them"
        )));
    }
    test.check().map_err(watch::Misused::of)?;
    let (reach, as_json) = (test.reach.clone(), test.output.is_json());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = Advice::pasteable(&reach, runtime.block_on(start(test)));
    if let (true, Err(error)) = (as_json, &outcome) {
        let failed = Report { error: Some(watch::told(error.as_ref())), ..Report::default() };
        println!("{}", serde_json::to_string_pretty(&failed)?);
    }
    outcome
}

fn list(as_json: bool) -> Result<ExitCode> {
    if as_json {
        let rows =
            TESTS.iter().map(|(name, proves, _)| serde_json::json!({ "name": name, "proves": proves }));
        println!("{:#}", serde_json::Value::from_iter(rows));
    } else {
        TESTS.iter().for_each(|(name, proves, _)| println!("{name:<20} {proves}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).filter_map(|at| tail.get(at..)).any(|tail| matches(rest, tail))
        }),
    }
}

/// Removes everything again, also when it is interrupted or fails.
async fn start(test: Test) -> Result<ExitCode> {
    let cluster = Cluster::connect(&test.reach).await?;
    let mut progress = Progress::new(test.output.is_json());
    let stage = Stage { cluster, namespace: test.namespace.clone() };
    // What an earlier test has kept stays as long as this one cannot begin.
    let cast = prepare(&test, &stage, &mut progress).await?;
    let by_hand = || stage.cluster.advice.kubectl(&format!("delete namespace {}", test.namespace));
    kernel::interrupt::ends_with(&format!("{} removes what there may be", by_hand()));
    stage.open(&progress).await?;
    kernel::interrupt::is_heard();
    let began = Instant::now();
    let outcome = tokio::select! {
        report = perform((&test, &stage), cast, &mut progress) => Ok(report),
        signal = interrupt::came() => Err(signal),
    };
    let mut left = None;
    if test.keep {
        progress.step(&format!("kept: {} removes it", by_hand()));
    } else {
        progress.step(&format!("removing the namespace {}", test.namespace));
        let stuck = if matches!(outcome, Ok(Err(_))) { stage::FAILED } else { stage::STUCK };
        let removed = tokio::select! {
            removed = stage.remove(stuck, &progress) => removed,
            signal = interrupt::came() => {
                eprintln!("plumb: interrupted: {} does the rest", by_hand());
                return Ok(ExitCode::from(signal.exit_code()));
            }
        };
        left = match removed {
            Ok(forced) if forced.is_empty() => None,
            Ok(forced) => Some(format!(
                "taken out of the API by force, since nobody ended them: {}; their nodes do once they can",
                forced.join(", ")
            )),
            // What went wrong before it is the cause, or weighs more.
            Err(error) if matches!(outcome, Ok(Err(_))) => Some(watch::told(error.as_ref())),
            Err(error) => return Err(error),
        };
    }
    left.iter().for_each(|left| progress.step(left));
    let mut report = match outcome {
        Ok(report) => report?,
        Err(signal) => {
            let left = if test.keep { "its namespace was kept" } else { "nothing is left behind" };
            eprintln!("plumb: interrupted: {left}");
            return Ok(ExitCode::from(signal.exit_code()));
        }
    };
    report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if test.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", Table { report: &report, full: test.full });
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Who takes part, and the nodes that are not Ready. Nothing is made yet, nor taken away.
async fn prepare(test: &Test, stage: &Stage, progress: &mut Progress) -> Result<(Cast, Vec<Node>)> {
    let cluster = &stage.cluster;
    let (places, not_ready) = stage::nodes(cluster, &test.nodes, |words| progress.step(words)).await?;
    if places.is_empty() {
        let words = not_ready.iter().map(|node| format!("{}: {}", node.name_any(), ready::node_says(node)));
        let words = words.collect::<Vec<_>>().join("; ");
        let causes = stage.wrong_on(&not_ready.iter().map(ResourceExt::name_any).collect()).await;
        bail!("no node is Ready ({words}){}", causes.unwrap_or_default());
    }
    Ok((Cast { places, ..hire(test, &cluster.client).await? }, not_ready))
}

async fn perform(
    (test, stage): (&Test, &Stage),
    (mut cast, not_ready): (Cast, Vec<Node>),
    progress: &mut Progress,
) -> Result<Report> {
    progress.step(&format!(
        "{} nodes; Services and policies in namespace {}",
        cast.places.len(),
        stage.namespace
    ));
    deploy(&mut cast, stage, (Duration::from_secs(test.patience), progress)).await?;
    let mut plan = checks::plan(&cast);
    let chosen = |name: &str| test.only.is_empty() || test.only.iter().any(|pattern| matches(pattern, name));
    plan.checks.retain(|check| chosen(check.test));
    plan.skipped.retain(|(name, _)| chosen(name) || test.only.is_empty());
    plan.skipped.extend(not_ready.iter().map(|node| {
        (format!("node {}", node.name_any()), format!("it is not Ready: {}", ready::node_says(node)))
    }));
    progress.step(&format!("servers are Ready; {} checks", plan.checks.len()));
    let probers = send(&cast, stage, &mut plan).await?;
    let outcomes = gather((stage, &probers, test.settle), plan.checks.len(), progress).await;
    plan.leave_out(&outcomes);
    let mut checks: Vec<Done> =
        plan.checks.iter().map(|check| done(check, outcomes.get(&check.id))).collect();
    find_causes((stage, test), (&plan.checks, &mut checks), progress).await;
    let dual = cast.families().len() > 1;
    let ok = checks.iter().all(|done| done.ok);
    Ok(Report { ok, error: None, checks, skipped: plan.skipped, took_ms: 0, dual })
}

/// What is known before anything was made.
async fn hire(test: &Test, client: &Client) -> Result<Cast> {
    let image = match &test.image {
        Some(image) => image.clone(),
        None => installed(client).await.unwrap_or_else(|| LAB_IMAGE.to_owned()),
    };
    let lab = image == LAB_IMAGE;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let api = services.get("kubernetes").await.context("look for the Service default/kubernetes")?;
    Ok(Cast {
        namespace: test.namespace.clone(),
        domain: test.domain.clone(),
        image,
        settle: test.settle,
        host_port: test.host_port,
        api: stage::cluster_ips(&serde_json::to_value(api)?),
        outside: match (lab, test.outside.is_empty()) {
            (true, true) => lab_outside(),
            _ => test.outside.clone(),
        },
        outside_name: test.outside_name.clone().or_else(|| lab.then(|| LAB_NAME.to_owned())),
        lab: lab && test.outside.is_empty(),
        ..Cast::default()
    })
}

/// Of both families: those that the lab has not are asked for by nobody.
fn lab_outside() -> Vec<String> {
    LAB_OUTSIDE.map(str::to_owned).to_vec()
}

/// The image that the nodes run already.
async fn installed(client: &Client) -> Option<String> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kube-system");
    let pods = sets.get("plumb").await.ok()?.spec?.template.spec?;
    pods.containers.into_iter().next()?.image
}

/// Makes Services, policies and servers, and learns their addresses.
async fn deploy(cast: &mut Cast, stage: &Stage, waiting: (Duration, &Progress)) -> Result<()> {
    let mut services = BTreeMap::new();
    for object in cast.services() {
        let made = stage.make(&object).await?;
        services.insert(made["metadata"]["name"].as_str().unwrap_or_default().to_owned(), made);
    }
    for object in cast.policies() {
        stage.make(&object).await?;
    }
    let mut names = Vec::new();
    for object in cast.places.iter().flat_map(|place| cast.servers_of(place)) {
        stage.make(&object).await?;
        names.extend(object["metadata"]["name"].as_str().map(str::to_owned));
    }
    let addresses = stage.ready(&names, waiting).await?;
    let of_pod = |name: &str| addresses.get(name).cloned().unwrap_or_default();
    let of_service = |name: &str| services.get(name).map(stage::cluster_ips).unwrap_or_default();
    cast.all = of_service("all");
    let port = services.get("ports").and_then(|service| service["spec"]["ports"][0]["nodePort"].as_u64());
    cast.node_port = port.and_then(|port| u16::try_from(port).ok());
    for place in &mut cast.places {
        place.server = of_pod(&place.pod("server"));
        place.locked = of_pod(&place.pod("locked"));
        place.prey = of_pod(&place.pod("prey"));
        place.service = of_service(&place.pod("server"));
        place.mirror = of_service(&place.pod("mirror"));
    }
    Ok(())
}

/// Makes the pods that carry out the checks; their names. A forger that the cluster does not admit has nothing to forge.
async fn send(cast: &Cast, stage: &Stage, plan: &mut Plan) -> Result<Vec<String>> {
    let mut by_pod: BTreeMap<(String, String), Vec<Check>> = BTreeMap::new();
    for planned in &plan.checks {
        let check = Check { id: planned.id, ask: planned.ask.clone(), expect: planned.expect.clone() };
        by_pod.entry((planned.pod.clone(), planned.on.clone())).or_default().push(check);
    }
    let mut names = Vec::new();
    for ((pod, node), checks) in by_pod {
        let Some(place) = cast.places.iter().find(|place| place.node == node) else { continue };
        match stage.make(&cast.prober(&pod, place, &checks)).await {
            Ok(_) => names.push(pod),
            Err(error) if pod == place.pod(FORGER) => plan.without(&pod, &watch::told(error.as_ref())),
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// Reads the probes' logs until every check has an outcome, or none comes any more.
async fn gather(
    (stage, probers, settle): (&Stage, &[String], u64),
    of: usize,
    progress: &mut Progress,
) -> BTreeMap<usize, Outcome> {
    let mut found = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(settle) + ANSWERS;
    while found.len() < of && Instant::now() < deadline {
        tokio::time::sleep(GLANCE).await;
        let said = futures::future::join_all(probers.iter().map(|pod| stage.outcomes(pod))).await;
        found.extend(said.into_iter().flatten().map(|outcome| (outcome.id, outcome)));
        let failed = found.values().filter(|outcome| !outcome.ok).count();
        progress.count(found.len(), of, failed);
    }
    found
}

fn done(planned: &Planned, outcome: Option<&Outcome>) -> Done {
    let silent = || format!("pod {} has not reported it; --keep leaves it there to look at", planned.pod);
    Done {
        test: planned.test.to_owned(),
        pod: planned.pod.clone(),
        on: planned.on.clone(),
        to: planned.to.clone(),
        family: planned.family.to_string(),
        ok: outcome.is_some_and(|outcome| outcome.ok),
        said: outcome.map_or_else(silent, |outcome| outcome.said.clone()),
        tries: outcome.map_or(0, |outcome| outcome.tries),
        took_ms: outcome.map_or(0, |outcome| outcome.took_ms),
        finding: None,
        trace: None,
        again: None,
    }
}

/// Traces what failed, while its pods are there.
async fn find_causes(
    (stage, test): (&Stage, &Test),
    (planned, checks): (&[Planned], &mut [Done]),
    progress: &mut Progress,
) {
    let failed = checks.iter().filter(|done| !done.ok).count();
    if failed > 0 {
        progress.step(&format!("{failed} checks failed; tracing"));
    }
    let mut traced = 0;
    for (planned, done) in planned.iter().zip(checks.iter_mut()).filter(|(_, done)| !done.ok) {
        let Some((target, udp)) = planned.trace() else { continue };
        let flag = if udp { " --udp" } else { "" };
        let advice = &stage.cluster.advice;
        (done.trace, done.again) = match test.keep {
            true => {
                let words = format!("trace {}/{} {target}{flag}", stage.namespace, planned.pod);
                (Some(advice.plumb(&words)), None)
            }
            false => (None, Some(advice.plumb(&test.again(planned.test)))),
        };
        if traced < TRACED {
            traced += 1;
            let pod = ObjectName::new(&stage.namespace, &planned.pod);
            done.finding =
                Some(match trace::trace_from(&stage.cluster, pod, &planned.on, (&target, udp)).await {
                    Ok(report) => report.in_short(),
                    Err(error) => watch::told(error.as_ref()),
                });
        }
    }
}

#[cfg(test)]
mod tests;
