//! How links, routes and entries differ from what they should be, each in a line of words for people.

use std::fmt;

use super::{NetState, Op, RouteKey};

/// What a step of a plan is there for.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    pub op: &'a Op,
    pub actual: &'a NetState,
    /// What somebody else has in the place of what is missing.
    pub instead: Option<&'a str>,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, actual, instead } = *self;
        let found = match op {
            Op::AddLink { .. } | Op::AddAddress { .. } | Op::SetSubnet { .. } => None,
            Op::ChangeLink { name, .. } => actual.links.get(name).map(ToString::to_string),
            Op::SetRoute { key, .. } => actual.routes.get(key).map(ToString::to_string),
            Op::SetNeighbour { link, ip, .. } => {
                actual.neighbours.get(&(link.clone(), *ip)).map(ToString::to_string)
            }
            Op::SetFdb { link, mac, .. } => actual.fdb.get(&(link.clone(), *mac)).map(ToString::to_string),
            Op::SetSysctl { path, .. } => actual.sysctls.get(path).map(ToString::to_string),
            Op::DeleteLink { .. }
            | Op::DeleteAddress { .. }
            | Op::DeleteRoute { .. }
            | Op::DeleteNeighbour { .. }
            | Op::DeleteFdb { .. } => return write!(f, "{} should not be there", Extra(op)),
        };
        write!(f, "{}: ", Wanted(op))?;
        match (found, instead) {
            (Some(found), _) => write!(f, "it is {found}"),
            (None, Some(instead)) => write!(f, "somebody put `{instead}` in its place"),
            (None, None) => f.write_str("it is missing"),
        }
    }
}

impl Op {
    /// Where a route should be.
    pub fn place(&self) -> Option<RouteKey> {
        match self {
            Self::SetRoute { key, .. } => Some(key.clone()),
            Self::SetSubnet { address, .. } => Some(RouteKey { dst: address.trunc(), table: RouteKey::MAIN }),
            _ => None,
        }
    }
}

struct Wanted<'a>(&'a Op);

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Op::AddLink { name, link } | Op::ChangeLink { name, link } => {
                write!(f, "{name} should be {link}")
            }
            Op::AddAddress { link, address } => write!(f, "{link} should have {address}"),
            Op::SetSubnet { link, address } => {
                write!(f, "the route {} should be dev {link}", address.trunc())
            }
            Op::SetRoute { key, route } => write!(f, "the route {key} should be {route}"),
            Op::SetNeighbour { link, ip, mac } => write!(f, "the neighbour {ip} on {link} should be {mac}"),
            Op::SetFdb { link, mac, to } => write!(f, "the FDB entry {mac} on {link} should be {to}"),
            Op::SetSysctl { path, value } => write!(f, "{path} should be {value}"),
            other => write!(f, "{}", Extra(other)),
        }
    }
}

struct Extra<'a>(&'a Op);

impl fmt::Display for Extra<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Op::DeleteAddress { link, address } => write!(f, "the address {address} on {link}"),
            Op::DeleteRoute { key } => write!(f, "the route {key}"),
            Op::DeleteNeighbour { link, ip } => write!(f, "the neighbour {ip} on {link}"),
            Op::DeleteFdb { link, mac, .. } => write!(f, "the FDB entry {mac} on {link}"),
            Op::DeleteLink { name } | Op::AddLink { name, .. } | Op::ChangeLink { name, .. } => {
                write!(f, "the link {name}")
            }
            other => write!(f, "{other}"),
        }
    }
}

/// A step that the kernel was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a>(pub &'a Op);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Op::AddLink { name, link } => write!(f, "make the link {name}, {link}"),
            Op::ChangeLink { name, link } => write!(f, "make the link {name} be {link}"),
            Op::AddAddress { link, address } => write!(f, "give {link} the address {address}"),
            Op::SetSubnet { link, address } => write!(f, "set the route {} dev {link}", address.trunc()),
            Op::SetRoute { key, route } => write!(f, "set the route {key} {route}"),
            Op::SetNeighbour { link, ip, mac } => write!(f, "set the neighbour {ip} on {link} to {mac}"),
            Op::SetFdb { link, mac, to } => write!(f, "set the FDB entry {mac} on {link} to {to}"),
            Op::SetSysctl { path, value } => write!(f, "set {path} to {value}"),
            other => write!(f, "delete {}", Extra(other)),
        }
    }
}
