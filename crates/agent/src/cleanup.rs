//! Takes everything of Plumb from a node: the way an agent works, with nothing desired (docs/ownership.md).

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use types::wire::DNS_IPS;
use types::{Backend, range};

use crate::datapath::{Datapath, Subsystem};
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
    // Whatever carried it, in this version all of it is in nf_tables.
    let mut datapath = Datapath::open(Backend::default(), Drops::default(), &args.dns_ips, || ())
        .context("open the kernel's network interfaces")?;
    for subsystem in Subsystem::ALL {
        let steps = datapath.clear(subsystem);
        let steps = steps.with_context(|| format!("take everything of Plumb from {}", subsystem.name()))?;
        gone.extend(steps.into_words());
    }
    if let Some(directory) = &args.cni_bin_dir {
        executables::withdraw(directory)?;
    }
    executables::remove(&args.socket)?;
    // Until nothing is left that an agent could begin with.
    empty(&args.data)?;
    drop(only);
    Ok(gone)
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
