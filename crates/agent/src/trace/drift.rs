//! Kernel state that is ours and is not as it should be, where it concerns one packet: each difference is led to
//! the hop that it breaks.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use kernel::conntrack::Conntrack;
use kernel::net::Scope;
use netlink::conntrack::{Entry, Filter};
use trace::exchange::Flow;
use trace::hop::{Fact, Hop, Stage};
use trace::{Sighting, View};
use types::{Family, IfName, Protocol};

use self::concern::Concern;
use crate::actual::Actual;
use crate::datapath::Subsystem;

mod concern;

/// What the kernel holds now.
#[derive(Debug)]
pub struct Seen {
    actual: Actual,
    left: Left,
    pub connections: Vec<Entry>,
}

/// Why what differs stays so; empty: it does not.
#[derive(Clone, Debug, Default)]
pub struct Left {
    pub net: String,
    pub nft: String,
}

impl Left {
    /// `refused`: what the kernel does not take of a subsystem.
    pub fn because(paused: bool, refused: impl Fn(Subsystem) -> Option<String>) -> Self {
        let words = |subsystem| match refused(subsystem) {
            _ if paused => "; the agent is paused and leaves it so".to_owned(),
            Some(refused) => format!("; {refused}"),
            None => String::new(),
        };
        Self { net: words(Subsystem::Net), nft: words(Subsystem::Nft) }
    }
}

impl Seen {
    /// `client`: whose connections to look at too, for the search of stale ones.
    pub fn observe((scope, left): (&Scope, Left), client: Option<Flow>) -> Result<Self> {
        let actual = Actual::observe(scope)?;
        let connections = client.map(connections).transpose().context("read conntrack")?.unwrap_or_default();
        Ok(Self { actual, left, connections })
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
    let concern = Concern::new((view.net, view.nft), hops, client);
    let drift = seen.actual.differ(view.nft, view.net);
    let Left { net, nft } = &seen.left;
    let of_links =
        |op| format!("{}{net}", kstate::net::Difference { op, actual: &seen.actual.net, instead: None });
    let of_rules =
        |op| format!("{}{nft}", kstate::nft::Difference { op, desired: view.nft, actual: &seen.actual.nft });
    let links = drift.net.plan.ops().filter_map(|op| Some((concern.net(op)?, of_links(op))));
    let rules = drift.nft.ops.iter().flat_map(|op| {
        concern.nft_in(op, &drift.nft.ops).into_iter().map(move |stage| (stage, of_rules(op)))
    });
    let gone = |name: &IfName| Some((concern.veth(name)?, format!("{name} is gone; its pod has no way out")));
    let lost = drift.net.lost.iter().filter_map(gone);
    links.chain(rules).chain(lost).map(|(stage, text)| Sighting::Drift { stage, text }).collect()
}

/// The node's address that these hops masquerade as, if the machine has lost it.
pub fn lost(hops: &[Hop], told: impl Fn(IpAddr) -> Option<String>) -> Option<Sighting> {
    let as_node = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Masq { source, masquerade: true, .. } => *source,
        _ => None,
    });
    let text = as_node.and_then(told)?;
    Some(Sighting::Drift { stage: Stage::Masq, text })
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
