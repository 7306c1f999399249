//! What a short pod looks at on its node before anything is changed there: the kernel, other networks, firewalls.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use ipnet::IpNet;
use kernel::Nft;
use kernel::feature::{Found, User, lacks, probe};
use kstate::nft::{Hook, TableFamily, TableId};
use types::Family;
use types::wire::{CONFLIST, POD_CIDRS};

use crate::findings::Finding;

/// `plumb node-check`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The Node object that this machine is
    #[arg(long, env = "PLUMB_NODE")]
    node: String,
    /// Where the runtime looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Addresses of all pods of the cluster
    #[arg(long = "cluster-cidr", default_value = POD_CIDRS[0], value_delimiter = ',')]
    cluster_cidrs: Vec<IpNet>,
    /// Where the findings go besides stdout
    #[arg(long)]
    message: Option<PathBuf>,
}

/// The kubelet cuts a container's last message here (`MaxContainerTerminationMessageLength`), and half a list cannot
/// be read.
const MESSAGE: usize = 4096;
/// A kernel's answer and its remedy are shorter.
const FIELD: usize = 800;

/// Findings as JSON; exit code 0 whatever they are.
pub fn run(args: &Args) -> Result<ExitCode> {
    let users = User::of_agent(args.cluster_cidrs.iter().map(Family::of_net));
    let mut findings = kernel(&args.node, &probe(&users));
    findings.extend(conflists(&args.node, &args.cni_conf_dir));
    findings.extend(kube_proxy(&args.node));
    findings.extend(firewalls(args));
    let text = message(&args.node, findings)?;
    if let Some(path) = &args.message {
        fs::write(path, &text).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// As many as fit; that there are more is one too.
fn message(node: &str, mut findings: Vec<Finding>) -> Result<String> {
    for finding in &mut findings {
        for field in [&mut finding.object, &mut finding.cause, &mut finding.next] {
            cut(field);
        }
    }
    let mut left_out: Vec<Finding> = Vec::new();
    loop {
        let word = match left_out.first() {
            Some(first) if left_out.iter().all(|other| other.word == first.word) => first.word.as_str(),
            _ => "",
        };
        let more = Finding::of(
            word,
            format!("node {node}"),
            format!("{} more things are in the way", left_out.len()),
            "mend those above, then run this again",
        );
        let told: Vec<&Finding> = findings.iter().chain((!left_out.is_empty()).then_some(&more)).collect();
        let text = serde_json::to_string(&told)?;
        if text.len() < MESSAGE {
            return Ok(text);
        }
        left_out.extend(findings.pop());
    }
}

fn cut(text: &mut String) {
    let Some(end) = (0..=FIELD.min(text.len())).rev().find(|at| text.is_char_boundary(*at)) else { return };
    if end < text.len() {
        text.truncate(end);
        text.push('…');
    }
}

fn kernel(node: &str, found: &[Found]) -> Vec<Finding> {
    let finding = |lack: kernel::feature::Lack| {
        let behind = match lack.behind.as_slice() {
            [] => String::new(),
            behind => format!("; and with it {}", behind.join(", ")),
        };
        let next = lack.first.next_step().unwrap_or_default();
        Finding::fatal(format!("node {node}"), format!("its kernel: {lack}{behind}"), next)
    };
    lacks(found).into_iter().map(finding).collect()
}

/// A runtime takes the first by name; a second network on a node fights for pods, routes and policies in any case.
fn conflists(node: &str, directory: &Path) -> Vec<Finding> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_foreign(name))
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let path = directory.join(&name);
            // As the node itself calls it.
            let path = path.strip_prefix("/host").map_or(path.clone(), |path| Path::new("/").join(path));
            Finding::of(
                "conflist",
                format!("node {node}: {}", path.display()),
                "another network is configured here, and the container runtime takes the first by name",
                format!("uninstall that network, then on {node}: rm {}", path.display()),
            )
        })
        .collect()
}

fn is_foreign(name: &str) -> bool {
    let configures = [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    // CRI-O and podman ship a configuration for `lo`, and bridges of their own that sort last.
    configures && name != CONFLIST && !name.contains("loopback")
}

/// One without a DaemonSet, and the rules that one left behind: they choose endpoints as of the day on which it ended.
fn kube_proxy(node: &str) -> Vec<Finding> {
    let found = |object: String, next: String| {
        let cause = "it carries Services too: whichever of the two sees a packet first chooses its endpoint";
        Finding::of("kube-proxy", object, cause, next)
    };
    let mut findings = Vec::new();
    if is_running("kube-proxy") {
        let next = format!(
            "on {node}: stop it for good (systemctl disable --now kube-proxy), then kube-proxy --cleanup"
        );
        findings.push(found(format!("node {node}: the process kube-proxy"), next));
    }
    let Ok(mut nft) = Nft::open() else { return findings };
    for (family, name, save) in [(TableFamily::Ip, "ip", "iptables"), (TableFamily::Ip6, "ip6", "ip6tables")]
    {
        let mut chains = |table: &str| {
            // Unreadable rules of others are no reason to stop.
            nft.chains(&TableId { family, name: table.into() }).ok().flatten()
        };
        if chains("kube-proxy").is_some() {
            let next = format!("on {node}: nft delete table {name} kube-proxy");
            findings.push(found(format!("node {node}: table {name} kube-proxy"), next));
        }
        // The kubelet has KUBE- chains of its own; this one is kube-proxy's.
        if chains("nat").is_some_and(|chains| chains.contains_key("KUBE-SERVICES")) {
            let next = format!("on {node}: {save}-save | grep -v KUBE- | {save}-restore");
            findings.push(found(format!("node {node}: chain KUBE-SERVICES of table {name} nat"), next));
        }
    }
    findings
}

/// Chains of others that drop what is forwarded unless a rule of theirs allows it: our accepting it does not count
/// there, since every base chain of a hook has to let a packet pass.
fn firewalls(args: &Args) -> Vec<Finding> {
    let Ok(mut nft) = Nft::open() else { return Vec::new() };
    let tables = [
        (TableFamily::Ip, "filter"),
        (TableFamily::Ip6, "filter"),
        (TableFamily::Inet, "filter"),
        (TableFamily::Inet, "firewalld"),
    ];
    let mut findings = Vec::new();
    for (family, name) in tables {
        let ranges = ranges_in(family, &args.cluster_cidrs);
        let table = TableId { family, name: name.into() };
        // Unreadable rules of others are no reason to stop; nor are those of a family that pods have not.
        let Ok(Some(chains)) = nft.chains(&table) else { continue };
        let drops = |chain: &kstate::nft::Chain| {
            chain.base.is_some_and(|base| base.hook == Hook::Forward && base.drop) && !ranges.is_empty()
        };
        for (chain, _) in chains.iter().filter(|(_, chain)| drops(chain)) {
            findings.push(dropping(&args.node, &ranges, &table, chain));
        }
        if name == "firewalld" {
            findings.push(firewalld(&args.node, &ranges));
        }
    }
    findings
}

/// Those whose packets a table sees.
fn ranges_in(table: TableFamily, ranges: &[IpNet]) -> Vec<IpNet> {
    let sees = |range: &&IpNet| match table {
        TableFamily::Ip => Family::of_net(range) == Family::V4,
        TableFamily::Ip6 => Family::of_net(range) == Family::V6,
        _ => true,
    };
    ranges.iter().filter(sees).copied().collect()
}

fn dropping(node: &str, ranges: &[IpNet], table: &TableId, chain: &str) -> Finding {
    let next = if is_running("dockerd") {
        format!(
            "Docker set it. On {node}: put \"ip-forward-no-drop\": true into /etc/docker/daemon.json and restart \
             docker, or: {} (again after every boot)",
            let_through_docker(ranges)
        )
    } else {
        let ranges = model::ranges::joined(ranges).replace(',', " and ");
        format!("on {node}: nft add chain {table} {chain} '{{ policy accept; }}', or allow {ranges} there")
    };
    Finding::of(
        "firewall",
        format!("node {node}: chain {chain} of table {table}"),
        "it drops what the node forwards and does not know: packets between pods of different nodes",
        next,
    )
}

fn let_through_docker(ranges: &[IpNet]) -> String {
    let of = |range: &IpNet| {
        let program = match Family::of_net(range) {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        ["-s", "-d"].map(|side| format!("{program} -I DOCKER-USER {side} {range} -j ACCEPT"))
    };
    ranges.iter().flat_map(of).collect::<Vec<_>>().join("; ")
}

fn firewalld(node: &str, ranges: &[IpNet]) -> Finding {
    let sources: String = ranges
        .iter()
        .map(|range| format!("firewall-cmd --permanent --zone=trusted --add-source={range} && "))
        .collect();
    Finding::of(
        "firewall",
        format!("node {node}: firewalld"),
        "it rejects what comes from interfaces that it does not know: pods, and the tunnel's UDP port 8472",
        format!(
            "on {node}: {sources}firewall-cmd --permanent --zone=trusted --add-interface=cni0 && \
             firewall-cmd --permanent --zone=trusted --add-interface=plumb.1 && firewall-cmd --permanent \
             --add-port=8472/udp --add-port=9475/tcp --add-port=9476/udp --add-port=9476/tcp && \
             firewall-cmd --reload; then --accept firewall"
        ),
    )
}

/// A process of this name in sight.
fn is_running(name: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .any(|comm| comm.trim_end() == name)
}

#[cfg(test)]
mod tests {
    use kernel::feature::Outcome;

    use super::*;

    #[test]
    fn other_networks_are_found_by_their_files() {
        let dir = std::env::temp_dir().join(format!("plumb-check-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for name in ["10-plumb.conflist", "05-cilium.conflist", "99-loopback.conf", "README", "old.conf.bak"]
        {
            fs::write(dir.join(name), "{}").unwrap();
        }
        let found = conflists("n", &dir);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].next.contains("05-cilium.conflist"), "{found:?}");
        assert!(conflists("n", &dir).is_empty(), "no directory, no network");
    }
    /// A kernel without nf_tables lacks a dozen features, by one cause.
    #[test]
    fn one_answer_is_one_finding() {
        let users = User::of_agent(Family::ALL);
        let mut found = probe(&users);
        for found in &mut found {
            let is_nft = found.feature.name.starts_with("nf");
            found.outcome = if is_nft { Outcome::Missing("not supported".into()) } else { Outcome::There };
        }
        let findings = kernel("n", &found);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(
            findings[0].cause.contains("nf_tables") && findings[0].cause.contains("nft-ip6"),
            "{findings:?}"
        );
        assert!(findings[0].next.contains("modprobe nf_tables"), "{findings:?}");
    }

    #[test]
    fn whatever_is_found_can_be_read_in_whole() {
        let other = |at: usize| Finding::of("conflist", format!("{at} {}", "ü".repeat(900)), "\"\n", "rm");
        let fatal = Finding::fatal("node n", "no nf_tables", "modprobe nf_tables");
        for (findings, word) in [
            (vec![fatal.clone()], None),
            ((0..9).map(other).collect::<Vec<_>>(), Some("conflist")),
            ((0..9).map(other).chain([fatal.clone()]).collect(), Some("")),
        ] {
            let text = message("n", findings.clone()).unwrap();
            assert!(text.len() < MESSAGE, "{}", text.len());
            let told: Vec<Finding> = serde_json::from_str(&text).unwrap();
            match word {
                None => assert_eq!(told, findings),
                Some(word) => {
                    let last = told.last().unwrap();
                    assert!(last.cause.contains("more things") && last.word == word, "{last:?}");
                }
            }
        }
    }

    #[test]
    fn remedies_can_be_typed_for_each_family() {
        let both: Vec<IpNet> = POD_CIDRS.iter().map(|range| range.parse().unwrap()).collect();
        let docker = let_through_docker(&both);
        assert!(docker.contains("; ip6tables -I DOCKER-USER -s fd00:10:244::/48 -j ACCEPT"), "{docker}");
        assert!(firewalld("n", &both).next.contains("--add-source=fd00:10:244::/48 &&"));
        assert_eq!(ranges_in(TableFamily::Ip, &both), both[..1]);
        assert_eq!(ranges_in(TableFamily::Ip6, &both), both[1..]);
        assert_eq!(ranges_in(TableFamily::Inet, &both), both);
    }
}
