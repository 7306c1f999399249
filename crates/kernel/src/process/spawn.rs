//! What a new process is to be: a builder of values, turned into system calls by [`super::child`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::BitOr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::{Process, Signal};
use crate::error::{Error, Named};
use crate::mount::Mount;

/// A set of namespace kinds.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces(u32);

impl Namespaces {
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u32);
    pub const PID: Self = Self(libc::CLONE_NEWPID as u32);
    pub const NET: Self = Self(libc::CLONE_NEWNET as u32);
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u32);
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u32);
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u32);
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u32);
    pub const NONE: Self = Self(0);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for Namespaces {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (Self::USER, "user"),
            (Self::PID, "pid"),
            (Self::NET, "net"),
            (Self::MOUNT, "mount"),
            (Self::UTS, "uts"),
            (Self::IPC, "ipc"),
            (Self::CGROUP, "cgroup"),
        ];
        f.debug_set().entries(names.iter().filter(|(kind, _)| self.contains(*kind)).map(|(_, n)| n)).finish()
    }
}

/// One range of a user namespace's map: ids from `inside` on are ids from `outside` on in the parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// A set of capabilities by number (CAP_NET_RAW is 13): what a process keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    pub const NONE: Self = Self(0);
    pub const NET_BIND_SERVICE: Self = Self(1 << 10);
    pub const NET_ADMIN: Self = Self(1 << 12);
    pub const NET_RAW: Self = Self(1 << 13);
    /// What container engines leave: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
    /// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
    pub const CONTAINER: Self = Self(0xa804_25fb);

    pub fn contains(self, number: u32) -> bool {
        self.0.checked_shr(number).unwrap_or(0) & 1 == 1
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A process to be started. The steps happen in this order: new namespaces (with id maps), joined ones in
/// the order given, session, host name, mounts in the order given (root change among them), working
/// directory, files, ids, capabilities, no_new_privs, parent-death signal, the filter of a confined one, exec.
///
/// ```no_run
/// # use kernel::process::{Namespaces, Signal, Spawn};
/// # fn f() -> Result<(), kernel::Error> {
/// let holder = Spawn::this_program()?
///     .args(["lab", "hold", "node1"])
///     .new_namespaces(Namespaces::NET | Namespaces::MOUNT | Namespaces::UTS)
///     .hostname("node1")
///     .new_session()
///     .start()?;
/// holder.signal(Signal::TERM)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Spawn {
    pub(super) program: Program,
    pub(super) argv0: OsString,
    pub(super) args: Vec<OsString>,
    /// `None`: the environment of this process.
    pub(super) env: Option<BTreeMap<OsString, OsString>>,
    pub(super) fresh: Namespaces,
    pub(super) uid_maps: Vec<IdMap>,
    pub(super) gid_maps: Vec<IdMap>,
    pub(super) joined: Vec<(Namespaces, OwnedFd)>,
    pub(super) session: bool,
    pub(super) controlling_terminal: bool,
    pub(super) hostname: Option<OsString>,
    pub(super) mounts: Vec<Mount>,
    pub(super) directory: Option<PathBuf>,
    /// Number in the child → our descriptor.
    pub(super) files: BTreeMap<i32, OwnedFd>,
    pub(super) ids: Option<(u32, u32)>,
    pub(super) capabilities: Option<Capabilities>,
    pub(super) no_new_privs: bool,
    pub(super) confined: bool,
    pub(super) death_signal: Option<Signal>,
}

#[derive(Debug)]
pub(super) enum Program {
    /// Looked up in the child's PATH when it has no slash, after the root has changed.
    Path(PathBuf),
    /// An open executable: works whatever the root has become.
    Open(OwnedFd),
}

impl Spawn {
    /// Runs the program at this path, or of this name in the new process's PATH; found in the *new* root.
    pub fn program(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        Self::new(Program::Path(path.to_owned()), path.as_os_str().to_owned())
    }

    /// Runs this very binary again (another subcommand), also where its file is not visible.
    pub fn this_program() -> Result<Self, Error> {
        let name = std::env::args_os().next().unwrap_or_else(|| "plumb".into());
        Self::executable("/proc/self/exe", name)
    }

    /// Runs an executable opened now, in our root, under the given name.
    pub fn executable(path: impl AsRef<Path>, argv0: impl AsRef<OsStr>) -> Result<Self, Error> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open(path.as_ref(), flags, rustix::fs::Mode::empty())
            .named(|| format!("open the program {}", path.as_ref().display()))?;
        Ok(Self::new(Program::Open(fd), argv0.as_ref().to_owned()))
    }

    fn new(program: Program, argv0: OsString) -> Self {
        Self {
            program,
            argv0,
            args: Vec::new(),
            env: None,
            fresh: Namespaces::NONE,
            uid_maps: Vec::new(),
            gid_maps: Vec::new(),
            joined: Vec::new(),
            session: false,
            controlling_terminal: false,
            hostname: None,
            mounts: Vec::new(),
            directory: None,
            files: BTreeMap::new(),
            ids: None,
            capabilities: None,
            no_new_privs: false,
            confined: false,
            death_signal: None,
        }
    }

    /// What the program sees as its own name.
    pub fn argv0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.argv0 = name.as_ref().to_owned();
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds or changes one variable of the inherited (or, after [`Spawn::clear_env`], empty) environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let env = self.env.get_or_insert_with(|| std::env::vars_os().collect());
        env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(self, vars: impl IntoIterator<Item = (N, V)>) -> Self {
        vars.into_iter().fold(self, |spawn, (name, value)| spawn.env(name, value))
    }

    pub fn clear_env(mut self) -> Self {
        self.env = Some(BTreeMap::new());
        self
    }

    /// Starts it in new namespaces of these kinds. In a new PID namespace it is pid 1.
    pub fn new_namespaces(mut self, kinds: Namespaces) -> Self {
        self.fresh = self.fresh | kinds;
        self
    }

    /// Starts it in a new user namespace. `setgroups` is denied when this process is not root, which is what
    /// the kernel demands for an unprivileged gid map (user_namespaces(7)).
    pub fn new_user_namespace(mut self, uids: &[IdMap], gids: &[IdMap]) -> Self {
        self.fresh = self.fresh | Namespaces::USER;
        self.uid_maps = uids.to_vec();
        self.gid_maps = gids.to_vec();
        self
    }

    /// Starts it in an existing namespace: an open namespace file of the one kind given, or a pidfd
    /// ([`Process`] is one) with any set of kinds. Namespaces are joined in the order of the calls, a user
    /// namespace first.
    pub fn join(mut self, kinds: Namespaces, namespace: impl AsFd) -> Result<Self, Error> {
        let fd = duplicate(namespace)?;
        self.joined.push((kinds, fd));
        Ok(self)
    }

    /// A session and process group of its own.
    pub fn new_session(mut self) -> Self {
        self.session = true;
        self
    }

    /// Standard input becomes the controlling terminal of its new session.
    pub fn controlling_terminal(mut self) -> Self {
        self.session = true;
        self.controlling_terminal = true;
        self
    }

    /// Sets the host name; wants a new or joined UTS namespace, else it would be everybody's.
    pub fn hostname(mut self, name: &str) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// A change of the mount table (or root) as the next step.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.mounts.push(mount);
        self
    }

    pub fn mounts(mut self, mounts: impl IntoIterator<Item = Mount>) -> Self {
        self.mounts.extend(mounts);
        self
    }

    /// The working directory, in the new root.
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.directory = Some(path.as_ref().to_owned());
        self
    }

    /// Gives the child this file under this number (0, 1, 2 are the standard streams). Descriptors that are
    /// not given, except 0 to 2, are closed by exec.
    pub fn file(mut self, number: i32, file: impl AsFd) -> Result<Self, Error> {
        self.files.insert(number, duplicate(file)?);
        Ok(self)
    }

    /// Standard input from /dev/null, output and errors appended to this file.
    pub fn output_to(self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let what = || format!("open the log {}", path.as_ref().display());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path.as_ref()).named(what)?;
        let null = std::fs::File::open("/dev/null").named(|| "open /dev/null".into())?;
        self.file(0, &null)?.file(1, &log)?.file(2, &log)
    }

    /// User and group ids, with no supplementary groups.
    pub fn ids(mut self, uid: u32, gid: u32) -> Self {
        self.ids = Some((uid, gid));
        self
    }

    /// Keeps only these capabilities, in every set, so that no program it execs can get more.
    pub fn capabilities(mut self, kept: Capabilities) -> Self {
        self.capabilities = Some(kept);
        self
    }

    pub fn no_new_privs(mut self) -> Self {
        self.no_new_privs = true;
        self
    }

    /// For a program of somebody else's among others of theirs: until exec none of them may look into the child,
    /// which is still a copy of this process; then it can use no keys of the machine's and make no user namespaces
    /// ([`super::confine`]).
    /// Brings no_new_privs.
    pub fn confined(mut self) -> Self {
        self.confined = true;
        self.no_new_privs = true;
        self
    }

    /// It gets this signal when the calling **thread** ends (PR_SET_PDEATHSIG): start it from a thread that
    /// lives as long as the process, not from a pool.
    pub fn death_signal(mut self, signal: Signal) -> Self {
        self.death_signal = Some(signal);
        self
    }

    /// Starts it, and returns once exec has succeeded; an error names the step that failed, and no process
    /// is left.
    pub fn start(self) -> Result<Process, Error> {
        self.start_noted(|_| Ok(()))
    }

    /// Starts it, once `note` has been told of it: until then it runs nothing, and if this process is killed before
    /// or while `note` runs, the child ends too. So a process that is not noted does not exist.
    pub fn start_noted<E: From<Error>>(
        self,
        note: impl FnOnce(&Process) -> Result<(), E>,
    ) -> Result<Process, E> {
        super::child::start(self, note)
    }
}

fn duplicate(fd: impl AsFd) -> Result<OwnedFd, Error> {
    // Above every number that a child's file may be given, so that giving never overwrites one.
    rustix::io::fcntl_dupfd_cloexec(fd, LOWEST_OWN).named(|| "duplicate a descriptor".into())
}

/// Our copies of descriptors have at least this number; files are given to children below it.
pub(super) const LOWEST_OWN: i32 = 64;
