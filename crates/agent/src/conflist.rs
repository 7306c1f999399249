//! The network configuration that tells the runtime to use Plumb. Written last, when pods can be wired: kubelet
//! takes a node with such a file for ready.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use types::wire::{CONFLIST, NETWORK};

/// libcni before 1.2 (containerd 1.6) refuses 1.1.0 and does not know `cniVersions`, from which later ones take the
/// newest that they speak.
const SPOKEN: [&str; 2] = ["1.0.0", "1.1.0"];

/// Puts the file in place by rename, unless it is there as it should be. Whether it was written.
pub fn publish(directory: &Path, socket: &Path) -> Result<bool> {
    let mut plugin = json!({ "type": "plumb-cni", "capabilities": { "portMappings": true } });
    if socket != Path::new(types::wire::AGENT_SOCKET) {
        plugin["agentSocket"] = json!(socket);
    }
    let list = json!({
        "cniVersion": SPOKEN[0], "cniVersions": SPOKEN, "name": NETWORK, "plugins": [plugin]
    });
    let text = format!("{}\n", serde_json::to_string_pretty(&list)?);
    let path = directory.join(CONFLIST);
    if fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    // Not ending in .conflist: a runtime that lists the directory meanwhile does not take it.
    let fresh = directory.join(".10-plumb.new");
    fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("replace {}", path.display()))?;
    Ok(true)
}

/// Takes the file away: what a runtime does then is its own affair.
pub fn withdraw(directory: &Path) -> Result<()> {
    crate::executables::remove(&directory.join(CONFLIST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_appears_whole_and_once() {
        let dir = std::env::temp_dir().join(format!("plumb-conflist-{}", std::process::id()));
        let socket = dir.join("agent.sock");
        let first = publish(&dir, &socket);
        let second = publish(&dir, &socket);
        let text = fs::read_to_string(dir.join(CONFLIST));
        let count = fs::read_dir(&dir).map(Iterator::count);
        let _ = fs::remove_dir_all(&dir);
        assert!(matches!((first, second), (Ok(true), Ok(false))));
        let list: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["agentSocket"], json!(socket));
        assert_eq!(count.unwrap(), 1);
    }
}
