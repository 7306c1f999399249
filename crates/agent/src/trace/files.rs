//! What the resolver of a pod's programs reads: /etc/resolv.conf and /etc/hosts, as they see them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dns::{Hosts, ResolvConf};

/// A pod's files.
#[derive(Clone, Debug)]
pub struct Files {
    pub conf: ResolvConf,
    pub hosts: Hosts,
}

/// Those of any process in the pod's network namespace with a mount namespace of its own. `None` where there is none (a
/// pod that only sleeps in its sandbox).
pub fn of(netns: &Path) -> Option<Files> {
    let inode = fs::metadata(netns).ok()?.ino();
    let own_root = fs::metadata("/proc/self/ns/mnt").ok()?.ino();
    let same = |path: PathBuf, inode: u64| fs::metadata(path).is_ok_and(|meta| meta.ino() == inode);
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let process = entry.path();
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())
            || !same(process.join("ns/net"), inode)
            || same(process.join("ns/mnt"), own_root)
        {
            continue;
        }
        let read = |file: &str| fs::read_to_string(process.join("root/etc").join(file));
        if let Ok(conf) = read("resolv.conf").map(|text| ResolvConf::parse(&text))
            && !conf.servers.is_empty()
            && !conf.search.is_empty()
        {
            let hosts = read("hosts").map(|text| Hosts::parse(&text)).unwrap_or_default();
            return Some(Files { conf, hosts });
        }
    }
    None
}
