//! What failed, on which object, why probably, and what to do next.

use std::io;

use thiserror::Error;

/// An error of this crate. Its text names the operation, the object, the kernel's answer and a likely cause; the
/// answer is no `source` besides, or whoever prints the whole chain would say it twice.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {answer}{}", hint(answer))]
    System { what: String, answer: io::Error },
    /// The kernel refused a netlink request; `detail` is its own explanation (extended acknowledgement).
    #[error("{what}: {answer}{}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default(), hint(answer))]
    Netlink { what: String, answer: io::Error, detail: Option<String> },
    /// The kernel answered something that this program does not understand.
    #[error("{what}: the answer of the kernel is not understood: {why}")]
    Answer { what: String, why: String },
    /// An argument that no system call could take (a NUL byte in a path, an empty command).
    #[error("{what}: {why}")]
    Input { what: String, why: String },
    /// A closure panicked on its own thread.
    #[error("{what}: the code that ran inside panicked")]
    Panicked { what: String },
}

impl Error {
    pub(crate) fn system(what: impl Into<String>, answer: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), answer: answer.into() }
    }

    pub(crate) fn input(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Input { what: what.into(), why: why.into() }
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System { answer, .. } | Self::Netlink { answer, .. } => answer.raw_os_error(),
            _ => None,
        }
    }
}

/// What an error number usually means for a network agent, and what to do about it.
pub(crate) fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; likely a missing capability (CAP_NET_ADMIN, CAP_SYS_ADMIN): run as root or inside the lab's user namespace"
        }
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            "; likely the kernel lacks this feature or its module is not loaded"
        }
        Some(libc::ENOSPC) => "; likely a limit of user namespaces: see /proc/sys/user/max_*_namespaces",
        Some(libc::EUSERS) => "; namespaces are nested too deeply",
        _ => "",
    }
}

/// Names the failing call: `sys("open the network namespace /run/x", rustix_call)?`.
pub(crate) trait Named<T> {
    fn named(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::system(what(), source))
    }
}
