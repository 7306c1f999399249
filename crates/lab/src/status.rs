//! `plumb lab status`: the processes and the nodes, as they are.

use std::process::ExitCode;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};

use crate::inside::Inside;
use crate::supervise::{State, Status};
use crate::{Name, client};

/// `plumb lab kubeconfig`: for scripts, `export KUBECONFIG=$(plumb lab kubeconfig)`.
pub fn kubeconfig(name: &Name) -> Result<ExitCode> {
    println!("{}", Inside::find(&name.get())?.run.kubeconfig().display());
    Ok(ExitCode::SUCCESS)
}

/// Prints two tables.
pub fn run(name: &Name) -> Result<ExitCode> {
    let inside = Inside::find(&name.get())?;
    println!("lab {}: {} nodes, {}", inside.plan.name, inside.plan.nodes, inside.run.path().display());
    println!("export KUBECONFIG={}\n", inside.run.kubeconfig().display());
    processes(&inside);
    println!();
    let nodes = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?
        .block_on(nodes(&inside));
    match nodes {
        Ok(text) => print!("{text}"),
        Err(error) => println!("nodes: the API does not answer: {error:#}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn processes(inside: &Inside) {
    println!("{:<16} {:<9} {:>8} {:>9} {:>9}", "PROCESS", "STATE", "PID", "RSS", "RESTARTS");
    let status = Status::read(&inside.run);
    let mut names: Vec<&str> = status.processes.keys().map(String::as_str).collect();
    names.insert(0, "supervise");
    for name in names {
        let entry = status.processes.get(name);
        let pid = inside.living(name);
        let state = match (pid, entry.map(|entry| entry.state)) {
            (Some(_), _) => "running",
            (None, Some(State::Stopped)) => "stopped",
            (None, _) => "ended",
        };
        let rss =
            pid.and_then(|pid| inside.resident(pid)).map(|kib| format!("{:.1} MB", kib as f64 / 1024.0));
        println!(
            "{name:<16} {state:<9} {:>8} {:>9} {:>9}",
            pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            rss.as_deref().unwrap_or("-"),
            entry.map_or(0, |entry| entry.restarts),
        );
        if let (None, Some(why)) = (pid, entry.and_then(|entry| entry.last_end.as_deref())) {
            print!("{why}");
        }
    }
    println!("(pids are those inside the lab; the anchor is {} here)", inside.anchor.pid());
    if let Some(failure) = status.failure {
        println!("the supervisor failed: {failure}");
    }
}

async fn nodes(inside: &Inside) -> Result<String> {
    let nodes: Api<Node> = Api::all(client::admin(&inside.run).await?);
    let mut text = format!("{:<16} {:<10} {:<16} POD CIDR\n", "NODE", "STATE", "ADDRESS");
    for node in nodes.list(&kube::api::ListParams::default()).await? {
        let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default().join(",");
        let cidr = if cidrs.is_empty() { "-" } else { &cidrs };
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let addresses: Vec<&str> = addresses
            .filter(|address| address.type_ == "InternalIP")
            .map(|address| address.address.as_str())
            .collect();
        let address = if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") };
        let state = match client::not_ready(&node) {
            None => "Ready".to_owned(),
            Some(why) => format!("NotReady ({why})"),
        };
        text += &format!("{:<16} {state:<10} {address:<16} {cidr}\n", node.name_any());
    }
    Ok(text)
}
