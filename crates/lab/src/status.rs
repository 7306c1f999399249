//! `plumb lab status`: the processes and the nodes, as they are.

use std::process::ExitCode;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use serde::Serialize;

use crate::inside::Inside;
use crate::supervise::{State, Status};
use crate::{Name, Output, agent, client, serving};

/// `plumb lab status`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    output: Output,
}

/// `plumb lab kubeconfig`: for scripts, `export KUBECONFIG=$(plumb lab kubeconfig)`.
pub fn kubeconfig(name: &Name) -> Result<ExitCode> {
    println!("{}", Inside::find(&name.get()?)?.run.kubeconfig().display());
    Ok(ExitCode::SUCCESS)
}

/// What is seen of a lab; as JSON these are the names of its fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    name: String,
    directory: String,
    kubeconfig: String,
    families: String,
    /// The anchor's pid where the caller is.
    anchor: u32,
    /// Why the supervisor ended last.
    failure: Option<String>,
    processes: Vec<Process>,
    /// Empty while the API does not answer.
    nodes: Vec<NodeRow>,
    /// Why the API does not answer.
    api_error: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    name: String,
    /// running, stopped or ended
    state: &'static str,
    /// Inside the lab.
    pid: Option<u32>,
    #[serde(rename = "rssKiB")]
    rss_kib: Option<u64>,
    restarts: u32,
    /// What ended it last, also of one that runs again: `signal 9 (SIGKILL)`, `exit code 1`.
    last_end: Option<String>,
    /// Of one that does not run: the end of its log then.
    last_lines: Option<String>,
    log: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeRow {
    name: String,
    ready: bool,
    /// Why it is not Ready.
    reason: Option<String>,
    is_cut_off: bool,
    /// What it has lost of its way to the others.
    cut_off: Option<String>,
    /// That its agent only looks.
    paused: Option<String>,
    addresses: Vec<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

/// Prints two tables, or all of it as JSON.
pub fn run(options: &Options) -> Result<ExitCode> {
    let inside = Inside::find(&options.name.get()?)?;
    let nodes = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?
        .block_on(nodes(&inside));
    let (mut nodes, api_error) = match nodes {
        Ok(nodes) => (nodes, None),
        Err(error) => (Vec::new(), Some(watch::told(error.as_ref()))),
    };
    let status = Status::read(&inside.run);
    let processes = processes(&inside, &status);
    nodes.iter_mut().for_each(|node| node.lose(&processes));
    let seen = Seen {
        name: inside.plan.name.clone(),
        directory: inside.run.path().display().to_string(),
        kubeconfig: inside.run.kubeconfig().display().to_string(),
        families: inside.plan.families.to_string(),
        anchor: inside.anchor.pid(),
        processes,
        failure: status.failure,
        nodes,
        api_error,
    };
    match options.output.is_json() {
        true => println!("{}", serde_json::to_string_pretty(&seen)?),
        false => table(&seen, inside.plan.nodes),
    }
    Ok(if seen.api_error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl NodeRow {
    /// A process may end while the node is being asked.
    fn lose(&mut self, processes: &[Process]) {
        let of_node = |process: &&Process| {
            let of = process.name.split_once('-').filter(|(_, of)| *of == self.name);
            of.is_some() && process.state != "running"
        };
        if let Some(process) = processes.iter().find(of_node).filter(|_| self.ready) {
            self.ready = false;
            self.reason = Some(format!("{} has {}", process.name, process.state));
        }
    }
}

fn processes(inside: &Inside, status: &Status) -> Vec<Process> {
    let mut names: Vec<&str> = status.processes.keys().map(String::as_str).collect();
    names.insert(0, "supervise");
    let seen = names.into_iter().map(|name| {
        let entry = status.processes.get(name);
        let pid = inside.living(name);
        Process {
            name: name.to_owned(),
            state: match (pid, entry.map(|entry| entry.state)) {
                (Some(_), _) => "running",
                (None, Some(State::Stopped)) => "stopped",
                (None, _) => "ended",
            },
            pid,
            rss_kib: pid.and_then(|pid| inside.resident(pid)),
            restarts: entry.map_or(0, |entry| entry.restarts),
            last_end: entry.and_then(|entry| entry.last_end.clone()),
            last_lines: entry.filter(|_| pid.is_none()).and_then(|entry| entry.last_lines.clone()),
            log: inside.run.log(name).display().to_string(),
        }
    });
    seen.collect()
}

async fn nodes(inside: &Inside) -> Result<Vec<NodeRow>> {
    let client = client::admin(&inside.run).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let listed = serving::soon(serving::LOOK, nodes.list(&kube::api::ListParams::default())).await?;
    let row = |node: Node| {
        let client = &client;
        async move {
            let name = node.name_any();
            let reason = serving::lacks(inside, client, (&name, Some(&node)), || serving::LOOK).await;
            let reason = reason.map(|lacks| lacks.told(&inside.plan.name));
            let cut_off = inside.cut_off(&name);
            let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
            let internal = addresses.filter(|address| address.type_ == "InternalIP");
            let paused = agent::paused(inside, &name, serving::LOOK).filter(|_| reason.is_none());
            NodeRow {
                ready: reason.is_none(),
                reason,
                is_cut_off: cut_off.is_some(),
                paused,
                cut_off,
                addresses: internal.map(|address| address.address.clone()).collect(),
                pod_cidrs: node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default(),
                name,
            }
        }
    };
    Ok(futures::future::join_all(listed.into_iter().map(row)).await)
}

fn table(seen: &Seen, nodes: u8) {
    println!("lab {}: {nodes} nodes, {}", seen.name, seen.directory);
    println!("export KUBECONFIG={}\n", seen.kubeconfig);
    let mut rows = vec![["PROCESS", "STATE", "PID", "RSS", "RESTARTS"].map(str::to_owned)];
    for Process { name, state, pid, rss_kib, restarts, .. } in &seen.processes {
        let pid = pid.map_or_else(|| "-".into(), |pid| pid.to_string());
        let rss = rss_kib.map_or_else(|| "-".into(), |kib| format!("{:.1} MB", kib as f64 / 1024.0));
        rows.push([name.clone(), (*state).to_owned(), pid, rss, restarts.to_string()]);
    }
    let ends = seen.processes.iter().map(|process| Some(process).filter(|process| process.state == "ended"));
    for (line, ended) in aligned(&rows, &[2, 3, 4]).iter().zip(std::iter::once(None).chain(ends)) {
        println!("{line}");
        if let Some(Process { last_end: Some(end), last_lines, .. }) = ended {
            print!("    ended by: {end}\n{}", last_lines.as_deref().unwrap_or_default());
        }
    }
    println!("(pids are those inside the lab; the anchor is {} here)", seen.anchor);
    if let Some(failure) = &seen.failure {
        println!("the supervisor failed: {failure}");
    }
    println!();
    if let Some(error) = &seen.api_error {
        println!(
            "nodes: the API does not answer: {error}; next: plumb lab logs --name {} --tail 50 api",
            seen.name
        );
        return;
    }
    let mut rows = vec![["NODE", "STATE", "ADDRESS", "POD CIDR"].map(str::to_owned)];
    for node in &seen.nodes {
        let listed = |all: &[String]| if all.is_empty() { "-".to_owned() } else { all.join(",") };
        let state = match &node.reason {
            None => "Ready".to_owned(),
            Some(why) => format!("NotReady ({why})"),
        };
        rows.push([node.name.clone(), state, listed(&node.addresses), listed(&node.pod_cidrs)]);
    }
    aligned(&rows, &[]).iter().for_each(|line| println!("{line}"));
    for node in &seen.nodes {
        if let Some(cause) = &node.cut_off {
            println!("✗ {}: {cause}; next: plumb lab up --name {}", node.name, seen.name);
        }
        if let Some(paused) = &node.paused {
            println!("! {paused}");
        }
    }
}

/// Columns as wide as what is in them; `right`: those of numbers.
pub fn aligned<const N: usize>(rows: &[[String; N]], right: &[usize]) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [
            ["NODE", "ADDRESS", "N", "POD CIDR"],
            ["node1", "192.168.1.10,fd00:192:168:1::10", "7", "10.244.1.0/24,fd00:10:244:1::/64"],
        ];
        assert_eq!(
            aligned(&rows.map(|row| row.map(str::to_owned)), &[2]),
            [
                "NODE   ADDRESS                          N  POD CIDR",
                "node1  192.168.1.10,fd00:192:168:1::10  7  10.244.1.0/24,fd00:10:244:1::/64"
            ]
        );
    }
}
