//! `plumb lab wait`: until the lab's nodes are Ready, and all that was applied to it.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

use crate::inside::Inside;
use crate::progress::Progress;
use crate::rundir::RunDir;
use crate::up::{mended, wait, workloads};
use crate::{Name, Output, a_name, client, serving};

/// `plumb lab wait`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub name: Name,
    /// Seconds to wait
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    timeout: u64,
    /// Only what is in this namespace [default: in all]
    #[arg(short, long, value_parser = a_name)]
    namespace: Option<String>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
}

/// Succeeds once everything is Ready; else says what is not, and why.
pub fn run(options: &Options) -> Result<ExitCode> {
    let progress = Progress::start(options.output, options.quiet);
    let run = RunDir::of(&options.name.get()?)?;
    let outcome = wait(options, &run.name(), &progress);
    progress.end(&run, outcome)
}

fn wait(options: &Options, name: &str, progress: &Progress) -> Result<ExitCode> {
    let inside = Inside::find(name)?;
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let waited = runtime.block_on(
        async {
            wait::Nodes { run: &inside.run, stays: true, deadline, progress }.ready().await?;
            let client = client::admin(&inside.run).await?;
            let kubectl = inside.run.kubectl();
            let wait = workloads::Wait { client: &client, kubectl: &kubectl, deadline, progress, seen: workloads::Seen::default() };
            let mut done = BTreeSet::new();
            let namespace = options.namespace.as_deref();
            if let Some(namespace) = namespace {
                serving::soon(serving::left(deadline), is_there(&client, namespace, &kubectl)).await?;
            }
            // What comes while it is waited for is waited for, too.
            loop {
                let all = serving::soon(serving::left(deadline), workloads::all(&client, namespace)).await?;
                if let (Some(namespace), true, true) = (namespace, all.is_empty(), done.is_empty()) {
                    bail!(
                        "namespace {namespace} has nothing to wait for, no Deployment and no Pod of its own; {kubectl} \
                         get deployments,pods -A shows where some are"
                    );
                }
                let new: Vec<_> = all.into_iter().filter(|workload| done.insert(workload.clone())).collect();
                if new.is_empty() {
                    mended::notes(&inside, progress);
                    return Ok(ExitCode::SUCCESS);
                }
                wait.ready(&new).await?;
            }
        },
    );
    waited.map_err(|error| inside.meanwhile(error))
}

/// Of a namespace that is not there an API lists nothing, as of one that is empty.
async fn is_there(client: &Client, namespace: &str, kubectl: &str) -> Result<()> {
    let all: Api<Namespace> = Api::all(client.clone());
    match all.get_opt(namespace).await.with_context(|| format!("look for namespace {namespace}"))? {
        Some(_) => Ok(()),
        None => bail!("there is no namespace {namespace}; {kubectl} get namespaces shows those that are"),
    }
}
