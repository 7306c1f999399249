//! From a [`Spawn`] to a process: everything is prepared before the fork; between fork and exec only system
//! calls run, no allocation (another thread of ours may have held the allocator's lock at the fork).
//!
//! ```text
//!   parent                                child
//!   prepare, pipes ── clone3 ──────────┬─ ask to be killed with the parent
//!   write uid_map, gid_map             │  wait for one byte on `go`
//!   note the process                   │
//!   byte on `go` ──────────────────────┴─ steps … exec   (success closes `report`)
//!   read `report`: empty = running          or: step number + errno on `report`, _exit
//! ```

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::spawn::{Capabilities, IdMap, LOWEST_OWN, Namespaces, Program, Spawn};
use super::{Ended, Process, confine};
use crate::error::{ENTER, EXECUTE, Error, Named};
use crate::mount::{Mount, c_string, last_errno};

/// One thing the child does before exec, ready to be done.
enum Step {
    Join(Namespaces, OwnedFd),
    Session,
    ControllingTerminal,
    Hostname(CString),
    Mount(Mount),
    Directory(CString),
    File(RawFd, OwnedFd),
    Ids(u32, u32),
    Capabilities(Capabilities),
    NoNewPrivs,
    DeathSignal(Signal, Pid),
    Hide,
    Keyring,
    Filter,
}

impl Step {
    fn what(&self) -> String {
        match self {
            Self::Join(kinds, _) => format!("join namespaces {kinds:?}"),
            Self::Session => "start a new session".into(),
            Self::ControllingTerminal => "take the terminal".into(),
            Self::Hostname(name) => format!("set the host name {}", name.to_string_lossy()),
            Self::Mount(mount) => mount.what().to_owned(),
            Self::Directory(path) => format!("{ENTER} {}", path.to_string_lossy()),
            Self::File(number, _) => format!("give it file {number}"),
            Self::Ids(uid, gid) => format!("become user {uid}, group {gid}"),
            Self::Capabilities(_) => "drop capabilities".into(),
            Self::NoNewPrivs => "forbid new privileges".into(),
            Self::DeathSignal(..) => "ask for a signal when the parent dies (or the parent is gone)".into(),
            Self::Hide => "hide this copy of the parent from other processes".into(),
            Self::Keyring => "make a session keyring".into(),
            Self::Filter => "filter system calls (CONFIG_SECCOMP_FILTER)".into(),
        }
    }

    fn perform(&self) -> rustix::io::Result<()> {
        match self {
            Self::Join(kinds, fd) => set_namespaces(fd.as_raw_fd(), *kinds),
            Self::Session => rustix::process::setsid().map(drop),
            Self::ControllingTerminal => {
                // SAFETY: TIOCSCTTY takes an integer and touches no memory of ours.
                check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }.into())
            }
            Self::Hostname(name) => rustix::system::sethostname(name.as_bytes()),
            Self::Mount(mount) => mount.perform(),
            Self::Directory(path) => rustix::process::chdir(path),
            // SAFETY: dup2 to a number below LOWEST_OWN, where nothing that this process owns lies except
            // the standard streams, which are being replaced.
            Self::File(number, fd) => check(unsafe { libc::dup2(fd.as_raw_fd(), *number) }.into()),
            Self::Ids(uid, gid) => set_ids(*uid, *gid),
            Self::Capabilities(kept) => drop_capabilities(*kept),
            Self::NoNewPrivs => rustix::thread::set_no_new_privs(true),
            Self::Hide => confine::hide(),
            Self::Keyring => confine::new_session_keyring(),
            Self::Filter => confine::filter(),
            Self::DeathSignal(signal, parent) => {
                rustix::process::set_parent_process_death_signal(Some(*signal))?;
                // The parent may have died before the call: then no signal would ever come. Across a new PID
                // namespace the parent is not visible (0), and cannot be checked.
                match rustix::process::getppid() {
                    Some(now) if now != *parent => Err(Errno::SRCH),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// All the child needs, in the form that execve wants.
struct Prepared {
    steps: Vec<Step>,
    program: Executable,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// Own the strings that `argv` and `envp` point to.
    _strings: Vec<CString>,
    go: OwnedFd,
    report: OwnedFd,
    /// A pidfd of ours: readable once we have ended.
    parent: OwnedFd,
}

enum Executable {
    Candidates(Vec<CString>),
    Open(OwnedFd),
}

pub(super) fn start<E: From<Error>>(
    spawn: Spawn,
    note: impl FnOnce(&Process) -> Result<(), E>,
) -> Result<Process, E> {
    let what = format!("start {}", spawn.argv0.to_string_lossy());
    let maps = (spawn.uid_maps.clone(), spawn.gid_maps.clone());
    let fresh = spawn.fresh;
    let pipe =
        |_| rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).named(|| format!("{what}: pipe"));
    let (go_read, go_write) = pipe(0)?;
    let (report_read, report_write) = pipe(1)?;
    let raised = |fd: OwnedFd| {
        rustix::io::fcntl_dupfd_cloexec(&fd, LOWEST_OWN).named(|| format!("{what}: duplicate a descriptor"))
    };
    let (others_pid, spawn) = take_pid_join(spawn);
    let prepared = prepare(spawn, &what, raised(go_read)?, raised(report_write)?)?;

    let process = match others_pid {
        Some(namespace) => within_pid_namespace(&namespace, || fork(fresh, &prepared)),
        None => fork(fresh, &prepared),
    }
    .named(|| format!("{what}: make a process in new namespaces {fresh:?}"))?;
    let steps: Vec<String> = prepared.steps.iter().map(Step::what).collect();
    drop(prepared); // Our copies of the child's ends: a report ends when the child's end closes.

    let release =
        || File::from(go_write).write_all(b"g").named(|| format!("{what}: the child ended before it began"));
    let released = write_maps(process.pid(), fresh, &maps)
        .map_err(E::from)
        .and_then(|()| note(&process))
        .and_then(|()| release().map_err(E::from));
    if let Err(error) = released {
        end(&process);
        return Err(error);
    }
    let mut report = Vec::new();
    File::from(report_read).read_to_end(&mut report).named(|| format!("{what}: read the child's report"))?;
    match report.first_chunk::<8>() {
        None => Ok(process),
        Some(&[a, b, c, d, e, f, g, h]) => {
            end(&process);
            let (step, errno) = (u32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h]));
            let step = steps.get(step as usize).map_or(EXECUTE, String::as_str);
            Err(Error::system(format!("{what}: {step}"), std::io::Error::from_raw_os_error(errno)).into())
        }
    }
}

/// Ends a child that failed to start; its own failure is what the caller hears of.
fn end(process: &Process) {
    let _ = process.signal(Signal::KILL);
    let _: Result<Ended, Error> = process.wait();
}

/// Joining a PID namespace holds for children only, so it cannot be a step of the child itself.
fn take_pid_join(mut spawn: Spawn) -> (Option<OwnedFd>, Spawn) {
    let mut found = None;
    for (kinds, fd) in &mut spawn.joined {
        if kinds.contains(Namespaces::PID) {
            found = fd.try_clone().ok();
            *kinds = kinds.without(Namespaces::PID);
        }
    }
    spawn.joined.retain(|(kinds, _)| *kinds != Namespaces::NONE);
    (found, spawn)
}

/// Points this thread's future children at another PID namespace, forks, and points it back.
fn within_pid_namespace(
    namespace: &OwnedFd,
    fork: impl FnOnce() -> rustix::io::Result<Process>,
) -> rustix::io::Result<Process> {
    let own = rustix::fs::open(
        "/proc/thread-self/ns/pid_for_children",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    set_namespaces(namespace.as_raw_fd(), Namespaces::PID)?;
    let process = fork();
    match set_namespaces(own.as_raw_fd(), Namespaces::PID) {
        // Who has joined a user namespace for good may not point back to the one outside: this process has no
        // other children to come, or wants them there too.
        Err(Errno::PERM) => process,
        restored => restored.and(process),
    }
}

fn prepare(spawn: Spawn, what: &str, go: OwnedFd, report: OwnedFd) -> Result<Prepared, Error> {
    let mut strings = Vec::new();
    let mut pointers = |texts: Vec<CString>| {
        let mut list: Vec<*const libc::c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        list.push(std::ptr::null());
        strings.extend(texts);
        list
    };
    let env = spawn.env.clone().unwrap_or_else(|| std::env::vars_os().collect());
    let path = env.get(OsStr::new("PATH")).cloned();
    let mut argv = vec![c_string(what, &spawn.argv0)?];
    for arg in &spawn.args {
        argv.push(c_string(what, arg)?);
    }
    let mut envp = Vec::new();
    for (name, value) in env {
        let pair = [name.as_bytes(), b"=", value.as_bytes()].concat();
        envp.push(c_string(what, OsStr::from_bytes(&pair))?);
    }
    let (argv, envp) = (pointers(argv), pointers(envp));
    let program = match spawn.program {
        Program::Open(ref fd) => {
            // Above the numbers of the files given, which would replace it.
            Executable::Open(rustix::io::fcntl_dupfd_cloexec(fd, LOWEST_OWN).named(|| what.to_owned())?)
        }
        Program::Path(ref name) => {
            Executable::Candidates(candidates(what, name.as_os_str(), path.as_deref())?)
        }
    };
    let parent = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .named(|| format!("{what}: open this process"))?;
    Ok(Prepared { steps: steps(spawn, what)?, program, argv, envp, _strings: strings, go, report, parent })
}

/// execvp's search, done beforehand: the paths to try in order.
fn candidates(what: &str, name: &OsStr, path: Option<&OsStr>) -> Result<Vec<CString>, Error> {
    if name.as_bytes().contains(&b'/') {
        return Ok(vec![c_string(what, name)?]);
    }
    let path =
        path.map_or(&b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"[..], OsStr::as_bytes);
    let directories = path.split(|byte| *byte == b':').filter(|directory| !directory.is_empty());
    directories
        .map(|directory| c_string(what, OsStr::from_bytes(&[directory, b"/", name.as_bytes()].concat())))
        .collect()
}

fn steps(spawn: Spawn, what: &str) -> Result<Vec<Step>, Error> {
    // Before it is among others.
    let mut steps: Vec<Step> = spawn.confined.then_some(Step::Hide).into_iter().collect();
    steps.extend(spawn.confined.then_some(Step::Keyring));
    steps.extend(spawn.joined.into_iter().map(|(kinds, fd)| Step::Join(kinds, fd)));
    steps.extend(spawn.session.then_some(Step::Session));
    if let Some(name) = &spawn.hostname {
        steps.push(Step::Hostname(c_string(what, name)?));
    }
    steps.extend(spawn.mounts.into_iter().map(Step::Mount));
    if let Some(path) = &spawn.directory {
        steps.push(Step::Directory(c_string(what, path.as_os_str())?));
    }
    for (number, fd) in spawn.files {
        if !(0..LOWEST_OWN).contains(&number) {
            return Err(Error::input(what, format!("a child's file number must be below {LOWEST_OWN}")));
        }
        steps.push(Step::File(number, fd));
    }
    steps.extend(spawn.controlling_terminal.then_some(Step::ControllingTerminal));
    // The death signal comes last: changing ids clears it (prctl(2)).
    steps.extend(spawn.ids.map(|(uid, gid)| Step::Ids(uid, gid)));
    steps.extend(spawn.capabilities.map(Step::Capabilities));
    steps.extend(spawn.no_new_privs.then_some(Step::NoNewPrivs));
    steps.extend(spawn.death_signal.map(|signal| Step::DeathSignal(signal, rustix::process::getpid())));
    steps.extend(spawn.confined.then_some(Step::Filter));
    Ok(steps)
}

/// clone3 with the new namespaces and a pidfd; the child never returns from here.
fn fork(fresh: Namespaces, prepared: &Prepared) -> rustix::io::Result<Process> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is valid for this plain struct of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(fresh.bits()) | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child has a copy of our memory, as after fork. It runs only `child_main`,
    // which makes system calls on prepared data and ends in exec or _exit.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        0 => child_main(prepared),
        -1 => Err(last_errno()),
        pid => {
            // SAFETY: clone3 succeeded, so the kernel has stored a descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::RANGE)?;
            let _ = rustix::fs::fcntl_setfl(&pidfd, rustix::fs::OFlags::NONBLOCK);
            Ok(Process::new(pid, pidfd))
        }
    }
}

/// In the child. Signal handlers of the parent are still installed but their state is a copy; masks and the
/// ignored SIGPIPE of Rust programs would outlive exec, so they are reset.
fn child_main(prepared: &Prepared) -> ! {
    // SAFETY: plain system calls on memory of this frame; the set is initialised by sigemptyset.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    // The end of `go` would not tell: other children of ours, forked meanwhile, hold its other end too.
    if die_with(&prepared.parent).is_err() {
        fail(prepared, u32::MAX, Errno::CANCELED);
    }
    let mut byte = [0];
    if !matches!(rustix::io::retry_on_intr(|| rustix::io::read(&prepared.go, &mut byte)), Ok(1)) {
        fail(prepared, u32::MAX, Errno::CANCELED);
    }
    let _ = rustix::process::set_parent_process_death_signal(None);
    // Whatever else is open goes at exec; the files given are made below and stay.
    // SAFETY: marking descriptors close-on-exec touches no memory.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    let mut number = 0;
    for step in &prepared.steps {
        if let Err(errno) = step.perform() {
            fail(prepared, number, errno);
        }
        number += 1;
    }
    fail(prepared, number, execute(prepared));
}

/// A signal when the parent ends, unless it has ended already: then no signal would come.
fn die_with(parent: &OwnedFd) -> rustix::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut ended = [PollFd::new(parent, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))? {
        0 => Ok(()),
        _ => Err(Errno::SRCH),
    }
}

/// Returns only on failure. As execvp: EACCES of one candidate wins over ENOENT of the others.
fn execute(prepared: &Prepared) -> Errno {
    let (argv, envp) = (prepared.argv.as_ptr(), prepared.envp.as_ptr());
    match &prepared.program {
        Executable::Open(fd) => {
            let flags = libc::AT_EMPTY_PATH;
            // SAFETY: both vectors end in a null pointer and point to strings that `prepared` owns.
            unsafe { libc::syscall(libc::SYS_execveat, fd.as_raw_fd(), c"".as_ptr(), argv, envp, flags) };
            last_errno()
        }
        Executable::Candidates(paths) => {
            let mut errno = Errno::NOENT;
            for path in paths {
                // SAFETY: as above; the path is NUL-terminated.
                unsafe { libc::execve(path.as_ptr(), argv, envp) };
                match last_errno() {
                    Errno::NOENT | Errno::NOTDIR => {}
                    Errno::ACCESS => errno = Errno::ACCESS,
                    other => return other,
                }
            }
            errno
        }
    }
}

fn fail(prepared: &Prepared, step: u32, errno: Errno) -> ! {
    let mut report = [0; 8];
    let (first, second) = report.split_at_mut(4);
    first.copy_from_slice(&step.to_ne_bytes());
    second.copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    let _ = rustix::io::write(&prepared.report, &report);
    // SAFETY: _exit only ends the process; no destructor of the parent's copy runs.
    unsafe { libc::_exit(127) }
}

/// uid_map and gid_map of the child, from outside (user_namespaces(7)).
fn write_maps(pid: u32, fresh: Namespaces, (uids, gids): &(Vec<IdMap>, Vec<IdMap>)) -> Result<(), Error> {
    if !fresh.contains(Namespaces::USER) {
        return Ok(());
    }
    let write = |file: &str, text: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).named(|| format!("write {:?} to {path}", text.trim_end()))
    };
    let lines = |maps: &[IdMap]| -> String {
        maps.iter().map(|map| format!("{} {} {}\n", map.inside, map.outside, map.count)).collect()
    };
    if !rustix::process::geteuid().is_root() {
        write("setgroups", "deny")?;
    }
    write("uid_map", &lines(uids))?;
    write("gid_map", &lines(gids))
}

fn set_namespaces(fd: RawFd, kinds: Namespaces) -> rustix::io::Result<()> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::setns(fd, kinds.bits() as i32) }.into())
}

fn set_ids(uid: u32, gid: u32) -> rustix::io::Result<()> {
    // Raw calls: the C library's wrappers would signal the parent's other threads, which do not exist here.
    // SAFETY: no memory is passed except an empty list.
    unsafe {
        let groups = libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>());
        // Denied in user namespaces of ordinary users, which have no supplementary groups to shed either.
        if groups != 0 && last_errno() != Errno::PERM {
            return Err(last_errno());
        }
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
}

fn drop_capabilities(kept: Capabilities) -> rustix::io::Result<()> {
    for number in 0..64_u64 {
        if !kept.contains(number as u32) {
            // SAFETY: prctl with integers. EINVAL: the kernel knows no capability of this number.
            let dropped = check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }.into());
            match dropped {
                Err(Errno::INVAL) => break,
                other => other?,
            }
        }
    }
    let kept = rustix::thread::CapabilitySet::from_bits_retain(kept.0);
    let own = rustix::thread::capabilities(None)?;
    let sets = rustix::thread::CapabilitySets {
        effective: own.effective & kept,
        permitted: own.permitted & kept,
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, sets)
}

pub(super) fn check(result: libc::c_long) -> rustix::io::Result<()> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
