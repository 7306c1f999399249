//! What must outlive the process: the address pool and who is wired to what, in one file, and in a second one from where
//! pods could send that no longer can.
//!
//! A killed process loses nothing: a file is replaced by rename, and what was written lies in the kernel's page
//! cache. A machine that lost power needs nothing of it: its pods' namespaces are gone. So each file carries the
//! boot's id in its name, files of other boots are dropped (plugins#252), and there is no fsync, which would cost
//! every ADD milliseconds for nothing.

mod lost;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipam::Pool;
use kernel::Netns;
use node::{Record, Records};
use serde::Deserialize;

use lost::Lost;

/// Device and inode of the namespace at a path; `None` when there is none.
pub fn namespace_id(path: &str) -> Option<(u64, u64)> {
    let id = Netns::open(path).and_then(|netns| netns.id()).ok()?;
    Some((id.dev, id.ino))
}

/// Whether the namespace that was wired still lies at its path.
pub fn namespace_lives(record: &Record) -> bool {
    namespace_id(&record.netns).is_some_and(|id| record.netns_id.is_none_or(|known| known == id))
}

/// As it was written before a node could have pod CIDRs of two families.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Former {
    pool: Option<Pool>,
    records: BTreeMap<String, Record>,
}

impl From<Former> for Records {
    fn from(Former { pool, records }: Former) -> Self {
        Self::new(pool.into_iter().collect(), records)
    }
}

/// The files of [`Records`]. Whoever changes those calls [`Store::save`] before telling anybody.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    lost: Lost,
}

impl Store {
    /// Opens the files of this boot, or begins some; what they hold.
    pub fn open(directory: &Path, boot: &str) -> Result<(Self, Records)> {
        let at = || format!("{}: make the data directory", directory.display());
        fs::create_dir_all(directory).with_context(at)?;
        let names = FILES.map(|file| format!("{file}{}.json", boot.trim()));
        drop_other_boots(directory, &names)?;
        let [path, lost] = names.map(|name| directory.join(name));
        let mut records = match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Records::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let lost = Lost::open(lost)?;
        records.remember_lost(lost.written().clone());
        Ok((Self { path, lost }, records))
    }

    /// Replaces the files. What is lost comes first: a process that is killed in between has it twice, and never not at
    /// all.
    pub fn save(&mut self, records: &Records) -> Result<()> {
        self.lost.save(records.lost())?;
        replace(&self.path, &serde_json::to_vec(records)?)
    }
}

/// How the files' names begin; the boot's id follows.
const FILES: [&str; 2] = ["attachments-", "sources-"];

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("replace {}", path.display()))
}

/// Addresses that live pods have must not be given out again, so nothing is guessed.
fn parse(path: &Path, bytes: &[u8]) -> Result<Records> {
    let read = serde_json::from_slice(bytes);
    match read.or_else(|error| serde_json::from_slice(bytes).map(Former::into).map_err(|_| error)) {
        Ok(records) => Ok(records),
        Err(error) => bail!(
            "{}: cannot be read: {error}. It says which pod has which address; only a damaged disk or an edit \
             breaks it. Delete the pods of this node, remove the file, and start the agent again",
            path.display()
        ),
    }
}

fn drop_other_boots(directory: &Path, current: &[String]) -> Result<()> {
    let at = || format!("read the data directory {}", directory.display());
    for entry in fs::read_dir(directory).with_context(at)? {
        let entry = entry.with_context(at)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = FILES.iter().any(|file| name.starts_with(file)) && name.ends_with(".json");
        if ours && !current.contains(&name) {
            fs::remove_file(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
