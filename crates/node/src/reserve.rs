//! What an attachment gets: address, hardware address, name on the node, host ports.

use std::net::IpAddr;

use cni::{Attach, Code, Error};
use compile::net;
use ipam::Now;
use model::HostPort;
use types::{Family, IfName, Mac, ObjectName};

use crate::add::{TRIES, again, host_ifs};
use crate::attachments::Attachments;
use crate::facts::Facts;
use crate::host_port;
use crate::input::Asked;
use crate::record::Record;

impl Attachments {
    /// What an attachment gets; its address is given out, nothing else is done.
    pub(crate) fn reserve(
        &mut self,
        asked: &Asked,
        attach: &Attach,
        facts: &dyn Facts,
        now: Now,
    ) -> Result<Record, Error> {
        let handle = attach.id.to_string();
        let records = self.records.all();
        let named = |name: &IfName| records.values().any(|record| record.host_if == *name);
        let host_if = host_ifs(&handle).find(|name| !named(name)).ok_or_else(|| {
            let msg = format!("every interface name that attachment {handle} could have is another's");
            Error::new(Code::TryAgainLater, msg, "the runtime will try again, with another container id")
        })?;
        let host_ports = self.host_ports(attach, facts)?;
        if let Some(mac) = attach.mac.filter(|mac| self.has_mac(*mac, facts)) {
            let msg = format!("hardware address {mac} is that of another pod of this node, or of its bridge");
            let details = "ask for another hardware address, or for none";
            return Err(Error::new(Code::AddressRefused, msg, details));
        }
        let ips = self.allocate(attach, facts, now).inspect_err(|_| {
            // What one family gave when the other had nothing.
            self.records.release(&handle, now);
        })?;
        let Some(first) = ips.iter().min() else {
            return Err(again("this node has no pod CIDR".into()));
        };
        let mac = attach.mac.unwrap_or_else(|| self.free_mac(*first, facts));
        let outside_kubernetes = || (ObjectName::cluster(&attach.id.container), String::new());
        let (pod, uid) = attach.pod.clone().map_or_else(outside_kubernetes, |pod| (pod.name, pod.uid));
        // What the watch shows may be a pod of the same name that was there before.
        let shown = || facts.pod(&pod).map(|pod| pod.grace);
        let grace = asked.pod.as_ref().map(|pod| pod.grace).or_else(shown).unwrap_or_default();
        Ok(Record {
            container: attach.id.container.clone(),
            ifname: attach.id.ifname.clone(),
            network: attach.config.name.clone(),
            netns_id: asked.netns_id,
            netns: attach.netns.clone().unwrap_or_default(),
            grace,
            cut_off: false,
            further: Vec::new(),
            pod,
            uid,
            ips,
            wiring: facts.situation().network.as_ref().map(|network| network.wiring).unwrap_or_default(),
            host_if,
            mac,
            host_ports,
        })
    }

    fn host_ports(&self, attach: &Attach, facts: &dyn Facts) -> Result<Vec<HostPort>, Error> {
        let reserved = |port: &HostPort| facts.reserved(port);
        host_port::wanted(attach, reserved, self.records.all().values())
    }

    /// Two ports of a bridge with one hardware address would take each other's frames.
    fn has_mac(&self, mac: Mac, facts: &dyn Facts) -> bool {
        let mut subnets = facts.situation().network.iter().flat_map(|network| &network.subnets);
        subnets.any(|subnet| net::mac_of(subnet.gateway) == mac)
            || self.records.all().values().any(|record| record.mac == mac)
    }

    /// That of an IPv6 address is a short hash, so somebody may have it.
    fn free_mac(&self, address: IpAddr, facts: &dyn Facts) -> Mac {
        let mut macs = net::macs_of(address).take(TRIES as usize);
        macs.find(|mac| !self.has_mac(*mac, facts)).unwrap_or_else(|| net::mac_of(address))
    }

    /// One address of each family that the node has. A pool may be of one that it had: what it gave out, it keeps.
    fn allocate(&mut self, attach: &Attach, facts: &dyn Facts, now: Now) -> Result<Vec<IpAddr>, Error> {
        let refused = |msg| Error::new(Code::AddressRefused, msg, "ask for another address, or for none");
        let handle = &attach.id.to_string();
        let subnets = || facts.situation().network.iter().flat_map(|network| &network.subnets);
        let has = |family| subnets().any(|subnet| Family::of_net(&subnet.net) == family);
        let pools = self.records.pools_mut().iter_mut();
        let mut pools: Vec<_> = pools.filter(|pool| has(Family::of_net(&pool.cidr()))).collect();
        let served = |ip: &IpAddr| pools.iter().any(|pool| Family::of_net(&pool.cidr()) == Family::of(*ip));
        if let Some(stranger) = attach.ips.iter().find(|ip| !served(ip)) {
            let family = Family::of(*stranger);
            return Err(refused(format!(
                "address {stranger} is {family}, of which this node has no pod CIDR"
            )));
        }
        let mut ips = Vec::new();
        for pool in &mut pools {
            let family = Family::of_net(&pool.cidr());
            ips.push(match attach.ips.iter().find(|ip| Family::of(**ip) == family) {
                None => pool.allocate(handle, now).map_err(|exhausted| again(exhausted.to_string()))?,
                Some(wanted) => pool
                    .allocate_this(handle, *wanted, now)
                    .map_err(|refusal| refused(refusal.to_string()))?,
            });
        }
        Ok(ips)
    }
}
