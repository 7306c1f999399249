//! Notices of the kernel in words of `kstate`.

use kstate::net::{Link, ROUTE_PROTOCOL, Route, Told};
use netlink::route::{LinkRow, NeighbourRow, Notice, RouteRow};

use super::changes::Names;
use super::observe;
use crate::checksums;

/// What a notice of ours says. Of a kernel route that comes with no network of an address it says nothing.
pub(super) fn told(notice: &Notice, names: &Names) -> Vec<Told> {
    let one = match notice {
        Notice::Link(row, gone) => return of_link(row, *gone, names),
        Notice::Address(row, gone) => {
            names.name(row.link).map(|link| Told::Address(link.clone(), row.address, !gone))
        }
        Notice::Route(row, gone) => of_route(row, *gone, names),
        Notice::Neighbour(row, gone) => of_neighbour(row, *gone, names),
        Notice::Program(row, gone) => {
            let is_it = || checksums::program().is_ok_and(|program| program.is(row));
            names.name(row.link).map(|link| Told::Program(link.clone(), !gone && is_it()))
        }
        Notice::Sysctl(_) => Some(Told::Sysctl),
        Notice::Rule => None,
    };
    Vec::from_iter(one)
}

/// Also of the name that a link had before. A bridge tells of its ports alone.
fn of_link(row: &LinkRow, gone: bool, names: &Names) -> Vec<Told> {
    let name = row.name.clone();
    let port = observe::port(row, |index| names.name(index)).filter(|_| !gone);
    if row.of_bridge {
        // Else it is of the bridge itself.
        let of_port = gone || row.port.is_some();
        return Vec::from_iter(of_port.then_some(Told::Port(name, port)));
    }
    let mut all = Vec::new();
    let before = names.name(row.index).filter(|before| **before != name);
    all.extend(before.map(|before| Told::Link(before.clone(), None)));
    let link = observe::link(row, |index| names.name(index)).filter(|_| !gone);
    let of_port = link.is_some().then(|| Told::Port(name.clone(), port));
    all.push(Told::Link(name, link.map(|link| Link { port: None, ..link })));
    all.extend(of_port);
    all
}

fn of_route(row: &RouteRow, gone: bool, names: &Names) -> Option<Told> {
    let dev = row.link.and_then(|index| names.name(index));
    if row.is_of_kernel() {
        let subnet = dev.filter(|_| row.other.is_none());
        return subnet.map(|dev| Told::Subnet(dev.clone(), row.key.dst, !gone));
    }
    let ours = !gone && row.protocol == ROUTE_PROTOCOL && row.other.is_none();
    let route = ours.then(|| Route { dev: dev.cloned(), ..row.route.clone() });
    Some(Told::Route(row.key.clone(), route))
}

fn of_neighbour(row: &NeighbourRow, gone: bool, names: &Names) -> Option<Told> {
    let link = names.name(row.link)?.clone();
    if row.fdb {
        return Some(Told::Forward(link, row.mac?, row.forward().filter(|_| !gone)));
    }
    Some(Told::Neighbour(link, row.ip?, row.mac.filter(|_| row.permanent && !gone)))
}
