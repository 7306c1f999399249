//! `plumb bench …`: each figure by one command, beside the floor of the same machine in the same run.
//!
//! Variants alternate, so that other load on the machine meets all of them alike; every line says from where to
//! where it measures. docs/benchmarks.md holds the figures.

mod cluster;
mod cni;
mod figures;
mod floor;
mod guards;
mod idle;
mod lab;
mod rig;
mod soak;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use figures::{Figure, Line, Table};

/// `plumb bench`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print the rows of docs/benchmarks.md instead of tables
    #[arg(long, global = true)]
    markdown: bool,
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
    /// CPU of one request between pods, with and without what checks who sends
    Guards(guards::Args),
    /// An agent on a real Kubernetes, beside kube-proxy, flannel and CoreDNS (needs tools/cluster.sh)
    Cluster(cluster::Args),
    /// Ten changes a second for minutes: nothing fails, no agent grows
    Soak(soak::Args),
    /// All of these but `cluster` and `soak`, one after the other, as the rows of docs/benchmarks.md
    All(cni::Args),
    /// Weigh nothing (started by `plumb bench lab`)
    #[command(hide = true)]
    Idle(idle::Args),
}

pub fn run(args: Args) -> Result<ExitCode> {
    if let What::Idle(args) = &args.what {
        idle::run(args)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let What::All(args) = &args.what {
        // Not after minutes of what comes before it.
        cni::check(args)?;
    }
    println!("{}\n", figures::machine());
    if let What::Soak(args) = &args.what {
        return soak::run(args);
    }
    let one = |(table, command): (Table, &str)| match args.markdown {
        true => rows(&table, command),
        false => println!("{table}"),
    };
    if args.markdown || matches!(args.what, What::All(_)) {
        println!("{}", figures::HEAD);
    }
    let markdown = args.markdown;
    match &args.what {
        What::Dns(args) => one((dns(args)?, DNS)),
        What::Endpoints(args) => one((endpoints(args)?, ENDPOINTS)),
        What::Cni(args) => one((cni::run(args)?, CNI)),
        What::Lab(args) => one((lab::run(args)?, LAB)),
        What::Guards(args) => one((guards::run(args)?, GUARDS)),
        What::Cluster(args) => {
            let table = cluster::run(args)?;
            if !markdown {
                println!("{table}\n{}", figures::HEAD);
            }
            rows(&table, CLUSTER);
        }
        What::All(args) => {
            rows(&dns(&defaults()?)?, DNS);
            rows(&endpoints(&defaults()?)?, ENDPOINTS);
            rows(&cni::run(args)?, CNI);
            rows(&lab::run(&defaults()?)?, LAB);
            rows(&guards::run(&defaults()?)?, GUARDS);
            println!("\nAfterwards: {}", figures::machine());
        }
        What::Idle(_) | What::Soak(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

const DNS: &str = "plumb bench dns";
const ENDPOINTS: &str = "plumb bench endpoints";
const CNI: &str = "plumb bench cni --reference DIR";
const LAB: &str = "plumb bench lab";
const GUARDS: &str = "plumb bench guards";
const CLUSTER: &str = "plumb bench cluster";

fn rows(table: &Table, command: &str) {
    for figure in &table.figures {
        println!("{}", figure.markdown(command));
    }
}

/// As without any flag.
fn defaults<T: clap::Args>() -> Result<T> {
    let matches = T::augment_args(clap::Command::new("bench")).try_get_matches_from(["bench"])?;
    Ok(T::from_arg_matches(&matches)?)
}

fn dns(args: &agent::dns::bench::Args) -> Result<Table> {
    let report = agent::dns::bench::run(args)?;
    let mut table = Table::new("CPU of one DNS query");
    table.note(report.to_string());
    table.figure(Figure {
        what: "DNS, CPU per query".into(),
        measured: format!("{:.1} µs", report.dns.median() / 1e3),
        floor: format!("bare recvmmsg echo {:.1} µs", report.echo.median() / 1e3),
        ratio: report.ratio(),
        target: "≤ 1.5 times".into(),
    });
    Ok(table)
}

fn endpoints(args: &agent::bench::Args) -> Result<Table> {
    let report = agent::bench::run(args)?;
    let event = "the watch event's JSON → the kernel's notice that the transaction is in";
    let cpu = "the same, CPU time of the loop and the tables' thread, DNS update included";
    let plan = "a compiled plan → the kernel's notice";
    let mut table = Table::new(format!("{} Services × {} endpoints", args.services, args.endpoints));
    for (what, ours, floor) in [
        ("one endpoint replaced", &report.replaced, &report.replaced_floor),
        ("one endpoint more or less", &report.resized, &report.resized_floor),
    ] {
        let what = format!("{what}, {} Services", args.services);
        table.measure(&what, (event, &ours.wall), (plan, &floor.wall), "p99 ≤ 10 ms");
        table.add(Line::new("", cpu, &ours.cpu));
    }
    if args.full_load > 0 {
        let listed = "the first listed object → the kernel holds everything";
        let plan = "a compiled plan → acknowledged";
        let what = format!("{} Services × {} from nothing", args.full_load, args.endpoints);
        table.measure(&what, (listed, &report.full.wall), (plan, &report.full_floor.wall), "–");
        table.add(Line::new("", "the same, CPU time of the loop and the tables' thread", &report.full.cpu));
    }
    Ok(table)
}
