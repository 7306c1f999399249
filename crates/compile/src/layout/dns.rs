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
use semantics::dns::PORT;
use types::wire::DNS_PEER_PORT;
use types::{Family, Protocol};

use super::{DNS_PEERS, R0};
use crate::fragment::Fragment;
use crate::refusal::Refusal;

/// Fills the map of stand-ins. Returns how many there are.
pub fn stand_ins(fragment: &mut Fragment, peers: &[IpAddr]) -> u32 {
    let mut slots = 0_u32;
    for peer in peers {
        let data = encode(&[(*peer).into(), DNS_PEER_PORT.into()]);
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
pub fn queries(family: Family, dns: IpAddr, action: &Expr) -> [Rule; 2] {
    let to = |protocol| rule("cluster DNS", query(family, dns, protocol).chain([action.clone()]));
    [to(Protocol::Udp), to(Protocol::Tcp)]
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
