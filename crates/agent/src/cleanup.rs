//! Takes everything of Plumb from a node: the way an agent works, with nothing desired (docs/ownership.md).

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kernel::net::{self, Scope};
use kstate::net::NetState;
use types::wire::{BRIDGE, DNS_IPS, VXLAN_DEVICE};
use types::{IfName, range};

use crate::datapath::Datapath;
use crate::drops::Drops;
use crate::{conflist, executables, only_agent};

/// `plumb node-cleanup`
#[derive(Clone, Debug, clap::Args)]
pub struct CleanupArgs {
    /// Where the agent kept what outlives it
    #[arg(long, default_value = "/var/lib/plumb")]
    data: PathBuf,
    /// Where the runtime looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the runtime looks for CNI executables [default: they stay]
    #[arg(long, env = "PLUMB_CNI_BIN_DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// The agent's unix socket
    #[arg(long, default_value = types::wire::AGENT_SOCKET)]
    socket: PathBuf,
    /// Where pods asked for names, one address for each family
    #[arg(
        long = "dns-ip",
        env = "PLUMB_DNS_IP",
        default_value = DNS_IPS[0],
        value_delimiter = ',',
        value_parser = range::address
    )]
    dns_ips: Vec<IpAddr>,
}

/// First what runtimes look at, so that nothing new begins; last what tells whose the rest is, so that it can be
/// run again after a failure. How many things went, in words.
pub fn cleanup(args: &CleanupArgs) -> Result<Vec<String>> {
    let mut gone = Vec::new();
    let only = only_agent(&args.data)?;
    conflist::withdraw(&args.cni_conf_dir)?;
    let mut datapath = Datapath::open(Drops::default()).context("open the kernel's network interfaces")?;
    let rules = datapath.clear_nft().context("remove the tables of nf_tables")?;
    gone.extend_from_slice(rules.told());
    let loopback = args.dns_ips.iter().map(|ip| (*ip).into()).collect();
    let scope = Scope { links: links(&mut datapath)?, loopback, ..Scope::default() };
    let actual = net::observe(&mut datapath.rtnl, &scope)?;
    let plan = kstate::net::diff(&NetState::default(), &actual);
    let failures = net::apply(&mut datapath.rtnl, &plan)?;
    if let Some(first) = failures.first() {
        anyhow::bail!("{first} ({} of {} steps failed)", failures.len(), plan.ops().count());
    }
    gone.extend(plan.ops().map(|op| op.to_string()));
    let links =
        kernel::checksums::leave(&mut datapath.rtnl).context("take the programs from the machine's links")?;
    gone.extend(links.iter().map(|link| format!("- program for checksums at {link}")));
    if let Some(directory) = &args.cni_bin_dir {
        executables::withdraw(directory)?;
    }
    executables::remove(&args.socket)?;
    // Until nothing is left that an agent could begin with.
    empty(&args.data)?;
    drop(only);
    Ok(gone)
}

/// The bridge, its ports, the tunnel: no record is asked, since it may be lost or of another version.
fn links(datapath: &mut Datapath) -> Result<BTreeSet<IfName>> {
    let ours = [BRIDGE, VXLAN_DEVICE].into_iter().map(IfName::new).collect::<Result<BTreeSet<_>, _>>()?;
    let rows = datapath.rtnl.links().context("list the links")?;
    let bridge = rows.iter().find(|row| row.name.as_str() == BRIDGE).map(|row| row.index);
    let ports = rows.iter().filter(|row| bridge.is_some() && row.master == bridge);
    Ok(ports.map(|row| row.name.clone()).chain(ours).collect())
}

/// The directory itself may be a mount.
fn empty(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        executables::remove(&entry.with_context(|| format!("read {}", directory.display()))?.path())?;
    }
    // Busy where it is one; then the host's own directory stays, empty.
    let _ = fs::remove_dir(directory);
    Ok(())
}
