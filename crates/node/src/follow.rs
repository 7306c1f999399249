//! What attachments follow: the pod CIDRs of their Node, and from where else their pods may send.

use std::collections::BTreeMap;
use std::time::Duration;

use types::IpNet;

use crate::attachments::{Attachments, Saving};
use crate::output::Output;

/// By handle.
type Nets = BTreeMap<String, Vec<IpNet>>;

impl Attachments {
    pub(crate) fn follow_subnets(&mut self, nets: &[IpNet], rest: Duration, out: &mut Vec<Output>) {
        if self.records.follow(nets, rest) {
            out.push(Output::PoolsMoved);
            self.save(Saving::Other, out);
        }
    }

    /// Recorded first: the kernel never has a rule that no record has.
    pub(crate) fn grant(&mut self, further: Nets, out: &mut Vec<Output>) {
        let mut had = Nets::new();
        for (handle, nets) in further {
            if let Some(record) = self.records.all().get(&handle) {
                had.insert(handle.clone(), record.further.clone());
                self.records.set_further(&handle, nets);
            }
        }
        self.save(Saving::Grant(had), out);
    }

    /// Until it is saved the records have it, and the next process finds it there.
    pub(crate) fn narrow(&mut self, further: Nets, out: &mut Vec<Output>) {
        for (handle, nets) in further {
            self.records.narrow(&handle, nets);
        }
        self.save(Saving::Other, out);
    }

    pub(crate) fn forgotten(&mut self, nets: &[IpNet], out: &mut Vec<Output>) {
        self.unsure.retain(|ip| !nets.contains(&IpNet::from(*ip)));
        if self.records.forgotten(nets) {
            self.save(Saving::Other, out);
        }
    }
}
