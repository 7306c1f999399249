//! A pod's pair of veths: made in as few messages as the kernel allows, deleted in groups.
//!
//! ```text
//!   node netns                                      pod netns
//!   cni0 ── veth3f21a0b7 (port, isolated) ═══════ eth0  10.244.1.4/32
//!                                                       10.244.1.1 dev eth0 scope link
//!   1 datagram: pair (peer born in the pod's            default via 10.244.1.1
//!     netns, host side up and in the bridge),       3rd datagram: eth0 up, addresses, routes
//!     options of the port
//!   2nd, by index: where the bridge is not to learn,
//!     the forwarding entry; the port's program
//! ```

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use kstate::net::{Forward, Link, LinkKind, PortOptions, Route, RouteKey, RouteKind};
use netlink::message::Ack;
use netlink::route::{self, PodPair};
use types::{IfName, IpNet, Mac};

use crate::checksums;
use crate::error::Error;
use crate::netns::Netns;
use crate::rtnl::Rtnl;
use crate::socket::refusal;

/// What a pod's interface is to be.
#[derive(Clone, Debug)]
pub struct PodVeth<'a> {
    /// The host side's name, new in the namespace of the [`Rtnl`].
    pub host: &'a IfName,
    /// `None`: random.
    pub host_mac: Option<Mac>,
    pub netns: &'a Netns,
    /// The name inside the pod, such as `eth0`.
    pub interface: &'a IfName,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub addresses: &'a [IpNet],
    /// In this order: a gateway's route before the routes through it.
    pub routes: &'a [PodRoute],
    pub bridge: Option<Port<'a>>,
    /// Also brings `lo` up, which container runtimes do themselves.
    pub loopback: bool,
}

/// The bridge that the host side becomes a port of. Where it does not learn it is told the pod's MAC.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    pub bridge: &'a IfName,
    pub options: PortOptions,
}

/// A route inside the pod; without `via` the destination is on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    pub dst: IpNet,
    pub via: Option<IpAddr>,
}

/// Where the two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    pub host_index: u32,
    pub pod_index: u32,
}

/// Makes the pair and everything in the pod's namespace; on any error nothing is left of it.
/// About half a millisecond; blocking.
pub fn create(rtnl: &mut Rtnl, veth: &PodVeth<'_>) -> Result<Created, Error> {
    add_pair(rtnl, veth)?;
    let made = finish(rtnl, veth);
    if made.is_err() {
        // The peer goes with it. Its own error matters less than why we are here.
        let _ = delete(rtnl, std::slice::from_ref(veth.host));
    }
    made
}

fn add_pair(rtnl: &mut Rtnl, veth: &PodVeth<'_>) -> Result<(), Error> {
    let what = || format!("make the veth pair {} = {} in {:?}", veth.host, veth.interface, veth.netns);
    let master = match veth.bridge {
        None => None,
        Some(port) => Some(
            rtnl.index(port.bridge)
                .ok_or_else(|| Error::input(what(), format!("there is no bridge {}", port.bridge)))?,
        ),
    };
    let pair = PodPair {
        host: veth.host,
        host_mac: veth.host_mac,
        peer: veth.interface,
        peer_mac: veth.mac,
        peer_netns: Some(veth.netns.as_fd().as_raw_fd()),
        mtu: veth.mtu,
        master,
        group: 0,
    };
    let mut batch = rtnl.batch();
    batch.add(|writer, seq| route::add_pod_pair(writer, seq, &pair));
    if let Some(port) = veth.bridge.filter(|port| port.options != PortOptions::OF_KERNEL) {
        batch.add(|writer, seq| route::set_port(writer, seq, veth.host, port.options));
    }
    let refused = rtnl.socket.run(batch)?;
    let Some((position, ack)) = refused.into_iter().next() else { return Ok(()) };
    if position > 0 {
        let _ = delete(rtnl, std::slice::from_ref(veth.host));
        return Err(refusal(format!("set the options of the bridge port {}", veth.host), ack));
    }
    Err(explain_pair(rtnl, veth, what(), ack))
}

/// EEXIST may mean either end.
fn explain_pair(rtnl: &Rtnl, veth: &PodVeth<'_>, what: String, mut ack: Ack) -> Error {
    if ack.errno == libc::EEXIST {
        let side = if rtnl.index(veth.host).is_some() { "on the host" } else { "in the pod's namespace" };
        ack.detail = Some(format!("an interface of this name exists {side}"));
    }
    refusal(what, ack)
}

fn finish(rtnl: &mut Rtnl, veth: &PodVeth<'_>) -> Result<Created, Error> {
    let host_index = rtnl
        .index(veth.host)
        .ok_or_else(|| Error::input(format!("find {}", veth.host), "it vanished right after it was made"))?;
    tell_bridge(rtnl, veth, host_index)?;
    let pod_index = veth.netns.run(|| configure(veth))??;
    Ok(Created { host_index, pod_index })
}

/// Before the pod can send: a locked port takes nothing from a MAC that has no entry, and nothing gets past the program.
fn tell_bridge(rtnl: &mut Rtnl, veth: &PodVeth<'_>, host_index: u32) -> Result<(), Error> {
    let Some(port) = veth.bridge else { return Ok(()) };
    let mut batch = rtnl.batch();
    let learns = port.options.has(PortOptions::LEARNING);
    let entry = veth.mac.filter(|_| !learns);
    if let Some(mac) = entry {
        batch.add(|writer, seq| route::set_fdb(writer, seq, host_index, mac, Forward::Port));
    }
    if let (true, Ok(program)) = (port.options.has(PortOptions::CHECKSUMS), checksums::program()) {
        program.put(&mut batch, host_index);
    }
    let refused = rtnl.socket.run(batch)?;
    match (refused.into_iter().find(|(_, ack)| !checksums::is_done(ack)), entry) {
        (Some((0, ack)), Some(mac)) => {
            Err(refusal(format!("add the forwarding entry {mac} of {}", veth.host), ack))
        }
        (Some((_, ack)), _) => Err(refusal(format!("put the program for checksums at {}", veth.host), ack)),
        (None, _) => Ok(()),
    }
}

/// Inside the pod's namespace: up, addresses, routes, in one datagram.
fn configure(veth: &PodVeth<'_>) -> Result<u32, Error> {
    let mut rtnl = Rtnl::open()?;
    let name = veth.interface;
    let what = |what: String| format!("{what} of {name} in {:?}", veth.netns);
    let index = rtnl
        .index(name)
        .ok_or_else(|| Error::input(what("find the index".into()), "it vanished right after it was made"))?;
    let mut batch = rtnl.batch();
    if veth.loopback {
        batch.add(|writer, seq| route::set_up(writer, seq, LOOPBACK, true));
    }
    batch.add(|writer, seq| route::set_up(writer, seq, index, true));
    for address in veth.addresses {
        batch.add(|writer, seq| route::add_address(writer, seq, index, *address));
    }
    for pod_route in veth.routes {
        let key = RouteKey { dst: pod_route.dst, table: RouteKey::MAIN };
        let (dev, via, kind) = (None, pod_route.via, RouteKind::Unicast);
        let value = Route { dev, via, onlink: false, src: None, kind };
        batch.add(|writer, seq| route::add_route(writer, seq, &key, &value, Some(index)));
    }
    let refused = rtnl.socket.run(batch)?;
    let Some((position, ack)) = refused.into_iter().next() else { return Ok(index) };
    let position = position.saturating_sub(1 + usize::from(veth.loopback));
    let subject = match (veth.addresses.get(position), position.checked_sub(veth.addresses.len())) {
        (Some(address), _) => format!("add the address {address}"),
        (None, Some(route)) => match veth.routes.get(route) {
            Some(PodRoute { dst, via: Some(via) }) => format!("add the route {dst} via {via}"),
            Some(PodRoute { dst, via: None }) => format!("add the route {dst}"),
            None => "set up".into(),
        },
        (None, None) => "set up".into(),
    };
    Err(refusal(what(subject), ack))
}

const LOOPBACK: u32 = 1;

/// The link group in which links wait for their common deletion ("plmb").
const DOOMED: u32 = 0x706c_6d62;

/// Gives the end of a pair that lies in a namespace this MTU, if it has that of `before` or one that is too large. Whether
/// that was so.
pub fn fit(netns: &Netns, interface: &IfName, mtu: u32, before: Option<u32>) -> Result<bool, Error> {
    let mut rtnl = Rtnl::open_in(netns)?;
    let row = rtnl.links()?.into_iter().find(|row| row.name == *interface);
    let differs = |has: u32| has > mtu || (has != mtu && before == Some(has));
    let Some(row) = row.filter(|row| row.mtu.is_some_and(differs)) else { return Ok(false) };
    let link = Link { kind: LinkKind::Veth, mac: None, mtu: Some(mtu), up: row.up, port: None };
    let mut batch = rtnl.batch();
    batch.add(|writer, seq| route::change_link(writer, seq, row.index, &link, None));
    match rtnl.socket.run(batch)?.into_iter().next() {
        Some((_, ack)) => Err(refusal(format!("give {interface} the MTU {mtu}"), ack)),
        None => Ok(true),
    }
}

/// Deletes links (a veth's peer goes with it); those that are gone already are no error. Returns how many
/// there were. Many together cost about half a millisecond each, one alone 10 to 20 ms (RCU): collect them.
pub fn delete(rtnl: &mut Rtnl, names: &[IfName]) -> Result<usize, Error> {
    let mut found = 0;
    for names in names.chunks(64) {
        let mut batch = rtnl.batch();
        for name in names {
            batch.add(|writer, seq| match names {
                [_] => route::delete_link(writer, seq, name),
                _ => route::set_group(writer, seq, name, DOOMED),
            });
        }
        let refused = rtnl.socket.run(batch)?;
        found += names.len() - refused.len();
        for (position, ack) in refused {
            if ack.errno != libc::ENODEV {
                let name = names.get(position).map_or("?", |name| name.as_str());
                return Err(refusal(format!("delete the link {name}"), ack));
            }
        }
    }
    if names.len() > 1 && found > 0 {
        let mut batch = rtnl.batch();
        batch.add(|writer, seq| route::delete_group(writer, seq, DOOMED));
        // ENODEV: another batch took ours along.
        let refused = rtnl.socket.run(batch)?.into_iter().find(|(_, ack)| ack.errno != libc::ENODEV);
        if let Some((_, ack)) = refused {
            return Err(refusal(format!("delete {found} links in one group"), ack));
        }
    }
    Ok(found)
}
