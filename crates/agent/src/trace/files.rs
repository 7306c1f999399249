//! What the resolver of a pod's programs reads: /etc/resolv.conf and /etc/hosts, as they see them.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dns::{Hosts, ResolvConf};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// More than any resolver's file has.
const MOST: u64 = 64 << 10;

/// A pod's files.
#[derive(Clone, Debug)]
pub struct Files {
    pub conf: ResolvConf,
    pub hosts: Hosts,
}

/// Those of a process in the pod's network namespace with a mount namespace of its own: the first that has both, else the
/// first that has a resolv.conf. A sandbox of containerd has no /etc/hosts. `None` where there is none (a pod that only
/// sleeps in its sandbox).
pub fn of(netns: &Path) -> Option<Files> {
    let inode = fs::metadata(netns).ok()?.ino();
    let own_root = fs::metadata("/proc/self/ns/mnt").ok()?.ino();
    let same = |path: PathBuf, inode: u64| fs::metadata(path).is_ok_and(|meta| meta.ino() == inode);
    let mut without_hosts = None;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let process = entry.path();
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())
            || !same(process.join("ns/net"), inode)
            || same(process.join("ns/mnt"), own_root)
        {
            continue;
        }
        let Some(conf) = read(&process, "etc/resolv.conf").map(|text| ResolvConf::parse(&text)) else {
            continue;
        };
        if conf.servers.is_empty() || conf.search.is_empty() {
            continue;
        }
        match read(&process, "etc/hosts").filter(|text| !text.is_empty()) {
            Some(text) => return Some(Files { conf, hosts: Hosts::parse(&text) }),
            None => without_hosts = without_hosts.or(Some(Files { conf, hosts: Hosts::default() })),
        }
    }
    without_hosts
}

/// A file as the process sees it. What a pod has put there may be anything: links lead nowhere else than for the process,
/// nothing is waited for, and only so much is read.
fn read(process: &Path, file: &str) -> Option<String> {
    let root = open(process.join("root"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(&root, file, flags, Mode::empty(), resolve).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}
