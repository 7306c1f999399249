//! What must outlive the process: the address pool and who is wired to what, in one file.
//!
//! A killed process loses nothing: the file is replaced by rename, and what was written lies in the kernel's page
//! cache. A machine that lost power needs nothing of it: its pods' namespaces are gone. So the file carries the
//! boot's id in its name, files of other boots are dropped (plugins#252), and there is no fsync, which would cost
//! every ADD milliseconds for nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipam::Pool;
use kernel::Netns;
use model::{Attachment, HostPort};
use serde::{Deserialize, Serialize};
use types::{Family, IfName, IpNet, Mac, ObjectName};

/// One wired interface of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub container: String,
    pub ifname: IfName,
    /// Path of the pod's network namespace, as the runtime gave it.
    pub netns: String,
    /// Which namespace that was: device and inode. Another one may lie at the path later. Files of older versions have
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<(u64, u64)>,
    pub pod: ObjectName,
    pub uid: String,
    pub ips: Vec<IpAddr>,
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
    /// Where else its pod may send from, or could, as long as flows from there may be known. Files of older versions have
    /// none.
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

    /// Where its pod can send from.
    pub fn sources(&self) -> impl Iterator<Item = IpNet> {
        self.ips.iter().copied().map(IpNet::from).chain(self.further.iter().copied())
    }

    pub fn row(&self) -> Attachment {
        Attachment {
            container: self.handle(),
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            ips: self.ips.clone(),
            host_if: self.host_if.clone(),
            mac: self.mac,
            host_ports: self.host_ports.clone(),
        }
    }
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
}

impl Store {
    /// Opens the file of this boot, or begins one.
    pub fn open(directory: &Path, boot: &str) -> Result<Self> {
        let at = || format!("{}: make the data directory", directory.display());
        fs::create_dir_all(directory).with_context(at)?;
        let name = format!("attachments-{}.json", boot.trim());
        drop_other_boots(directory, &name)?;
        let path = directory.join(name);
        let content = match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path, content })
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

    /// Where else its pod may send from.
    pub fn set_further(&mut self, handle: &str, further: Vec<IpNet>) {
        if let Some(record) = self.content.records.get_mut(handle) {
            record.further = further;
        }
    }

    pub fn insert(&mut self, record: Record) {
        self.content.records.insert(record.handle(), record);
    }

    /// Forgets the record and gives its addresses back.
    pub fn release(&mut self, handle: &str, now: ipam::Now) -> Option<Record> {
        for pool in &mut self.content.pools {
            pool.release(handle, now);
        }
        self.content.records.remove(handle)
    }

    /// Replaces the file.
    pub fn save(&self) -> Result<()> {
        let fresh = self.path.with_extension("new");
        let bytes = serde_json::to_vec(&self.content)?;
        fs::write(&fresh, bytes).with_context(|| format!("write {}", fresh.display()))?;
        fs::rename(&fresh, &self.path).with_context(|| format!("replace {}", self.path.display()))
    }
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

fn drop_other_boots(directory: &Path, current: &str) -> Result<()> {
    let at = || format!("read the data directory {}", directory.display());
    for entry in fs::read_dir(directory).with_context(at)? {
        let entry = entry.with_context(at)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("attachments-") && name.ends_with(".json") && name != current {
            fs::remove_file(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("plumb-store-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn record(container: &str, ip: IpAddr) -> Record {
        Record {
            container: container.into(),
            ifname: IfName::new("eth0").unwrap(),
            netns: "/proc/7/ns/net".into(),
            netns_id: Some((4, 4_026_532_008)),
            pod: ObjectName::new("shop", "web"),
            uid: "u".into(),
            ips: vec![ip],
            host_if: IfName::new("veth1").unwrap(),
            mac: Mac::default(),
            host_ports: vec![HostPort {
                protocol: types::Protocol::Udp,
                port: 53,
                container_port: 5353,
                host_ip: Some(ip),
            }],
            grace: 30,
            cut_off: false,
            further: Vec::new(),
        }
    }

    #[test]
    fn a_killed_agent_comes_back_with_the_same_attachments() {
        let dir = Dir::new("same");
        let mut store = Store::open(&dir.0, "boot1\n").unwrap();
        let mut pool = Pool::new("10.244.1.0/24".parse().unwrap(), Duration::from_secs(30));
        let ip = pool.allocate("c1/eth0", Duration::ZERO).unwrap();
        store.pools().push(pool.clone());
        store.insert(record("c1", ip));
        store.save().unwrap();
        let mut again = Store::open(&dir.0, "boot1").unwrap();
        assert_eq!(again.records().get("c1/eth0"), Some(&record("c1", ip)));
        assert_eq!(again.pool(Family::V4), Some(&mut pool));
    }

    /// What an agent wrote when nodes had one family: an upgrade must not take addresses from pods that run.
    const FORMER: &str = r#"{"pool":{"cidr":"10.244.1.0/24","cool_down":{"secs":30,"nanos":0},"leases":{"10.244.1.2":"c1/eth0"},"resting":{"10.244.1.3":{"secs":1700000000,"nanos":0}},"last":"10.244.1.3"},"records":{"c1/eth0":{"container":"c1","ifname":"eth0","netns":"/proc/7/ns/net","pod":{"namespace":"shop","name":"web"},"uid":"u","ips":["10.244.1.2"],"host_if":"veth1","mac":"00:00:00:00:00:00"}}}"#;

    #[test]
    fn the_file_of_an_earlier_agent_is_read_and_written_anew() {
        let dir = Dir::new("former");
        fs::create_dir_all(&dir.0).unwrap();
        fs::write(dir.0.join("attachments-b.json"), FORMER).unwrap();
        let mut store = Store::open(&dir.0, "b").unwrap();
        let ip = "10.244.1.2".parse().unwrap();
        let former = Record { host_ports: Vec::new(), netns_id: None, grace: 0, ..record("c1", ip) };
        assert_eq!(store.records().get("c1/eth0"), Some(&former));
        let pool = store.pool(Family::V4).unwrap();
        assert_eq!(pool.lease_of("c1/eth0"), Some(ip));
        // Its times were those of the wall clock: the rest ends all the same, one cool-down from now.
        let taken = |pool: &mut Pool, address: &str, now| {
            pool.allocate_this("c2/eth0", address.parse().unwrap(), Duration::from_secs(now)).is_err()
        };
        assert!(taken(pool, "10.244.1.2", 100) && taken(pool, "10.244.1.3", 100));
        assert!(taken(pool, "10.244.1.2", 131) && !taken(pool, "10.244.1.3", 131));
        store.save().unwrap();
        let again = Store::open(&dir.0, "b").unwrap();
        assert_eq!(again.known_pools(), store.known_pools());
    }

    #[test]
    fn a_file_of_a_version_without_host_ports_is_read() {
        let mut record = serde_json::to_value(record("c1", [10, 244, 1, 4].into())).unwrap();
        record.as_object_mut().unwrap().remove("host_ports").unwrap();
        assert_eq!(serde_json::from_value::<Record>(record).unwrap().host_ports, []);
    }

    #[test]
    fn a_reboot_frees_every_address() {
        let dir = Dir::new("reboot");
        Store::open(&dir.0, "boot1").unwrap().save().unwrap();
        let again = Store::open(&dir.0, "boot2").unwrap();
        assert!(again.records().is_empty());
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
    }

    #[test]
    fn a_broken_file_is_named_and_never_taken_for_an_empty_one() {
        let dir = Dir::new("broken");
        fs::create_dir_all(&dir.0).unwrap();
        fs::write(dir.0.join("attachments-b.json"), "{").unwrap();
        let error = Store::open(&dir.0, "b").unwrap_err().to_string();
        assert!(error.contains("attachments-b.json") && error.contains("Delete the pods"), "{error}");
    }

    #[test]
    fn releasing_gives_the_address_back_once() {
        let dir = Dir::new("release");
        let mut store = Store::open(&dir.0, "b").unwrap();
        let mut pool = Pool::new("10.244.1.0/24".parse().unwrap(), Duration::from_secs(30));
        let ip = pool.allocate("c1/eth0", Duration::ZERO).unwrap();
        store.pools().push(pool);
        store.insert(record("c1", ip));
        assert!(store.release("c1/eth0", Duration::from_secs(1)).is_some());
        assert!(store.release("c1/eth0", Duration::from_secs(1)).is_none());
        assert_eq!(store.pool(Family::V4).map(|pool| pool.leases().count()), Some(0));
    }
}
