//! DEL, GC, CHECK and STATUS.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cni::{Attach, Code, Error, Gc, Id};
use kernel::{Netns, Rtnl};
use tokio::sync::oneshot;
use types::{Family, IfName};

use super::Node;
use super::wire::host_ifs;
use crate::clock;
use crate::inbox::{Subsystem, Verdict};
use crate::reaper::{Doomed, Reaped};
use crate::store::Record;

/// Garbage collection leaves alone what was made so short a time ago: the runtime's list may be older.
const FRESH: Duration = Duration::from_secs(10);

/// Who waits for which veth to be gone.
#[derive(Default)]
pub struct Departures(BTreeMap<String, Vec<Arc<Group>>>);

impl Departures {
    pub fn has(&self, handle: &str) -> bool {
        self.0.contains_key(handle)
    }
}

/// Answers when its last attachment is gone: with success, or with what could not be removed.
pub struct Group {
    reply: Option<oneshot::Sender<Verdict>>,
    failures: Mutex<Vec<String>>,
}

impl Group {
    fn new(reply: oneshot::Sender<Verdict>) -> Arc<Self> {
        Arc::new(Self { reply: Some(reply), failures: Mutex::default() })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let failures = std::mem::take(self.failures.get_mut().unwrap_or_else(PoisonError::into_inner));
        let Some(reply) = self.reply.take() else { return };
        // A runtime that hung up has nobody to tell.
        let _ = reply.send(Verdict::Done(match failures.is_empty() {
            true => Ok(String::new()),
            false => Err(Error::new(Code::Kernel, failures.join("; "), "the runtime will try again")),
        }));
    }
}

impl Node {
    /// Whatever is known of it, the veth of this name goes: a DEL after a lost record must not leave it.
    pub(super) fn begin_del(&mut self, id: &Id, reply: oneshot::Sender<Verdict>) {
        let group = Group::new(reply);
        self.depart(id.to_string(), &group);
    }

    /// Takes an attachment away that nobody asked to be taken; nobody waits for it.
    pub(super) fn take_away(&mut self, handle: String) {
        let group = Arc::new(Group { reply: None, failures: Mutex::default() });
        self.depart(handle, &group);
    }

    fn depart(&mut self, handle: String, group: &Arc<Group>) {
        let waiting = self.leaving.0.entry(handle.clone()).or_default();
        waiting.push(Arc::clone(group));
        if waiting.len() > 1 {
            return;
        }
        let records = self.base.store.records();
        let known = records.get(&handle).map(|record| record.host_if.clone());
        // Of a lost record: never the veth of another pod that came to have the name.
        let others = |name: &IfName| records.values().any(|record| record.host_if == *name);
        match known.or_else(|| host_ifs(&handle).find(|name| !others(name))) {
            Some(host_if) => self.base.reaper.delete(Doomed { handle, host_if }),
            None => drop(self.leaving.0.remove(&handle)),
        }
    }

    /// The veths are gone, so nothing can use the addresses any more. Nobody gets one before its flows are forgotten.
    pub(super) fn reaped(&mut self, Reaped { handles, deleted }: Reaped) {
        let now = clock::since_boot();
        let mut groups = Vec::new();
        for handle in handles {
            let waiting = self.leaving.0.remove(&handle).unwrap_or_default();
            match &deleted {
                Ok(()) => {
                    self.doubt_flows(&handle);
                    // A runtime that asked for it, too, has the last word.
                    let asked = waiting.iter().any(|group| group.reply.is_some());
                    let held = self.orphans.was_taken(&handle) && !asked && self.hold_address(&handle);
                    if !held && let Some(record) = self.base.store.release(&handle, now) {
                        tracing::info!(pod = %record.pod, ip = ?record.ips, "unwired");
                    }
                    self.withdraw_row(&handle);
                }
                Err(error) => {
                    tracing::warn!(%handle, %error, "not unwired");
                    for group in &waiting {
                        let mut failures = group.failures.lock().unwrap_or_else(PoisonError::into_inner);
                        failures.push(format!("{handle}: {error}"));
                    }
                }
            }
            groups.extend(waiting);
        }
        if let Err(error) = self.base.store.save() {
            tracing::error!(error = format!("{error:#}"), "attachments cannot be saved");
            for group in &groups {
                let mut failures = group.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.push(format!("{error:#}"));
            }
        }
        self.base.metrics.attachments(self.base.store.wired().count());
        self.departed.extend(groups);
    }

    /// Removes what the runtime does not know of this network. Without a list nothing is removed.
    pub(super) fn collect_garbage(&mut self, gc: &Gc, reply: oneshot::Sender<Verdict>) {
        let group = Group::new(reply);
        let Some(valid) = &gc.valid else { return };
        let valid: BTreeSet<String> = valid.iter().map(Id::to_string).collect();
        let fresh = |handle: &str| self.made.get(handle).is_some_and(|made: &Instant| made.elapsed() < FRESH);
        let wiring: BTreeSet<String> = self.wiring.iter().map(|wiring| wiring.handle()).collect();
        let records = self.base.store.records().iter();
        let of_network = records.filter(|(_, record)| record.network == gc.config.name);
        let doomed: Vec<String> = of_network
            .map(|(handle, _)| handle)
            .filter(|handle| !valid.contains(*handle) && !fresh(handle) && !wiring.contains(*handle))
            .cloned()
            .collect();
        for handle in doomed {
            tracing::info!(%handle, "garbage: the runtime does not know it");
            self.depart(handle, &group);
        }
    }

    /// Compares what ADD made with what is there.
    pub(super) fn check(&mut self, attach: &Attach) -> Result<(), Error> {
        let failed = |msg: String| {
            Error::new(Code::CheckFailed, msg, "delete the pod: it will be made again, with a new network")
        };
        let handle = attach.id.to_string();
        let Some(record) = self.base.store.wired().find(|record| record.handle() == handle).cloned() else {
            let details = "the agent has no record of it; delete the pod";
            return Err(Error::new(
                Code::UnknownContainer,
                format!("attachment {handle} is not known"),
                details,
            ));
        };
        for ip in &record.ips {
            let pool = self.base.store.pool(Family::of(*ip));
            if pool.is_some_and(|pool| !pool.leases().any(|lease| lease == (*ip, handle.as_str()))) {
                return Err(failed(format!("the address {ip} of {handle} is not reserved for it")));
            }
        }
        if self.base.datapath.rtnl.index(&record.host_if).is_none() {
            return Err(failed(format!("the host's interface {} is gone", record.host_if)));
        }
        check_pod(attach, &record).map_err(failed)?;
        match self.stale.failed.get(&Subsystem::Nft) {
            Some(error) => Err(failed(format!("the pod's policies are not in the kernel: {error}"))),
            None => Ok(()),
        }
    }

    pub(super) fn status(&mut self) -> Result<(), Error> {
        let trouble = self.lacking();
        let details = "the runtime will try again; kubectl describe node shows what is missing";
        match (trouble, self.stale.failed.is_empty()) {
            (Some(why), true) => return Err(Error::new(Code::NotAvailable, why.to_string(), details)),
            (Some(why), false) => {
                return Err(Error::new(Code::LimitedConnectivity, why.to_string(), details));
            }
            (None, _) => {}
        }
        let now = clock::since_boot();
        match self.base.store.pools().iter().find_map(|pool| pool.has_free(now).err()) {
            Some(exhausted) => Err(Error::new(Code::NotAvailable, exhausted.to_string(), details)),
            None => Ok(()),
        }
    }
}

/// Inside the pod: the interface has the addresses that ADD gave it, and that prevResult says it gave.
fn check_pod(attach: &Attach, record: &Record) -> Result<(), String> {
    let path = attach.netns.as_deref().unwrap_or(&record.netns);
    let netns = Netns::open(path).map_err(|error| error.to_string())?;
    let mut rtnl = Rtnl::open_in(&netns).map_err(|error| error.to_string())?;
    let name = &attach.id.ifname;
    let index = rtnl.index(name).ok_or_else(|| format!("the pod has no interface {name}"))?;
    let rows = rtnl.addresses().map_err(|error| error.to_string())?;
    for ip in &record.ips {
        if !rows.iter().any(|row| row.link == index && row.address.addr() == *ip) {
            return Err(format!("{name} in the pod has lost its address {ip}"));
        }
    }
    let prev = attach.config.prev.as_ref().map(|prev| &prev.parsed);
    let ours =
        prev.is_none_or(|prev| record.ips.iter().all(|ip| prev.ips.iter().any(|p| p.address.addr() == *ip)));
    if ours { Ok(()) } else { Err(format!("prevResult does not name {:?}, which ADD gave", record.ips)) }
}
