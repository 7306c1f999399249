//! Owns: one node: its loop from watch to kernel, its CNI server, its health and metrics.
//! Never: Kubernetes semantics (compile has them) or netlink bytes (kernel has them).
//! In → Out: the API's objects and CNI requests → this node's kernel state, answers, Events.
//! Read first: [`run`], then [`Settings`].

pub mod dns;
mod settings;

use anyhow::Result;

pub use settings::{Args, Settings};

/// Runs the node's agent until it is told to stop (SIGTERM, SIGINT). What it put into the kernel stays.
pub async fn run(args: Args) -> Result<()> {
    let settings = Settings::new(args)?;
    anyhow::bail!("node {}: the loop is not wired yet", settings.node)
}
