//! What rtnetlink speaks of, as values: links, addresses, routes, neighbours, forwarding entries, sysctls.
//! [`NetState`] holds only what is ours (docs/ownership.md says how each is recognised).

mod diff;
#[cfg(test)]
mod laws;
mod port;
mod show;
mod tell;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::{IfName, IpNet, Mac, Vni};

pub use diff::{diff, diff_of, has_subnet, is_of_module, lost_veths, sysctl_link};
pub use port::{BridgePort, Forward, PortOptions};
pub use tell::{Asked, Difference};
pub use told::{Told, contradicting};

/// The route protocol number that marks our routes (`ip route` shows `proto 112`).
pub const ROUTE_PROTOCOL: u8 = 112;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    pub links: BTreeMap<IfName, Link>,
    /// Addresses on links that we own, and ours on `lo`.
    pub addresses: BTreeSet<(IfName, IpNet)>,
    /// Of these addresses, those whose network is routed to the link: the kernel makes that route with the address, and
    /// somebody may take it away alone.
    pub subnets: BTreeSet<(IfName, IpNet)>,
    pub routes: BTreeMap<RouteKey, Route>,
    pub neighbours: BTreeMap<(IfName, IpAddr), Mac>,
    /// Static forwarding entries of VXLAN devices (inner destination MAC → outer destination) and of ports of bridges.
    pub fdb: BTreeMap<(IfName, Mac), Forward>,
    /// Path under /proc/sys with slashes → value, such as `net/ipv4/ip_forward` → `1`.
    pub sysctls: BTreeMap<String, String>,
}

impl NetState {
    /// Adds all that the other has; where both have something, the other's holds.
    pub fn extend(&mut self, other: Self) {
        let Self { links, addresses, subnets, routes, neighbours, fdb, sysctls } = other;
        self.links.extend(links);
        self.addresses.extend(addresses);
        self.subnets.extend(subnets);
        self.routes.extend(routes);
        self.neighbours.extend(neighbours);
        self.fdb.extend(fdb);
        self.sysctls.extend(sysctls);
    }
}

/// Keys of routes and tunnel entries: the ones that a change of a [`NetState`] may have touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub routes: BTreeSet<RouteKey>,
    pub neighbours: BTreeSet<(IfName, IpAddr)>,
    pub fdb: BTreeSet<(IfName, Mac)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub kind: LinkKind,
    /// `None`: whatever the kernel chose.
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub up: bool,
    /// The bridge that this link is a port of, and how.
    pub port: Option<BridgePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    /// `learning` off always: entries are written by us.
    Vxlan {
        vni: Vni,
        local: IpAddr,
        port: u16,
    },
    /// The host side of a pod's pair. We never create it from a diff (ADD does), only mend what is around it.
    Veth,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    pub dst: IpNet,
    pub table: u32,
}

impl RouteKey {
    /// The table that packets are looked up in when no rule says otherwise.
    pub const MAIN: u32 = 254;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub dev: Option<IfName>,
    pub via: Option<IpAddr>,
    /// The next hop is reached on `dev` although no subnet says so (VTEP addresses).
    pub onlink: bool,
    pub src: Option<IpAddr>,
    pub kind: RouteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    Unicast,
    /// Answers with ICMP unreachable: pod addresses of this node that nobody has.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    AddLink {
        name: IfName,
        link: Link,
    },
    /// MTU, MAC, up, master, options of the port of an existing link.
    ChangeLink {
        name: IfName,
        link: Link,
    },
    DeleteLink {
        name: IfName,
    },
    AddAddress {
        link: IfName,
        address: IpNet,
    },
    DeleteAddress {
        link: IfName,
        address: IpNet,
    },
    /// The route to the network of an address that is there.
    SetSubnet {
        link: IfName,
        address: IpNet,
    },
    /// Adds or replaces.
    SetRoute {
        key: RouteKey,
        route: Route,
    },
    DeleteRoute {
        key: RouteKey,
    },
    SetNeighbour {
        link: IfName,
        ip: IpAddr,
        mac: Mac,
    },
    DeleteNeighbour {
        link: IfName,
        ip: IpAddr,
    },
    SetFdb {
        link: IfName,
        mac: Mac,
        to: Forward,
    },
    DeleteFdb {
        link: IfName,
        mac: Mac,
        to: Forward,
    },
    SetSysctl {
        path: String,
        value: String,
    },
}

/// Growth first, dependencies before what needs them; then removals in reverse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub grow: Vec<Op>,
    pub shrink: Vec<Op>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.grow.is_empty() && self.shrink.is_empty()
    }
}
