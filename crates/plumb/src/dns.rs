//! `plumb dns`: what a pod can resolve, and how each name is found. Its node's agent asks from inside of the pod.

use std::fmt::Write;
use std::process::ExitCode;

use ::trace::exchange::{AskNames, KnownName, Names, TriedName};
use anyhow::{Context, Result};
use clap::Args as ClapArgs;

use crate::advice::{Advice, Cluster};
use crate::reach::Nodes;
use crate::trace::{check, find, host};

/// `plumb dns`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The pod: NAMESPACE/NAME, or NAME with -n; or TYPE/NAME for the first Ready pod of a workload or Service (deploy, sts, ds,
    /// rs, job, svc), as `kubectl exec` takes it; a workload's name alone will do
    pod: String,
    /// One name, to be looked up step by step; all that the cluster knows without
    name: Option<String>,
    #[command(flatten)]
    output: lab::Output,
    /// The namespace of a pod that is given without one
    #[arg(long, short)]
    namespace: Option<String>,
    #[command(flatten)]
    reach: install::Reach,
}

/// Exit code 1: the name has no address, or the answer is not what the cluster's objects say.
pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reach = args.reach.clone();
    Advice::pasteable(&reach, runtime.block_on(ask(args)))
}

async fn ask(args: Args) -> Result<ExitCode> {
    if let Some(name) = &args.name {
        host::only_name(name).map_err(watch::Misused::of)?;
    }
    check(&args.pod, args.namespace.as_deref())?;
    let cluster = Cluster::connect(&args.reach).await?;
    let (pod, node) = find(&cluster, &args.pod, args.namespace.as_deref()).await?;
    let nodes = Nodes::new(&cluster).await?;
    let at = || format!("ask what {pod} can resolve, which its own node {node} has to say");
    let asked = AskNames { pod: pod.clone(), name: args.name.clone() };
    let names: Names = nodes.post(&node, "names", &asked).await.with_context(at)?;
    if args.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&names)?);
    } else {
        print!("{}", shown(&names, args.name.as_deref()));
    }
    let good = args.name.is_none_or(|name| in_file(&names, &name).next().is_some() || is_found(&names.tried));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As the zone says, and with an address.
fn is_found(tried: &[TriedName]) -> bool {
    tried.iter().all(|tried| tried.agrees) && tried.iter().any(|tried| !tried.addresses.is_empty())
}

fn in_file<'a>(names: &'a Names, name: &'a str) -> impl Iterator<Item = std::net::IpAddr> + 'a {
    let has = move |names: &[String]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    names.hosts.iter().filter(move |(_, names)| has(names)).map(|(address, _)| *address)
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(" ")
}

fn shown(names: &Names, name: Option<&str>) -> String {
    let mut text = format!(
        "asks {}; search {}; ndots {}\n",
        list(&names.servers),
        if names.search.is_empty() { "nothing".to_owned() } else { list(&names.search) },
        names.ndots
    );
    let rows = match name {
        None => overview(names),
        Some(name) => {
            let own = list(in_file(names, name));
            match own.is_empty() {
                false => vec![[name.to_owned(), own, "the pod's /etc/hosts; nobody is asked".to_owned()]],
                true => names.tried.iter().map(step).collect(),
            }
        }
    };
    let width = |column: usize| {
        let widths = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        widths.max().unwrap_or_default()
    };
    let (first, second) = (width(0), width(1));
    for [name, addresses, found] in &rows {
        // Writing into a String never fails.
        let _ = writeln!(text, "{name:<first$}  {addresses:<second$}  {found}");
    }
    if name.is_none() {
        text.push_str("and what the node's own resolvers know\n");
    }
    text
}

fn overview(names: &Names) -> Vec<[String; 3]> {
    let mut own: Vec<&String> = Vec::new();
    for name in names.hosts.iter().flat_map(|(_, names)| names) {
        if !own.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            own.push(name);
        }
    }
    let own = own
        .into_iter()
        .map(|name| [name.clone(), list(in_file(names, name)), "the pod's /etc/hosts".to_owned()]);
    let known = names.known.iter().map(|KnownName { name, step, addresses, alias, .. }| {
        let leads = match alias {
            Some(alias) => format!("→ {alias}"),
            None => list(addresses),
        };
        [name.clone(), leads, format!("search step {step}")]
    });
    let head = ["NAME", "ADDRESSES", "FOUND"].map(str::to_owned);
    std::iter::once(head).chain(own).chain(known).collect()
}

fn step(tried: &TriedName) -> [String; 3] {
    let TriedName { full_name, step, family, expected, addresses, error, agrees, micros } = tried;
    let kind = family.pick(["A", "AAAA"]);
    let answer = match error {
        Some(error) => error.clone(),
        None if addresses.is_empty() => "none".to_owned(),
        None => list(addresses),
    };
    let mark = if *agrees { "" } else { "✗ the objects say otherwise: " };
    let time = format!("{:.1} ms", *micros as f64 / 1e3);
    [format!("{step}. {full_name} {kind}"), answer, format!("{mark}{expected}, {time}")]
}

#[cfg(test)]
mod tests {
    use types::Family;

    use super::*;

    fn names() -> Names {
        let tried = |step, full_name: &str, addresses: &[&str], agrees| TriedName {
            full_name: full_name.into(),
            step,
            family: Family::V4,
            expected: "a name of the cluster".into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            error: None,
            agrees,
            micros: 500,
        };
        Names {
            node: "node1".into(),
            servers: vec!["10.96.0.10".parse().unwrap()],
            search: vec!["shop.svc.cluster.local".into()],
            ndots: 5,
            hosts: vec![
                ("127.0.0.1".parse().unwrap(), vec!["localhost".into()]),
                ("::1".parse().unwrap(), vec!["localhost".into(), "ip6-localhost".into()]),
            ],
            known: vec![KnownName {
                name: "db".into(),
                step: 1,
                full_name: "db.shop.svc.cluster.local".into(),
                addresses: vec!["10.96.0.7".parse().unwrap()],
                alias: None,
            }],
            tried: vec![tried(1, "db.shop.svc.cluster.local", &["10.96.0.7"], true)],
        }
    }

    #[test]
    fn the_overview_says_how_each_is_found() {
        let text = shown(&names(), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "asks 10.96.0.10; search shop.svc.cluster.local; ndots 5");
        assert_eq!(lines[2], "localhost      127.0.0.1 ::1  the pod's /etc/hosts");
        assert_eq!(lines[3], "ip6-localhost  ::1            the pod's /etc/hosts");
        assert_eq!(lines[4], "db             10.96.0.7      search step 1");
    }

    #[test]
    fn an_answer_that_is_not_the_clusters_is_marked() {
        let mut names = names();
        assert!(is_found(&names.tried));
        names.tried[0].agrees = false;
        assert!(!is_found(&names.tried));
        assert!(shown(&names, Some("db")).contains("✗ the objects say otherwise"));
        assert!(shown(&names, Some("localhost")).contains("nobody is asked"));
    }
}
