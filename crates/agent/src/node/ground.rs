//! What the node needs of its machine and does not own: the links that have its addresses, up and with an MTU, and a way to
//! the outside where there was one. Others set these and Plumb puts none of it back; it sees at once that it is gone, says
//! so, and follows what it can.
//!
//! ```text
//!   address on no link, link down or without carrier, default route gone, too small for --mtu ─> lacks: status, Event
//!   another MTU, other links ─> what is ours follows (Node::follow_ground)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Instant;

use compile::{NetChange, fabric};
use kernel::Rtnl;
use netlink::route::{LinkRow, Lookup};
use semantics::Diagnostic;
use types::{Family, IfName, IpNet};

use super::Node;
use super::underlay::about;
use crate::datapath::Subsystem;

/// The machine as it was at the last look.
#[derive(Clone, Debug, Default)]
pub struct Ground {
    /// By the node's addresses, as far as they are on a link.
    uplinks: BTreeMap<IpAddr, Uplink>,
    /// Where each address of the node was seen last: an address that is lost goes back there.
    homes: BTreeMap<IpAddr, (IpNet, IfName)>,
    /// To the outside.
    ways: BTreeMap<Family, Way>,
    /// What was there and is no more, with what the kernel says instead.
    lost: BTreeMap<Family, (Way, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Uplink {
    name: IfName,
    up: bool,
    carrier: bool,
    mtu: Option<u32>,
}

/// Where packets to the outside leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Way {
    via: Option<IpAddr>,
    dev: Option<IfName>,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let via = self.via.iter().map(|via| format!(" via {via}"));
        let dev = self.dev.iter().map(|dev| format!(" dev {dev}"));
        write!(f, "default{}", via.chain(dev).collect::<String>())
    }
}

impl From<&LinkRow> for Uplink {
    fn from(row: &LinkRow) -> Self {
        Self { name: row.name.clone(), up: row.up, carrier: row.carrier, mtu: row.mtu }
    }
}

/// Addresses for documentation, which nobody has (RFC 5737, RFC 3849): only a default route leads there.
fn outside(family: Family) -> IpAddr {
    family.pick([
        Ipv4Addr::new(198, 51, 100, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
    ])
}

/// Whether a packet would leave: the kernel looks the route up, nothing is sent.
fn leads_outside(family: Family) -> io::Result<()> {
    let any: IpAddr = family.pick([Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]);
    UdpSocket::bind((any, 0))?.connect((outside(family), 9))
}

impl Ground {
    /// What is there now; what was there is remembered from look to look.
    pub fn look(rtnl: &mut Rtnl, addresses: &[IpAddr], before: &Self) -> Result<Self, kernel::Error> {
        let links = rtnl.links()?;
        let link_of = |index: u32| links.iter().find(|row| row.index == index);
        let mut ground = Self { homes: before.homes.clone(), ..Self::default() };
        for row in rtnl.addresses()?.into_iter().filter(|row| addresses.contains(&row.address.addr())) {
            let Some(link) = link_of(row.link) else { continue };
            ground.homes.insert(row.address.addr(), (row.address, link.name.clone()));
            ground.uplinks.insert(row.address.addr(), link.into());
        }
        let families: BTreeSet<Family> = addresses.iter().copied().map(Family::of).collect();
        for family in families {
            let known = before.ways.get(&family);
            match leads_outside(family) {
                Ok(()) => {
                    // One question: a node that speaks BGP has a million routes.
                    let found = rtnl.way(&Lookup { from: None, to: outside(family), iif: None })?;
                    let dev = link_of(found.link).map(|link| link.name.clone());
                    let way = Way { via: found.via, dev };
                    if known != Some(&way) {
                        tracing::info!("the way to the outside by {family} is {way}");
                    }
                    ground.ways.insert(family, way);
                }
                Err(error) => {
                    let lost = known.or(before.lost.get(&family).map(|(way, _)| way));
                    ground.lost.extend(lost.map(|way| (family, (way.clone(), error.to_string()))));
                }
            }
        }
        Ok(ground)
    }

    /// Packets of the node and of its pods leave by these.
    pub fn uplinks(&self) -> BTreeSet<IfName> {
        let of_addresses = self.uplinks.values().map(|uplink| &uplink.name);
        of_addresses.chain(self.ways.values().filter_map(|way| way.dev.as_ref())).cloned().collect()
    }

    /// Of the link that has this address.
    pub fn mtu_at(&self, address: IpAddr) -> Option<u32> {
        self.uplinks.get(&address)?.mtu
    }

    /// The command that gives an address back.
    pub fn give_back(&self, address: IpAddr) -> String {
        match self.homes.get(&address) {
            Some((net, link)) => format!("`ip address add {net} dev {link}`"),
            None => format!("ip address add {address}/PREFIX dev INTERFACE"),
        }
    }

    /// Of an address that was on a link and is on none.
    pub fn lost(&self, node: &str, address: IpAddr) -> Option<String> {
        let gone = !self.uplinks.contains_key(&address);
        gone.then(|| format!("{node} has lost {address}; next: {}", self.give_back(address)))
    }

    /// What of `addresses` and of what was there is missing. The tunnel's own address is missed elsewhere: without it nothing
    /// is made.
    pub fn lacks(&self, node: &str, addresses: &[IpAddr], tunnel: Option<IpAddr>) -> Vec<Diagnostic> {
        let mut lacks = Vec::new();
        for address in addresses.iter().filter(|ip| tunnel != Some(**ip) && !self.uplinks.contains_key(*ip)) {
            let message = format!(
                "its InternalIP {address} is on no interface of this machine: nobody reaches it there"
            );
            let next = format!(
                "give it back ({}; an interface that goes down loses its IPv6 addresses), or see what the machine's network \
                 service says",
                self.give_back(*address)
            );
            lacks.push(about(node, "status.addresses", message, next));
        }
        let links: BTreeMap<&IfName, &Uplink> =
            self.uplinks.values().map(|uplink| (&uplink.name, uplink)).collect();
        for (name, uplink) in links {
            let (state, next) = match (uplink.up, uplink.carrier) {
                (true, true) => continue,
                (false, _) => ("is down", format!("`ip link set {name} up`")),
                (true, false) => ("has no carrier", format!("see the cable, or the other end of {name}")),
            };
            let message = format!("its uplink {name} {state}: it reaches no other node by it");
            lacks.push(about(node, "uplink", message, next));
        }
        for (family, (way, error)) in &self.lost {
            let flag = family.pick(["", " -6"]);
            let message = format!(
                "it had an {family} route to the outside ({way}) and has none ({error}): it and its pods reach only the \
                 networks that it has routes to"
            );
            let next = match way.via.is_some() || way.dev.is_some() {
                true => format!("`ip{flag} route replace {way}`"),
                false => "see what the machine's network service says".to_owned(),
            };
            lacks.push(about(
                node,
                "uplink",
                message,
                format!("{next}; if it is meant so, start the agent anew"),
            ));
        }
        lacks
    }
}

/// A link with less has no IPv6 (RFC 8200, section 5): the kernel takes it away.
const LEAST_OF_IPV6: u32 = 1280;

fn has_ipv6(node: &model::Node) -> bool {
    node.pod_cidrs.iter().any(|cidr| Family::of_net(cidr) == Family::V6)
}

/// An MTU of pods, asked for or owed to IPv6, that does not fit the link that carries it. `overhead`: what the fabric adds.
pub fn too_large(
    node: &model::Node,
    asked: Option<u32>,
    (underlay, overhead): (IpAddr, u32),
    ground: &Ground,
) -> Option<Diagnostic> {
    let Uplink { name: link, mtu, .. } = ground.uplinks.get(&underlay)?;
    let (has, name) = ((*mtu)?, &*node.name);
    let Some(asked) = asked else {
        let left = has.saturating_sub(overhead);
        return (has_ipv6(node) && left < LEAST_OF_IPV6).then(|| {
            // Linux sends an IPv4 packet of a tunnel in fragments, and no IPv6 packet (ip6_fragment).
            let larger = Family::of(underlay).pick(["go in fragments", "are lost"]);
            let message = format!(
                "{link}'s MTU of {has} leaves {left} bytes for pods, and IPv6 needs {LEAST_OF_IPV6} (RFC 8200, section 5): \
                 pods keep {LEAST_OF_IPV6}, and packets to other nodes that are larger than {left} {larger}"
            );
            let needed = LEAST_OF_IPV6 + overhead;
            about(name, "uplink", message, format!("give it at least {needed}: `ip link set {link} mtu {needed}`"))
        });
    };
    let needed = asked.saturating_add(overhead);
    (needed > has).then(|| {
        let message = format!(
            "--mtu {asked} needs {needed} bytes for packets in the tunnel, and its uplink has an MTU of {has}: full-size \
             packets are lost"
        );
        about(name, "uplink", message, "leave --mtu out, which then follows the uplink, or give a smaller one")
    })
}

impl Node {
    /// What is ours follows the machine's links: an MTU that has changed, addresses that are on another one.
    pub(super) fn follow_ground(&mut self) {
        let Some(own) = self.cluster.nodes.get(&self.base.settings.node) else { return };
        let Some(underlay) = semantics::node::underlay_ip(own) else { return };
        let ground = self.underlay.ground();
        let (Some(mtu), Some(placed)) = (self.mtu_on(underlay), self.cluster.placed()) else { return };
        let uplinks = ground.uplinks();
        let Some(compiler) = &mut self.compiler else { return };
        if !compiler.stand_on(placed, mtu, &uplinks) {
            return;
        }
        tracing::info!(mtu, ?uplinks, "the machine's links have changed; the datapath follows");
        self.learn_uplinks();
        if self.paused || self.stale.failed.contains_key(&Subsystem::Net) || !self.may_make_links() {
            self.stale.suspected.insert(Subsystem::Net);
            return;
        }
        // What follows from the machine is nobody's drift: of what is ours only the difference to what is believed is set, and
        // what others have changed is found by whoever compares.
        let Some(compiler) = &self.compiler else { return };
        let began = Instant::now();
        let done = self.base.datapath.links.follow(&NetChange::Anything, compiler.net());
        self.base.metrics.applied(Subsystem::Net.name(), began.elapsed());
        if done.is_ok() {
            self.fit_pods();
        }
        self.note(Subsystem::Net, done);
    }

    /// Of pods and what leads to them. IPv6 keeps its least: a smaller one would take it from all pods at once.
    pub(super) fn mtu_on(&self, underlay: IpAddr) -> Option<u32> {
        let of_link = self.underlay.ground().mtu_at(underlay)?;
        let ipv6 = self.cluster.nodes.get(&self.base.settings.node).is_some_and(has_ipv6);
        let least = if ipv6 { LEAST_OF_IPV6 } else { 0 };
        let overhead = fabric::of(self.base.settings.fabric).overhead(underlay);
        let fits = || of_link.saturating_sub(overhead).max(least);
        Some(self.base.settings.args.mtu.unwrap_or_else(fits))
    }

    /// Which of the machine's links live on router advertisements.
    pub(super) fn learn_uplinks(&mut self) {
        let own = self.cluster.nodes.get(&self.base.settings.node);
        let addresses = own.map(|node| node.addresses.as_slice()).unwrap_or_default();
        if let Err(error) = self.base.datapath.links.learn_uplinks(addresses) {
            tracing::warn!(error = format!("{error:#}"), "which links hear of routers is not known");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(up: bool, carrier: bool) -> Ground {
        let name = IfName::new("eth0").unwrap();
        let uplink = Uplink { name, up, carrier, mtu: Some(1400) };
        Ground { uplinks: [("192.168.1.10".parse().unwrap(), uplink)].into(), ..Ground::default() }
    }

    #[test]
    fn a_link_that_carries_nothing_is_named() {
        let addresses: [IpAddr; 2] = ["192.168.1.10", "fd00::10"].map(|text| text.parse().unwrap());
        let said = |ground: Ground| -> Vec<String> {
            let lacks = ground.lacks("node1", &addresses, Some(addresses[0]));
            lacks.iter().map(|lack| format!("{}; {}", lack.what(), lack.next_step)).collect()
        };
        let [address] = &said(ground(true, true))[..] else { panic!("one is missing") };
        assert!(address.contains("its InternalIP fd00::10 is on no interface"), "{address}");
        assert!(address.contains("ip address add fd00::10/PREFIX dev INTERFACE"), "{address}");
        let lost = |ground: &Ground, at: usize| ground.lost("node1", addresses[at]);
        assert_eq!(lost(&ground(true, true), 0), None);
        let (net, link) = ("fd00::10/64".parse().unwrap(), IfName::new("eth1").unwrap());
        let known = Ground { homes: [(addresses[1], (net, link))].into(), ..ground(true, true) };
        let back = "node1 has lost fd00::10; next: `ip address add fd00::10/64 dev eth1`";
        assert_eq!(lost(&known, 1).as_deref(), Some(back));
        assert!(said(known)[0].contains("`ip address add fd00::10/64 dev eth1`"));
        for (up, words) in [(false, "eth0 is down"), (true, "eth0 has no carrier")] {
            let said = said(ground(up, false));
            assert!(said.len() == 2 && said[1].contains(words), "{said:?}");
        }
    }

    #[test]
    fn an_mtu_that_does_not_fit_its_uplink_is_named() {
        let underlay = "192.168.1.10".parse().unwrap();
        let node = model::Node { name: "node1".into(), ..model::Node::default() };
        let said =
            |asked| too_large(&node, asked, (underlay, 50), &ground(true, true)).map(|found| found.what());
        assert_eq!((said(None), said(Some(1350))), (None, None));
        let found = said(Some(1351)).unwrap_or_default();
        assert!(found.contains("--mtu 1351 needs 1401 bytes") && found.contains("1400"), "{found}");
    }

    #[test]
    fn an_uplink_that_is_too_small_for_ipv6_is_named() {
        let underlay = "192.168.1.10".parse().unwrap();
        let said = |cidr: &str, mtu| {
            let mut ground = ground(true, true);
            ground.uplinks.values_mut().for_each(|uplink| uplink.mtu = Some(mtu));
            let pod_cidrs = vec![cidr.parse().unwrap()];
            let node = model::Node { name: "node1".into(), pod_cidrs, ..model::Node::default() };
            too_large(&node, None, (underlay, 50), &ground).map(|found| found.to_string())
        };
        assert_eq!((said("fd00:10:244:1::/64", 1330), said("10.244.1.0/24", 1300)), (None, None));
        let found = said("fd00:10:244:1::/64", 1300).unwrap_or_default();
        for words in
            ["eth0's MTU of 1300 leaves 1250 bytes", "needs 1280 (RFC 8200", "`ip link set eth0 mtu 1330`"]
        {
            assert!(found.contains(words), "{words}: {found}");
        }
    }
}
