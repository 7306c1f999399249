//! Hearing from the kernel that something of ours may have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use kstate::net::{ROUTE_PROTOCOL, Told};
use netlink::route::{GROUPS, LinkRow, NeighbourRow, Notice, Of, RouteRow, decode_notice};
use types::{IfName, Mac};

use super::Scope;
use super::told::told;
use crate::error::Error;
use crate::rtnl::Rtnl;
use crate::socket::{NetlinkSocket, Received, Subsystem};

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What something of ours, or in its place, is now. Our own changes are heard as well.
    Ours(Told),
    /// Of the machine, which is not ours and carries us: its other links, their addresses, routes of others.
    Ground,
    /// Which may take pods' packets elsewhere: somebody's route to their addresses, or a rule.
    Detour,
    /// Too much at once, some of it lost: observe and compare.
    Overrun,
}

/// A nonblocking listener, in the namespace of the thread that opened it. Readable (poll, tokio's `AsyncFd`)
/// when there is something to [`Changes::hear`].
#[derive(Debug)]
pub struct Changes {
    socket: NetlinkSocket,
    scope: Scope,
    /// Links by index: notices of entries name their link so, also when it is just gone.
    names: Names,
}

#[derive(Debug, Default)]
pub(super) struct Names {
    by_index: BTreeMap<u32, IfName>,
    /// VXLAN devices and bridges: neighbours on them are ours.
    wires: BTreeSet<u32>,
    /// Permanent neighbours: the kernel does not say of one that it deletes that it was permanent.
    permanent: BTreeSet<(u32, IpAddr)>,
    /// Static forwarding entries: what is put in the place of one is told as if it were new.
    forwarded: BTreeSet<Mac>,
}

impl Names {
    fn note(&mut self, row: &LinkRow) {
        self.by_index.insert(row.index, row.name.clone());
        if row.kind == "vxlan" || row.kind == "bridge" {
            self.wires.insert(row.index);
        }
    }

    fn forget(&mut self, index: u32) {
        self.by_index.remove(&index);
        self.wires.remove(&index);
        self.permanent.retain(|(link, _)| *link != index);
    }

    pub(super) fn name(&self, index: u32) -> Option<&IfName> {
        self.by_index.get(&index)
    }

    fn get(&self, index: u32) -> &str {
        self.name(index).map_or("", IfName::as_str)
    }

    fn of_route(&self, row: &RouteRow) -> &str {
        row.link.map_or("", |link| self.get(link))
    }

    /// Whether a neighbour is or was permanent. What pods have the kernel learn comes and goes, and is nobody's wish.
    fn was_set(&mut self, row: &NeighbourRow, gone: bool) -> bool {
        let Some(key) = row.ip.map(|ip| (row.link, ip)).filter(|_| self.wires.contains(&row.link)) else {
            return false;
        };
        match row.permanent && !gone {
            true => {
                self.permanent.insert(key);
                true
            }
            false => self.permanent.remove(&key),
        }
    }

    /// Whether a forwarding entry is or was a static one. What a bridge learns, and its own addresses, are none of ours.
    fn was_forwarded(&mut self, row: &NeighbourRow, gone: bool) -> bool {
        let Some(mac) = row.mac else { return false };
        match row.forward().is_some() && !gone {
            true => {
                self.forwarded.insert(mac);
                true
            }
            false => self.forwarded.remove(&mac) || row.forward().is_some(),
        }
    }
}

impl Changes {
    /// Opens it. Observe *after* this, and no change is missed.
    pub fn listen(scope: Scope) -> Result<Self, Error> {
        let socket = NetlinkSocket::listen(Subsystem::Route, &GROUPS)?;
        let (mut names, mut rtnl) = (Names::default(), Rtnl::open()?);
        rtnl.links()?.iter().for_each(|row| names.note(row));
        for link in names.wires.clone() {
            for row in rtnl.neighbours(link)? {
                names.was_set(&row, false);
            }
            let entries = [rtnl.fdb(link)?, rtnl.bridge_fdb(link)?];
            for row in entries.iter().flatten() {
                names.was_forwarded(row, false);
            }
        }
        Ok(Self { socket, scope, names })
    }

    /// What has been heard since the last call, `None` when nothing: to be called until then.
    pub fn hear(&mut self) -> Result<Option<Vec<Change>>, Error> {
        let mut changes = Vec::new();
        let (scope, names) = (&self.scope, &mut self.names);
        let received = self.socket.receive(|message| {
            let Some(notice) = decode_notice(&message) else { return };
            if is_ground(&notice, scope, names) && !changes.contains(&Change::Ground) {
                changes.push(Change::Ground);
            }
            if is_detour(&notice, scope) && !changes.contains(&Change::Detour) {
                changes.push(Change::Detour);
            }
            if is_ours(&notice, scope, names) {
                changes.extend(told(&notice, names).into_iter().map(Change::Ours));
            }
            match notice {
                Notice::Link(row, true) if !row.of_bridge => names.forget(row.index),
                Notice::Link(row, _) => names.note(&row),
                _ => {}
            }
        })?;
        Ok(match received {
            Received::Nothing => None,
            Received::Messages => Some(changes),
            Received::Overrun => Some(vec![Change::Overrun]),
        })
    }
}

fn is_ours(notice: &Notice, scope: &Scope, names: &mut Names) -> bool {
    match notice {
        // Renamed away is a change as well: the old name counts.
        Notice::Link(row, _) => scope.has_link(row.name.as_str()) || scope.has_link(names.get(row.index)),
        Notice::Address(row, _) => {
            scope.has_address(names.get(row.link), row.address) && !row.is_link_local_v6()
        }
        // To the network of an address: it comes and goes with that, and may go without.
        Notice::Route(row, _) if row.is_of_kernel() => {
            scope.is_named(names.of_route(row)) && !is_link_local(row)
        }
        // Ours, or any other that somebody made: it may have taken the place of ours.
        Notice::Route(..) => true,
        Notice::Neighbour(row, gone) if row.fdb => {
            names.was_forwarded(row, *gone) && scope.has_link(names.get(row.link))
        }
        Notice::Neighbour(row, gone) => names.was_set(row, *gone) && scope.has_link(names.get(row.link)),
        Notice::Rule => false,
        Notice::Program(row, _) => scope.has_link(names.get(row.link)),
        Notice::Sysctl(row) => match row.of {
            Of::All => true,
            Of::Default => false,
            // A pod's veth takes no part in them: its packets come by the bridge. A new link has no name yet.
            Of::Link(index) => {
                let name = names.get(index);
                is_uplink(name, scope) || scope.is_named(name)
            }
        },
    }
}

/// What is not ours, and may be what the node stands on.
fn is_ground(notice: &Notice, scope: &Scope, names: &Names) -> bool {
    match notice {
        Notice::Link(row, _) => !row.of_bridge && is_uplink(row.name.as_str(), scope),
        Notice::Address(row, _) => !row.is_link_local_v6() && is_uplink(names.get(row.link), scope),
        Notice::Route(row, _) if row.is_of_kernel() => {
            !is_link_local(row) && is_uplink(names.of_route(row), scope)
        }
        Notice::Route(row, _) => row.protocol != ROUTE_PROTOCOL,
        Notice::Neighbour(..) | Notice::Rule | Notice::Program(..) | Notice::Sysctl(_) => false,
    }
}

/// Routes to pods' addresses that are not ours, and what leads to other tables and is in them.
fn is_detour(notice: &Notice, scope: &Scope) -> bool {
    match notice {
        Notice::Rule => true,
        Notice::Route(row, _) => {
            let to_pods = scope.pods.iter().any(|pods| pods.contains(&row.key.dst));
            row.protocol != ROUTE_PROTOCOL && (to_pods || !row.is_in_common())
        }
        _ => false,
    }
}

fn is_uplink(name: &str, scope: &Scope) -> bool {
    !name.is_empty() && !scope.has_link(name)
}

fn is_link_local(row: &RouteRow) -> bool {
    matches!(row.key.dst.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
