//! What this process is: its user, whether it is a pid 1 that must reap, and terminals for its children.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

use crate::error::{Error, Named};
use crate::process::Ended;

/// Whether the effective user is root (of this user namespace).
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the users here are those of the machine, and root is its root: only the first user namespace has all of them
/// (user_namespaces(7)). One who makes another (`unshare -r`, a rootless container) is root of nothing else.
pub fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    is_whole(&map)
}

/// A kernel without user namespaces has no such file.
pub(crate) fn is_whole(uid_map: &str) -> bool {
    let words: Vec<&str> = uid_map.split_ascii_whitespace().collect();
    words.is_empty() || words == ["0", "0", "4294967295"]
}

/// Effective user and group.
pub fn ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Blocks until any child has ended and reaps it; `None` when there is no child: for a pid 1.
pub fn reap_next() -> Result<Option<(u32, Ended)>, Error> {
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let ended = status.exit_status().map(Ended::Code);
                let ended = ended.or_else(|| status.terminating_signal().map(Ended::Signal));
                return Ok(Some((
                    pid.as_raw_nonzero().get().unsigned_abs(),
                    ended.unwrap_or(Ended::Code(0)),
                )));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(error) => return Err(Error::system("reap a child", error)),
        }
    }
}

/// A terminal: the side that the program holds and the side that its child gets.
#[derive(Debug)]
pub struct Terminal {
    pub ours: OwnedFd,
    pub childs: OwnedFd,
}

impl Terminal {
    /// A new pair from the devpts whose `ptmx` this is: that of whoever is to find his side by name (ttyname(3)).
    pub fn open(ptmx: &Path) -> Result<Self, Error> {
        let what = || format!("open a terminal ({})", ptmx.display());
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::fs::open(ptmx, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .named(what)?;
        rustix::pty::grantpt(&ours).named(what)?;
        rustix::pty::unlockpt(&ours).named(what)?;
        // TIOCGPTPEER opens the other side without its path, which may lie in another mount namespace.
        let childs = rustix::pty::ioctl_tiocgptpeer(&ours, flags).named(what)?;
        Ok(Self { ours, childs })
    }
}

/// Sets the size of a terminal that its other side sees (and tells it by SIGWINCH).
pub fn resize(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) -> Result<(), Error> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).named(|| "resize a terminal".into())
}

/// A lock on a file or directory, held until dropped; `None` when somebody else holds it.
pub fn try_lock(path: &Path) -> Result<Option<OwnedFd>, Error> {
    let what = || format!("lock {}", path.display());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).named(what)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::system(what(), error)),
    }
}

/// As [`try_lock`], but waits for a former holder: one that was just killed may still be on its way out.
pub fn lock_within(path: &Path, patience: std::time::Duration) -> Result<Option<OwnedFd>, Error> {
    let end = std::time::Instant::now() + patience;
    loop {
        let held = try_lock(path)?;
        if held.is_some() || std::time::Instant::now() >= end {
            return Ok(held);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Has the kernel reap all children of this process, present and adopted: for a pid 1 that starts none itself.
pub fn ignore_children() -> Result<(), Error> {
    // SAFETY: SIG_IGN installs no handler, so no code of ours runs in signal context. signal(2): a child of a
    // process that ignores SIGCHLD is not turned into a zombie.
    let previous = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if previous == libc::SIG_ERR {
        return Err(Error::system("ignore SIGCHLD", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Kills the process group that this process leads, if there still is one.
pub fn kill_group(leader: u32) {
    if let Some(leader) = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw) {
        // ESRCH: nobody is left, which is what is wanted.
        let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
    }
}
