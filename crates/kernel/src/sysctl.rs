//! Sysctls of the calling thread's network namespace.

use std::io::{ErrorKind, Result};

use types::wire::HOST_SYSCTLS;

/// A container's own /proc/sys is read-only; an agent's pod has the host's elsewhere. Both show the network
/// namespace of whoever writes. The path is relative, with slashes.
pub(crate) fn write(path: &str, value: &str) -> Result<()> {
    let own = match std::fs::write(format!("/proc/sys/{path}"), value) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => error,
        done => return done,
    };
    match std::fs::write(format!("{HOST_SYSCTLS}/{path}"), value) {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(own),
        done => done,
    }
}
