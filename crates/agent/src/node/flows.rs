//! Connections that the rules of before leave behind, and those of who had an address before: we have the kernel forget
//! them.
//!
//! ```text
//!   DEL    veth deleted ─> address released ─┐
//!   a further source is lost (sources.rs) ───┼─> flows forgotten (forgetter) ─> anybody's
//!   a pod of another node is gone ───────────┘
//!   start  addresses of our pools that no veth has ─> their flows forgotten ─> first ADD
//! ```
//! So whoever gets an address finds no flow there, whenever a process is killed and whatever an agent of before did. Where
//! the kernel refuses to forget, nobody of this node gets it before it has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Key, Vacated};
use semantics::further;
use types::range::{overlap, without};
use types::{Family, IpNet};

use super::Node;
use crate::flows::Part;
use crate::forgetter::{Forgot, Owed};

/// Addresses that nobody has, whose flows the kernel may know all the same.
#[derive(Debug, Default)]
pub struct Former {
    /// All of the pools were looked at. What was released since then was forgotten, or attachments are unsure of it.
    looked: bool,
    /// Of pods of other nodes that no longer have them: their own addresses, and further sources.
    vacated: BTreeSet<IpNet>,
    /// The kernel is being asked; how long it took to see for what.
    asked: Option<Duration>,
    /// Not before then is it asked again.
    rest: Option<Instant>,
}

/// So many times as long as it took the kernel is asked nothing more: what comes together is forgotten together.
const SHARE: u32 = 20;
/// That is over sooner than an address has rested.
const LONGEST: Duration = Duration::from_secs(2);
/// After a refusal.
const AGAIN: Duration = Duration::from_secs(1);

impl Former {
    /// Addresses come from elsewhere now: their flows may be those of another node's pods.
    pub fn look_again(&mut self) {
        self.looked = false;
    }
}

impl Node {
    /// With every round: of who went. A flow is judged by who began it, so what its other end goes on sending would pass as
    /// answers, to a pod that asked for nothing and may let nobody in. From now on it begins flows of its own, which meet
    /// the policies of who has the address.
    pub(super) fn have_forgotten(&mut self) {
        if self.whole().is_none() {
            return;
        }
        // Who has a snapshot makes a change of the cluster dear.
        if self.cluster.has_vacated() {
            let left = Arc::make_mut(&mut self.cluster).take_vacated();
            let elsewhere = self.elsewhere(&left);
            self.former.vacated.extend(elsewhere);
        }
        let resting = self.former.rest.is_some_and(|until| Instant::now() < until);
        if self.former.asked.is_some() || resting {
            return;
        }
        let looking = Instant::now();
        let own = self.attachments.unsure().iter().copied().map(IpNet::from);
        let any = own.chain(self.attachments.records().lost().iter().copied()).collect();
        let owed = Owed { any, began: self.nobodys() };
        if owed != Owed::default() {
            self.former.asked = Some(looking.elapsed());
            self.base.forgetter.forget(owed);
        }
    }

    pub(super) fn forgot(&mut self, Forgot { owed, done, took }: &Forgot) {
        let looking = self.former.asked.take().unwrap_or_default();
        let rest = match done {
            Ok(count) => {
                self.count_forgotten(*count, "flows of addresses that pods no longer have were forgotten");
                let lost = self.attachments.records().lost().len();
                self.hear(node::Input::Forgotten(owed.any.clone()));
                if self.attachments.records().lost().len() < lost {
                    self.grant_withheld();
                }
                ((looking + *took) * SHARE).min(LONGEST)
            }
            Err(error) => {
                tracing::warn!(%error, "flows of addresses that pods no longer have are not forgotten; nobody here gets one before they are");
                self.former.vacated.extend(&owed.began);
                AGAIN
            }
        };
        self.former.rest = Some(Instant::now() + rest);
    }

    fn count_forgotten(&self, count: usize, what: &str) {
        if count > 0 {
            self.base.metrics.flows_forgotten(count);
            tracing::info!(count, "{what}");
        }
    }

    /// Once, before anybody gets an address: an agent of before was killed before it could, or did not do so.
    pub(super) fn look_for_former(&mut self) -> Result<(), kernel::Error> {
        if self.former.looked || self.whole().is_none() {
            return Ok(());
        }
        let wired =
            self.records().filter(|record| self.base.datapath.links.rtnl.index(&record.host_if).is_some());
        let held: BTreeSet<IpAddr> = wired.flat_map(|record| record.ips.iter().copied()).collect();
        let mut count = 0;
        for pool in self.attachments.records().pools() {
            let nobodys = |ip: IpAddr| pool.gives(ip) && !held.contains(&ip);
            count +=
                self.base.datapath.flows.forget_where(Family::of_net(&pool.cidr()), Part::Any, nobodys)?;
        }
        self.former.looked = true;
        // What the kernel is being asked for would go on being forgotten when somebody has it.
        if self.former.asked.is_none() {
            self.hear(node::Input::ForgottenAll);
        }
        self.count_forgotten(count, "flows of addresses that no pod has were forgotten");
        Ok(())
    }

    /// Flows that pods of other nodes began with pods of ours: who has their addresses next did not begin them, and what our
    /// pods send there must meet their own policies. What somebody has again by now may be his own, and nothing tells
    /// his flows from those of before: they are left alone.
    fn nobodys(&mut self) -> Vec<IpNet> {
        let vacated = std::mem::take(&mut self.former.vacated);
        if vacated.is_empty() {
            return Vec::new();
        }
        let held = self.held_by_pods(&vacated);
        vacated.iter().flat_map(|net| without(*net, &held)).collect()
    }

    /// Those of other nodes' pods. Of its own the node knows by itself when they are gone, and a pod that asks for a source
    /// that no pod may have never had it.
    fn elsewhere(&self, left: &Vacated) -> Vec<IpNet> {
        let Some(compiler) = self.whole() else { return Vec::new() };
        let of_pods = &compiler.settings().pod_pools;
        let pools = self.pools();
        let addresses = left.addresses.iter().filter(|ip| {
            of_pods.iter().any(|net| net.contains(*ip)) && !pools.iter().any(|pool| pool.cidr().contains(*ip))
        });
        let node = (&*self.cluster, compiler.settings());
        let sources = left
            .sources
            .iter()
            .filter(|(of, net)| *of != self.base.settings.node && further::may_be_had(node, net));
        let sources = sources.map(|(_, net)| *net);
        addresses.copied().map(IpNet::from).chain(sources).collect()
    }

    /// What of this pods have, as far as the API shows it.
    fn held_by_pods(&self, vacated: &BTreeSet<IpNet>) -> Vec<IpNet> {
        let Some(compiler) = self.whole() else { return Vec::new() };
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
