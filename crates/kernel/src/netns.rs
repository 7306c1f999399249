//! Network namespaces: opening them, and running code inside without ever leaving a foreign thread in one.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::{Error, Named};

/// A handle that keeps a network namespace alive. Cheap to share by reference; `try_clone` for another owner.
pub struct Netns {
    fd: OwnedFd,
    /// How the namespace was found, for messages.
    origin: PathBuf,
}

/// What identifies a namespace: two handles with the same id are the same namespace (nsfs device and inode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    pub dev: u64,
    pub ino: u64,
}

impl Netns {
    /// Opens a namespace file such as `/run/netns/x` or `/proc/7/ns/net`. Refuses files of any other kind.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let what = || format!("open the network namespace {}", path.display());
        let file = File::open(path).named(what)?;
        let ns = Self { fd: file.into(), origin: path.to_owned() };
        let kind = rustix::fs::fstatfs(&ns.fd).named(what)?.f_type;
        if kind as i64 != NSFS_MAGIC {
            return Err(Error::input(what(), "it is not a namespace file (the sandbox may be gone)"));
        }
        Ok(ns)
    }

    /// The namespace of a process.
    pub fn of_pid(pid: u32) -> Result<Self, Error> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// A new, empty namespace with `lo` down, which lives as long as the handle (and what was opened inside).
    pub fn fresh() -> Result<Self, Error> {
        on_own_thread("make a network namespace", || {
            // SAFETY: the thread was made for this; nothing else shares its namespaces, and no file
            // descriptor or memory is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.named(|| "make a network namespace".into())?;
            Self::current()
        })?
    }

    /// Where the handle came from, such as the path it was opened by.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    pub fn id(&self) -> Result<NetnsId, Error> {
        let stat = rustix::fs::fstat(&self.fd)
            .named(|| format!("stat the network namespace {}", self.origin.display()))?;
        Ok(NetnsId { dev: stat.st_dev, ino: stat.st_ino })
    }

    pub fn try_clone(&self) -> Result<Self, Error> {
        let fd = self.fd.try_clone().named(|| format!("duplicate {}", self.origin.display()))?;
        Ok(Self { fd, origin: self.origin.clone() })
    }

    /// Runs `work` inside this namespace and returns what it returns. See [`in_netns`].
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
        in_netns(self, work)
    }

    /// Moves the calling thread into this namespace **for good**: for the start of a process of its own.
    /// Everything else uses [`Netns::run`].
    pub fn enter_for_good(&self) -> Result<(), Error> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .named(|| format!("enter the network namespace {}", self.origin.display()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns({})", self.origin.display())
    }
}

/// `NSFS_MAGIC` of include/uapi/linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Runs `work` inside `ns` on a thread made for it (about 40 µs), so that the caller's thread (a tokio worker,
/// a test thread) never changes its namespace, even when `work` panics. Sockets made inside stay in `ns`:
///
/// ```no_run
/// # fn f(ns: &kernel::Netns) -> Result<(), kernel::Error> {
/// let socket = kernel::in_netns(ns, || std::net::UdpSocket::bind("10.96.0.10:53"))?;
/// # Ok(()) }
/// ```
pub fn in_netns<R: Send>(ns: &Netns, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    on_own_thread("run inside a network namespace", || {
        ns.enter_for_good()?;
        Ok(work())
    })?
}

fn on_own_thread<R: Send>(what: &str, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .named(|| format!("{what}: start a thread"))?;
        thread.join().map_err(|_| Error::Panicked { what: what.into() })
    })
}
