//! Processes: starting one inside namespaces with everything set before exec ([`Spawn`]), watching and
//! ending them without mistaking a reused pid ([`Process`]), and what long-lived parents need.

mod child;
mod confine;
mod spawn;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
pub use spawn::{Capabilities, IdMap, Namespaces, Spawn};

use crate::error::{Error, Named};

/// A running (or dead, not yet forgotten) process, held by a pidfd: signals never reach a successor
/// that got the same pid. The fd is readable once the process has ended: poll it, or wrap it in
/// tokio's `AsyncFd`.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

/// `exit code 1`, `signal 9 (SIGKILL)`
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => match NAMES.iter().find(|(name, _)| name.as_raw() == *signal) {
                Some((_, name)) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
        }
    }
}

/// Those that end processes by themselves, or that people send to end them.
const NAMES: [(Signal, &str); 13] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::ILL, "SIGILL"),
    (Signal::TRAP, "SIGTRAP"),
    (Signal::ABORT, "SIGABRT"),
    (Signal::BUS, "SIGBUS"),
    (Signal::FPE, "SIGFPE"),
    (Signal::KILL, "SIGKILL"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::PIPE, "SIGPIPE"),
    (Signal::TERM, "SIGTERM"),
    (Signal::SYS, "SIGSYS"),
];

impl Ended {
    /// As a shell shows it: the code, or 128 plus the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl Process {
    /// Opens any process by number, dead or alive at that moment; `Ok(None)` when there is none.
    pub fn open(pid: u32) -> Result<Option<Self>, Error> {
        let what = || format!("open process {pid}");
        let pid = pid_of(pid, what)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => Ok(Some(Self { pid, pidfd })),
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
            Err(error) => Err(Error::system(what(), error)),
        }
    }

    /// Opens the process that had this pid and this [`start_time`], as noted in a pid file. `Ok(None)` when
    /// it has ended, also when another process has its number now.
    pub fn open_same(pid: u32, started: u64) -> Result<Option<Self>, Error> {
        let Some(process) = Self::open(pid)? else { return Ok(None) };
        // The pidfd pins the identity; the start time is read afterwards, so a match is about this process.
        Ok((start_time(pid) == Some(started) && process.alive()).then_some(process))
    }

    pub(crate) fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has not ended yet. A zombie has ended.
    pub fn alive(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(0))
    }

    /// Sends a signal; a process that has already ended is no error (`Ok(false)`).
    pub fn signal(&self, signal: Signal) -> Result<bool, Error> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(Error::system(
                format!("send signal {} to process {}", signal.as_raw(), self.pid()),
                error,
            )),
        }
    }

    /// Sends a signal to the process whose directory in a /proc this is: also one of a PID namespace below ours,
    /// whose number means nothing here. The open directory pins the process as a pidfd does
    /// (kernel/signal.c, pidfd_to_pid). `Ok(false)` when it has ended.
    pub fn signal_entry(directory: impl AsFd, signal: Signal) -> Result<bool, Error> {
        match rustix::process::pidfd_send_signal(directory, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => {
                Err(Error::system(format!("send signal {} by an entry of /proc", signal.as_raw()), error))
            }
        }
    }

    /// Blocks until it has ended or the time is over; does not reap. True when it has ended.
    pub fn wait_ended(&self, timeout: std::time::Duration) -> Result<bool, Error> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let left = rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::system(format!("wait for process {}", self.pid()), error)),
            }
        }
    }

    /// Reaps a child that has ended; `Ok(None)` while it runs. Only the parent may ask (ECHILD otherwise).
    pub fn try_wait(&self) -> Result<Option<Ended>, Error> {
        self.waitid(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Blocks until a child has ended and reaps it.
    pub fn wait(&self) -> Result<Ended, Error> {
        loop {
            // The pidfd is nonblocking, for which waitid answers EAGAIN: wait by poll.
            self.wait_ended(std::time::Duration::from_secs(3600))?;
            if let Some(ended) = self.try_wait()? {
                return Ok(ended);
            }
        }
    }

    fn waitid(&self, options: WaitIdOptions) -> Result<Option<Ended>, Error> {
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(status) => Ok(status.and_then(|status| {
                status
                    .exit_status()
                    .map(Ended::Code)
                    .or_else(|| status.terminating_signal().map(Ended::Signal))
            })),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(Error::system(format!("wait for process {}", self.pid()), error)),
        }
    }

    /// Joins every given namespace of this process with the calling thread, for good: only for the start of
    /// a process of its own.
    pub fn enter_for_good(&self, namespaces: Namespaces) -> Result<(), Error> {
        let flags = rustix::thread::ThreadNameSpaceType::from_bits_retain(namespaces.bits());
        rustix::thread::move_into_thread_name_spaces(self.pidfd.as_fd(), flags)
            .named(|| format!("enter the namespaces of process {}", self.pid()))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// When a process started, in clock ticks since boot (field 22 of /proc/PID/stat): with the pid it
/// identifies a process until the machine restarts. `None` when there is no such process.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may itself contain spaces and parentheses.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Reaps one ended child of this process, whichever it is: for a pid 1 or a subreaper. `Ok(None)` when no
/// child has ended (or there is none).
pub fn reap_any() -> Result<Option<(u32, Ended)>, Error> {
    match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Ok(Some((pid, status))) => {
            let ended = status.exit_status().map(Ended::Code);
            let ended = ended.or_else(|| status.terminating_signal().map(Ended::Signal));
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            Ok(Some((pid, ended.unwrap_or(Ended::Code(0)))))
        }
        Err(error) => Err(Error::system("reap a child", error)),
    }
}

/// Orphaned descendants become children of this process instead of pid 1 (PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() -> Result<(), Error> {
    // Any pid turns it on: the kernel only looks whether the argument is zero.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .named(|| "become the reaper of orphans".into())
}

/// This process gets `signal` when the **thread** that started it ends (PR_SET_PDEATHSIG), and dies at once
/// if `parent` is gone already.
pub fn die_with_parent(parent: u32, signal: Signal) -> Result<(), Error> {
    rustix::process::set_parent_process_death_signal(Some(signal))
        .named(|| "ask for a signal when the parent dies".into())?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now == Some(parent) { Ok(()) } else { Err(Error::input("start with a parent", "the parent is gone")) }
}

/// Moves the calling thread into new namespaces, for good: for the start of a process of its own.
/// A new PID namespace holds for the children only; a new user namespace wants one thread and needs
/// [`IdMap`]s written, which [`Spawn`] does.
pub fn unshare(namespaces: Namespaces) -> Result<(), Error> {
    let flags = rustix::thread::UnshareFlags::from_bits_retain(namespaces.bits());
    // SAFETY: no flag of `Namespaces` unshares memory or file descriptors, which is what could be unsound.
    unsafe { rustix::thread::unshare_unsafe(flags) }.named(|| format!("make namespaces ({namespaces:?})"))
}

/// Sets the host name of the UTS namespace that this process is in.
pub fn set_hostname(name: &str) -> Result<(), Error> {
    rustix::system::sethostname(name.as_bytes()).named(|| format!("set the host name {name}"))
}

/// Starts a new session without a terminal, so that a signal to the caller's group does not reach us.
pub fn new_session() -> Result<(), Error> {
    rustix::process::setsid().map(drop).named(|| "start a new session".into())
}

fn pid_of(pid: u32, what: impl FnOnce() -> String) -> Result<Pid, Error> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::System { what: what(), answer: io::Error::from_raw_os_error(libc::ESRCH) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_reads_as_people_say_it() {
        let read = [Ended::Code(1), Ended::Signal(9), Ended::Signal(15), Ended::Signal(40)]
            .map(|end| end.to_string());
        assert_eq!(read, ["exit code 1", "signal 9 (SIGKILL)", "signal 15 (SIGTERM)", "signal 40"]);
    }
}
