//! What the kernel tells of one thing after another, and which of it is not what we know already: our own changes are told as
//! well, and say nothing new.

use std::collections::BTreeMap;
use std::net::IpAddr;

use types::{IfName, IpNet, Mac};

use super::{BridgePort, Forward, Link, LinkKind, NetState, PortOptions, Route, RouteKey, has_subnet};

/// What one thing is now; `None` and `false`: it is gone, or another's is in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// But for what it is a port of.
    Link(IfName, Option<Link>),
    /// But for its program.
    Port(IfName, Option<BridgePort>),
    /// Whether our program is at a port.
    Program(IfName, bool),
    Address(IfName, IpNet, bool),
    /// Whether this network is routed to the link, as it is with an address.
    Subnet(IfName, IpNet, bool),
    Route(RouteKey, Option<Route>),
    Neighbour(IfName, IpAddr, Option<Mac>),
    Forward(IfName, Mac, Option<Forward>),
    /// Of some sysctl, which the kernel does not tell by its path.
    Sysctl,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Subject<'a> {
    Link(&'a IfName),
    Port(&'a IfName),
    Program(&'a IfName),
    Address(&'a IfName, IpNet),
    Subnet(&'a IfName, IpNet),
    Route(&'a RouteKey),
    Neighbour(&'a IfName, IpAddr),
    Forward(&'a IfName, Mac),
    Sysctl,
}

/// Of what was told, in its order, what makes the kernel another one than it is known to be. What holds at the end counts, so
/// whoever puts something back in time has changed nothing. But a link that was another one for a moment may have lost what
/// was on it, of which the kernel says nothing (fib_flush). Pods' links are made in several steps, and lose nothing by them.
pub fn contradicting<'a>(told: &'a [Told], known: &NetState) -> Vec<&'a Told> {
    let (mut last, mut found) = (BTreeMap::new(), Vec::new());
    for one in told {
        if one.takes_along(known) {
            found.push(one);
        }
        last.insert(one.subject(), one);
    }
    found.extend(last.into_values().filter(|one| !one.is_known(known)));
    found
}

impl Told {
    /// The link that this is about, or on.
    pub fn link(&self) -> Option<&IfName> {
        match self {
            Self::Link(link, _)
            | Self::Port(link, _)
            | Self::Program(link, _)
            | Self::Address(link, ..)
            | Self::Subnet(link, ..)
            | Self::Neighbour(link, ..)
            | Self::Forward(link, ..) => Some(link),
            Self::Route(..) | Self::Sysctl => None,
        }
    }

    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Link(link, _) => Subject::Link(link),
            Self::Port(link, _) => Subject::Port(link),
            Self::Program(link, _) => Subject::Program(link),
            Self::Address(link, address, _) => Subject::Address(link, *address),
            Self::Subnet(link, net, _) => Subject::Subnet(link, *net),
            Self::Route(key, _) => Subject::Route(key),
            Self::Neighbour(link, ip, _) => Subject::Neighbour(link, *ip),
            Self::Forward(link, mac, _) => Subject::Forward(link, *mac),
            Self::Sysctl => Subject::Sysctl,
        }
    }

    fn takes_along(&self, known: &NetState) -> bool {
        let Self::Link(name, link) = self else { return false };
        match (known.links.get(name), link) {
            (Some(_), None) => true,
            (Some(known), Some(_)) => known.kind != LinkKind::Veth && !self.is_known_link(known),
            (None, _) => false,
        }
    }

    fn is_known_link(&self, known: &Link) -> bool {
        let Self::Link(_, Some(link)) = self else { return false };
        Link { port: None, ..known.clone() }.is_met_by(link)
    }

    fn is_known(&self, known: &NetState) -> bool {
        match self {
            Self::Link(name, link) => match (known.links.get(name), link) {
                (None, None) => true,
                // Other programs' pairs are none of our business.
                (None, Some(link)) => link.kind == LinkKind::Veth,
                (Some(known), _) => self.is_known_link(known),
            },
            Self::Port(name, port) => known.links.get(name).is_none_or(|link| is_known_port(link, port)),
            Self::Program(name, there) => {
                let port = known.links.get(name).and_then(|link| link.port.as_ref());
                port.is_none_or(|port| port.options.has(PortOptions::CHECKSUMS) == *there)
            }
            Self::Address(link, address, there) => {
                known.addresses.contains(&(link.clone(), *address)) == *there
            }
            Self::Subnet(link, net, there) => {
                let mut of_it =
                    known.addresses.iter().filter(|(of, address)| of == link && makes(*address, net));
                of_it.all(|subnet| known.subnets.contains(subnet) == *there)
            }
            Self::Route(key, Some(route)) => {
                known.routes.get(key).is_some_and(|known| known.is_met_by(route))
            }
            Self::Route(key, None) => {
                let in_place = |(_, address): &(IfName, IpNet)| makes(*address, &key.dst);
                !known.routes.contains_key(key) && !known.subnets.iter().any(in_place)
            }
            Self::Neighbour(link, ip, mac) => known.neighbours.get(&(link.clone(), *ip)) == mac.as_ref(),
            Self::Forward(link, mac, to) => known.fdb.get(&(link.clone(), *mac)) == to.as_ref(),
            Self::Sysctl => false,
        }
    }
}

/// Whether the kernel routes this network to the link of an address.
fn makes(address: IpNet, net: &IpNet) -> bool {
    has_subnet(address) && address.trunc() == *net
}

/// What a kernel does not have is learned from the first port.
fn is_known_port(known: &Link, told: &Option<BridgePort>) -> bool {
    let of_bridge = |options: PortOptions| options.without(PortOptions::CHECKSUMS);
    match (&known.port, told) {
        (Some(known), Some(told)) => {
            known.bridge == told.bridge
                && of_bridge(known.unknown) == told.unknown
                && of_bridge(known.options).without(told.unknown) == told.options
        }
        (known, told) => known.is_none() && told.is_none(),
    }
}

#[cfg(test)]
mod laws;
