//! What a short pod looks at on its node before anything is changed there: the kernel, other networks, firewalls.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use kernel::Nft;
use kernel::feature::{User, probe};
use kstate::nft::{Hook, TableFamily, TableId};

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
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: String,
    /// Where the findings go besides stdout
    #[arg(long)]
    message: Option<PathBuf>,
}

/// Findings as JSON; exit code 0 whatever they are.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut findings = kernel(&args.node);
    findings.extend(conflists(&args.node, &args.cni_conf_dir));
    findings.extend(firewalls(args));
    let text = serde_json::to_string(&findings)?;
    if let Some(path) = &args.message {
        fs::write(path, &text).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

fn kernel(node: &str) -> Vec<Finding> {
    let lacking = probe(&[User::Agent]).into_iter().filter(|found| !found.is_there());
    lacking
        .map(|found| {
            let cause =
                format!("its kernel has no {}: {}", found.feature.name, found.answer().unwrap_or_default());
            Finding::fatal(format!("node {node}"), cause, found.next_step().unwrap_or_default())
        })
        .collect()
}

/// The file that the agents write.
const OURS: &str = "10-plumb.conflist";

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
    configures && name != OURS && !name.contains("loopback")
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
        let table = TableId { family, name: name.to_owned() };
        // Unreadable rules of others are no reason to stop.
        let Ok(Some(chains)) = nft.chains(&table) else { continue };
        let drops = |chain: &kstate::nft::Chain| {
            chain.base.is_some_and(|base| base.hook == Hook::Forward && base.drop)
        };
        for (chain, _) in chains.iter().filter(|(_, chain)| drops(chain)) {
            findings.push(dropping(args, &table, chain));
        }
        if name == "firewalld" {
            findings.push(firewalld(args));
        }
    }
    findings
}

fn dropping(args: &Args, table: &TableId, chain: &str) -> Finding {
    let (node, cidr) = (&args.node, &args.cluster_cidr);
    let next = if is_running("dockerd") {
        format!(
            "Docker set it. On {node}: put \"ip-forward-no-drop\": true into /etc/docker/daemon.json and restart \
             docker, or: iptables -I DOCKER-USER -s {cidr} -j ACCEPT; iptables -I DOCKER-USER -d {cidr} -j ACCEPT \
             (again after every boot)"
        )
    } else {
        format!("on {node}: nft add chain {table} {chain} '{{ policy accept; }}', or allow {cidr} there")
    };
    Finding::of(
        "firewall",
        format!("node {node}: chain {chain} of table {table}"),
        "it drops what the node forwards and does not know: packets between pods of different nodes",
        next,
    )
}

fn firewalld(args: &Args) -> Finding {
    let (node, cidr) = (&args.node, &args.cluster_cidr);
    Finding::of(
        "firewall",
        format!("node {node}: firewalld"),
        "it rejects what comes from interfaces that it does not know: pods, and the tunnel's UDP port 8472",
        format!(
            "on {node}: firewall-cmd --permanent --zone=trusted --add-source={cidr} --add-interface=cni0 \
             --add-interface=plumb.1 && firewall-cmd --permanent --add-port=8472/udp --add-port=9475/tcp \
             --add-port=9476/udp --add-port=9476/tcp && firewall-cmd --reload; then --accept firewall"
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
}
