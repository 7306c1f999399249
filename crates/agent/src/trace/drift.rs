//! Kernel state that is ours and is not as it should be, where it concerns one packet: each difference is led to
//! the hop that it breaks.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use kernel::conntrack::Conntrack;
use kernel::net::Scope;
use kstate::net::{Forward, NetState, Op as NetOp, sysctl_link};
use kstate::nft::{ElemKey, Op as NftOp, TableFamily};
use netlink::conntrack::{Entry, Filter};
use trace::exchange::Flow;
use trace::hop::{Fact, Hop, Stage};
use trace::{Sighting, View};
use types::wire::{BRIDGE, VXLAN_DEVICE};
use types::{Family, IfName, IpNet, Mac, Protocol};

use crate::actual::Actual;

/// What the kernel holds now.
#[derive(Debug)]
pub struct Seen {
    actual: Actual,
    /// Nobody mends what differs.
    paused: bool,
    pub connections: Vec<Entry>,
}

impl Seen {
    /// `client`: whose connections to look at too, for the search of stale ones.
    pub fn observe((scope, paused): (&Scope, bool), client: Option<Flow>) -> Result<Self> {
        let actual = Actual::observe(scope)?;
        let connections = client.map(connections).transpose().context("read conntrack")?.unwrap_or_default();
        Ok(Self { actual, paused, connections })
    }
}

/// The client's connections to the flow's destination.
fn connections(flow: Flow) -> Result<Vec<Entry>> {
    let filter = Filter {
        protocol: Some(flow.protocol.number_in(Family::of(flow.source.ip()))),
        src: Some(flow.source.ip()),
        dst: Some(flow.destination.ip()),
        dst_port: (flow.protocol != Protocol::Icmp).then(|| flow.destination.port()),
        ..Filter::default()
    };
    Ok(Conntrack::open()?.entries(Family::of(flow.source.ip()), &filter)?)
}

/// The differences that lie on the way of these hops; `client`: whom the answer goes to, on the node of the
/// destination.
pub fn find(view: &View<'_>, seen: &Seen, hops: &[Hop], client: Option<IpAddr>) -> Vec<Sighting> {
    let mut concern = Concern::of(hops);
    concern.client = client;
    concern.back = client.and_then(|client| Peer::towards(view.net, client));
    concern.know_macs(view.net);
    let drift = seen.actual.differ(view.nft, view.net);
    let of_links = |op| told(kstate::net::Difference { op, actual: &seen.actual.net }, seen.paused);
    let of_rules =
        |op| told(kstate::nft::Difference { op, desired: view.nft, actual: &seen.actual.nft }, seen.paused);
    let links = drift.net.plan.ops().filter_map(|op| Some((concern.net(op)?, of_links(op))));
    let rules = drift.nft.ops.iter().filter_map(|op| Some((concern.nft(op)?, of_rules(op))));
    let gone = |name: &IfName| Some((concern.veth(name)?, format!("{name} is gone; its pod has no way out")));
    let lost = drift.net.lost.iter().filter_map(gone);
    links.chain(rules).chain(lost).map(|(stage, text)| Sighting::Drift { stage, text }).collect()
}

/// What is wrong, and that it stays so where it does.
fn told(difference: impl fmt::Display, paused: bool) -> String {
    let left = if paused { "; the agent is paused and leaves it so" } else { "" };
    format!("{difference}{left}")
}

/// Entries of conntrack that would still send this client's packets for the frontend to what is no endpoint.
pub fn stale(connections: &[Entry], hops: &[Hop], flow: Flow) -> Option<Sighting> {
    let choices = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Service { choices, .. } => Some(choices),
        _ => None,
    })?;
    let entry = connections.iter().find(|entry| {
        entry.original.src.ip() == flow.source.ip()
            && entry.original.src.port() == flow.source.port()
            && entry.original.dst == flow.destination
            && !choices.contains(&entry.reply.src)
    })?;
    let (port, to) = (flow.source.port(), entry.reply.src);
    let text = format!(
        "conntrack still sends source port {port} to {to}, which is no endpoint; `conntrack -D -p {} -s {} --sport \
         {port}` ends it",
        flow.protocol,
        flow.source.ip(),
    );
    Some(Sighting::Drift { stage: Stage::Service, text })
}

/// Whether a socket of this network namespace is bound to this very UDP address (/proc/net/udp, proc(5)).
pub fn dns_socket(address: SocketAddr) -> bool {
    // Words of the address in host order, as udp4_format_sock_addr and ip6_dgram_sock_seq_show print them.
    let (file, octets) = match address.ip() {
        IpAddr::V4(ip) => ("udp", ip.octets().to_vec()),
        IpAddr::V6(ip) => ("udp6", ip.octets().to_vec()),
    };
    let words = octets.as_chunks::<4>().0.iter();
    let wanted: String = words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
    let wanted = format!("{wanted}:{:04X}", address.port());
    let table = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().nth(1) == Some(wanted.as_str()))
}

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
struct Concern<'a> {
    source_veth: Option<&'a IfName>,
    target_veth: Option<&'a IfName>,
    /// Those of the pods behind them.
    source_mac: Option<Mac>,
    target_mac: Option<Mac>,
    family: Option<Family>,
    bridge_hop: Option<Stage>,
    frontend: Option<SocketAddr>,
    endpoint: Option<SocketAddr>,
    destination: Option<IpAddr>,
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

impl<'a> Concern<'a> {
    fn of(hops: &'a [Hop]) -> Self {
        let mut concern = Self::default();
        let mut via_of = None;
        for hop in hops {
            match &hop.fact {
                Fact::Socket { source, .. } => concern.family = Some(Family::of(*source)),
                Fact::Veth { host_if, .. } => {
                    concern.source_veth = Some(host_if);
                    concern.bridge_hop.get_or_insert(Stage::Veth);
                }
                Fact::Node { from, host_if, .. } => {
                    concern.target_veth = Some(host_if);
                    concern.bridge_hop.get_or_insert(Stage::Node);
                    concern.arrives_by_tunnel = from.is_some();
                }
                Fact::Service { frontend, endpoint, .. } => {
                    concern.frontend = Some(*frontend);
                    concern.endpoint = Some(*endpoint);
                }
                Fact::Refused { frontend, .. } => concern.frontend = Some(*frontend),
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

    fn veth(&self, name: &IfName) -> Option<Stage> {
        if self.source_veth == Some(name) {
            return Some(Stage::Veth);
        }
        (self.target_veth == Some(name)).then_some(Stage::Node)
    }

    fn link(&self, name: &IfName) -> Option<Stage> {
        match name.as_str() {
            BRIDGE => self.bridge_hop,
            VXLAN_DEVICE if self.tunnelled => Some(Stage::Tunnel),
            VXLAN_DEVICE if self.arrives_by_tunnel => Some(Stage::Node),
            "lo" => Some(Stage::Resolve),
            _ => self.veth(name),
        }
    }

    fn net(&self, op: &NetOp) -> Option<Stage> {
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
            NetOp::SetNeighbour { link, ip, mac } if link.as_str() == BRIDGE => self.pod(*ip, *mac),
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
            Some(BRIDGE) => {
                self.source_veth.map(|_| Stage::Route).or(self.target_veth.map(|_| Stage::Return))
            }
            Some(VXLAN_DEVICE) if self.arrives_by_tunnel => Some(Stage::Node),
            Some(VXLAN_DEVICE) => self.tunnelled.then_some(Stage::Return),
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

    fn nft(&self, op: &NftOp) -> Option<Stage> {
        let others = self.family.is_some_and(|family| {
            let others = Family::ALL.into_iter().filter(|other| *other != family);
            others.map(TableFamily::from).any(|other| other == op.table().family)
        });
        // A tunnel may go by the other family than what is in it.
        let concerned = !others || (self.tunnelled || self.arrives_by_tunnel) && is_of_tunnels(op);
        self.nft_stage(op).filter(|_| concerned)
    }

    fn nft_stage(&self, op: &NftOp) -> Option<Stage> {
        match op {
            NftOp::AddTable(_) | NftOp::DeleteTable(_) => Some(Stage::Service),
            NftOp::AddChain { chain: name, .. }
            | NftOp::DeleteChain { chain: name, .. }
            | NftOp::SetRules { chain: name, .. } => self.chain(name),
            NftOp::AddSet { set, .. } | NftOp::DeleteSet { set, .. } => self.set(set, None),
            NftOp::AddElement { set, key, .. } | NftOp::DeleteElement { set, key, .. } => {
                self.set(set, Some(key))
            }
        }
    }

    fn chain(&self, name: &str) -> Option<Stage> {
        match name {
            "prerouting" | "services" | "node" | "rej" | "unreachable" => Some(Stage::Service),
            // What comes by the tunnel, and what the cluster's name servers are asked.
            "input" if self.arrives_by_tunnel => Some(Stage::Node),
            "input" | "dns" => Some(Stage::Resolve),
            // The guard: who may send what by which link.
            "frames" | "ipv4_frames" | "ipv6_frames" | "arp_frames" | "raw" | "from_pods" | "onward"
            | "no_pod" | "away" | "pod_to_tunnel" => Some(self.bridge_hop.unwrap_or(Stage::Veth)),
            "from_wire" | "inner" | "tunnel" | "from_tunnel" | "to_tunnel" => {
                self.arrives_by_tunnel.then_some(Stage::Node)
            }
            "postrouting" => Some(Stage::Masq),
            "raw_output" => Some(self.forth.as_ref().map_or(Stage::Resolve, |_| Stage::Tunnel)),
            "astray" => Some(Stage::Route),
            "forward" | "unusual" if self.egress => Some(Stage::Egress),
            "forward" | "unusual" => Some(Stage::Ingress),
            _ if name.starts_with("further") => self.bridge_hop,
            _ if name.starts_with("in_") => self.ingress.then_some(Stage::Ingress),
            _ if name.starts_with("out_") => self.egress.then_some(Stage::Egress),
            _ if is_spread(name) => self.frontend.map(|_| Stage::Service),
            _ => None,
        }
    }

    fn set(&self, set: &str, key: Option<&ElemKey>) -> Option<Stage> {
        match set {
            "svc" | "ep" | "guard" => self.is_frontend(key).then_some(Stage::Service),
            "links" | "pods" | "ports" | "senders4" | "senders6" | "link6" => self.bridge_hop,
            "nodes" if self.arrives_by_tunnel => Some(Stage::Node),
            _ if set.starts_with("inside") => self.arrives_by_tunnel.then_some(Stage::Node),
            "dnspeers" => Some(Stage::Resolve),
            "hairpin" => self.masquerade.then_some(Stage::Masq),
            _ if set.starts_with("further_in_") => self.ingress.then_some(Stage::Ingress),
            _ if set.starts_with("further_out_") => self.egress.then_some(Stage::Egress),
            _ if set.starts_with("further") => self.bridge_hop,
            "in_iso" => self.ingress.then_some(Stage::Ingress),
            "out_iso" => self.egress.then_some(Stage::Egress),
            _ if set.starts_with("pods_") || set.starts_with("port_") => {
                let stage = if self.ingress { Stage::Ingress } else { Stage::Egress };
                (self.ingress || self.egress).then_some(stage)
            }
            _ => None,
        }
    }

    /// Keys of `svc`, `ep` and `guard` end alike: address, protocol, port, each in whole words.
    fn is_frontend(&self, key: Option<&ElemKey>) -> bool {
        let Some(frontend) = self.frontend else { return false };
        let Some(key) = key else { return true };
        let address = match frontend.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let from = key.start().len().checked_sub(address.len() + 8);
        let tail =
            from.and_then(|from| key.start().get(from..)).and_then(|tail| tail.strip_prefix(&address[..]));
        tail.and_then(|tail| tail.get(4..6)) == Some(&frontend.port().to_be_bytes()[..])
    }
}

/// Whether a packet between nodes, whatever is in it, meets this.
fn is_of_tunnels(op: &NftOp) -> bool {
    match op {
        NftOp::AddTable(_) | NftOp::DeleteTable(_) => true,
        NftOp::AddChain { chain, .. } | NftOp::DeleteChain { chain, .. } | NftOp::SetRules { chain, .. } => {
            let outer = ["raw", "raw_output", "from_wire", "inner", "tunnel", "input", "to_tunnel"];
            outer.contains(&chain.as_str())
        }
        NftOp::AddSet { set, .. }
        | NftOp::DeleteSet { set, .. }
        | NftOp::AddElement { set, .. }
        | NftOp::DeleteElement { set, .. } => {
            ["links", "nodes"].contains(&&**set) || set.starts_with("inside")
        }
    }
}

/// `n3`, `m3`: the chains that frontends with three endpoints share, without and with masquerade.
fn is_spread(name: &str) -> bool {
    let count = name.strip_prefix(['n', 'm']).unwrap_or_default();
    !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests;
