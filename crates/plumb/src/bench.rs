//! `plumb bench …`: each figure by one command, beside the floor of the same machine in the same run.
//!
//! Variants alternate, so that other load on the machine meets all of them alike; every line says from where to
//! where it measures. docs/benchmarks.md holds the figures.

mod cni;
mod figures;
mod lab;
mod rig;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use figures::{Line, Table};

/// `plumb bench`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// CPU of one DNS query, beside a bare echo with the same system calls
    Dns(agent::dns::bench::Args),
    /// An endpoint change, from the watch event to the kernel
    Endpoints(agent::bench::Args),
    /// CNI ADD and DEL as a runtime sees them, beside the reference plugins and the kernel alone
    Cni(cni::Args),
    /// A lab: up, apply to Ready, memory, trace, down
    Lab(lab::Args),
}

pub fn run(args: Args) -> Result<ExitCode> {
    println!("{}\n", figures::machine());
    match args.what {
        What::Dns(args) => println!("{}", agent::dns::bench::run(&args)?),
        What::Endpoints(args) => println!("{}", endpoints(&args)?),
        What::Cni(args) => println!("{}", cni::run(&args)?),
        What::Lab(args) => println!("{}", lab::run(&args)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn endpoints(args: &agent::bench::Args) -> Result<Table> {
    let report = agent::bench::run(args)?;
    let event = "the watch event's JSON → the kernel's notice that the transaction is in";
    let cpu = "the same, CPU time of the node's loop, DNS update included";
    let plan = "a compiled plan → the kernel's notice";
    let mut table = Table::new(format!("{} Services × {} endpoints", args.services, args.endpoints));
    table.add(Line::new("one endpoint replaced", event, &report.replaced.wall).target("p99 ≤ 10 ms"));
    table.add(Line::new("", cpu, &report.replaced.cpu));
    table.add(Line::new("  floor", plan, &report.replaced_floor.wall));
    table.add(Line::new("one endpoint more or less", event, &report.resized.wall).target("p99 ≤ 10 ms"));
    table.add(Line::new("", cpu, &report.resized.cpu));
    table.add(Line::new("  floor", plan, &report.resized_floor.wall));
    if args.full_load > 0 {
        let listed = "the first listed object → the kernel holds everything";
        table.add(Line::new(
            format!("{} × {} from nothing", args.full_load, args.endpoints),
            listed,
            &report.full.wall,
        ));
        table.add(Line::new("", "the same, CPU time of the node's loop", &report.full.cpu));
        let plan = "a compiled plan → acknowledged";
        table.add(Line::new("  floor", plan, &report.full_floor.wall));
    }
    Ok(table)
}
