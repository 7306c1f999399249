//! Kubeconfigs as kube-rs reads them, with what is wrong with one in one line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use kube::config::{Kubeconfig, KubeconfigError};

use crate::told::{told, yaml};

/// Why a kubeconfig cannot be used; which file it is the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum BadKubeconfig {
    #[error("{0}")]
    Unread(io::Error),
    /// At which line and column, where it is one of these.
    #[error("{0}")]
    Wrong(String),
}

/// The kubeconfig in this file.
pub fn kubeconfig(path: &Path) -> Result<Kubeconfig, BadKubeconfig> {
    if ends_in_half(path).map_err(BadKubeconfig::Unread)? {
        return Err(BadKubeconfig::Wrong("it is UTF-16 that ends with half a character".into()));
    }
    Kubeconfig::read_from(path).map_err(|error| match error {
        KubeconfigError::ReadConfig(why, _) => BadKubeconfig::Unread(why),
        KubeconfigError::Parse(why) => BadKubeconfig::Wrong(yaml(&why)),
        other => BadKubeconfig::Wrong(told(&other)),
    })
}

/// UTF-16 of an odd length, at which kube-client 5.0.0 panics (config/file_config.rs, read_path). A pipe is read once, and
/// not here.
fn ends_in_half(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() % 2 == 0 {
        return Ok(false);
    }
    let mut start = Vec::new();
    File::open(path)?.take(2).read_to_end(&mut start)?;
    Ok([[0xFF, 0xFE], [0xFE, 0xFF]].iter().any(|mark| start == mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kubeconfig_is_told_and_no_panic() {
        let path = std::env::temp_dir().join(format!("plumb-bad-kubeconfig-{}", std::process::id()));
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            kubeconfig(&path).map(drop).map_err(|error| error.to_string())
        };
        for half in [&[0xFF, 0xFE, 0][..], &[0xFE, 0xFF, 0, 65, 0]] {
            assert_eq!(read(half), Err("it is UTF-16 that ends with half a character".into()));
        }
        assert_eq!(read(&[0xFF, 0xFE]), Ok(()));
        assert_eq!(read(b"\x80"), Err("Invalid UTF-8".into()));
        assert_eq!(
            read(b"a"),
            Err("it cannot be read as YAML: expected mapping start at line 1, column 1".into())
        );
        assert_eq!(read(b"apiVersion: v1\n"), Ok(()));
        std::fs::remove_file(&path).expect("it was there");
        assert!(matches!(kubeconfig(&path), Err(BadKubeconfig::Unread(_))));
        assert!(matches!(kubeconfig(&std::env::temp_dir()), Err(BadKubeconfig::Unread(_))));
    }
}
