//! Which hop of one packet's way a difference breaks: objects of the tables by their role, links and routes by what the packet
//! touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use compile::layout::{FRONTENDS, IN_ISOLATED, OUT_ISOLATED, OUTSIDE};
use compile::role::Role;
use kstate::net::{Forward, NetState, Op as NetOp, sysctl_link};
use kstate::nft::build::encode;
use kstate::nft::{ElemData, ElemKey, Op as NftOp, Ruleset, TableFamily, Verdict, chains_of};
use semantics::policy::resolve::Direction;
use trace::hop::{Fact, Hop, Stage};
use types::{Family, IfName, IpNet, Mac};

const SYSCTLS: [&str; 2] = ["net/ipv4/", "net/ipv6/"];

/// The next hop in the tunnel.
#[derive(Debug)]
struct Peer {
    via: IpAddr,
    mac: Option<Mac>,
}

impl Peer {
    fn towards(net: &NetState, to: IpAddr) -> Option<Self> {
        let (_, route) = net.routes.iter().find(|(key, _)| key.dst.contains(&to))?;
        let (via, dev) = (route.via?, route.dev.clone()?);
        Some(Self { via, mac: net.neighbours.get(&(dev, via)).copied() })
    }
}

/// What a packet touches on its way.
#[derive(Default)]
pub struct Concern<'a> {
    source_veth: Option<&'a IfName>,
    target_veth: Option<&'a IfName>,
    /// Those of the pods behind them.
    source_mac: Option<Mac>,
    target_mac: Option<Mac>,
    family: Option<Family>,
    bridge_hop: Option<Stage>,
    source: Option<IpAddr>,
    frontend: Option<SocketAddr>,
    /// What the pod sends to, a Service's or not.
    asked: Option<SocketAddr>,
    endpoint: Option<SocketAddr>,
    destination: Option<IpAddr>,
    /// The pod of this node that the packet is for.
    target: Option<IpAddr>,
    /// The numbers of where its frontend leads.
    leads: BTreeSet<ElemKey>,
    /// The chains that judge the packet's own pods: the first one, and those that it passes to.
    policies: BTreeMap<Direction, Vec<String>>,
    tunnelled: bool,
    /// What the tunnel needs to reach the next node.
    forth: Option<Peer>,
    client: Option<IpAddr>,
    back: Option<Peer>,
    arrives_by_tunnel: bool,
    egress: bool,
    ingress: bool,
    masquerade: bool,
}

fn of_pods(link: &str) -> bool {
    trace::wiring::links().any(|shared| shared == link)
}

fn of_fabric(link: &str) -> bool {
    trace::fabric::devices().any(|device| device == link)
}

impl<'a> Concern<'a> {
    /// `client`: whom the answer goes to, on the node of the destination.
    pub fn new((net, nft): (&NetState, &Ruleset), hops: &'a [Hop], client: Option<IpAddr>) -> Self {
        let mut concern = Self::of(hops);
        concern.client = client;
        concern.back = client.and_then(|client| Peer::towards(net, client));
        concern.know_macs(net);
        concern.know_policies(nft);
        concern.know_leads(nft);
        concern
    }

    fn of(hops: &'a [Hop]) -> Self {
        let mut concern = Self::default();
        let mut via_of = None;
        for hop in hops {
            match &hop.fact {
                Fact::Socket { source, .. } => {
                    concern.family = Some(Family::of(*source));
                    concern.source = Some(*source);
                }
                Fact::Pod { destination, .. } => concern.target = Some(destination.ip()),
                Fact::Veth { host_if, .. } => {
                    concern.source_veth = Some(host_if);
                    concern.bridge_hop.get_or_insert(Stage::Veth);
                }
                Fact::Node { from, host_if, .. } => {
                    concern.target_veth = Some(host_if);
                    concern.bridge_hop.get_or_insert(Stage::Node);
                    concern.arrives_by_tunnel = from.is_some();
                }
                Fact::LocalRoute { .. } if hop.stage == Stage::Node => concern.arrives_by_tunnel = true,
                // Another node's port: its rules are not this hop's.
                Fact::Service { .. } if hop.stage == Stage::Node => {}
                Fact::Service { frontend, endpoint, .. } => {
                    concern.frontend = Some(*frontend);
                    concern.endpoint = Some(*endpoint);
                }
                Fact::Refused { frontend, .. } => concern.frontend = Some(*frontend),
                Fact::Direct { destination, .. } => concern.asked = Some(*destination),
                Fact::Route { destination, via, .. } => {
                    concern.destination = Some(*destination);
                    via_of = *via;
                }
                Fact::Tunnel { inner_mac, .. } => {
                    concern.tunnelled = true;
                    concern.forth = via_of.map(|via| Peer { via, mac: *inner_mac });
                }
                Fact::Policy { .. } if hop.stage == Stage::Egress => concern.egress = true,
                Fact::Policy { .. } => concern.ingress = true,
                Fact::Masq { masquerade, .. } => concern.masquerade = *masquerade,
                _ => {}
            }
        }
        concern
    }

    fn know_macs(&mut self, net: &NetState) {
        let family = self.client.map(Family::of);
        self.family = self.family.or(family);
        let mac = |veth: Option<&IfName>| {
            let mut entries = net.fdb.keys().filter(|(link, _)| Some(link) == veth);
            entries.next().map(|(_, mac)| *mac)
        };
        (self.source_mac, self.target_mac) = (mac(self.source_veth), mac(self.target_veth));
    }

    /// Which chains the addresses of its pods lead to.
    fn know_policies(&mut self, nft: &Ruleset) {
        let target = self.endpoint.map(|to| to.ip()).or(self.destination).or(self.target);
        let ends =
            [(Direction::Ingress, IN_ISOLATED, target), (Direction::Egress, OUT_ISOLATED, self.source)];
        for (direction, map, ip) in ends {
            let Some(ip) = ip else { continue };
            let key = ElemKey::point(encode(&[ip.into()]));
            let maps = nft.tables.values().filter_map(|table| table.sets.get(map));
            let lead = maps.filter_map(|map| map.elements.get(&key)).next();
            if let Some(ElemData::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) = lead {
                self.policies.insert(direction, with_next(nft, chain));
            }
        }
    }

    fn know_leads(&mut self, nft: &Ruleset) {
        let number = |(key, data): (&ElemKey, &ElemData)| match data {
            ElemData::Value(number) if self.frontend.is_some_and(|own| is_of_frontend(key, own)) => {
                Some(ElemKey::point(number.clone()))
            }
            _ => None,
        };
        let maps = nft.tables.values().flat_map(|table| [FRONTENDS, OUTSIDE].map(|map| table.sets.get(map)));
        self.leads = maps.flatten().flat_map(|map| &map.elements).filter_map(number).collect();
    }

    pub fn veth(&self, name: &IfName) -> Option<Stage> {
        if self.source_veth == Some(name) {
            return Some(Stage::Veth);
        }
        (self.target_veth == Some(name)).then_some(Stage::Node)
    }

    fn link(&self, name: &IfName) -> Option<Stage> {
        match name.as_str() {
            link if of_pods(link) => self.bridge_hop,
            link if of_fabric(link) && self.tunnelled => Some(Stage::Tunnel),
            link if of_fabric(link) && self.arrives_by_tunnel => Some(Stage::Node),
            "lo" => Some(Stage::Resolve),
            _ => self.veth(name),
        }
    }

    pub fn net(&self, op: &NetOp) -> Option<Stage> {
        match op {
            NetOp::AddLink { name, .. } | NetOp::ChangeLink { name, .. } | NetOp::DeleteLink { name } => {
                self.link(name)
            }
            NetOp::AddAddress { link, .. } | NetOp::DeleteAddress { link, .. } => self.link(link),
            NetOp::SetSubnet { address, .. } => self.subnet(*address),
            NetOp::SetRoute { key, .. } | NetOp::DeleteRoute { key } => {
                let leads = |to: Option<IpAddr>| to.is_some_and(|to| key.dst.contains(&to));
                let forth = leads(self.destination).then_some(Stage::Route);
                forth.or_else(|| leads(self.client).then_some(Stage::Return))
            }
            NetOp::SetNeighbour { link, ip, mac } if of_pods(link.as_str()) => self.pod(*ip, *mac),
            NetOp::SetNeighbour { ip, .. } | NetOp::DeleteNeighbour { ip, .. } => {
                self.peer(|peer| peer.via == *ip)
            }
            NetOp::SetFdb { link, to: Forward::Port, .. }
            | NetOp::DeleteFdb { link, to: Forward::Port, .. } => self.veth(link),
            NetOp::SetFdb { mac, .. } | NetOp::DeleteFdb { mac, .. } => {
                self.peer(|peer| peer.mac == Some(*mac))
            }
            NetOp::SetSysctl { path, .. } => self.sysctl(path),
        }
    }

    /// What a link's sysctls say holds for packets that come by it.
    fn sysctl(&self, path: &str) -> Option<Stage> {
        let of_family = Family::ALL.into_iter().find(|family| path.starts_with(family.pick(SYSCTLS)));
        if of_family.is_some_and(|family| self.family.is_some_and(|own| own != family)) {
            return None;
        }
        let outside = !self.tunnelled && self.target_veth.is_none();
        match sysctl_link(path) {
            None => self.destination.map(|_| Stage::Route).or(self.client.map(|_| Stage::Node)),
            Some(link) if of_pods(link) => {
                self.source_veth.map(|_| Stage::Route).or(self.target_veth.map(|_| Stage::Return))
            }
            Some(link) if of_fabric(link) && self.arrives_by_tunnel => Some(Stage::Node),
            Some(link) if of_fabric(link) => self.tunnelled.then_some(Stage::Return),
            Some(_) => self.source_veth.filter(|_| outside).map(|_| Stage::Return),
        }
    }

    /// The way to the pods of this node: to the packet's own, or back to who asks.
    fn subnet(&self, address: IpNet) -> Option<Stage> {
        if self.family.is_some_and(|family| family != Family::of_net(&address)) {
            return None;
        }
        let forth = self.destination.is_some_and(|to| address.contains(&to)).then_some(Stage::Route);
        let here = self.target_veth.map(|_| Stage::Node);
        forth.or(here).or(self.source_veth.map(|_| Stage::Return))
    }

    /// The last step to a pod: forth, or back to who asks.
    fn pod(&self, ip: IpAddr, mac: Mac) -> Option<Stage> {
        let of_family = self.family.is_none_or(|family| family == Family::of(ip));
        let forth = (self.target_mac == Some(mac)).then_some(Stage::Node);
        forth.or_else(|| (self.source_mac == Some(mac)).then_some(Stage::Return)).filter(|_| of_family)
    }

    /// There by the tunnel, or back by it.
    fn peer(&self, is: impl Fn(&Peer) -> bool) -> Option<Stage> {
        let forth = self.forth.as_ref().filter(|peer| is(peer)).map(|_| Stage::Tunnel);
        forth.or_else(|| self.back.as_ref().filter(|peer| is(peer)).map(|_| Stage::Return))
    }

    /// The hops at which the packet meets it. A table that is missing is missed where it meets what the table holds; of one
    /// that should not be there it may meet anything.
    pub fn nft_in(&self, op: &NftOp, plan: &[NftOp]) -> BTreeSet<Stage> {
        match op {
            NftOp::AddTable(table) => {
                let held = plan
                    .iter()
                    .filter(|other| !matches!(other, NftOp::AddTable(_)) && other.table() == table);
                held.filter_map(|held| self.nft(held)).collect()
            }
            NftOp::DeleteTable(_) => [Stage::Service].into(),
            op => self.nft(op).into_iter().collect(),
        }
    }

    fn nft(&self, op: &NftOp) -> Option<Stage> {
        let others = self.family.is_some_and(|family| {
            let others = Family::ALL.into_iter().filter(|other| *other != family);
            others.map(TableFamily::from).any(|other| other == op.table().family)
        });
        let (role, stage) = self.met(op)?;
        // A tunnel may go by the other family than what is in it.
        let concerned = !others || (self.tunnelled || self.arrives_by_tunnel) && role.is_of_tunnels();
        stage.filter(|_| concerned)
    }

    /// What it is for, and where the packet meets it.
    fn met(&self, op: &NftOp) -> Option<(Role, Option<Stage>)> {
        match op {
            NftOp::AddTable(_) | NftOp::DeleteTable(_) => None,
            NftOp::AddChain { chain, .. }
            | NftOp::DeleteChain { chain, .. }
            | NftOp::SetRules { chain, .. } => {
                let role = Role::of_chain(chain)?;
                let policy = |own: Option<&Vec<String>>| {
                    own.is_none_or(|own| own.iter().any(|own| chain.starts_with(own)))
                };
                let meets = match role {
                    Role::Policy(direction) => policy(self.policies.get(&direction)),
                    _ => true,
                };
                Some((role, self.stage(role).filter(|_| meets)))
            }
            NftOp::AddSet { set, .. } | NftOp::DeleteSet { set, .. } => {
                let role = Role::of_set(set)?;
                Some((role, self.stage(role)))
            }
            NftOp::AddElement { set, key, data, .. } => {
                let role = Role::of_set(set)?;
                Some((role, self.of_element(role, key).or_else(|| self.leads_to_own(role, data))))
            }
            NftOp::DeleteElement { set, key, .. } => {
                let role = Role::of_set(set)?;
                Some((role, self.of_element(role, key)))
            }
        }
    }

    /// Where the packet meets what has this role.
    fn stage(&self, role: Role) -> Option<Stage> {
        let arrives = self.arrives_by_tunnel.then_some(Stage::Node);
        let policy = |direction| match direction {
            Direction::Ingress => self.ingress.then_some(Stage::Ingress),
            Direction::Egress => self.egress.then_some(Stage::Egress),
        };
        match role {
            Role::Links | Role::Sender => Some(self.bridge_hop.unwrap_or(Stage::Veth)),
            Role::Stranger | Role::Unwrapped => arrives,
            Role::Outer => Some(self.forth.as_ref().map_or(Stage::Resolve, |_| Stage::Tunnel)),
            Role::Input => arrives.or(Some(Stage::Resolve)),
            Role::Resolver => Some(Stage::Resolve),
            Role::Translation => Some(Stage::Service),
            Role::Frontend | Role::Lead | Role::Endpoint | Role::SourceRange | Role::HostPort => {
                self.frontend.map(|_| Stage::Service)
            }
            Role::Flow => Some(if self.egress { Stage::Egress } else { Stage::Ingress }),
            Role::Policy(direction) => policy(direction),
            Role::Peers => policy(Direction::Ingress).or_else(|| policy(Direction::Egress)),
            Role::Source => Some(Stage::Masq),
            Role::Hairpin => self.masquerade.then_some(Stage::Masq),
            Role::Astray => Some(Stage::Route),
            Role::Count | Role::Own => None,
        }
    }

    /// Another address of the pod, such as a further source, has the same policies.
    fn leads_to_own(&self, role: Role, data: &ElemData) -> Option<Stage> {
        let (Role::Policy(direction), ElemData::Verdict(Verdict::Jump(chain))) = (role, data) else {
            return None;
        };
        let first = self.policies.get(&direction).and_then(|chains| chains.first());
        self.stage(role).filter(|_| first == Some(chain))
    }

    /// An element concerns a packet only if its key is of what the packet has.
    fn of_element(&self, role: Role, key: &ElemKey) -> Option<Stage> {
        let stage = self.stage(role);
        let target = self.endpoint.map(|to| to.ip()).or(self.destination).or(self.target);
        match role {
            Role::Frontend | Role::Endpoint | Role::SourceRange | Role::HostPort => {
                let asked = self.frontend.or(self.asked);
                asked.filter(|asked| is_of_frontend(key, *asked)).map(|_| Stage::Service)
            }
            Role::Lead => stage.filter(|_| self.leads.is_empty() || self.leads.contains(key)),
            Role::Policy(Direction::Ingress) => stage.filter(|_| target.is_none_or(|ip| holds(key, ip))),
            Role::Policy(Direction::Egress) => stage.filter(|_| self.source.is_none_or(|ip| holds(key, ip))),
            _ => stage,
        }
    }
}

/// A chain and all that its rules lead to, one after the other.
fn with_next(nft: &Ruleset, first: &str) -> Vec<String> {
    let mut found = vec![first.to_owned()];
    let mut at = 0;
    while let Some(chain) = found.get(at).cloned() {
        let chains = nft.tables.values().filter_map(|table| table.chains.get(&*chain));
        for next in chains.flat_map(|chain| &chain.rules).flat_map(chains_of) {
            if !found.iter().any(|known| known == next) {
                found.push(next.to_owned());
            }
        }
        at += 1;
    }
    found
}

/// The bytes of an address, as keys have them.
fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Whether an address, or a range of them, holds this one.
fn holds(key: &ElemKey, ip: IpAddr) -> bool {
    let own = octets(ip);
    let end = key.end().unwrap_or(key.start());
    own.len() == key.start().len() && **key.start() <= own[..] && own[..] <= **end
}

/// Keys of frontends end alike: address, protocol, port, each in whole words. Two are shorter: the address alone, and protocol
/// and port of whichever address of the node.
fn is_of_frontend(key: &ElemKey, frontend: SocketAddr) -> bool {
    let (address, key) = (octets(frontend.ip()), key.start());
    let port = |words: &[u8]| words.get(4..6) == Some(&frontend.port().to_be_bytes()[..]);
    let tail = |length: usize| key.len().checked_sub(length).and_then(|from| key.get(from..));
    match key.len() {
        8 => port(key),
        length if length == address.len() => **key == address[..],
        _ => tail(address.len() + 8).and_then(|tail| tail.strip_prefix(&address[..])).is_some_and(port),
    }
}

#[cfg(test)]
mod tests;
