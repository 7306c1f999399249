//! Further sources that no pod of this node has any more, as long as the kernel may know flows from there.
//!
//! In a file of their own: an agent of an earlier version refuses the attachments' file when it holds a word that is new,
//! and does not look at this one.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use types::IpNet;

use super::replace;

#[derive(Debug)]
pub struct Lost {
    path: PathBuf,
    /// As the file has them.
    written: BTreeSet<IpNet>,
}

/// What the file holds. A later version may say more in it.
#[derive(Default, Serialize, Deserialize)]
struct Content {
    lost: BTreeSet<IpNet>,
}

impl Lost {
    pub fn open(path: PathBuf) -> Result<Self> {
        let nets = match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?.lost,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path, written: nets })
    }

    pub fn written(&self) -> &BTreeSet<IpNet> {
        &self.written
    }

    pub fn save(&mut self, nets: &BTreeSet<IpNet>) -> Result<()> {
        if *nets == self.written {
            return Ok(());
        }
        if nets.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", self.path.display()));
                }
                _ => {}
            }
        } else {
            replace(&self.path, &serde_json::to_vec(&Content { lost: nets.clone() })?)?;
        }
        self.written.clone_from(nets);
        Ok(())
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Content> {
    match serde_json::from_slice(bytes) {
        Ok(content) => Ok(content),
        Err(error) => bail!(
            "{}: cannot be read: {error}. It says from which further sources pods of this node have sent; only a damaged \
             disk or an edit breaks it. Have the kernel forget its connections (conntrack -F), remove the file, and start \
             the agent again",
            path.display()
        ),
    }
}
