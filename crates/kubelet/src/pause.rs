//! `plumb pause`: pid 1 of a pod's PID namespace. Holds the pod's namespaces; when it dies, the kernel ends every
//! process of the pod.

use std::process::ExitCode;

use anyhow::Result;

/// `plumb pause`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pod, for whoever reads the process list
    pod: String,
}

/// Stays until it is killed.
pub fn run(_args: Args) -> Result<ExitCode> {
    kernel::own::ignore_children()?;
    loop {
        std::thread::park();
    }
}
