//! `plumb lab wait`: until the lab's nodes are Ready, and all that was applied to it.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::inside::Inside;
use crate::up::{Progress, wait, workloads};
use crate::{Name, client};

/// `plumb lab wait`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    name: Name,
    /// Seconds to wait
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Only what is in this namespace [default: in all]
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Succeeds once everything is Ready; else says what is not, and why.
pub fn run(options: &Options) -> Result<ExitCode> {
    let inside = Inside::find(&options.name.get())?;
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    let progress = Progress::start();
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?.block_on(
        async {
            wait::nodes_ready(&inside.run, deadline, &progress).await?;
            let client = client::admin(&inside.run).await?;
            let mut done = BTreeSet::new();
            // What comes while it is waited for is waited for, too.
            loop {
                let all = workloads::all(&client, options.namespace.as_deref()).await?;
                let new: Vec<_> = all.into_iter().filter(|workload| done.insert(workload.clone())).collect();
                if new.is_empty() {
                    return Ok(ExitCode::SUCCESS);
                }
                workloads::ready(&client, &new, deadline, &progress).await?;
            }
        },
    )
}
