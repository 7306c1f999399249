//! CHECK and STATUS.

use cni::{Attach, Code, Error};
use kernel::{Netns, Rtnl};
use node::Record;
use types::Family;

use super::Node;
use crate::clock;
use crate::datapath::Subsystem;

impl Node {
    /// Compares what ADD made with what is there.
    pub(super) fn check(&mut self, attach: &Attach) -> Result<(), Error> {
        let failed = |msg: String| {
            Error::new(Code::CheckFailed, msg, "delete the pod: it will be made again, with a new network")
        };
        let handle = attach.id.to_string();
        let Some(record) = self.records().find(|record| record.handle() == handle).cloned() else {
            let details = "the agent has no record of it; delete the pod";
            return Err(Error::new(
                Code::UnknownContainer,
                format!("attachment {handle} is not known"),
                details,
            ));
        };
        for ip in &record.ips {
            let pool = self.pools().iter().find(|pool| Family::of_net(&pool.cidr()) == Family::of(*ip));
            if pool.is_some_and(|pool| !pool.leases().any(|lease| lease == (*ip, handle.as_str()))) {
                return Err(failed(format!("the address {ip} of {handle} is not reserved for it")));
            }
        }
        if self.base.datapath.links.rtnl.index(&record.host_if).is_none() {
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
        match self.pools().iter().find_map(|pool| pool.has_free(now).err()) {
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
