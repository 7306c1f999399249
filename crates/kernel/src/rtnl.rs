//! An rtnetlink socket with the questions that everybody asks: links, addresses, routes.

use kstate::net::ROUTE_PROTOCOL;
use netlink::route::{self, AddressRow, LinkRow, Lookup, NeighbourRow, ProgramRow, RouteRow, RuleRow, Way};
use types::{Family, IfName};

use crate::error::Error;
use crate::netns::Netns;
use crate::socket::{Batch, Consistency, NetlinkSocket, Subsystem};

/// An rtnetlink socket in one network namespace.
#[derive(Debug)]
pub struct Rtnl {
    pub(crate) socket: NetlinkSocket,
}

/// A dump that something keeps changing under is taken as it is after so many tries.
const TRIES: usize = 5;

impl Rtnl {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetlinkSocket::open(Subsystem::Route)? })
    }

    /// In another namespace; the socket stays there and may be used from anywhere.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// The index of a link, `None` when there is none of this name (one ioctl, about 1 µs).
    pub fn index(&self, name: &IfName) -> Option<u32> {
        rustix::net::netdevice::name_to_index(&self.socket, name.as_str()).ok()
    }

    /// Brings a link up, such as `lo` (index 1) of a new namespace.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        let mut batch = self.batch();
        batch.add(|writer, seq| route::set_up(writer, seq, index, true));
        match self.socket.run(batch)?.into_iter().next() {
            Some((_, ack)) => Err(crate::socket::refusal(format!("bring link {index} up"), ack)),
            None => Ok(()),
        }
    }

    pub fn links(&mut self) -> Result<Vec<LinkRow>, Error> {
        self.rows("links", route::dump_links, route::decode_link)
    }

    pub fn addresses(&mut self) -> Result<Vec<AddressRow>, Error> {
        self.rows("addresses", route::dump_addresses, route::decode_address)
    }

    /// The routes of protocol 112.
    pub fn routes(&mut self, family: Family) -> Result<Vec<RouteRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_routes(writer, seq, family, Some(ROUTE_PROTOCOL));
        let mut rows = self.rows("routes", dump, route::decode_route)?;
        // The kernel filters by protocol where it checks strictly (since 4.20).
        rows.retain(|row| row.protocol == ROUTE_PROTOCOL && row.other.is_none());
        Ok(rows)
    }

    /// All routes in the words of [`RouteRow`], whoever made them.
    pub fn all_routes(&mut self, family: Family) -> Result<Vec<RouteRow>, Error> {
        self.routes_that(family, |_| true)
    }

    /// Of all routes those that are asked for: a node that speaks BGP has a million, and nobody keeps them.
    pub fn routes_that(
        &mut self,
        family: Family,
        wanted: impl Fn(&RouteRow) -> bool,
    ) -> Result<Vec<RouteRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_routes(writer, seq, family, None);
        self.rows("routes", dump, |message| route::decode_route(message).filter(&wanted))
    }

    /// Routes that the kernel made with addresses.
    pub fn kernel_routes(&mut self, family: Family) -> Result<Vec<RouteRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_routes(writer, seq, family, Some(route::RTPROT_KERNEL));
        let mut rows = self.rows("routes of the kernel", dump, route::decode_route)?;
        rows.retain(|row| row.is_of_kernel() && row.other.is_none());
        Ok(rows)
    }

    /// All rules; none in a kernel that knows no rules.
    pub fn rules(&mut self, family: Family) -> Result<Vec<RuleRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_rules(writer, seq, family);
        match self.rows("rules", dump, route::decode_rule) {
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            rows => rows,
        }
    }

    /// Where such a packet would leave. An error is what would drop it: ENETUNREACH where there is
    /// no route, EHOSTUNREACH where the link that it comes by does not forward, EINVAL or EXDEV where its source is not believed.
    pub fn way(&mut self, lookup: &Lookup) -> Result<Way, Error> {
        let seq = self.socket.next_seq();
        let mut way = None;
        let what = format!("look up the route to {}", lookup.to);
        let request = |writer: &mut _| route::get_route(writer, seq, lookup);
        self.socket.ask(&what, seq, request, |message| way = way.or(route::decode_way(&message)))?;
        way.ok_or_else(|| Error::Answer { what, why: "it names no link".into() })
    }

    /// The neighbours on one link.
    pub fn neighbours(&mut self, link: u32) -> Result<Vec<NeighbourRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_neighbours(writer, seq, link);
        self.rows("neighbours", dump, route::decode_neighbour)
    }

    /// The forwarding entries of one VXLAN device.
    pub fn fdb(&mut self, link: u32) -> Result<Vec<NeighbourRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_fdb(writer, seq, link);
        self.rows("forwarding entries", dump, route::decode_neighbour)
    }

    /// The forwarding entries of one bridge, at all its ports.
    pub fn bridge_fdb(&mut self, bridge: u32) -> Result<Vec<NeighbourRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_bridge_fdb(writer, seq, bridge);
        self.rows("forwarding entries of a bridge", dump, route::decode_neighbour)
    }

    /// Our programs at what comes by one link.
    pub fn programs(&mut self, link: u32) -> Result<Vec<ProgramRow>, Error> {
        let dump = |writer: &mut _, seq| route::dump_programs(writer, seq, link);
        self.rows("programs of a link", dump, route::decode_program)
    }

    /// The socket itself, for requests that have no method here.
    pub fn socket_mut(&mut self) -> &mut NetlinkSocket {
        &mut self.socket
    }

    pub(crate) fn batch(&mut self) -> Batch {
        self.socket.batch()
    }

    fn rows<T>(
        &mut self,
        what: &str,
        request: impl Fn(&mut netlink::message::Writer, u32),
        decode: impl Fn(&netlink::message::Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut rows = Vec::new();
        for _ in 0..TRIES {
            rows.clear();
            let consistency = self.socket.dump(what, &request, |message| rows.extend(decode(&message)))?;
            if consistency == Consistency::Exact {
                break;
            }
        }
        Ok(rows)
    }
}
