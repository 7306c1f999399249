//! Everything that must outlive the process: pools, records, and from where pods could send that no longer can.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipam::Pool;
use serde::{Deserialize, Serialize};
use types::range::without;
use types::{Family, IpNet};

use crate::Record;

/// Pools and records are one file, what is lost is another: an agent of an earlier version refuses the first when it holds a
/// word that is new.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    /// One for each family that the node has a pod CIDR of; none until it has any.
    pools: Vec<Pool>,
    records: BTreeMap<String, Record>,
    /// Further sources that no pod of this node has any more, as long as the kernel may know flows from there.
    #[serde(skip)]
    lost: BTreeSet<IpNet>,
}

impl Records {
    /// As a file of before says it.
    pub fn new(pools: Vec<Pool>, records: BTreeMap<String, Record>) -> Self {
        Self { pools, records, lost: BTreeSet::new() }
    }

    /// What the second file says. An agent of an earlier version gave some of it to pods, whose own flows are there by now.
    pub fn remember_lost(&mut self, lost: BTreeSet<IpNet>) {
        let held = self.held();
        self.lost = lost.into_iter().flat_map(|net| without(net, &held)).collect();
    }

    /// New addresses come from these from now on, in their order; what was given out before remains. Whether that is new.
    pub(crate) fn follow(&mut self, nets: &[IpNet], rest: Duration) -> bool {
        let mut changed = false;
        for net in nets {
            match self.pool_mut(Family::of_net(net)) {
                Some(pool) => {
                    changed |= pool.cidr() != net.trunc();
                    pool.move_to(*net);
                }
                None => {
                    self.pools.push(Pool::new(*net, rest));
                    changed = true;
                }
            }
        }
        if changed {
            let place = |pool: &Pool| nets.iter().position(|net| net.trunc() == pool.cidr());
            self.pools.sort_by_key(|pool| place(pool).unwrap_or(nets.len()));
        }
        changed
    }

    /// In the order of families that the node's Node object has.
    pub fn pools_mut(&mut self) -> &mut Vec<Pool> {
        &mut self.pools
    }

    pub fn pool_mut(&mut self, family: Family) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| Family::of_net(&pool.cidr()) == family)
    }

    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// By handle.
    pub fn all(&self) -> &BTreeMap<String, Record> {
        &self.records
    }

    /// The interfaces that are wired; the other records only hold addresses.
    pub fn wired(&self) -> impl Iterator<Item = &Record> + Clone {
        self.records.values().filter(|record| !record.cut_off)
    }

    /// It is wired no more, and keeps nothing but its addresses.
    pub fn cut_off(&mut self, handle: &str) {
        if let Some(record) = self.records.get_mut(handle) {
            record.cut_off = true;
            record.host_ports.clear();
        }
    }

    /// Where else its pod may send from, after it may more.
    pub fn set_further(&mut self, handle: &str, further: Vec<IpNet>) {
        if let Some(record) = self.records.get_mut(handle) {
            record.further = further;
        }
    }

    /// The same after it may less.
    pub fn narrow(&mut self, handle: &str, further: Vec<IpNet>) {
        if let Some(record) = self.records.get_mut(handle) {
            let had = std::mem::replace(&mut record.further, further);
            self.lose(&had);
        }
    }

    /// Further sources that no pod of this node has, where the kernel may know flows all the same.
    pub fn lost(&self) -> &BTreeSet<IpNet> {
        &self.lost
    }

    /// The kernel knows no flows from there any more. Whether any of it was lost.
    pub fn forgotten(&mut self, nets: &[IpNet]) -> bool {
        let before = self.lost.len();
        self.lost.retain(|net| !nets.contains(net));
        self.lost.len() < before
    }

    /// What other pods have is theirs, and nothing of it is lost.
    fn lose(&mut self, nets: &[IpNet]) {
        let held = self.held();
        self.lost.extend(nets.iter().flat_map(|net| without(*net, &held)));
    }

    /// All further sources that attachments have.
    fn held(&self) -> Vec<IpNet> {
        self.wired().flat_map(|record| record.further.iter().copied()).collect()
    }

    pub fn insert(&mut self, record: Record) {
        self.records.insert(record.handle(), record);
    }

    /// Forgets the record and gives its addresses back.
    pub fn release(&mut self, handle: &str, now: ipam::Now) -> Option<Record> {
        for pool in &mut self.pools {
            pool.release(handle, now);
        }
        let record = self.records.remove(handle)?;
        self.lose(&record.further);
        Some(record)
    }
}

/// All of it as one value, which the files are not.
pub(crate) mod whole {
    use super::{BTreeSet, Deserialize, IpNet, Records, Serialize};
    use serde::{Deserializer, Serializer};

    #[derive(Serialize)]
    struct Borrowed<'a> {
        kept: &'a Records,
        lost: &'a BTreeSet<IpNet>,
    }

    #[derive(Deserialize)]
    struct Owned {
        kept: Records,
        lost: BTreeSet<IpNet>,
    }

    pub fn serialize<S: Serializer>(records: &Records, serializer: S) -> Result<S::Ok, S::Error> {
        Borrowed { kept: records, lost: &records.lost }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Records, D::Error> {
        let Owned { kept, lost } = Owned::deserialize(deserializer)?;
        Ok(Records { lost, ..kept })
    }
}
