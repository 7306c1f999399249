//! How a process gets into a pod: its namespaces, its view of the file system, its capabilities.
//!
//! ```text
//! /                read-only, the node's own, with all that is mounted below; its device files open nothing
//! ├─ tmp           tmpfs of this container         ├─ run, var/lib/plumb   empty; run/program in the demo image
//! ├─ proc          of the pod's PID namespace      ├─ dev   null zero full random urandom tty pts shm mqueue
//! │                                                ├─ sys   of the pod's network namespace, read-only
//! └─ etc/{resolv.conf,hosts,hostname}              the pod's, read-only
//! ```
//!
//! A lab of root's has root's own uid in its pods. What in /proc and /sys tells of the whole machine, or changes it, is
//! hidden or read-only there as container engines have it: by default of the OCI runtime specification (config-linux.md,
//! masked and readonly paths) as containerd and moby (daemon/pkg/oci/defaults.go) fill it in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use kernel::mount::{Mount, MountFlags};
use kernel::process::{Capabilities, Namespaces, Process, Spawn};
use types::wire::PROGRAM_DIR;

/// chown, kill, setgid, setuid, net_bind_service, net_raw: what servers and ping need, and nothing that reaches
/// another user's files, the node's network or devices.
pub const CAPABILITIES: Capabilities = Capabilities(1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 13);

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// A template of /dev on the node.
const DEV: &str = "/run/plumb-dev";

/// Whole files and directories that a container does not see. Below /sys the last ones are mount points of file systems
/// of the machine, empty in a /sys of the pod's own.
const MASKED: [&str; 19] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/fs/bpf",
    "sys/fs/cgroup",
    "sys/fs/pstore",
    "sys/kernel/config",
    "sys/kernel/debug",
    "sys/kernel/security",
    "sys/kernel/tracing",
];
/// What a container reads only; all of these change the machine. /sys is read-only as a whole.
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];
/// As much as a container may keep in memory: runc's own for /dev/shm, and more for /tmp.
const SHM: &str = "mode=1777,size=64m";
const TMP: &str = "mode=1777,size=512m";
const EMPTY: &str = "mode=755,size=16m";

/// The namespaces of a pod; a host network pod has the node's network and host name.
pub fn into_pod(spawn: Spawn, pause: &Process, host_network: bool) -> Result<Spawn> {
    let mut kinds = Namespaces::IPC | Namespaces::PID;
    if !host_network {
        kinds = kinds | Namespaces::NET | Namespaces::UTS;
    }
    Ok(spawn.new_namespaces(Namespaces::MOUNT | Namespaces::CGROUP).join(kinds, pause)?)
}

/// The picture above, in a new mount namespace. `pod` is the pod's directory; `demo`: its image has this program.
pub fn mounts(pod: &Path, demo: bool) -> Result<Vec<Mount>> {
    let root = pod.join("root");
    let at = |path: &str| root.join(path);
    let mut mounts =
        vec![Mount::private("/")?, Mount::bind("/", &root, true)?, Mount::read_only_without_devices(&root)?];
    mounts.extend(dev(&root)?);
    for file in ["resolv.conf", "hosts", "hostname"] {
        mounts.push(Mount::bind(pod.join(file), at("etc").join(file), false)?);
        mounts.push(Mount::read_only_without_devices(at("etc").join(file))?);
    }
    mounts.push(Mount::tmpfs(at("tmp"), TMP)?);
    mounts.push(Mount::tmpfs(at("run"), EMPTY)?);
    // The holder of an earlier version has none.
    if demo && Path::new(PROGRAM_DIR).is_dir() {
        let shown = root.join(PROGRAM_DIR.trim_start_matches('/'));
        mounts.push(Mount::make_dir(&shown)?);
        mounts.push(Mount::bind(PROGRAM_DIR, &shown, true)?);
        mounts.push(Mount::read_only_without_devices(&shown)?);
    }
    mounts.push(Mount::tmpfs(at("var/lib/plumb"), EMPTY)?);
    mounts.extend(proc_and_sys(&root)?);
    mounts.push(Mount::pivot_root(&root)?);
    Ok(mounts)
}

/// Devices are the machine's own files: whoever owns them must not change their mode for everybody, so each is
/// read-only, which does not concern what is written into a device.
fn dev(root: &Path) -> Result<Vec<Mount>> {
    let dev = root.join("dev");
    let mut mounts = vec![Mount::bind(DEV, &dev, false)?, Mount::read_only_without_devices(&dev)?];
    for device in DEVICES {
        mounts.push(Mount::bind(Path::new("/dev").join(device), dev.join(device), false)?);
        mounts.push(Mount::read_only(dev.join(device))?);
    }
    mounts.push(Mount::devpts(dev.join("pts"))?);
    mounts.push(Mount::tmpfs(dev.join("shm"), SHM)?);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A kernel may lack message queues.
    mounts.push(Mount::filesystem("mqueue", dev.join("mqueue"), flags, "")?.optional());
    Ok(mounts)
}

fn proc_and_sys(root: &Path) -> Result<Vec<Mount>> {
    // Where /sys may not be mounted anew (a lab within a container), the node's stays, read-only as all of its files.
    let mut mounts = vec![
        Mount::proc(root.join("proc"))?,
        Mount::sysfs(root.join("sys"))?.optional(),
        Mount::read_only(root.join("sys"))?,
    ];
    for path in READ_ONLY {
        mounts.push(Mount::read_only_view(root.join(path))?);
    }
    for path in MASKED {
        mounts.push(Mount::mask(root.join(path))?);
    }
    // Per processor, so that the list is this machine's.
    for entry in fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        let path = Path::new("sys/devices/system/cpu").join(entry.file_name()).join("thermal_throttle");
        if Path::new("/").join(&path).is_dir() {
            mounts.push(Mount::mask(root.join(path))?);
        }
    }
    Ok(mounts)
}

/// Makes the template of /dev: empty files to mount devices on, and the usual links. Idempotent.
pub fn prepare_dev() -> Result<()> {
    let dev = Path::new(DEV);
    for dir in ["pts", "shm", "mqueue"] {
        fs::create_dir_all(dev.join(dir)).with_context(|| format!("make {DEV}/{dir}"))?;
    }
    for device in DEVICES {
        fs::write(dev.join(device), "").with_context(|| format!("make {DEV}/{device}"))?;
    }
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        let link = dev.join(name);
        if link.symlink_metadata().is_err() {
            symlink(target, &link).with_context(|| format!("link {}", link.display()))?;
        }
    }
    Ok(())
}
