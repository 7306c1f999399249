//! Queries to the cluster's DNS address: our socket answers them, or another node's agent while there is none. Each
//! packet is judged anew, so that a resolver that keeps its socket follows an agent's end and return.
//!
//! ```text
//!   raw (prerouting)  UDP query ── our socket is here ──> notrack ──> input ──> the agent
//!                         │ it is not                         no flow, nothing remembered
//!                         v
//!   prerouting (nat)  dns: UDP, and TCP without our socket ──> dnat to another node's agent, or drop
//!   input             UDP query ── no socket of ours any more ──> drop: the resolver asks again
//!   raw (output)      UDP answer of our socket ──> notrack
//! ```
//! conntrack would remember, for every later query of the same socket, that the first one went to the node itself: NAT
//! is decided once for a flow (nf_nat_inet_fn, net/netfilter/nf_nat_core.c), and after the agent's end each would be
//! refused. A flow that was sent to another node stays known while its answers are on their way, and hides nothing:
//! untracked packets do not meet it.

use std::net::IpAddr;

use kstate::nft::build::{self, encode, rule};
use kstate::nft::{CmpOp, ElemData, Expr, Reg, Rule, key};
use model::Cluster;
use types::wire::DNS_PEER_PORT;
use types::{Family, Protocol};

use super::{DNS_PEERS, R0};
use crate::Settings;
use crate::fabric::internal_ip;
use crate::fragment::Fragment;
use crate::refusal::Refusal;

/// Where queries are sent, and where answers come from.
const PORT: u16 = 53;

/// As many as never are all away at once. In a cluster of thousands each has others, and a Node that comes or goes
/// hardly ever changes whom this one would ask.
const STAND_INS: usize = 16;

/// Addresses of the nodes that answer while this one has no agent, sorted: those whose address, together with our
/// name, has the lowest number (rendezvous hashing, Thaler and Ravishankar 1998).
fn peers(cluster: &Cluster, settings: &Settings, family: Family) -> Vec<IpAddr> {
    if settings.dns_ip(family).is_none() {
        return Vec::new();
    }
    let others = cluster.nodes.values().filter(|node| node.name != settings.node);
    let addresses = others.filter_map(|node| internal_ip(node, family));
    let us = mix(settings.node.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte))));
    let mut peers: Vec<_> = addresses.map(|address| (rank(us, address), address)).collect();
    if peers.len() > STAND_INS {
        peers.select_nth_unstable(STAND_INS);
        peers.truncate(STAND_INS);
    }
    let mut peers: Vec<_> = peers.into_iter().map(|(_, address)| address).collect();
    peers.sort_unstable();
    peers
}

fn rank(us: u64, address: IpAddr) -> u64 {
    let number = match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    mix(mix(us ^ (number as u64)) ^ (number >> 64) as u64)
}

/// The finalizer of MurmurHash3: every bit of the input moves half of the output's.
/// With `hash8` (FNV-1a) all nodes would choose a few same ones.
fn mix(mut bits: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        bits = (bits ^ (bits >> 33)).wrapping_mul(factor);
    }
    bits ^ (bits >> 33)
}

/// Fills the map of stand-ins. Returns how many there are.
pub fn stand_ins(fragment: &mut Fragment, cluster: &Cluster, settings: &Settings, family: Family) -> u32 {
    let mut slots = 0_u32;
    for peer in peers(cluster, settings, family) {
        let data = encode(&[peer.into(), DNS_PEER_PORT.into()]);
        fragment.element(DNS_PEERS, encode(&[slots.into()]), ElemData::Value(data));
        slots += 1;
    }
    slots
}

/// `socket wildcard` breaks its rule when no socket of this node would take the packet, and is 0 for one that is bound
/// to this very address: ours. A stranger's wildcard resolver on port 53 is not asked for cluster names.
///
/// Not for packets on output: there the kernel answers with the sender's own socket (nft_socket_eval takes `skb->sk`),
/// so a query of the node itself stays on the node.
fn our_socket() -> [Expr; 2] {
    [build::socket_wildcard(R0), Expr::Cmp { sreg: R0, op: CmpOp::Eq, value: vec![0] }]
}

/// Queries that nobody has answered for so far. UDP comes here only when the raw hook saw no socket of ours.
pub fn answerer(stand_ins: u32, family: Family) -> Vec<Rule> {
    let to = Reg(1);
    let to_port = key::after(to, key::address(family));
    let tcp = [build::l4proto(R0), build::is(R0, Protocol::Tcp)];
    let ours = rule("answered on this node", tcp.into_iter().chain(our_socket()).chain([build::accept()]));
    let other = if stand_ins > 0 {
        let dnat =
            [build::numgen(R0, stand_ins), build::map(DNS_PEERS, R0, to), build::dnat(family, to, to_port)];
        rule("no agent here: another node answers", dnat)
    } else {
        // Refused, a resolver gives up at once; unanswered, it asks again, and the agent is back.
        Refusal::NoDnsAnywhere.dropped([])
    };
    vec![ours, other]
}

/// A datagram or connection from or to the DNS address.
fn about(address: Expr, dns: IpAddr, protocol: Protocol, port: Expr) -> impl Iterator<Item = Expr> {
    let exprs =
        [address, build::is(R0, dns), build::l4proto(R0), build::is(R0, protocol), port, build::is(R0, PORT)];
    exprs.into_iter()
}

fn query(family: Family, dns: IpAddr, protocol: Protocol) -> impl Iterator<Item = Expr> {
    about(build::daddr(family, R0), dns, protocol, build::th_dport(R0))
}

/// Queries to the cluster's DNS address, and what to do with them.
pub fn queries(settings: &Settings, family: Family, action: &Expr) -> Vec<Rule> {
    let Some(dns) = settings.dns_ip(family) else { return Vec::new() };
    let to = |protocol| rule("cluster DNS", query(family, dns, protocol).chain([action.clone()]));
    vec![to(Protocol::Udp), to(Protocol::Tcp)]
}

/// Queries that went to another node's agent: of what was asked at the DNS address, only these are DNS. A Service may
/// have other ports there.
pub fn queries_elsewhere(family: Family, dns: IpAddr) -> Vec<Rule> {
    let asked = |protocol| {
        let to = about(build::original_daddr(family, R0), dns, protocol, build::ct_original_dport(R0));
        rule("cluster DNS of another node", to.chain([build::accept()]))
    };
    vec![asked(Protocol::Udp), asked(Protocol::Tcp)]
}

/// Before conntrack: what our socket takes is no flow.
pub fn untracked_queries(family: Family, dns: IpAddr) -> Vec<Rule> {
    let exprs = query(family, dns, Protocol::Udp).chain(our_socket());
    vec![rule("answered on this node, each query for itself", exprs.chain([build::notrack()]))]
}

/// Before conntrack: an answer alone would begin a flow of its own.
pub fn untracked_answers(family: Family, dns: IpAddr) -> Vec<Rule> {
    let exprs = about(build::saddr(family, R0), dns, Protocol::Udp, build::th_sport(R0));
    vec![rule("answered on this node, each query for itself", exprs.chain([build::notrack()]))]
}

/// A query may pass the raw hook in the moment before its socket closes, and those of the node itself come here in any
/// case. Unheard they are asked again; refused they are not.
pub fn unheard(family: Family, dns: IpAddr) -> Vec<Rule> {
    let query = || query(family, dns, Protocol::Udp);
    vec![
        rule("cluster DNS", query().chain(our_socket()).chain([build::accept()])),
        Refusal::NoDnsHere.dropped(query()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Event, Node, Row};

    fn cluster(nodes: u32) -> Cluster {
        let mut cluster = Cluster::default();
        for number in 0..nodes {
            let address = std::net::Ipv4Addr::from_bits(0xc0a8_0000 + number).into();
            let row = Node { name: format!("node{number}"), addresses: vec![address], ..Node::default() };
            cluster.apply(Event::Upsert(Row::Node(row)));
        }
        cluster
    }

    fn of(node: u32, nodes: u32) -> Vec<IpAddr> {
        let settings = Settings {
            dns_ips: vec![[10, 96, 0, 10].into()],
            ..Settings::new(format!("node{node}"), Vec::new(), 1450)
        };
        peers(&cluster(nodes), &settings, Family::V4)
    }

    #[test]
    fn few_nodes_are_all_asked() {
        assert_eq!(of(0, 3).len(), 2);
        assert_eq!(of(0, 17).len(), 16);
    }

    #[test]
    fn many_nodes_have_each_their_own_stand_ins_and_keep_them() {
        let before = of(0, 400);
        assert_eq!(before.len(), STAND_INS);
        let after = of(0, 402);
        assert!(before.iter().filter(|peer| after.contains(peer)).count() >= STAND_INS - 2);
        let mut asked = std::collections::BTreeMap::<IpAddr, usize>::new();
        (0..400).flat_map(|node| of(node, 400)).for_each(|peer| *asked.entry(peer).or_default() += 1);
        // 16 each on average.
        assert!(asked.len() > 390 && asked.values().all(|times| *times < 48), "{asked:?}");
    }
}
