//! Connections that the rules of before leave behind, and those of who had an address before: we have the kernel forget
//! them.
//!
//! ```text
//!   DEL    veth deleted ─> its flows forgotten (reaper) ─> address released
//!   start  addresses of our pools that no veth has ─> their flows forgotten ─> first ADD
//! ```
//! So an address that nobody has has no flows, whenever a process is killed and whatever an agent of before did. Where the
//! kernel refused to forget, ADD does not give the address to anybody before it has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cni::{Code, Error};
use compile::guard::further;
use model::Key;
use types::{Family, IpNet};

use super::Node;
use crate::flows::Part;
use crate::inbox::Subsystem;
use crate::reaper::Reaped;
use crate::store::Record;

/// Addresses that nobody has, whose flows the kernel may know all the same.
#[derive(Debug, Default)]
pub struct Former {
    /// All of the pools were looked at. What was released since then was forgotten, or is in `unsure`.
    looked: bool,
    unsure: BTreeSet<IpAddr>,
    /// Of pods of other nodes that are gone.
    vacated: BTreeSet<IpAddr>,
    /// Not before then are they looked for.
    rest: Option<Instant>,
    /// What each attachment may send from, beside its own addresses, by the rules that are being applied.
    granted: BTreeMap<String, Vec<IpNet>>,
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
            Ok(count) => self.count_forgotten(*count, "flows of pods that are gone were forgotten"),
            Err(error) => {
                tracing::warn!(%error, "flows of pods that are gone are not forgotten; their addresses wait until they are");
                for handle in &reaped.handles {
                    self.doubt_flows(handle);
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
    /// pods send there must meet their own policies.
    pub(super) fn forget_vacated(&mut self) {
        self.former.vacated.extend(self.cluster.take_vacated());
        let now = Instant::now();
        if self.former.rest.is_some_and(|until| now < until) {
            return;
        }
        let Some(compiler) = &self.compiler else { return };
        let of_pods = &compiler.settings().cluster_cidrs;
        let pools = self.base.store.known_pools();
        let elsewhere = |ip: &IpAddr| {
            of_pods.iter().any(|net| net.contains(ip)) && !pools.iter().any(|pool| pool.cidr().contains(ip))
        };
        let vacated: Vec<IpAddr> =
            std::mem::take(&mut self.former.vacated).into_iter().filter(elsewhere).collect();
        if !vacated.is_empty() {
            self.former.rest = Some(now + LONG);
            self.base.reaper.forget(vacated);
        }
    }

    /// Before the rules are applied, so that none is ever in the kernel that no record has.
    pub(super) fn record_sources(&mut self) {
        self.former.granted = self.granted();
        let mut grew = false;
        for (handle, nets) in &self.former.granted {
            let Some(record) = self.base.store.records().get(handle) else { continue };
            let more: Vec<IpNet> = nets.iter().filter(|net| !record.further.contains(net)).copied().collect();
            if !more.is_empty() {
                let all = record.further.iter().copied().chain(more).collect();
                self.base.store.set_further(handle, all);
                grew = true;
            }
        }
        if grew {
            self.save_sources();
        }
    }

    fn granted(&self) -> BTreeMap<String, Vec<IpNet>> {
        let Some(compiler) = &self.compiler else { return BTreeMap::new() };
        let asking = self.cluster.pods_with_sources();
        let attachments = self.cluster.attachments.values().filter(|one| asking.contains(&one.pod));
        attachments
            .map(|one| {
                let of = |family| further::granted((&self.cluster, compiler.settings()), one, family);
                (one.container.clone(), Family::ALL.into_iter().flat_map(of).collect())
            })
            .collect()
    }

    /// After the rules were applied: flows from where a pod may send no longer. Who may now did not begin them.
    pub(super) fn forget_lost_sources(&mut self) {
        if self.stale.failed.contains_key(&Subsystem::Nft) {
            return;
        }
        let granted = |handle: &str| self.former.granted.get(handle).map(Vec::as_slice).unwrap_or_default();
        let had = self.base.store.records().iter().map(|(handle, record)| (handle, &record.further));
        let lost: Vec<(String, Vec<IpNet>, Vec<IpNet>)> = had
            .map(|(handle, had)| (handle, had, granted(handle)))
            .filter(|(_, had, has)| had.iter().any(|net| !has.contains(net)))
            .map(|(handle, had, has)| (handle.clone(), had.clone(), has.to_vec()))
            .collect();
        if lost.is_empty() {
            return;
        }
        let within = |nets: &[IpNet], ip: IpAddr| nets.iter().any(|net| net.contains(&ip));
        let is_lost = |ip: IpAddr| lost.iter().any(|(_, had, has)| within(had, ip) && !within(has, ip));
        let flows = &mut self.base.datapath.flows;
        let done: Result<usize, kernel::Error> = Family::ALL
            .into_iter()
            .try_fold(0, |count, family| Ok(count + flows.forget_where(family, Part::Any, is_lost)?));
        match done {
            Ok(count) => {
                self.count_forgotten(
                    count,
                    "flows from further sources that pods no longer have were forgotten",
                );
                for (handle, _, has) in lost {
                    self.base.store.set_further(&handle, has);
                }
                self.save_sources();
            }
            // They stay in the records, so the next round tries again.
            Err(error) => {
                tracing::warn!(%error, "flows from further sources that pods no longer have go on");
            }
        }
    }

    fn save_sources(&self) {
        if let Err(error) = self.base.store.save() {
            tracing::error!(error = format!("{error:#}"), "pods' further sources cannot be recorded");
        }
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
