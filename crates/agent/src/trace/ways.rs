//! What the way needs of the node and Plumb does not own: that the kernel has a route for each leg at all, and that the
//! wire takes what the tunnel sends. The kernel is asked as for the packet itself, so that what it would drop without a
//! word has a name.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use kernel::{Netns, Rtnl};
use netlink::route::Lookup;
use trace::Sighting;
use trace::eval::Exit;
use trace::expect::{View, own};
use trace::hop::{Fact, Hop, Stage};
use trace::wiring;
use types::{Family, IfName, Wiring};

/// One leg of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    pub stage: Stage,
    pub from: Option<IpAddr>,
    pub to: IpAddr,
    /// The link that the packet comes by.
    pub by: Option<IfName>,
    /// The one that it should leave by.
    pub out: Option<IfName>,
    /// What the link that it leaves by should take, and the hop that breaks if it does not.
    pub size: Option<(u32, Stage)>,
}

impl Leg {
    fn new(stage: Stage, from: IpAddr, to: IpAddr) -> Self {
        Self { stage, from: Some(from), to, by: None, out: None, size: None }
    }

    fn by(self, link: Option<IfName>) -> Self {
        Self { by: link, ..self }
    }

    fn out(self, link: Option<IfName>) -> Self {
        Self { out: link, ..self }
    }
}

/// What the node's own DNS answers a pod.
pub fn answer(wiring: Wiring, server: IpAddr, pod: IpAddr) -> Leg {
    Leg::new(Stage::Resolve, server, pod).out(wiring::shared(wiring))
}

/// On the sender's node: there, and the answer's last leg.
pub fn departure(view: &View<'_>, hops: &[Hop]) -> Vec<Leg> {
    let (bridge, mut legs) = (wiring::shared(view.place.wiring), Vec::new());
    let socket = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Socket { source, .. } => Some(*source),
        _ => None,
    });
    let Some(pod) = socket else { return legs };
    for hop in hops {
        match &hop.fact {
            Fact::Route { destination, dev, .. } => {
                legs.push(Leg::new(Stage::Route, pod, *destination).by(bridge.clone()).out(dev.clone()));
                if let Some(dev) = dev {
                    let back = Leg::new(Stage::Return, *destination, pod).by(Some(dev.clone()));
                    legs.push(back.out(bridge.clone()));
                }
            }
            Fact::Tunnel { .. } => legs.extend(tunnel(view, pod_of(hops), Stage::Tunnel, Stage::Tunnel)),
            _ => {}
        }
    }
    legs
}

/// On the node of the destination: on to the pod, and the answer's way into the tunnel. What came by no tunnel, for a port
/// of the node's, has no leg there that is known.
pub fn arrival(view: &View<'_>, hops: &[Hop], (client, to): (IpAddr, IpAddr)) -> Vec<Leg> {
    let (bridge, device) = (wiring::shared(view.place.wiring), trace::fabric::of(view.place.fabric).link());
    let mut legs = match hops.first().map(|hop| &hop.fact) {
        Some(Fact::LocalRoute { .. }) => vec![Leg::new(Stage::Return, to, client).out(device)],
        Some(Fact::Service { .. } | Fact::Refused { service: Some(_), .. }) => return Vec::new(),
        _ => {
            let comes = device
                .clone()
                .map(|link| Leg::new(Stage::Node, client, to).by(Some(link)).out(bridge.clone()));
            comes.into_iter().chain([Leg::new(Stage::Return, to, client).by(bridge).out(device)]).collect()
        }
    };
    // What comes by a link that is too small is lost as what would leave by it.
    legs.extend(tunnel(view, Some(client), Stage::Return, Stage::Node));
    legs
}

/// Where the packet goes on to.
fn pod_of(hops: &[Hop]) -> Option<IpAddr> {
    hops.iter().find_map(|hop| match &hop.fact {
        Fact::Route { destination, .. } => Some(*destination),
        _ => None,
    })
}

/// What is around a packet towards a pod, if anything is.
fn tunnel(view: &View<'_>, to: Option<IpAddr>, stage: Stage, small: Stage) -> Option<Leg> {
    let (to, net) = (to?, view.net);
    let of_pod = |key: &&kstate::net::RouteKey| key.dst.contains(&to);
    let route = net.routes.get(net.routes.keys().find(of_pod)?)?;
    let exit = Exit { dev: route.dev.clone(), via: route.via, ..Exit::default() };
    let wrapped = trace::fabric::of(view.place.fabric).wrapped?;
    let Fact::Tunnel { dev, outer_source, outer_destination, extra_bytes, .. } = wrapped(net, &exit, None)?
    else {
        return None;
    };
    let size = net.links.get(&dev)?.mtu.map(|mtu| (mtu + extra_bytes, small));
    Some(Leg { size, ..Leg::new(stage, outer_source, outer_destination) })
}

/// What is wrong with these, and with the pod's own first step to `frontend`.
pub fn look(legs: &[Leg], pod: Option<(&Path, IpAddr, IpAddr)>) -> Result<Vec<Sighting>> {
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links().context("read the links")?;
    let name = |index: u32| links.iter().find(|row| row.index == index).map(|row| row.name.clone());
    let mut found = Vec::new();
    for leg in legs {
        let iif = match &leg.by {
            Some(by) => match rtnl.index(by) {
                Some(index) => Some(index),
                // That it is gone is told as such.
                None => continue,
            },
            None => None,
        };
        let way = rtnl.way(&Lookup { from: leg.from, to: leg.to, iif });
        let wrong = match &way {
            Ok(way) => match (name(way.link), &leg.out) {
                (Some(dev), Some(out)) if dev != *out => Some(format!("goes out by {dev} instead of {out}")),
                _ => None,
            },
            Err(error) => why(kind(error), leg),
        };
        found.extend(wrong.map(|why| drift(leg.stage, format!("{} {why}; {}", said(leg), ask_again(leg)))));
        let small = way.ok().and_then(|way| links.iter().find(|row| row.index == way.link));
        found.extend(small.and_then(|row| too_small(row.name.as_str(), row.mtu?, leg.size?)));
    }
    // Of a link-local address, and of many, the link is asked for, and no route.
    if let Some((netns, from, to)) = pod.filter(|(_, _, to)| !own::is_of_link(*to) && !own::is_of_many(*to)) {
        found.extend(first_step(netns, from, to)?);
    }
    Ok(found)
}

/// The node's own addresses on the pods' link alone.
pub fn of_link(wiring: Wiring) -> Result<Vec<IpAddr>> {
    let mut rtnl = Rtnl::open()?;
    let bridge = wiring::shared(wiring).and_then(|name| rtnl.index(&name));
    let rows = rtnl.addresses().context("read the addresses")?.into_iter();
    let own = rows.filter(|row| row.is_link_local_v6() && Some(row.link) == bridge);
    Ok(own.map(|row| row.address.addr()).collect())
}

/// The broadcast addresses of the node's networks: what the kernel takes itself (`fib_add_ifaddr`, net/ipv4/fib_frontend.c).
pub fn broadcasts() -> Result<Vec<IpAddr>> {
    let rows = Rtnl::open()?.addresses().context("read the addresses")?.into_iter();
    let shared = rows.map(|row| row.address).filter(|net| net.addr().is_ipv4() && net.prefix_len() < 31);
    Ok(shared.map(|net| net.broadcast()).collect())
}

fn kind(error: &kernel::Error) -> Option<ErrorKind> {
    error.errno().map(|errno| std::io::Error::from_raw_os_error(errno).kind())
}

fn drift(stage: Stage, text: String) -> Sighting {
    Sighting::Drift { stage, text }
}

fn said(leg: &Leg) -> String {
    let from = leg.from.map(|from| format!(" from {from}")).unwrap_or_default();
    let by = leg.by.as_ref().map(|by| format!(", coming by {by},")).unwrap_or_default();
    format!("a packet{from} to {}{by}", leg.to)
}

fn ask_again(leg: &Leg) -> String {
    let from = leg.from.map(|from| format!(" from {from}")).unwrap_or_default();
    let iif = leg.by.as_ref().map(|by| format!(" iif {by}")).unwrap_or_default();
    format!(
        "`ip route get {}{from}{iif}` on the node asks the kernel the same, which answers with an error",
        leg.to
    )
}

/// The errors of `ip_route_input_slow` and `ip_route_output_key` (net/ipv4/route.c) in words. Others say nothing of the way.
fn why(kind: Option<ErrorKind>, leg: &Leg) -> Option<String> {
    let conf = |by: &IfName, what: &str| {
        format!("net/{}/conf/{by}/{what}", Family::of(leg.to).pick(["ipv4", "ipv6"]))
    };
    match (kind, &leg.by) {
        (Some(ErrorKind::NetworkUnreachable), _) => {
            Some("finds no route: the node has none for it".to_owned())
        }
        (Some(ErrorKind::HostUnreachable), Some(by)) => Some(format!(
            "is not forwarded: {} is 0, or the route to it is `unreachable`",
            conf(by, "forwarding")
        )),
        (Some(ErrorKind::HostUnreachable), None) => Some("meets a route that says unreachable".to_owned()),
        (Some(ErrorKind::PermissionDenied), _) => {
            Some("meets a route or a rule that prohibits it".to_owned())
        }
        // Which of the two depends on the kernel.
        (Some(ErrorKind::InvalidInput | ErrorKind::CrossesDevices), Some(by)) => Some(format!(
            "is dropped: the route to it is `blackhole`, or the way back to its source is another and {} asks for this one",
            conf(by, "rp_filter")
        )),
        (Some(ErrorKind::InvalidInput), None) => Some("meets a blackhole route".to_owned()),
        _ => None,
    }
}

fn too_small(dev: &str, mtu: u32, (needed, stage): (u32, Stage)) -> Option<Sighting> {
    let text = || {
        format!(
            "{dev} has an MTU of {mtu}, and full packets of the tunnel have {needed} bytes: those go in \
             fragments where the tunnel goes by IPv4, and are lost where it goes by IPv6; \
             `ip link set {dev} mtu {needed}` on the node, or a smaller `mtu` for all agents, mends it"
        )
    };
    (mtu < needed).then(|| drift(stage, text()))
}

/// Whether the pod itself knows where to send to.
fn first_step(netns: &Path, from: IpAddr, to: IpAddr) -> Result<Option<Sighting>> {
    let mut rtnl = Rtnl::open_in(&Netns::open(netns)?)?;
    let none = match rtnl.way(&Lookup { from: Some(from), to, iif: None }) {
        Err(error) => kind(&error) == Some(ErrorKind::NetworkUnreachable),
        Ok(_) => false,
    };
    let text = || format!("the pod itself has no route to {to}; its table of routes shows what is left");
    Ok(none.then(|| drift(Stage::Veth, text())))
}
