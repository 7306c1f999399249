//! The zone: every name that the cluster has, with its answers ready to copy.
//!
//! ```text
//!   cluster.local            SOA NS          dns-version   TXT "1.1.0"      ns.dns  A
//!   ├─ svc ─ shop            (empty: NODATA)
//!   │        └─ payments     A 10.96.14.7    SRV per port
//!   │           └─ _tcp      (empty)  ─ _http  SRV payments
//!   │        └─ db           A per ready endpoint of a headless service
//!   │           └─ db-0      A 10.244.2.9
//!   └─ pod ─ shop            (empty)         10-244-2-9.shop.pod is computed when asked
//!   7.14.96.10.in-addr.arpa  PTR payments.shop.svc.cluster.local
//! ```
//!
//! A name that is a key here exists (NODATA for absent types); any other name below the domain does not
//! (NXDOMAIN). So the code depends on the name alone, never on the type (spec table 1.7).

mod compile;
pub(crate) mod records;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use model::{Cluster, Key, Kind};
use types::{IpNet, ObjectName};

use crate::name::{Name, NameError, NameHash};

pub use compile::Edit;
pub(crate) use compile::{Claim, Owner, reverse_name};
pub(crate) use records::{Node, RrSet};

/// What the zone is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster's domain, `cluster.local`.
    pub domain: Name,
    /// Where this server answers: the addresses of `ns.dns.<domain>`.
    pub addresses: Vec<IpAddr>,
    /// Seconds that clients may keep an answer (DNS-20).
    pub ttl: u32,
    /// Pod and service ranges: an unknown address in them is nobody's (NXDOMAIN); reverse names of any other
    /// address are the upstream's business.
    pub ranges: Vec<IpNet>,
    /// Keys the hash table.
    pub seed: u64,
}

impl Settings {
    /// The usual settings for `domain`, with TTL 5.
    pub fn new(domain: &str) -> Result<Self, NameError> {
        let domain = Name::parse(domain)?;
        Ok(Self { domain, addresses: Vec::new(), ttl: 5, ranges: Vec::new(), seed: 0x9e37_79b9 })
    }
}

/// Answers for every name of the cluster.
#[derive(Clone, Debug)]
pub struct Zone {
    pub(crate) settings: Settings,
    pub(crate) nodes: HashMap<Name, Node, NameHash>,
    /// Start of authority: bytes with room for pointers, see [`records::soa`].
    pub(crate) soa: Box<[u8]>,
    pub(crate) synced: bool,
    pub(crate) pods: Name,
    serial: u32,
    owned: HashMap<Owner, Owned>,
    /// Address → who claims its reverse name.
    claims: HashMap<IpAddr, Claimants>,
}

/// In order; almost always one.
type Claimants = Vec<(Owner, Box<[Claim]>)>;

#[derive(Clone, Debug, Default)]
struct Owned {
    names: Box<[Name]>,
    addresses: Box<[IpAddr]>,
}

impl Zone {
    /// The names that every cluster has. Answers SERVFAIL for cluster names until [`Zone::update`] has seen a
    /// cluster whose namespaces, services and slices are listed (DNS-23).
    pub fn new(settings: Settings) -> Self {
        let fixed = compile::fixed(&settings);
        let pods = settings.domain.child("pod").unwrap_or_else(|_| settings.domain.clone());
        let mut zone = Self {
            nodes: HashMap::with_hasher(NameHash(settings.seed)),
            soa: records::soa(1, settings.ttl),
            synced: false,
            serial: 1,
            owned: HashMap::new(),
            claims: HashMap::new(),
            pods,
            settings,
        };
        zone.nodes.extend(fixed);
        zone
    }

    /// A zone of the whole cluster as it is now.
    pub fn build(settings: Settings, cluster: &Cluster, now: u32) -> Self {
        let mut zone = Self::new(settings);
        let services = cluster.services.keys().map(|name| Key::new(Kind::Service, name.clone()));
        let spaces = cluster.namespaces.keys();
        let keys: Vec<Key> =
            services.chain(spaces.map(|n| Key::new(Kind::Namespace, ObjectName::cluster(n)))).collect();
        zone.update(cluster, &keys, now);
        zone
    }

    /// Takes over what changed, at a cost that grows with the changed services and nothing else. `now` in Unix
    /// seconds becomes the serial if an answer changed; it never goes back.
    pub fn update(&mut self, cluster: &Cluster, keys: &[Key], now: u32) -> bool {
        self.apply(Edit::compile(&self.settings, cluster, keys), now)
    }

    /// The second half of [`Zone::update`]: for a zone that others read, [`Edit::compile`] needs no lock and
    /// this holds it only while entries move. All of an edit is visible at once, so a headless service whose
    /// endpoints move between slices is never seen half (spec 1.4).
    pub fn apply(&mut self, edit: Edit, now: u32) -> bool {
        let mut changed = false;
        for (owner, records) in edit.owners {
            changed |= self.replace(&owner, records);
        }
        if edit.listed && !self.synced {
            self.synced = true;
            changed = true;
        }
        if changed {
            self.serial = now.max(self.serial.saturating_add(1));
            self.soa = records::soa(self.serial, self.settings.ttl);
        }
        changed
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn synced(&self) -> bool {
        self.synced
    }

    /// How many names it holds.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: the fixed names are always there.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn replace(&mut self, owner: &Owner, records: compile::Records) -> bool {
        let former = self.owned.remove(owner).unwrap_or_default();
        let mut changed = false;
        let mut names = Vec::with_capacity(records.names.len());
        for (name, node) in records.names {
            changed |= self.nodes.get(&name) != Some(&node);
            self.nodes.insert(name.clone(), node);
            names.push(name);
        }
        names.sort_unstable();
        for name in former.names.iter().filter(|name| names.binary_search(name).is_err()) {
            changed |= self.nodes.remove(name).is_some();
        }
        // An address without a claim any more is one that loses it.
        let mut claims: BTreeMap<IpAddr, Vec<Claim>> =
            former.addresses.iter().map(|address| (*address, Vec::new())).collect();
        for (address, claim) in records.claims {
            claims.entry(address).or_default().push(claim);
        }
        let held = claims.iter().filter(|(_, claims)| !claims.is_empty());
        let owned = Owned { names: names.into(), addresses: held.map(|(address, _)| *address).collect() };
        for (address, claims) in claims {
            changed |= self.claim(address, owner, claims);
        }
        if !owned.names.is_empty() || !owned.addresses.is_empty() {
            self.owned.insert(owner.clone(), owned);
        }
        changed
    }

    /// Notes what `owner` claims of a reverse name, and renders the name's answer anew.
    fn claim(&mut self, address: IpAddr, owner: &Owner, claims: Vec<Claim>) -> bool {
        let Some(name) = reverse_name(address) else { return false };
        let all = self.claims.entry(address).or_default();
        all.retain(|(other, _)| other != owner);
        if !claims.is_empty() {
            let place = all.partition_point(|(other, _)| other < owner);
            all.reserve_exact(1);
            all.insert(place, (owner.clone(), claims.into()));
        }
        if all.is_empty() {
            self.claims.remove(&address);
            return self.nodes.remove(&name).is_some();
        }
        let node = compile::pointers(&self.settings, all.iter().flat_map(|(_, claims)| claims));
        let changed = self.nodes.get(&name) != Some(&node);
        self.nodes.insert(name, node);
        changed
    }
}

#[cfg(test)]
mod tests;
