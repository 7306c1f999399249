//! What failed, on which object, why probably, and what to do next.

use std::io;

use thiserror::Error;

use crate::feature::{next_step, next_step_of_socket};

/// How `what` ends where all was prepared for a program, and it was not executed.
pub(crate) const EXECUTE: &str = "execute the program";
pub(crate) const ENTER: &str = "change to the directory";

/// An error of this crate. Its text names the operation, the object, the kernel's answer and a likely cause; the
/// answer is no `source` besides, or whoever prints the whole chain would say it twice.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {answer}{}", hint(what, answer))]
    System { what: String, answer: io::Error },
    /// No raw or packet socket was opened.
    #[error("{what}: {answer}{}", hint_of_socket(what, answer))]
    Socket { what: String, answer: io::Error },
    /// The kernel refused a netlink request; `detail` is its own explanation (extended acknowledgement).
    #[error("{what}: {answer}{}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default(), hint(what, answer))]
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

    /// Without the likely cause, for whoever tells the next step himself.
    pub fn plain(&self) -> String {
        match self {
            Self::System { what, answer } | Self::Socket { what, answer } => format!("{what}: {answer}"),
            Self::Netlink { what, answer, detail } => {
                let detail = detail.as_deref().map(|detail| format!(" ({detail})")).unwrap_or_default();
                format!("{what}: {answer}{detail}")
            }
            other => other.to_string(),
        }
    }

    /// Whether a program could not be started because it is not there, or none that this machine executes.
    pub fn is_of_program(&self) -> bool {
        let Self::System { what, answer } = self else { return false };
        let codes = [libc::ENOENT, libc::EACCES, libc::ENOEXEC, libc::ENOTDIR];
        what.ends_with(EXECUTE) && answer.raw_os_error().is_some_and(|code| codes.contains(&code))
    }

    /// Whether a program could not be started because the directory that it was to start in cannot be entered.
    pub fn is_of_directory(&self) -> bool {
        matches!(self, Self::System { what, .. } if what.contains(&format!(": {ENTER} ")))
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System { answer, .. } | Self::Socket { answer, .. } | Self::Netlink { answer, .. } => {
                answer.raw_os_error()
            }
            _ => None,
        }
    }
}

/// What an error number usually means for a network agent, and what to do about it.
pub(crate) fn hint(what: &str, error: &io::Error) -> String {
    let likely = match error.raw_os_error() {
        Some(libc::EPERM) => return format!("; {}", next_step(&error.to_string())),
        // Of other files it is no secret what these mean.
        Some(libc::EACCES | libc::EROFS) if what.contains("/proc/sys/") => {
            return format!("; {}", next_step(&error.to_string()));
        }
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            "; likely the kernel lacks this feature or its module is not loaded"
        }
        Some(libc::ENOSPC) => {
            "; likely there are as many namespaces as may be: `sysctl user` shows the limits, and `sysctl -w \
             user.max_net_namespaces=N`, or that of another kind, raises one"
        }
        Some(libc::EUSERS) => "; namespaces are nested too deeply",
        _ => "",
    };
    likely.to_owned()
}

fn hint_of_socket(what: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => format!("; {}", next_step_of_socket(&error.to_string())),
        _ => hint(what, error),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_be_who_he_is() {
        let of = |what: &str, errno| Error::system(what, io::Error::from_raw_os_error(errno));
        let refused = of("make a network namespace", libc::EPERM);
        let own = refused.to_string().contains("run as root");
        assert_eq!(own, !crate::own::is_root(), "{refused}");
        assert_eq!(refused.plain(), "make a network namespace: Operation not permitted (os error 1)");
        let sysctl = of("write /proc/sys/net/ipv4/ip_forward", libc::EROFS);
        assert_eq!(
            sysctl.to_string().contains("/proc/sys is read-only here"),
            crate::own::is_root(),
            "{sysctl}"
        );
        assert!(of("write /run/x", libc::EROFS).to_string().ends_with("(os error 30)"));
    }
}
