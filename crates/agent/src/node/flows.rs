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
use std::time::{Duration, Instant};

use cni::{Code, Error};
use model::{Key, Vacated};
use semantics::further;
use types::range::{overlap, without};
use types::{Family, IpNet};

use super::Node;
use crate::flows::Part;
use crate::forgetter::{Forgot, Owed};
use crate::store::Record;

/// Addresses that nobody has, whose flows the kernel may know all the same.
#[derive(Debug, Default)]
pub struct Former {
    /// All of the pools were looked at. What was released since then was forgotten, or is in `unsure`.
    looked: bool,
    unsure: BTreeSet<IpAddr>,
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
        let left = self.cluster.take_vacated();
        let elsewhere = self.elsewhere(&left);
        self.former.vacated.extend(elsewhere);
        let resting = self.former.rest.is_some_and(|until| Instant::now() < until);
        if self.former.asked.is_some() || resting {
            return;
        }
        let looking = Instant::now();
        let own = self.former.unsure.iter().copied().map(IpNet::from);
        let any = own.chain(self.base.store.lost().iter().copied()).collect();
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
                self.former.unsure.retain(|ip| !owed.any.contains(&IpNet::from(*ip)));
                self.sources_are_forgotten(&owed.any);
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

    /// Its pod may have been there, if only for a moment.
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
        if self.former.looked || self.whole().is_none() {
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
        // What the kernel is being asked for would go on being forgotten when somebody has it.
        if self.former.asked.is_none() {
            let pools = self.base.store.known_pools();
            self.former.unsure.retain(|ip| !pools.iter().any(|pool| pool.gives(*ip)));
        }
        self.count_forgotten(count, "flows of addresses that no pod has were forgotten");
        Ok(())
    }

    /// Before a pod is wired.
    pub(super) fn forget_former(&mut self, record: &Record) -> Result<(), Error> {
        let msg = |why: &str| {
            format!("flows of who had the addresses of pod {} before are not forgotten{why}", record.pod)
        };
        let details = "the runtime will try again";
        let done = self.look_for_former();
        done.map_err(|error| Error::new(Code::Kernel, msg(&format!(": {error}")), details))?;
        match record.ips.iter().any(|ip| self.former.unsure.contains(ip)) {
            true => Err(Error::new(Code::TryAgainLater, msg(" yet"), details)),
            false => Ok(()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_wired_where_flows_of_who_was_there_before_may_be_known() {
        let directory = std::env::temp_dir().join(format!("plumb-former-{}", std::process::id()));
        crate::dns::tests::inside(async || {
            let (mut node, _inbox) = crate::bench::held(&directory).unwrap();
            let json = r#"{"container":"c","ifname":"eth0","netns":"/n","pod":{"namespace":"a","name":"web"},"uid":"u","ips":["10.244.1.4","fd00::4"],"host_if":"veth-c","mac":"00:00:00:00:00:00"}"#;
            let record: Record = serde_json::from_str(json).unwrap();
            node.base.store.insert(record.clone());
            assert!(node.forget_former(&record).is_ok());
            let handles = vec![record.handle()];
            node.reaped(crate::reaper::Reaped { handles, deleted: Ok(()) });
            let ready = |node: &mut Node| node.forget_former(&record).map_err(|error| error.code);
            assert_eq!(ready(&mut node), Err(Code::TryAgainLater));
            let any =
                |ips: &[&str]| ips.iter().map(|ip| IpNet::from(ip.parse::<IpAddr>().unwrap())).collect();
            for (ips, done, expected) in [
                (&["10.244.1.4", "fd00::4"][..], false, Err(Code::TryAgainLater)),
                (&["10.244.1.4"], true, Err(Code::TryAgainLater)),
                (&["fd00::4"], true, Ok(())),
            ] {
                let refusal = || kernel::Error::Answer { what: "dump".into(), why: "a test".into() };
                let done = if done { Ok(1) } else { Err(refusal()) };
                let owed = Owed { any: any(ips), began: Vec::new() };
                node.forgot(&Forgot { owed, done, took: Duration::ZERO });
                assert_eq!(ready(&mut node), expected, "{ips:?}");
            }
        });
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
