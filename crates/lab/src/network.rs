//! Wires the holders' namespaces together: bridge, veth pairs, addresses. What is there already stays, so that a new
//! supervisor can always call it. Nothing is made in the namespace of the caller.

use std::net::IpAddr;

use anyhow::{Context, Result};
use kernel::rtnl::Rtnl;
use kernel::socket::refusal;
use kernel::veth::{PodVeth, Port};
use kernel::{Netns, veth};
use kstate::net::{Link, LinkKind, PortOptions, Route, RouteKey, RouteKind};
use netlink::route;
use types::{Family, IfName, IpNet};

use crate::plan::{self, PREFIXES, Plan, node_address, node_number};
use crate::supervise::Holders;

/// What the kernel gives a veth. With less than 1280 (RFC 8200 §5) it takes IPv6 off a link.
const UNDERLAY_MTU: u32 = 1500;

/// `lo` is the first link of every namespace.
const LOOPBACK: u32 = 1;

/// Makes the picture of [`crate::plan`] true.
pub fn wire(plan: &Plan, holders: &Holders) -> Result<()> {
    let netns = |what: &str| -> Result<Netns> {
        let holder = holders.get(what).with_context(|| format!("{what} has no holder"))?;
        Ok(Netns::of_pid(holder.pid())?)
    };
    let mut underlay = Rtnl::open_in(&netns("underlay")?)?;
    let families = plan.families.list();
    bridge(&mut underlay, &on_underlay(families, plan::api)?).context("make the underlay")?;

    let outside = netns("outside")?;
    cable(&mut underlay, "outside", &outside, &on_underlay(families, plan::gateway)?)?;
    let mut inner = Rtnl::open_in(&outside)?;
    for family in families {
        address(&mut inner, LOOPBACK, plan::outside(*family).into())?;
        let forward = family.pick(["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]);
        outside
            .run(|| std::fs::write(format!("/proc/sys/{forward}"), "1"))?
            .context("let the outside forward")?;
    }

    for node in plan.node_names() {
        let number = node_number(&node).context("a node has a number")?;
        let netns = netns(&node)?;
        cable(&mut underlay, &node, &netns, &on_underlay(families, |f| node_address(number, f))?)?;
        // The gateway itself has nowhere further to go.
        let mut rtnl = Rtnl::open_in(&netns)?;
        for family in families {
            default_route(&mut rtnl, *family)?;
            unbar(&mut rtnl, plan::api(*family))?;
        }
    }
    Ok(())
}

/// An address of each family with the length of the underlay's prefix.
fn on_underlay(families: &[Family], address: impl Fn(Family) -> IpAddr) -> Result<Vec<IpNet>> {
    families.iter().map(|family| Ok(IpNet::new(address(*family), family.pick(PREFIXES))?)).collect()
}

fn bridge(underlay: &mut Rtnl, addresses: &[IpNet]) -> Result<()> {
    let name = IfName::new("br0")?;
    let index = match underlay.index(&name) {
        Some(index) => index,
        None => {
            let link = Link { kind: LinkKind::Bridge, mac: None, mtu: None, up: true, port: None };
            change(underlay, "make br0", |writer, seq| route::add_link(writer, seq, &name, &link, None))?;
            underlay.index(&name).context("br0 vanished right after it was made")?
        }
    };
    for (what, index) in [("bring lo up", LOOPBACK), ("bring br0 up", index)] {
        change(underlay, what, |writer, seq| route::set_up(writer, seq, index, true))?;
    }
    addresses.iter().try_for_each(|own| address(underlay, index, *own))
}

/// A veth pair from br0 to `eth0` of the namespace. One that exists there was made all or nothing: what somebody has taken
/// away since is given back, and what he has added stays. The underlay's end alone says nothing: the kernel takes its time
/// to remove the pair of a namespace that has ended.
fn cable(underlay: &mut Rtnl, name: &str, netns: &Netns, addresses: &[IpNet]) -> Result<()> {
    let (host, interface, bridge) = (IfName::new(name)?, IfName::new("eth0")?, IfName::new("br0")?);
    let mut inner = Rtnl::open_in(netns)?;
    if let Some(index) = inner.index(&interface) {
        let outer = underlay.index(&host);
        let as_made = Link { kind: LinkKind::Veth, mac: None, mtu: Some(UNDERLAY_MTU), up: true, port: None };
        for (rtnl, index) in [(underlay, outer), (&mut inner, Some(index))] {
            let Some(index) = index else { continue };
            let what = format!("bring {name} up with an MTU of {UNDERLAY_MTU}");
            change(rtnl, &what, |writer, seq| route::change_link(writer, seq, index, &as_made, None))?;
        }
        if addresses.iter().any(|own| Family::of_net(own) == Family::V6) {
            netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0"))??;
        }
        return addresses.iter().try_for_each(|own| address(&mut inner, index, *own));
    }
    veth::delete(underlay, std::slice::from_ref(&host))?;
    veth::create(
        underlay,
        &PodVeth {
            host: &host,
            host_mac: None,
            netns,
            interface: &interface,
            mac: None,
            mtu: None,
            addresses,
            routes: &[],
            bridge: Some(Port { bridge: &bridge, options: PortOptions::OF_KERNEL }),
            loopback: true,
        },
    )
    .with_context(|| format!("connect {name} to the underlay"))?;
    Ok(())
}

/// Of the administrator's kind: the agent takes routes of its own protocol for its own.
fn default_route(rtnl: &mut Rtnl, family: Family) -> Result<()> {
    let key = RouteKey { dst: family.pick(["0.0.0.0/0", "::/0"]).parse()?, table: RouteKey::MAIN };
    if rtnl
        .all_routes(family)?
        .iter()
        .any(|row| row.key == key && row.other.is_none() && row.route.kind == RouteKind::Unicast)
    {
        return Ok(());
    }
    let via = Some(plan::gateway(family));
    let value = Route { dev: None, via, onlink: false, src: None, kind: RouteKind::Unicast };
    change(rtnl, "add the default route", |writer, seq| {
        route::add_static_route(writer, seq, &key, &value, None)
    })
}

/// Takes away what somebody has put in the way to the API.
fn unbar(rtnl: &mut Rtnl, api: IpAddr) -> Result<()> {
    let key = RouteKey { dst: api.into(), table: RouteKey::MAIN };
    let bars = |row: &route::RouteRow| {
        row.key == key && (row.other.is_some() || row.route.kind == RouteKind::Unreachable)
    };
    if rtnl.routes_that(Family::of(api), bars)?.is_empty() {
        return Ok(());
    }
    change(rtnl, "clear the way to the API", |writer, seq| route::delete_others_route(writer, seq, &key))
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
