//! `plumb lab list`: the labs of this user.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::plan::Plan;
use crate::rundir::{self, RunDir};
use crate::status::aligned;
use crate::{Output, adopt};

/// `plumb lab list`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// running, or ended: what a killed lab has left
    state: &'static str,
    nodes: u8,
    families: String,
    api: String,
    kubeconfig: String,
}

/// Prints a table, or a list of objects as JSON.
pub fn run(options: &Options) -> Result<ExitCode> {
    let rows = rows()?;
    if options.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        println!("no labs; start one with: plumb lab up");
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![["NAME", "STATE", "NODES", "FAMILIES", "KUBECONFIG"].map(str::to_owned)];
    for Row { name, state, nodes, families, kubeconfig, .. } in &rows {
        let state = (*state).to_owned();
        lines.push([name.clone(), state, nodes.to_string(), families.clone(), kubeconfig.clone()]);
    }
    aligned(&lines, &[2]).iter().for_each(|line| println!("{line}"));
    for Row { name, .. } in rows.iter().filter(|row| row.state == ENDED) {
        println!(
            "lab {name} was killed; start it anew, or remove what is left: plumb lab down --name {name}"
        );
    }
    Ok(ExitCode::SUCCESS)
}

const ENDED: &str = "ended";

/// The names of the labs that run.
pub fn running() -> Vec<String> {
    let rows = rows().unwrap_or_default().into_iter();
    rows.filter(|row| row.state != ENDED).map(|row| row.name).collect()
}

/// The names of the labs whose API has this port, whether they run or not.
pub fn at_port(port: u16) -> Vec<String> {
    let plans = plans().unwrap_or_default().into_iter();
    plans.filter(|(_, plan)| plan.api_port == port).map(|(_, plan)| plan.name).collect()
}

fn plans() -> Result<Vec<(RunDir, Plan)>> {
    let base = rundir::base()?;
    let entries = match std::fs::read_dir(&base) {
        Ok(entries) => entries,
        // Nobody has started one yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", base.display())),
    };
    let runs = entries.flatten().map(|entry| RunDir::at(entry.path()));
    // Without what is no lab, and one that begins or ends this moment.
    Ok(runs.filter_map(|run| Plan::read(&run).ok().map(|plan| (run, plan))).collect())
}

fn rows() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (run, plan) in plans()? {
        rows.push(Row {
            name: plan.name,
            state: if adopt::anchor(&run)?.is_some() { "running" } else { ENDED },
            nodes: plan.nodes,
            families: plan.families.to_string(),
            api: format!("https://127.0.0.1:{}", plan.api_port),
            kubeconfig: run.kubeconfig().display().to_string(),
        });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}
