//! Reading what is ours.

use std::collections::{BTreeMap, BTreeSet};

use kstate::net::{BridgePort, Link, LinkKind, NetState, PortOptions, has_subnet};
use netlink::route::LinkRow;
use types::{Family, IfName};

use super::Scope;
use crate::checksums;
use crate::error::Error;
use crate::rtnl::Rtnl;

/// What is there of ours. `rtnl` must be of the calling thread's namespace when the scope has sysctls.
pub fn observe(rtnl: &mut Rtnl, scope: &Scope) -> Result<NetState, Error> {
    let rows = rtnl.links()?;
    let names: BTreeMap<u32, IfName> = rows.iter().map(|row| (row.index, row.name.clone())).collect();
    let mut state = NetState::default();
    for row in rows.iter().filter(|row| scope.has_link(row.name.as_str())) {
        let Some(mut link) = link(row, |index| names.get(&index)) else { continue };
        if let (LinkKind::Veth, Some(port)) = (&link.kind, &mut link.port) {
            observe_program(rtnl, row.index, port)?;
        }
        let fdb = match link.kind {
            LinkKind::Vxlan { .. } => rtnl.fdb(row.index)?,
            LinkKind::Bridge => rtnl.bridge_fdb(row.index)?,
            LinkKind::Veth => Vec::new(),
        };
        if link.kind != LinkKind::Veth {
            observe_neighbours(rtnl, row, &mut state)?;
        }
        for entry in fdb {
            let link = names.get(&entry.link).filter(|name| scope.has_link(name.as_str()));
            if let (Some(link), Some(mac), Some(to)) = (link, entry.mac, entry.forward()) {
                state.fdb.insert((link.clone(), mac), to);
            }
        }
        state.links.insert(row.name.clone(), link);
    }
    for row in rtnl.addresses()? {
        let Some(name) = names.get(&row.link) else { continue };
        // The kernel gives every link a link-local address; those are nobody's wish.
        if scope.has_address(name.as_str(), row.address) && !row.is_link_local_v6() {
            state.addresses.insert((name.clone(), row.address));
        }
    }
    for family in Family::ALL {
        for row in rtnl.kernel_routes(family)? {
            let Some(name) = row.link.and_then(|index| names.get(&index)) else { continue };
            let of_it = state.addresses.iter().filter(|(link, address)| {
                link == name && has_subnet(*address) && address.trunc() == row.key.dst
            });
            let of_it: Vec<_> = of_it.cloned().collect();
            state.subnets.extend(of_it);
        }
        for row in rtnl.routes(family)? {
            let mut route = row.route;
            route.dev = row.link.and_then(|index| names.get(&index).cloned());
            state.routes.insert(row.key, route);
        }
    }
    state.sysctls = sysctls(&scope.sysctls)?;
    Ok(state)
}

/// Without its program, of which another question tells.
pub(super) fn link<'a>(row: &LinkRow, name: impl Fn(u32) -> Option<&'a IfName>) -> Option<Link> {
    Some(Link { kind: row.link_kind()?, mac: row.mac, mtu: row.mtu, up: row.up, port: port(row, name) })
}

pub(super) fn port<'a>(row: &LinkRow, name: impl Fn(u32) -> Option<&'a IfName>) -> Option<BridgePort> {
    let bridge = row.master.and_then(name)?.clone();
    let (options, unknown) = row.port.unwrap_or_default();
    Some(BridgePort { bridge, options, unknown })
}

fn observe_program(rtnl: &mut Rtnl, link: u32, port: &mut BridgePort) -> Result<(), Error> {
    let set = match checksums::program() {
        Err(_) => &mut port.unknown,
        Ok(program) if program.is_at(rtnl, link)? => &mut port.options,
        Ok(_) => return Ok(()),
    };
    *set = set.and(PortOptions::CHECKSUMS);
    Ok(())
}

/// Permanent ones; others were learned.
fn observe_neighbours(rtnl: &mut Rtnl, row: &LinkRow, state: &mut NetState) -> Result<(), Error> {
    for neighbour in rtnl.neighbours(row.index)? {
        if let (true, Some(ip), Some(mac)) = (neighbour.permanent, neighbour.ip, neighbour.mac) {
            state.neighbours.insert((row.name.clone(), ip), mac);
        }
    }
    Ok(())
}

/// Sysctls that do not exist (their link is not there yet) are left out.
fn sysctls(paths: &BTreeSet<String>) -> Result<BTreeMap<String, String>, Error> {
    let read = |path: &String| Some(sysctl(path).transpose()?.map(|value| (path.clone(), value)));
    paths.iter().filter_map(read).collect()
}

/// The value of one in the calling thread's namespace, if it is there. The path is relative, with slashes.
pub fn sysctl(path: &str) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(format!("/proc/sys/{path}")) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system(format!("read the sysctl {path}"), error)),
    }
}
