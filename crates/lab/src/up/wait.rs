//! Waits for a lab to be ready, and when it is not, says which part and why.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::Progress;
use crate::inside::Inside;
use crate::plan::Plan;
use crate::rundir::RunDir;
use crate::supervise::{Entry, State, Status};
use crate::{adopt, client, serving};

/// About six seconds of restarts.
const HOPELESS: u32 = 8;
const GLANCE: Duration = Duration::from_millis(10);

pub async fn nodes_ready(run: &RunDir, deadline: Instant, progress: &Progress) -> Result<()> {
    let plan = Plan::read(run)?;
    let client = api_answers(run, &plan, deadline).await?;
    progress.step(&format!("API on https://127.0.0.1:{}", plan.api_port));
    let nodes: Api<Node> = Api::all(client.clone());
    let inside = Inside::find(&run.name())?;
    let mut ready = BTreeSet::new();
    loop {
        let mut waiting = Vec::new();
        let limit = || serving::left(deadline);
        match serving::soon(limit(), nodes.list(&ListParams::default())).await {
            Err(error) => waiting.push(format!("the API does not answer: {}", watch::told(error.as_ref()))),
            Ok(listed) => {
                let (names, inside, client) = (plan.node_names(), &inside, &client);
                let lacks = names.iter().map(|name| {
                    let node = listed.iter().find(|node| node.name_any() == *name);
                    async move {
                        match lost(inside, name) {
                            Some(cause) => Some(cause),
                            None => serving::lacks(inside, client, (name, node), limit).await,
                        }
                    }
                });
                let lacks = futures::future::join_all(lacks).await;
                for (name, lacks) in names.into_iter().zip(lacks) {
                    match lacks {
                        Some(why) => waiting.push(format!("{name}: {why}")),
                        None if ready.insert(name.clone()) => progress.step(&format!("{name} Ready")),
                        None => {}
                    }
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        check(run, deadline, || format!("nodes are not Ready: {}", first(&waiting, "; ")))?;
        tokio::time::sleep(GLANCE).await;
    }
}

/// As many as a person reads, and how many more there are.
pub const SHOWN: usize = 10;

/// The first ones, and how many more.
pub fn first(all: &[String], between: &str) -> String {
    let mut said: Vec<String> = all.iter().take(SHOWN).cloned().collect();
    if let more @ 1.. = all.len().saturating_sub(SHOWN) {
        said.push(format!("and {more} more"));
    }
    said.join(between)
}

/// What it has lost of its way to the others, which the Node does not say for 40 s, and what gives it back.
fn lost(inside: &Inside, node: &str) -> Option<String> {
    let cause = inside.cut_off(node)?;
    Some(format!("{cause}; plumb lab up --name {} gives it back", inside.plan.name))
}

async fn api_answers(run: &RunDir, plan: &Plan, deadline: Instant) -> Result<Client> {
    let client = client::admin(run).await?;
    loop {
        match serving::soon(serving::left(deadline), client.apiserver_version()).await {
            Ok(_) => return Ok(client),
            Err(error) => check(run, deadline, || {
                let why = watch::told(error.as_ref());
                format!("the API on port {} does not answer: {why}", plan.api_port)
            })?,
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// What ended so often, with growing pauses, will end again.
fn hopeless(entry: &Entry) -> bool {
    entry.state == State::Ended && entry.restarts >= HOPELESS
}

/// Fails when the lab has died, cannot live, or takes too long.
fn check(run: &RunDir, deadline: Instant, waiting: impl FnOnce() -> String) -> Result<()> {
    if adopt::anchor(run)?.is_none() {
        bail!("the lab's anchor ended; the end of its log:\n{}", run.last_lines("anchor", 5));
    }
    let status = Status::read(run);
    if Instant::now() < deadline && !status.processes.values().any(hopeless) {
        return Ok(());
    }
    let mut why = waiting();
    if let Some(failure) = status.failure {
        why += &format!("\n  the supervisor: {failure}");
    }
    for (name, entry) in &status.processes {
        if let (State::Ended, Some(end)) = (entry.state, &entry.last_end) {
            why += &format!(
                "\n  {name} was started {} times and ended each time, the last time by {end}; the end of its log:\n{}",
                entry.restarts + 1,
                entry.last_lines.as_deref().unwrap_or_default()
            );
        }
    }
    if status.processes.is_empty() {
        why += &format!("\n  the supervisor's log:\n{}", run.last_lines("supervise", 5));
    }
    bail!("{}", why.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_are_named_and_the_others_counted() {
        let names = |count: usize| (1..=count).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(first(&names(2), "; "), "1; 2");
        assert!(first(&names(10), "; ").ends_with("; 9; 10"));
        assert!(first(&names(12), "; ").ends_with("; 10; and 2 more"));
    }
}
