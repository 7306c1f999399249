//! Mounts, as values: [`Mount`] says what to mount where; [`Mount::apply`] does it, here or in a child
//! before it execs ([`crate::process::Spawn::mount`]).

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use rustix::mount::MountFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::error::{Error, Named};

/// One change of the mount table. All strings are ready for the kernel, so that applying allocates nothing.
#[derive(Clone, Debug)]
pub struct Mount {
    action: Action,
    /// For messages: `bind /usr on /run/x/usr`.
    what: String,
    /// Where the kernel refuses it, what is there already stays.
    optional: bool,
}

#[derive(Clone, Debug)]
enum Action {
    New { fstype: CString, target: CString, flags: MountFlags, data: CString },
    Bind { source: CString, target: CString, recursive: bool },
    Restrict { target: CString, attributes: u64 },
    ReadOnlyView { target: CString },
    Mask { target: CString },
    Private { target: CString },
    PivotRoot { root: CString },
    Chroot { root: CString },
    MakeDir { path: CString },
    Unmount { target: CString },
}

impl Mount {
    /// `mount --bind source target`; with `recursive` also what is mounted below.
    pub fn bind(source: impl AsRef<Path>, target: impl AsRef<Path>, recursive: bool) -> Result<Self, Error> {
        let what = format!("bind {} on {}", source.as_ref().display(), target.as_ref().display());
        let action = Action::Bind {
            source: c_string(&what, source.as_ref().as_os_str())?,
            target: c_string(&what, target.as_ref().as_os_str())?,
            recursive,
        };
        Ok(Self::new(action, what))
    }

    /// Makes an existing mount read-only, it and everything mounted below (mount_setattr, Linux 5.12).
    /// Flags that a user namespace may not clear (nosuid, nodev) stay as they are.
    pub fn read_only(target: impl AsRef<Path>) -> Result<Self, Error> {
        Self::restrict(target, libc::MOUNT_ATTR_RDONLY, "read-only")
    }

    /// As [`Self::read_only`], and no file below opens a device: a file system of the machine's holds device files
    /// of chroots and containers, too.
    pub fn read_only_without_devices(target: impl AsRef<Path>) -> Result<Self, Error> {
        Self::restrict(target, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV, "read-only, without devices")
    }

    fn restrict(target: impl AsRef<Path>, attributes: u64, how: &str) -> Result<Self, Error> {
        let what = format!("make {} {how}", target.as_ref().display());
        let target = c_string(&what, target.as_ref().as_os_str())?;
        Ok(Self::new(Action::Restrict { target, attributes }, what))
    }

    /// Makes a file or directory read-only within a mount that is not, by a mount of its own. What is not there
    /// needs none.
    pub fn read_only_view(target: impl AsRef<Path>) -> Result<Self, Error> {
        let what = format!("make {} read-only by a mount of its own", target.as_ref().display());
        let target = c_string(&what, target.as_ref().as_os_str())?;
        Ok(Self::new(Action::ReadOnlyView { target }, what))
    }

    /// Hides what is at a path: a directory is empty from now on, a file is /dev/null. What is not there needs no
    /// hiding.
    pub fn mask(target: impl AsRef<Path>) -> Result<Self, Error> {
        let what = format!("hide {}", target.as_ref().display());
        let target = c_string(&what, target.as_ref().as_os_str())?;
        Ok(Self::new(Action::Mask { target }, what))
    }

    /// Where the kernel refuses it, what is there already stays: for what a container within a container may not
    /// mount anew.
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    fn new(action: Action, what: String) -> Self {
        Self { action, what, optional: false }
    }

    /// A fresh tmpfs; `options` such as `mode=1777,size=64m`.
    pub fn tmpfs(target: impl AsRef<Path>, options: &str) -> Result<Self, Error> {
        Self::filesystem("tmpfs", target, MountFlags::NOSUID | MountFlags::NODEV, options)
    }

    /// /proc of the PID namespace that the calling process is in.
    pub fn proc(target: impl AsRef<Path>) -> Result<Self, Error> {
        Self::filesystem("proc", target, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, "")
    }

    /// /sys of the network namespace that the calling thread is in.
    pub fn sysfs(target: impl AsRef<Path>) -> Result<Self, Error> {
        Self::filesystem("sysfs", target, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, "")
    }

    /// A private devpts instance, for terminals of `exec -t`.
    pub fn devpts(target: impl AsRef<Path>) -> Result<Self, Error> {
        Self::filesystem(
            "devpts",
            target,
            MountFlags::NOSUID | MountFlags::NOEXEC,
            "newinstance,ptmxmode=0666",
        )
    }

    /// An overlay of `lower` (top first) with what is written in `upper`.
    pub fn overlay(
        lower: &[PathBuf],
        upper: impl AsRef<Path>,
        work: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> Result<Self, Error> {
        let lower: Vec<String> = lower.iter().map(|path| overlay_path(path)).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            overlay_path(upper.as_ref()),
            overlay_path(work.as_ref())
        );
        Self::filesystem("overlay", target, MountFlags::empty(), &options)
    }

    /// Any other file system type.
    pub fn filesystem(
        fstype: &str,
        target: impl AsRef<Path>,
        flags: MountFlags,
        options: &str,
    ) -> Result<Self, Error> {
        let what = format!("mount {fstype} on {}", target.as_ref().display());
        let action = Action::New {
            fstype: c_string(&what, OsStr::new(fstype))?,
            target: c_string(&what, target.as_ref().as_os_str())?,
            flags,
            data: c_string(&what, OsStr::new(options))?,
        };
        Ok(Self::new(action, what))
    }

    /// Nothing mounted here (or below) from now on shows in other mount namespaces, nor the reverse:
    /// the first step in a new mount namespace, on `/`.
    pub fn private(target: impl AsRef<Path>) -> Result<Self, Error> {
        let what = format!("make {} private", target.as_ref().display());
        let target = c_string(&what, target.as_ref().as_os_str())?;
        Ok(Self::new(Action::Private { target }, what))
    }

    /// Makes `root`, which must be a mount point, the root of this mount namespace and drops the old one.
    pub fn pivot_root(root: impl AsRef<Path>) -> Result<Self, Error> {
        let what = format!("make {} the root (pivot_root)", root.as_ref().display());
        let root = c_string(&what, root.as_ref().as_os_str())?;
        Ok(Self::new(Action::PivotRoot { root }, what))
    }

    /// Only changes the root directory of the calling process, not the mount namespace.
    pub fn chroot(root: impl AsRef<Path>) -> Result<Self, Error> {
        let what = format!("make {} the root (chroot)", root.as_ref().display());
        let root = c_string(&what, root.as_ref().as_os_str())?;
        Ok(Self::new(Action::Chroot { root }, what))
    }

    /// Makes one directory (mode 755) unless it exists; for mount points on a tmpfs mounted a step before.
    pub fn make_dir(path: impl AsRef<Path>) -> Result<Self, Error> {
        let what = format!("make the directory {}", path.as_ref().display());
        let path = c_string(&what, path.as_ref().as_os_str())?;
        Ok(Self::new(Action::MakeDir { path }, what))
    }

    /// Detaches a mount and all below it at once; users of open files keep them (MNT_DETACH).
    pub fn unmount(target: impl AsRef<Path>) -> Result<Self, Error> {
        let what = format!("unmount {}", target.as_ref().display());
        let target = c_string(&what, target.as_ref().as_os_str())?;
        Ok(Self::new(Action::Unmount { target }, what))
    }

    /// Performs it in the mount namespace of the calling thread.
    pub fn apply(&self) -> Result<(), Error> {
        self.perform().named(|| self.what.clone())
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Only system calls: also runs between fork and exec.
    pub(crate) fn perform(&self) -> rustix::io::Result<()> {
        match self.perform_action() {
            Err(_) if self.optional => Ok(()),
            done => done,
        }
    }

    fn perform_action(&self) -> rustix::io::Result<()> {
        match &self.action {
            Action::New { fstype, target, flags, data } => {
                rustix::mount::mount(fstype, target, fstype, *flags, Some(data.as_c_str()))
            }
            Action::Bind { source, target, recursive: true } => {
                rustix::mount::mount_bind_recursive(source, target)
            }
            Action::Bind { source, target, recursive: false } => rustix::mount::mount_bind(source, target),
            Action::Restrict { target, attributes } => set_attributes(target, *attributes),
            Action::ReadOnlyView { target } => view_read_only(target, target),
            Action::Mask { target } => mask(target),
            Action::Private { target } => rustix::mount::mount_change(
                target,
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            ),
            Action::PivotRoot { root } => {
                rustix::process::chdir(root)?;
                // pivot_root(2), "pivot_root(".", ".")": the old root ends up over the new one and is
                // detached by the unmount, so that no directory is needed for it.
                rustix::process::pivot_root(c".", c".")?;
                rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
                rustix::process::chdir(c"/")
            }
            Action::Chroot { root } => {
                rustix::process::chroot(root)?;
                rustix::process::chdir(c"/")
            }
            Action::MakeDir { path } => match rustix::fs::mkdir(path, rustix::fs::Mode::from_raw_mode(0o755))
            {
                Err(rustix::io::Errno::EXIST) => Ok(()),
                other => other,
            },
            Action::Unmount { target } => rustix::mount::unmount(target, UnmountFlags::DETACH),
        }
    }
}

/// A path inside overlay options, where `:` and `,` separate (Documentation/filesystems/overlayfs.rst).
fn overlay_path(path: &Path) -> String {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, '\\' | ':' | ',') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

fn set_attributes(target: &CStr, attributes: u64) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated string and the attributes outlive the call; the size is theirs.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Binds `source` on `target`, read-only; nothing when there is no target.
fn view_read_only(source: &CStr, target: &CStr) -> rustix::io::Result<()> {
    match rustix::mount::mount_bind(source, target) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        bound => bound.and_then(|()| set_attributes(target, libc::MOUNT_ATTR_RDONLY)),
    }
}

/// Read-only in both cases: who owns a mask could else change the mode of the machine's /dev/null.
fn mask(target: &CStr) -> rustix::io::Result<()> {
    let kind = match rustix::fs::stat(target) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        found => rustix::fs::FileType::from_raw_mode(found?.st_mode),
    };
    if kind != rustix::fs::FileType::Directory {
        return view_read_only(c"/dev/null", target);
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(c"tmpfs", target, c"tmpfs", flags, Some(c"mode=755"))
}

/// The error number of the C library call that just failed on this thread.
pub(crate) fn last_errno() -> rustix::io::Errno {
    // SAFETY: __errno_location always returns a valid pointer to this thread's errno.
    rustix::io::Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

pub(crate) fn c_string(what: &str, text: &OsStr) -> Result<CString, Error> {
    CString::new(text.as_bytes()).map_err(|_| Error::input(what, "the name contains a NUL byte"))
}
