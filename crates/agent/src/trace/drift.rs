//! Kernel state that is ours and is not as it should be, where it concerns one packet: each difference is led to
//! the hop that it breaks.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use kernel::Rtnl;
use kernel::conntrack::Conntrack;
use kernel::net::{self, Scope};
use kernel::nft::Nft;
use kstate::net::{NetState, Op as NetOp};
use kstate::nft::{ElemKey, Op as NftOp, Ruleset, TableFamily, TableId};
use netlink::conntrack::{Entry, Filter};
use trace::exchange::Flow;
use trace::hop::{Fact, Hop, Stage};
use trace::{Sighting, View};
use types::wire::{BRIDGE, TABLE, VXLAN_DEVICE};
use types::{Family, IfName};

/// What the kernel holds now.
#[derive(Debug)]
pub struct Actual {
    nft: Ruleset,
    net: NetState,
    pub connections: Vec<Entry>,
}

impl Actual {
    /// `client`: whose connections to look at too, for the search of stale ones.
    pub fn observe(scope: &Scope, client: Option<Flow>) -> Result<Self> {
        let ours = TableId { family: TableFamily::Ip, name: TABLE.to_owned() };
        let nft = Nft::open()?.observe(&[ours]).context("observe nf_tables")?.ruleset;
        let net = net::observe(&mut Rtnl::open()?, scope).context("observe links and routes")?;
        let connections = client.map(connections).transpose().context("read conntrack")?.unwrap_or_default();
        Ok(Self { nft, net, connections })
    }
}

/// The client's connections to the flow's destination.
fn connections(flow: Flow) -> Result<Vec<Entry>> {
    let filter = Filter {
        protocol: Some(flow.protocol.number()),
        src: Some(flow.source.ip()),
        dst: Some(flow.destination.ip()),
        dst_port: Some(flow.destination.port()),
    };
    Ok(Conntrack::open()?.entries(Family::of(flow.source.ip()), &filter)?)
}

/// The differences that lie on the way of these hops.
pub fn find(view: &View<'_>, actual: &Actual, hops: &[Hop]) -> Vec<Sighting> {
    let concern = Concern::of(hops);
    let net = kstate::net::diff(view.net, &actual.net);
    let links = net.ops().filter_map(|op| Some((concern.net(op)?, op.to_string())));
    let nft = kstate::nft::diff(view.nft, &actual.nft);
    let rules = nft.ops.iter().filter_map(|op| Some((concern.nft(op)?, op.to_string())));
    let lost = kstate::net::lost_veths(view.net, &actual.net)
        .filter_map(|name| Some((concern.veth(name)?, format!("{name} is gone; its pod has no way out"))));
    links
        .chain(rules)
        .map(|(stage, op)| (stage, format!("it would take: {op}")))
        .chain(lost)
        .map(|(stage, text)| Sighting::Drift { stage, text })
        .collect()
}

/// Entries of conntrack that would still send this client's packets for the frontend to what is no endpoint.
pub fn stale(connections: &[Entry], hops: &[Hop], flow: Flow) -> Option<Sighting> {
    let choices = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Service { choices, .. } => Some(choices),
        _ => None,
    })?;
    let entry = connections.iter().find(|entry| {
        entry.original.src.ip() == flow.source.ip()
            && entry.original.dst == flow.destination
            && !choices.contains(&entry.reply.src)
    })?;
    let (port, to) = (entry.original.src.port(), entry.reply.src);
    let text = format!(
        "conntrack still sends source port {port} to {to}, which is no endpoint; `conntrack -D -s {} -d {}` ends it",
        flow.source.ip(),
        flow.destination.ip()
    );
    Some(Sighting::Drift { stage: Stage::Service, text })
}

/// Whether a socket of this network namespace is bound to this very UDP address (/proc/net/udp, proc(5)).
pub fn dns_socket(address: SocketAddr) -> bool {
    let IpAddr::V4(ip) = address.ip() else { return true };
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port());
    let table = fs::read_to_string("/proc/thread-self/net/udp").unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().nth(1) == Some(wanted.as_str()))
}

/// What a packet touches on its way.
#[derive(Default)]
struct Concern<'a> {
    source_veth: Option<&'a IfName>,
    target_veth: Option<&'a IfName>,
    bridge_hop: Option<Stage>,
    frontend: Option<SocketAddr>,
    endpoint: Option<SocketAddr>,
    destination: Option<IpAddr>,
    tunnelled: bool,
    arrives_by_tunnel: bool,
    egress: bool,
    ingress: bool,
    masquerade: bool,
}

impl<'a> Concern<'a> {
    fn of(hops: &'a [Hop]) -> Self {
        let mut concern = Self::default();
        for hop in hops {
            match &hop.fact {
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
                Fact::Route { destination, .. } => concern.destination = Some(*destination),
                Fact::Tunnel { .. } => concern.tunnelled = true,
                Fact::Policy { .. } if hop.stage == Stage::Egress => concern.egress = true,
                Fact::Policy { .. } => concern.ingress = true,
                Fact::Masq { masquerade, .. } => concern.masquerade = *masquerade,
                _ => {}
            }
        }
        concern
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
            NetOp::SetRoute { key, .. } | NetOp::DeleteRoute { key } => {
                self.destination.filter(|to| key.dst.contains(to)).map(|_| Stage::Route)
            }
            NetOp::SetNeighbour { .. }
            | NetOp::DeleteNeighbour { .. }
            | NetOp::SetFdb { .. }
            | NetOp::DeleteFdb { .. } => self.tunnelled.then_some(Stage::Tunnel),
            NetOp::SetSysctl { .. } => self.destination.map(|_| Stage::Route),
        }
    }

    fn nft(&self, op: &NftOp) -> Option<Stage> {
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
            "prerouting" | "services" => Some(Stage::Service),
            "postrouting" => Some(Stage::Masq),
            "forward" if self.egress => Some(Stage::Egress),
            "forward" => Some(Stage::Ingress),
            _ if name.starts_with("in_") => self.ingress.then_some(Stage::Ingress),
            _ if name.starts_with("out_") => self.egress.then_some(Stage::Egress),
            _ if is_spread(name) => self.frontend.map(|_| Stage::Service),
            _ => None,
        }
    }

    fn set(&self, set: &str, key: Option<&ElemKey>) -> Option<Stage> {
        match set {
            "svc" | "ep" => self.is_frontend(key).then_some(Stage::Service),
            "hairpin" => self.masquerade.then_some(Stage::Masq),
            "in_iso" => self.ingress.then_some(Stage::Ingress),
            "out_iso" => self.egress.then_some(Stage::Egress),
            _ if set.starts_with("pods_") || set.starts_with("port_") => {
                let stage = if self.ingress { Stage::Ingress } else { Stage::Egress };
                (self.ingress || self.egress).then_some(stage)
            }
            _ => None,
        }
    }

    /// Keys of `svc` and `ep` end alike: address, protocol, port, each in whole words.
    fn is_frontend(&self, key: Option<&ElemKey>) -> bool {
        let Some(SocketAddr::V4(frontend)) = self.frontend else { return false };
        let Some(key) = key else { return true };
        let Some(tail) = key.start.len().checked_sub(12).and_then(|from| key.start.get(from..)) else {
            return false;
        };
        tail.get(..4) == Some(&frontend.ip().octets()[..])
            && tail.get(8..10) == Some(&frontend.port().to_be_bytes()[..])
    }
}

/// `n3`: the chain that frontends with three endpoints share.
fn is_spread(name: &str) -> bool {
    name.strip_prefix('n').is_some_and(|count| !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()))
}
