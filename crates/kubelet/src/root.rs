//! How a process gets into a pod: its namespaces, its view of the file system, its capabilities.
//!
//! ```text
//! /                read-only, the node's own, with all that is mounted below
//! ├─ tmp           tmpfs of this container         ├─ run, var/lib/plumb   empty
//! ├─ proc          of the pod's PID namespace      ├─ dev                  null zero full random urandom tty pts shm
//! └─ etc/{resolv.conf,hosts,hostname}              the pod's
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use kernel::mount::Mount;
use kernel::process::{Capabilities, Namespaces, Process, Spawn};

/// chown, kill, setgid, setuid, net_bind_service, net_raw: what servers and ping need, and nothing that reaches
/// another user's files, the node's network or devices.
pub const CAPABILITIES: Capabilities = Capabilities(1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 13);

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// A template of /dev on the node.
const DEV: &str = "/run/plumb-dev";

/// The namespaces of a pod; a host network pod has the node's network and host name.
pub fn into_pod(spawn: Spawn, pause: &Process, host_network: bool) -> Result<Spawn> {
    let mut kinds = Namespaces::IPC | Namespaces::PID;
    if !host_network {
        kinds = kinds | Namespaces::NET | Namespaces::UTS;
    }
    Ok(spawn.new_namespaces(Namespaces::MOUNT).join(kinds, pause)?)
}

/// The picture above, in a new mount namespace. `pod` is the pod's directory.
pub fn mounts(pod: &Path) -> Result<Vec<Mount>> {
    let root = pod.join("root");
    let at = |path: &str| root.join(path);
    let mut mounts = vec![
        Mount::private("/")?,
        Mount::bind("/", &root, true)?,
        Mount::read_only(&root)?,
        Mount::bind(DEV, at("dev"), false)?,
    ];
    for device in DEVICES {
        mounts.push(Mount::bind(Path::new("/dev").join(device), at("dev").join(device), false)?);
    }
    mounts.push(Mount::devpts(at("dev/pts"))?);
    mounts.push(Mount::tmpfs(at("dev/shm"), "mode=1777")?);
    for file in ["resolv.conf", "hosts", "hostname"] {
        mounts.push(Mount::bind(pod.join(file), at("etc").join(file), false)?);
    }
    mounts.push(Mount::tmpfs(at("tmp"), "mode=1777")?);
    mounts.push(Mount::tmpfs(at("run"), "mode=755")?);
    mounts.push(Mount::tmpfs(at("var/lib/plumb"), "mode=755")?);
    mounts.push(Mount::proc(at("proc"))?);
    mounts.push(Mount::pivot_root(&root)?);
    Ok(mounts)
}

/// Makes the template of /dev: empty files to mount devices on, and the usual links. Idempotent.
pub fn prepare_dev() -> Result<()> {
    let dev = Path::new(DEV);
    for dir in ["pts", "shm"] {
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
