//! The CNI executables on the host: `plumb-cni`, and `loopback`, which containerd runs by this name for every pod.
//!
//! `loopback` is a link to `plumb-cni`, so that everybody sees whose it is; one that somebody else put there stays.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

pub const PLUGIN: &str = "plumb-cni";
pub const LOOPBACK: &str = "loopback";

/// Puts both in place by rename, unless they are there as they should be. Whether anything was written.
pub fn publish(source: &Path, directory: &Path) -> Result<bool> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let plugin = replace(source, directory)?;
    Ok(loopback(directory)? || plugin)
}

/// The executable that lies beside the agent's own.
pub fn beside_agent() -> Result<std::path::PathBuf> {
    let own = std::env::current_exe().context("find the agent's own executable")?;
    Ok(own.with_file_name(PLUGIN))
}

fn replace(source: &Path, directory: &Path) -> Result<bool> {
    let path = directory.join(PLUGIN);
    let wanted = fs::read(source).with_context(|| {
        format!("read {}: the CNI executable belongs beside the agent's", source.display())
    })?;
    if fs::read(&path).is_ok_and(|present| present == wanted) {
        return Ok(false);
    }
    let fresh = directory.join(".plumb-cni.new");
    fs::write(&fresh, wanted).with_context(|| format!("write {}", fresh.display()))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("replace {}", path.display()))?;
    Ok(true)
}

fn loopback(directory: &Path) -> Result<bool> {
    let path = directory.join(LOOPBACK);
    match symlink(PLUGIN, &path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("link {} to {PLUGIN}", path.display())),
    }
}

/// Takes away what [`publish`] put there; a `loopback` of somebody else stays.
pub fn withdraw(directory: &Path) -> Result<()> {
    let link = directory.join(LOOPBACK);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(PLUGIN)) {
        remove(&link)?;
    }
    remove(&directory.join(PLUGIN))
}

/// It is gone afterwards, whoever removed it.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("plumb-executables-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn both_appear_once_and_leave_together() {
        let dir = directory("both");
        let source = dir.join("source");
        fs::write(&source, "program").unwrap();
        let bin = dir.join("bin");
        assert!(publish(&source, &bin).unwrap());
        assert!(!publish(&source, &bin).unwrap());
        assert_eq!(fs::read(bin.join(LOOPBACK)).unwrap(), b"program");
        fs::write(&source, "newer").unwrap();
        assert!(publish(&source, &bin).unwrap());
        assert_eq!(fs::read(bin.join(LOOPBACK)).unwrap(), b"newer");
        withdraw(&bin).unwrap();
        let left = fs::read_dir(&bin).unwrap().count();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_loopback_of_others_stays() {
        let dir = directory("others");
        let (source, bin) = (dir.join("source"), dir.join("bin"));
        fs::create_dir_all(&bin).unwrap();
        fs::write(&source, "program").unwrap();
        fs::write(bin.join(LOOPBACK), "theirs").unwrap();
        publish(&source, &bin).unwrap();
        withdraw(&bin).unwrap();
        let left = fs::read(bin.join(LOOPBACK));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(left.unwrap(), b"theirs");
    }
}
