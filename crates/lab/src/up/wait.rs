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
use crate::{adopt, client};

/// About six seconds of restarts.
const HOPELESS: u32 = 8;
const GLANCE: Duration = Duration::from_millis(10);

pub async fn nodes_ready(run: &RunDir, deadline: Instant, progress: &Progress) -> Result<()> {
    let plan = Plan::read(run)?;
    let client = api_answers(run, &plan, deadline).await?;
    progress.step(&format!("API on https://127.0.0.1:{}", plan.api_port));
    let nodes: Api<Node> = Api::all(client);
    let inside = Inside::find(&run.name())?;
    let mut ready = BTreeSet::new();
    loop {
        let mut waiting = Vec::new();
        let listed = nodes.list(&ListParams::default()).await;
        let listed = listed.map(|list| list.items).unwrap_or_default();
        for name in plan.node_names() {
            let said = listed.iter().find(|node| node.name_any() == name).map(client::not_ready);
            let said = said.unwrap_or_else(|| Some("its kubelet has not registered it".into()));
            // What the Node says is some seconds old.
            match away(&inside, &name).or_else(|| lost(&inside, &name)).or(said) {
                Some(why) => waiting.push(format!("{name}: {why}")),
                None if ready.insert(name.clone()) => progress.step(&format!("{name} Ready")),
                None => {}
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        check(run, deadline, || format!("nodes are not Ready: {}", waiting.join("; ")))?;
        tokio::time::sleep(GLANCE).await;
    }
}

/// Which of the node's processes is not there, whatever the Node says yet, and what brings it back.
fn away(inside: &Inside, node: &str) -> Option<String> {
    let lab = &inside.plan.name;
    let away = |program: &&str| inside.living(&format!("{program}-{node}")).is_none();
    let program = ["agent", "kubelet"].into_iter().find(away)?;
    match inside.run.stopped(&format!("{program}-{node}")).exists() {
        true => {
            Some(format!("its {program} is stopped; plumb lab agent start --name {lab} {node} starts it"))
        }
        false => Some(format!(
            "its {program} does not run; plumb lab logs --name {lab} --tail 50 {node} {program} shows what it has said"
        )),
    }
}

/// What it has lost of its way to the others, which the Node does not say for 40 s, and what gives it back.
fn lost(inside: &Inside, node: &str) -> Option<String> {
    let cause = inside.cut_off(node)?;
    Some(format!("{cause}; plumb lab up --name {} gives it back", inside.plan.name))
}

async fn api_answers(run: &RunDir, plan: &Plan, deadline: Instant) -> Result<Client> {
    let client = client::admin(run).await?;
    loop {
        match client.apiserver_version().await {
            Ok(_) => return Ok(client),
            Err(error) => check(run, deadline, || {
                format!("the API on port {} does not answer: {}", plan.api_port, watch::told(&error))
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
                "\n  {name} was started {} times and ended each time; the end of its log:\n{end}",
                entry.restarts + 1
            );
        }
    }
    if status.processes.is_empty() {
        why += &format!("\n  the supervisor's log:\n{}", run.last_lines("supervise", 5));
    }
    bail!("{}", why.trim_end())
}
