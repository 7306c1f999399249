//! What every part of the kubelet shares.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use kernel::process::{Ended, Process};
use kube::Client;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::cni::Cni;
use crate::events::Events;
use crate::record::Records;
use crate::resolv::ClusterDns;

/// One node.
pub struct Runtime {
    pub node: String,
    /// The node's addresses on the underlay, its own family's first; never empty.
    pub addresses: Vec<String>,
    pub dns: ClusterDns,
    pub cni: Cni,
    pub records: Records,
    pub client: Client,
    pub events: Events,
    /// True once there is a network to attach pods to, and what a predecessor left of it is gone.
    pub network_ready: watch::Receiver<bool>,
}

/// Waits for the end of a process, and reaps it if it is ours: then it is known how it ended.
pub async fn ended(process: &Process) -> Result<Option<Ended>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may close their file; a borrow cannot"
    )]
    let watched = AsyncFd::with_interest(process.as_fd(), Interest::READABLE).context("watch a process")?;
    watched.readable().await.context("watch a process")?.retain_ready();
    // ECHILD: started by an earlier kubelet; the anchor reaps it.
    Ok(process.try_wait().ok().flatten())
}
