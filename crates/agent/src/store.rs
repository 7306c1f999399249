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

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipam::Pool;
use kernel::Netns;
use model::{Attachment, HostPort};
use serde::{Deserialize, Serialize};
use types::wire::NETWORK;
use types::{Family, IfName, IpNet, Mac, ObjectName, Wiring};

use lost::Lost;

/// One wired interface of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub container: String,
    pub ifname: IfName,
    /// The name of the network that its runtime asked for: another network's garbage collection is not its own. Files of
    /// older versions have none, and agents have always written this one for runtimes.
    #[serde(default = "usual_network")]
    pub network: String,
    /// Path of the pod's network namespace, as the runtime gave it.
    pub netns: String,
    /// Which namespace that was: device and inode. Another one may lie at the path later. Files of older versions have
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<(u64, u64)>,
    pub pod: ObjectName,
    pub uid: String,
    pub ips: Vec<IpAddr>,
    /// How it was attached. Files of older versions have none: all that they wrote are of a bridge.
    #[serde(default = "usual_wiring")]
    pub wiring: Wiring,
    pub host_if: IfName,
    pub mac: Mac,
    /// Files of older versions have none.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// The pod's own, in seconds.
    #[serde(default)]
    pub grace: u32,
    /// No longer wired: its pod is gone and its veth was deleted, yet its namespace lives, and in it the address.
    /// Stays a record, so that an older agent, to which nothing is wired without a veth, gives the address back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_off: bool,
    /// Where else its pod may send from; files of older versions have none, or also where it could. What it may no
    /// longer, [`Store::lost`] has until the kernel knows no flow from there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<IpNet>,
}

impl Record {
    /// The key in the model and the handle of the address: `container/interface`.
    pub fn handle(&self) -> String {
        format!("{}/{}", self.container, self.ifname)
    }

    /// Whether the namespace that was wired still lies at its path.
    pub fn namespace_lives(&self) -> bool {
        namespace_id(&self.netns).is_some_and(|id| self.netns_id.is_none_or(|known| known == id))
    }

    pub fn row(&self) -> Attachment {
        Attachment {
            container: self.handle(),
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            ips: self.ips.clone(),
            wiring: self.wiring,
            host_if: self.host_if.clone(),
            mac: self.mac,
            host_ports: self.host_ports.clone(),
            withheld: Vec::new(),
        }
    }
}

fn usual_network() -> String {
    NETWORK.to_owned()
}

fn usual_wiring() -> Wiring {
    Wiring::Bridge
}

/// Device and inode of the namespace at a path; `None` when there is none.
pub fn namespace_id(path: &str) -> Option<(u64, u64)> {
    let id = Netns::open(path).and_then(|netns| netns.id()).ok()?;
    Some((id.dev, id.ino))
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// One for each family that the node has a pod CIDR of; none until it has any.
    pools: Vec<Pool>,
    records: BTreeMap<String, Record>,
}

/// As it was written before a node could have pod CIDRs of two families.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Former {
    pool: Option<Pool>,
    records: BTreeMap<String, Record>,
}

impl From<Former> for Content {
    fn from(Former { pool, records }: Former) -> Self {
        Self { pools: pool.into_iter().collect(), records }
    }
}

/// The file and what it holds. Whoever changes it calls [`Store::save`] before telling anybody.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    content: Content,
    lost: Lost,
}

impl Store {
    /// Opens the file of this boot, or begins one.
    pub fn open(directory: &Path, boot: &str) -> Result<Self> {
        let at = || format!("{}: make the data directory", directory.display());
        fs::create_dir_all(directory).with_context(at)?;
        let names = FILES.map(|file| format!("{file}{}.json", boot.trim()));
        drop_other_boots(directory, &names)?;
        let [path, lost] = names.map(|name| directory.join(name));
        let content = match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let mut store = Self { path, content, lost: Lost::open(lost)? };
        let held = store.held();
        store.lost.leave(&held);
        Ok(store)
    }

    /// In the order of families that the node's Node object has.
    pub fn pools(&mut self) -> &mut Vec<Pool> {
        &mut self.content.pools
    }

    pub fn pool(&mut self, family: Family) -> Option<&mut Pool> {
        self.content.pools.iter_mut().find(|pool| Family::of_net(&pool.cidr()) == family)
    }

    pub fn known_pools(&self) -> &[Pool] {
        &self.content.pools
    }

    pub fn has_pool(&self) -> bool {
        !self.content.pools.is_empty()
    }

    pub fn records(&self) -> &BTreeMap<String, Record> {
        &self.content.records
    }

    /// The interfaces that are wired; the other records only hold addresses.
    pub fn wired(&self) -> impl Iterator<Item = &Record> + Clone {
        self.content.records.values().filter(|record| !record.cut_off)
    }

    /// It is wired no more, and keeps nothing but its addresses.
    pub fn cut_off(&mut self, handle: &str) {
        if let Some(record) = self.content.records.get_mut(handle) {
            record.cut_off = true;
            record.host_ports.clear();
        }
    }

    /// Where else its pod may send from, after it may more.
    pub fn set_further(&mut self, handle: &str, further: Vec<IpNet>) {
        if let Some(record) = self.content.records.get_mut(handle) {
            record.further = further;
        }
    }

    /// The same after it may less.
    pub fn narrow(&mut self, handle: &str, further: Vec<IpNet>) {
        if let Some(record) = self.content.records.get_mut(handle) {
            let had = std::mem::replace(&mut record.further, further);
            let held = self.held();
            self.lost.add(&had, &held);
        }
    }

    /// Further sources that no pod of this node has, where the kernel may know flows all the same.
    pub fn lost(&self) -> &BTreeSet<IpNet> {
        self.lost.nets()
    }

    /// The kernel knows no flows from there any more. Whether any of it was lost.
    pub fn forgotten(&mut self, nets: &[IpNet]) -> bool {
        self.lost.remove(nets)
    }

    /// All further sources that attachments have.
    fn held(&self) -> Vec<IpNet> {
        self.wired().flat_map(|record| record.further.iter().copied()).collect()
    }

    pub fn insert(&mut self, record: Record) {
        self.content.records.insert(record.handle(), record);
    }

    /// Forgets the record and gives its addresses back.
    pub fn release(&mut self, handle: &str, now: ipam::Now) -> Option<Record> {
        for pool in &mut self.content.pools {
            pool.release(handle, now);
        }
        let record = self.content.records.remove(handle)?;
        let held = self.held();
        self.lost.add(&record.further, &held);
        Some(record)
    }

    /// Replaces the files. What is lost comes first: a process that is killed in between has it twice, and never not at
    /// all.
    pub fn save(&mut self) -> Result<()> {
        self.lost.save()?;
        replace(&self.path, &serde_json::to_vec(&self.content)?)
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
fn parse(path: &Path, bytes: &[u8]) -> Result<Content> {
    let read = serde_json::from_slice(bytes);
    match read.or_else(|error| serde_json::from_slice(bytes).map(Former::into).map_err(|_| error)) {
        Ok(content) => Ok(content),
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
