//! Wires the holders' namespaces together: bridge, veth pairs, addresses. What is there already stays, so that a new
//! supervisor can always call it. Nothing is made in the namespace of the caller.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use kernel::rtnl::Rtnl;
use kernel::socket::refusal;
use kernel::veth::{PodVeth, Port};
use kernel::{Netns, veth};
use kstate::net::{Link, LinkKind, Route, RouteKey, RouteKind};
use netlink::route;
use types::{IfName, IpNet};

use crate::plan::{API, GATEWAY, OUTSIDE, PREFIX, Plan, node_address, node_number};
use crate::supervise::Holders;

/// `lo` is the first link of every namespace.
const LOOPBACK: u32 = 1;
const MAIN_TABLE: u32 = 254;

/// Makes the picture of [`crate::plan`] true.
pub fn wire(plan: &Plan, holders: &Holders) -> Result<()> {
    let netns = |what: &str| -> Result<Netns> {
        let holder = holders.get(what).with_context(|| format!("{what} has no holder"))?;
        Ok(Netns::of_pid(holder.pid())?)
    };
    let mut underlay = Rtnl::open_in(&netns("underlay")?)?;
    bridge(&mut underlay).context("make the underlay")?;

    let outside = netns("outside")?;
    cable(&mut underlay, "outside", &outside, GATEWAY)?;
    let mut inner = Rtnl::open_in(&outside)?;
    address(&mut inner, LOOPBACK, IpNet::new(OUTSIDE.into(), 32)?)?;
    outside
        .run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?
        .context("let the outside forward")?;

    for node in plan.node_names() {
        let number = node_number(&node).context("a node has a number")?;
        cable(&mut underlay, &node, &netns(&node)?, node_address(number))?;
    }
    Ok(())
}

fn bridge(underlay: &mut Rtnl) -> Result<()> {
    let name = IfName::new("br0")?;
    let index = match underlay.index(&name) {
        Some(index) => index,
        None => {
            let link = Link { kind: LinkKind::Bridge, mac: None, mtu: None, up: true, port: None };
            change(underlay, "make br0", |writer, seq| route::add_link(writer, seq, &name, &link, None))?;
            underlay.index(&name).context("br0 vanished right after it was made")?
        }
    };
    change(underlay, "bring lo up", |writer, seq| route::set_up(writer, seq, LOOPBACK, true))?;
    address(underlay, index, IpNet::new(API.into(), PREFIX)?)
}

/// A veth pair from br0 to `eth0` of the namespace; one that exists there is complete (made all or nothing). The
/// underlay's end alone says nothing: the kernel takes its time to remove the pair of a namespace that has ended.
fn cable(underlay: &mut Rtnl, name: &str, netns: &Netns, address: Ipv4Addr) -> Result<()> {
    let (host, interface, bridge) = (IfName::new(name)?, IfName::new("eth0")?, IfName::new("br0")?);
    if Rtnl::open_in(netns)?.index(&interface).is_some() {
        return Ok(());
    }
    veth::delete(underlay, std::slice::from_ref(&host))?;
    let addresses = [IpNet::new(address.into(), PREFIX)?];
    veth::create(
        underlay,
        &PodVeth {
            host: &host,
            host_mac: None,
            netns,
            interface: &interface,
            mac: None,
            mtu: None,
            addresses: &addresses,
            routes: &[],
            bridge: Some(Port { bridge: &bridge, isolated: false }),
            loopback: true,
        },
    )
    .with_context(|| format!("connect {name} to the underlay"))?;
    // The gateway itself has nowhere further to go.
    if address == GATEWAY { Ok(()) } else { default_route(&mut Rtnl::open_in(netns)?) }
}

/// Of the administrator's kind: the agent takes routes of its own protocol for its own.
fn default_route(rtnl: &mut Rtnl) -> Result<()> {
    let key = RouteKey { dst: IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0)?, table: MAIN_TABLE };
    let via = Some(IpAddr::from(GATEWAY));
    let value = Route { dev: None, via, onlink: false, src: None, kind: RouteKind::Unicast };
    change(rtnl, "add the default route", |writer, seq| {
        route::add_static_route(writer, seq, &key, &value, None)
    })
}

fn address(rtnl: &mut Rtnl, index: u32, address: IpNet) -> Result<()> {
    if rtnl.addresses()?.iter().any(|row| row.link == index && row.address == address) {
        return Ok(());
    }
    let what = format!("add the address {address}");
    change(rtnl, &what, |writer, seq| route::add_address(writer, seq, index, address))
}

fn change(
    rtnl: &mut Rtnl,
    what: &str,
    request: impl FnOnce(&mut netlink::message::Writer, u32),
) -> Result<()> {
    let socket = rtnl.socket_mut();
    let mut batch = socket.batch();
    batch.add(request);
    match socket.run(batch)?.into_iter().next() {
        Some((_, ack)) => Err(refusal(what, ack).into()),
        None => Ok(()),
    }
}
