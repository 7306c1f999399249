//! The pool of one CIDR.
//!
//! ```text
//!   10.244.1.0   .1        .2 … .254           .255
//!   network,     gateway   given out in turn   broadcast
//!   VTEP         (cni0)
//! ```
//!
//! An address that was released rests for the cool-down: until then peers may still have it in connection
//! tables, neighbour caches and policy sets, and would take the new pod for the old one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use types::{number, offset};

use crate::Now;

/// Leases and resting addresses of one CIDR. Serialised as a whole; a fresh process goes on where it stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    cidr: IpNet,
    cool_down: Duration,
    /// Address → the handle that has it (container id and interface).
    leases: BTreeMap<IpAddr, String>,
    /// Address → when it may be given out again.
    resting: BTreeMap<IpAddr, Now>,
    /// The address given out last: the search goes on behind it, so that reuse comes as late as it can.
    last: Option<IpAddr>,
}

/// No address is free. CNI code 11: trying again later helps when some are resting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub cidr: IpNet,
    pub leased: usize,
    pub resting: usize,
    pub next_free_in: Option<Duration>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cidr, leased, resting, next_free_in } = self;
        write!(f, "no free address in {cidr}: {leased} in use, {resting} resting after release")?;
        match next_free_in {
            Some(wait) => write!(f, "; the next one is free in {} s", wait.as_secs() + 1),
            None => write!(f, "; delete pods of this node or give it a larger pod CIDR"),
        }
    }
}

impl std::error::Error for Exhausted {}

/// A wanted address cannot be had, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub address: IpAddr,
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} cannot be given out: {}", self.address, self.why)
    }
}

impl std::error::Error for Refused {}

/// The first address behind the network's own (of a /31 or /127 the first, RFC 3021 and RFC 6164).
pub fn gateway_of(cidr: &IpNet) -> IpAddr {
    let tiny = cidr.max_prefix_len() - cidr.prefix_len() <= 1;
    offset(cidr.network(), u128::from(!tiny))
}

impl Pool {
    /// Host bits in `cidr` are ignored.
    pub fn new(cidr: IpNet, cool_down: Duration) -> Self {
        let cidr = cidr.trunc();
        Self { cidr, cool_down, leases: BTreeMap::new(), resting: BTreeMap::new(), last: None }
    }

    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    pub fn gateway(&self) -> IpAddr {
        gateway_of(&self.cidr)
    }

    /// Whether the address is one for pods.
    pub fn gives(&self, address: IpAddr) -> bool {
        let (first, count) = usable(&self.cidr);
        self.cidr.contains(&address) && distance(first, address) < count && address != self.gateway()
    }

    /// How many addresses it has for pods: the gateway's is not one of them.
    pub fn size(&self) -> u128 {
        usable(&self.cidr).1 - 1
    }

    /// Addresses in use, with their handles.
    pub fn leases(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.leases.iter().map(|(address, handle)| (*address, handle.as_str()))
    }

    /// Addresses that were released, and how long each rests on.
    pub fn resting(&self, now: Now) -> impl Iterator<Item = (IpAddr, Duration)> {
        let left = move |until: &Now| until.min(&(now + self.cool_down)).saturating_sub(now);
        self.resting.iter().map(move |(ip, until)| (*ip, left(until))).filter(|(_, left)| !left.is_zero())
    }

    /// New addresses come from `cidr` from now on; what was given out before remains until it is released.
    pub fn move_to(&mut self, cidr: IpNet) {
        if self.cidr != cidr.trunc() {
            self.cidr = cidr.trunc();
            self.last = None;
        }
    }

    /// An address for the handle; the same one again when it has one already.
    pub fn allocate(&mut self, handle: &str, now: Now) -> Result<IpAddr, Exhausted> {
        if let Some(address) = self.lease_of(handle) {
            return Ok(address);
        }
        self.wake(now);
        let (first, count) = usable(&self.cidr);
        let start = self.last.map_or(0, |last| distance(first, last).wrapping_add(1));
        // No more candidates than leases and resting addresses can be taken, so the search is bounded by them.
        let tries = count.min((self.leases.len() + self.resting.len() + 2) as u128);
        let free = (0..tries)
            .map(|step| offset(first, (start % count.max(1) + step) % count.max(1)))
            .find(|address| self.is_free(*address));
        match free {
            Some(address) => {
                self.last = Some(address);
                self.leases.insert(address, handle.to_owned());
                Ok(address)
            }
            None => Err(self.exhausted(now)),
        }
    }

    /// A certain address for the handle, as `args.cni.ips` or `CNI_ARGS` IP ask for.
    pub fn allocate_this(&mut self, handle: &str, address: IpAddr, now: Now) -> Result<IpAddr, Refused> {
        let refuse = |why: String| Err(Refused { address, why });
        match self.lease_of(handle) {
            Some(own) if own == address => return Ok(own),
            Some(own) => return refuse(format!("this container already has {own}")),
            None => self.wake(now),
        }
        if !self.gives(address) {
            return refuse(format!("it is not one of the pod addresses of {}", self.cidr));
        }
        if let Some(handle) = self.leases.get(&address) {
            return refuse(format!("{handle} has it"));
        }
        if let Some(until) = self.resting.get(&address) {
            return refuse(format!("it rests for another {} s", until.saturating_sub(now).as_secs() + 1));
        }
        self.leases.insert(address, handle.to_owned());
        Ok(address)
    }

    /// Gives back all that the handle has; nothing to give back is fine.
    pub fn release(&mut self, handle: &str, now: Now) -> Vec<IpAddr> {
        let released: Vec<IpAddr> =
            self.leases.iter().filter(|(_, owner)| *owner == handle).map(|(address, _)| *address).collect();
        for address in &released {
            self.leases.remove(address);
            if !self.cool_down.is_zero() {
                self.resting.insert(*address, now + self.cool_down);
            }
        }
        released
    }

    /// The reservation of a handle, if it has one.
    pub fn lease_of(&self, handle: &str) -> Option<IpAddr> {
        self.leases.iter().find(|(_, owner)| *owner == handle).map(|(address, _)| *address)
    }

    /// Whether [`Pool::allocate`] would find an address.
    pub fn has_free(&self, now: Now) -> Result<(), Exhausted> {
        self.clone().allocate("", now).map(|_| ())
    }

    /// Ends the rest of those whose time has come. A clock that was set back must not prolong it.
    fn wake(&mut self, now: Now) {
        let latest = now + self.cool_down;
        self.resting.retain(|_, until| {
            *until = (*until).min(latest);
            *until > now
        });
    }

    fn is_free(&self, address: IpAddr) -> bool {
        address != self.gateway()
            && !self.leases.contains_key(&address)
            && !self.resting.contains_key(&address)
    }

    fn exhausted(&self, now: Now) -> Exhausted {
        let inside = |address: &&IpAddr| self.cidr.contains(*address);
        let resting = self.resting.iter().filter(|(address, _)| self.cidr.contains(*address));
        Exhausted {
            cidr: self.cidr,
            leased: self.leases.keys().filter(inside).count(),
            resting: resting.clone().count(),
            next_free_in: resting.map(|(_, until)| until.saturating_sub(now)).min(),
        }
    }
}

/// The first address that is not the network's and how many follow up to the broadcast address (which only
/// IPv4 has). The gateway is among them and is skipped by [`Pool::is_free`].
fn usable(cidr: &IpNet) -> (IpAddr, u128) {
    let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    let all = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
    match (cidr, host_bits) {
        (_, 0 | 1) => (cidr.network(), all),
        (IpNet::V4(_), _) => (offset(cidr.network(), 1), all - 2),
        (IpNet::V6(_), _) => (offset(cidr.network(), 1), all - 1),
    }
}

fn distance(from: IpAddr, to: IpAddr) -> u128 {
    number(to).wrapping_sub(number(from))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
