//! Connections that the kernel is to forget. It judges a flow by who began it, as long as it knows the flow: also when
//! the address is another's by now, and what the other end goes on sending would pass as answers to him.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use kernel::Error;
use kernel::conntrack::Conntrack;
use netlink::conntrack::{Entry, Filter};
use types::{Family, IpNet, Protocol};

/// So many walks through all that the kernel knows, by filters of its own, cost about what reading it once does.
const WALKS: usize = 4;

/// What an address has to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It began it.
    Began,
    /// Or it answers it.
    Any,
}

/// In one network namespace.
#[derive(Debug)]
pub struct Flows(Conntrack);

impl Flows {
    /// In that of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self(Conntrack::open()?))
    }

    /// UDP connections by who answers and what was asked for; how many there were.
    pub fn forget_udp(&mut self, stale: impl Fn(SocketAddr, SocketAddr) -> bool) -> Result<usize, Error> {
        let filter = Filter { protocol: Some(Protocol::Udp.number()), ..Filter::default() };
        let stale = |entry: &Entry| stale(entry.reply.src, entry.original.dst);
        Family::ALL.into_iter().try_fold(0, |count, family| Ok(count + self.forget(family, &filter, stale)?))
    }

    /// Connections in which an address in here has that part, whatever their protocol; how many there were.
    pub fn forget_of(&mut self, nets: &[IpNet], part: Part) -> Result<usize, Error> {
        let mut count = 0;
        for family in Family::ALL {
            let of_family = nets.iter().copied().filter(|net| Family::of_net(net) == family);
            let (single, wide): (Vec<IpNet>, Vec<IpNet>) =
                of_family.partition(|net| net.prefix_len() == net.max_prefix_len());
            let single: BTreeSet<IpAddr> = single.iter().map(IpNet::addr).collect();
            // The kernel's filter by IPv6 addresses is of no use (netlink's conntrack.rs says why).
            let walks = single.len() * if part == Part::Any { 2 } else { 1 };
            let by_filter = family == Family::V4 && walks <= WALKS && wide.is_empty();
            if by_filter {
                for address in single {
                    count += self.forget_one(address, part)?;
                }
            } else if !(single.is_empty() && wide.is_empty()) {
                let meant = |ip| single.contains(&ip) || wide.iter().any(|net| net.contains(&ip));
                count += self.forget_where(family, part, meant)?;
            }
        }
        Ok(count)
    }

    fn forget_one(&mut self, address: IpAddr, part: Part) -> Result<usize, Error> {
        let family = Family::of(address);
        let began = Filter { src: Some(address), ..Filter::default() };
        let count = self.forget(family, &began, |_| true)?;
        let answers = Filter { answerer: Some(address), ..Filter::default() };
        Ok(match part {
            Part::Began => count,
            Part::Any => count + self.forget(family, &answers, |_| true)?,
        })
    }

    /// The same of all addresses that are meant, of which there may be any number: everything is read.
    pub fn forget_where(
        &mut self,
        family: Family,
        part: Part,
        meant: impl Fn(IpAddr) -> bool,
    ) -> Result<usize, Error> {
        self.forget(family, &Filter::default(), |entry| {
            meant(entry.original.src.ip()) || part == Part::Any && meant(entry.reply.src.ip())
        })
    }

    fn forget(
        &mut self,
        family: Family,
        filter: &Filter,
        doomed: impl Fn(&Entry) -> bool,
    ) -> Result<usize, Error> {
        let entries = self.0.entries_that(family, filter, doomed)?;
        self.0.delete_all(&entries)
    }
}
