//! Connections that the rules of before leave behind, and those of who had an address before: we have the kernel forget
//! them.
//!
//! ```text
//!   DEL    veth deleted ─> its flows forgotten (reaper) ─> address released
//!   start  addresses of our pools that no veth has ─> their flows forgotten ─> first ADD
//! ```
//! Further sources are in sources.rs.
//!
//! So an address that nobody has has no flows, whenever a process is killed and whatever an agent of before did. Where the
//! kernel refused to forget, ADD does not give the address to anybody before it has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cni::{Code, Error};
use compile::guard::further;
use model::{Key, Vacated};
use types::range::{overlap, without};
use types::{Family, IpNet};

use super::Node;
use crate::flows::Part;
use crate::reaper::Reaped;
use crate::store::Record;

/// Addresses that nobody has, whose flows the kernel may know all the same.
#[derive(Debug, Default)]
pub struct Former {
    /// All of the pools were looked at. What was released since then was forgotten, or is in `unsure`.
    looked: bool,
    unsure: BTreeSet<IpAddr>,
    /// Of pods of other nodes that no longer have them: their own addresses, and further sources.
    vacated: BTreeSet<IpNet>,
    /// Not before then are they looked for.
    rest: Option<Instant>,
}

/// Longer than forgetting ever takes.
const LONG: Duration = Duration::from_secs(30);
/// So many times as long as it took the flows of other nodes' pods are left alone.
const SHARE: u32 = 20;

impl Former {
    /// Addresses come from elsewhere now: their flows may be those of another node's pods.
    pub fn look_again(&mut self) {
        self.looked = false;
    }
}

impl Node {
    /// Of who went. A flow is judged by who began it, so what its other end goes on sending would pass as answers, to a
    /// pod that asked for nothing and may let nobody in. From now on it begins flows of its own, which meet the policies of
    /// who has the address.
    pub(super) fn note_forgotten(&mut self, reaped: &Reaped) {
        if !reaped.vacated.is_empty() {
            self.former.rest = Some(Instant::now() + reaped.forgetting * SHARE);
        }
        match &reaped.forgotten {
            Ok(count) => {
                self.count_forgotten(*count, "flows of addresses that pods no longer have were forgotten")
            }
            Err(error) => {
                tracing::warn!(%error, "flows of addresses that pods no longer have are not forgotten; nobody here gets one before they are");
                for doomed in &reaped.gone {
                    self.doubt_flows(&doomed.handle);
                }
                self.former.vacated.extend(&reaped.vacated);
            }
        }
    }

    /// It may have been there for a moment.
    pub(super) fn doubt_flows(&mut self, handle: &str) {
        let record = self.base.store.records().get(handle);
        self.former.unsure.extend(record.into_iter().flat_map(|record| record.ips.iter().copied()));
    }

    fn count_forgotten(&self, count: usize, what: &str) {
        if count > 0 {
            self.base.metrics.flows_forgotten(count);
            tracing::info!(count, "{what}");
        }
    }

    /// Once, before anybody gets an address: an agent of before was killed before it could, or did not do so.
    pub(super) fn look_for_former(&mut self) -> Result<(), kernel::Error> {
        if self.former.looked || self.compiler.is_none() {
            return Ok(());
        }
        let wired =
            self.base.store.wired().filter(|record| self.base.datapath.rtnl.index(&record.host_if).is_some());
        let held: BTreeSet<IpAddr> = wired.flat_map(|record| record.ips.iter().copied()).collect();
        let mut count = 0;
        for pool in self.base.store.known_pools() {
            let nobodys = |ip: IpAddr| pool.gives(ip) && !held.contains(&ip);
            count +=
                self.base.datapath.flows.forget_where(Family::of_net(&pool.cidr()), Part::Any, nobodys)?;
        }
        self.former.looked = true;
        self.former.unsure.clear();
        self.count_forgotten(count, "flows of addresses that no pod has were forgotten");
        Ok(())
    }

    /// Before a pod is wired.
    pub(super) fn forget_former(&mut self, record: &Record) -> Result<(), Error> {
        let done = self.look_for_former().and_then(|()| {
            let unsure = &mut self.former.unsure;
            if !record.ips.iter().any(|ip| unsure.contains(ip)) {
                return Ok(());
            }
            let sources: Vec<_> = record.sources().collect();
            let count = self.base.datapath.flows.forget_of(&sources, Part::Any)?;
            unsure.retain(|ip| !record.ips.contains(ip));
            self.count_forgotten(count, "flows of who had the pod's address before were forgotten");
            Ok(())
        });
        done.map_err(|error: kernel::Error| {
            let msg = format!(
                "flows of who had the addresses of pod {} before are not forgotten: {error}",
                record.pod
            );
            Error::new(Code::Kernel, msg, "the runtime will try again")
        })
    }

    /// Flows that pods of other nodes began with pods of ours: who has their addresses next did not begin them, and what our
    /// pods send there must meet their own policies. What somebody has again by now may be his own, and nothing tells
    /// his flows from those of before: they are left alone.
    pub(super) fn forget_vacated(&mut self) {
        if self.compiler.is_none() {
            return;
        }
        let left = self.cluster.take_vacated();
        let elsewhere = self.elsewhere(&left);
        self.former.vacated.extend(elsewhere);
        let now = Instant::now();
        if self.former.vacated.is_empty() || self.former.rest.is_some_and(|until| now < until) {
            return;
        }
        let vacated = std::mem::take(&mut self.former.vacated);
        let held = self.held_by_pods(&vacated);
        let nobodys: Vec<IpNet> = vacated.iter().flat_map(|net| without(*net, &held)).collect();
        if !nobodys.is_empty() {
            self.former.rest = Some(now + LONG);
            self.base.reaper.forget_vacated(nobodys);
        }
    }

    /// Those of other nodes' pods. Of its own the node knows by itself when they are gone, and a pod that asks for a source
    /// that no pod may have never had it.
    fn elsewhere(&self, left: &Vacated) -> Vec<IpNet> {
        let Some(compiler) = &self.compiler else { return Vec::new() };
        let of_pods = &compiler.settings().cluster_cidrs;
        let pools = self.base.store.known_pools();
        let addresses = left.addresses.iter().filter(|ip| {
            of_pods.iter().any(|net| net.contains(*ip)) && !pools.iter().any(|pool| pool.cidr().contains(*ip))
        });
        let node = (&self.cluster, compiler.settings());
        let sources = left
            .sources
            .iter()
            .filter(|(of, net)| *of != self.base.settings.node && further::may_be_had(node, net));
        let sources = sources.map(|(_, net)| *net);
        addresses.copied().map(IpNet::from).chain(sources).collect()
    }

    /// What of this pods have, as far as the API shows it.
    fn held_by_pods(&self, vacated: &BTreeSet<IpNet>) -> Vec<IpNet> {
        let Some(compiler) = &self.compiler else { return Vec::new() };
        let cluster = &self.cluster;
        let own = cluster.pods.values().flat_map(|pod| pod.own_addresses().iter().copied().map(IpNet::from));
        let asking = cluster.pods_with_sources().iter().filter_map(|name| cluster.pods.get(name));
        let sources = asking.filter(|pod| pod.node.is_some()).flat_map(|pod| pod.further_sources().iter());
        let sources = sources.filter(|net| {
            let wanted = vacated.iter().any(|vacated| overlap(vacated, net));
            wanted && further::may_be_had((cluster, compiler.settings()), net)
        });
        own.filter(|net| vacated.contains(net)).chain(sources.copied()).collect()
    }

    /// After the rules lead elsewhere.
    pub(super) fn forget_stale_flows(&mut self, keys: &[Key]) {
        let Some(compiler) = &self.compiler else { return };
        let turned = self.frontends.update(&self.cluster, compiler.settings(), keys);
        if turned.is_empty() {
            return;
        }
        match self.base.datapath.flows.forget_udp(|from, to| turned.is_stale(to, from)) {
            Ok(count) => self.count_forgotten(count, "UDP flows to endpoints that are gone were forgotten"),
            Err(error) => tracing::warn!(%error, "UDP flows may lead to endpoints that are gone"),
        }
    }
}
