//! Runs a packet through rules as the kernel would: hooks in order, registers, jumps, conntrack's say in who
//! sees the nat chains. One small machine over [`kstate::nft::Expr`].
//!
//! ```text
//!   iif ─> prerouting ─┬─ local? ─> input
//!                      └─ forward ─> postrouting ─> device
//!   process ─> output ────────────> postrouting ─> device
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use kstate::net::NetState;
use kstate::nft::build::ct_state;
use kstate::nft::{BaseChain, Bytes, ChainKind, Hook, Rule, Ruleset, Table, TableFamily, TableId, Verdict};
use types::{Family, IfName};

use crate::packet::{CtState, Packet};

mod machine;
mod route;

pub use route::{Exit, route};

use machine::{Machine, Stop};

/// What surrounds the rules on a node.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    pub nft: &'a Ruleset,
    pub net: &'a NetState,
    /// Addresses of the node that are not ours to configure (its underlay address).
    pub local: &'a [IpAddr],
    /// What the DNS socket looks like to `socket wildcard`: `Some(false)` bound to the address, `None` not there.
    pub socket: Option<bool>,
}

/// One decision: the rule that made it, and the element that led there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub hook: Hook,
    pub table: String,
    pub chain: String,
    /// Index in the chain.
    pub rule: usize,
    pub comment: String,
    /// Set or map that an element of was used, and the element's key.
    pub element: Option<(String, Bytes)>,
    pub action: String,
}

/// Where a packet ends up as far as this node goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A socket of this node's own network namespace.
    Local,
    /// Through this device (`None`: one that is not ours, such as the uplink).
    Out(Exit),
    Dropped,
    Rejected,
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub steps: Vec<Step>,
    pub end: End,
    /// The packet at its end: after DNAT. Its source is as it came; see `masquerade`.
    pub destination: SocketAddr,
    pub masquerade: bool,
    /// The range of the random draw on the way, if there was one.
    pub drawn: Option<u32>,
}

/// Every path that chance allows: one for each value that the first random draw can have.
pub fn all(packet: &Packet, kernel: &Kernel<'_>) -> Vec<Path> {
    let first = one(packet, kernel, 0);
    let range = first.drawn.unwrap_or(1);
    std::iter::once(first).chain((1..range).map(|draw| one(packet, kernel, draw))).collect()
}

/// The path when every random draw yields `draw` (modulo its range).
pub fn one(packet: &Packet, kernel: &Kernel<'_>, draw: u32) -> Path {
    let mut machine = Machine::new(packet, kernel, draw);
    let end = walk(&mut machine, packet, kernel);
    Path {
        destination: machine.destination(),
        masquerade: machine.masquerade,
        drawn: machine.drawn,
        steps: machine.steps,
        end,
    }
}

fn walk(machine: &mut Machine<'_>, packet: &Packet, kernel: &Kernel<'_>) -> End {
    // ip6_rcv_core drops these before any hook (RFC 4291 §2.5.3); for IPv4 that is left to later.
    let loopback = |address: IpAddr| address == Ipv6Addr::LOCALHOST;
    if packet.iif.is_some() && (loopback(packet.src) || loopback(packet.dst)) {
        return End::Dropped;
    }
    let first = if packet.iif.is_some() { Hook::Prerouting } else { Hook::Output };
    if let Some(end) = pass(machine, kernel, first) {
        return end;
    }
    let exit = match route(kernel.net, kernel.local, machine.destination().ip()) {
        route::Decision::Local if packet.iif.is_none() => return End::Local,
        route::Decision::Local => return pass(machine, kernel, Hook::Input).unwrap_or(End::Local),
        route::Decision::Unreachable => return End::Unreachable,
        route::Decision::Out(exit) => exit,
    };
    machine.oif = exit.dev.as_ref().map(IfName::to_string);
    let middle = (packet.iif.is_some()).then(|| pass(machine, kernel, Hook::Forward)).flatten();
    middle.or_else(|| pass(machine, kernel, Hook::Postrouting)).unwrap_or(End::Out(exit))
}

/// All base chains of a hook, by priority; `Some` when one of them ends the packet.
fn pass(machine: &mut Machine<'_>, kernel: &Kernel<'_>, hook: Hook) -> Option<End> {
    machine.hook = hook;
    let mut chains: Vec<(&str, &Table, &str, BaseChain)> = Vec::new();
    let family: TableFamily = Family::of(machine.packet.dst).into();
    let sees = |id: &TableId| id.family == family || id.family == TableFamily::Inet;
    for (id, table) in kernel.nft.tables.iter().filter(|(id, _)| sees(id)) {
        for (name, chain) in &table.chains {
            if let Some(base) = chain.base.filter(|base| base.hook == hook) {
                chains.push((&id.name, table, name, base));
            }
        }
    }
    chains.sort_by_key(|(_, _, _, base)| base.priority);
    for (table_name, table, chain, base) in chains {
        if base.kind == ChainKind::Nat && (machine.untracked || machine.packet.ct != CtState::New) {
            continue;
        }
        match machine.run(table_name, table, chain) {
            Stop::Drop => return Some(End::Dropped),
            Stop::Reject => return Some(End::Rejected),
            Stop::End if base.drop => return Some(End::Dropped),
            Stop::Accept | Stop::End => {}
        }
    }
    None
}

/// `ct state` as a register holds it.
fn ct_bits(state: CtState) -> u32 {
    match state {
        CtState::New => ct_state::NEW,
        CtState::Established | CtState::Reply => ct_state::ESTABLISHED,
        CtState::Related => ct_state::RELATED,
        CtState::Invalid => ct_state::INVALID,
    }
}

/// A chain's rules, or none when a verdict names a chain that is not there.
fn rules<'a>(table: &'a Table, chain: &str) -> &'a [Rule] {
    table.chains.get(chain).map_or(&[], |chain| &chain.rules)
}

fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

/// How a packet leaves the node; `None`: it does not.
pub fn route_of(net: &NetState, local: &[IpAddr], to: IpAddr) -> Option<Exit> {
    match route(net, local, to) {
        route::Decision::Out(exit) => Some(exit),
        route::Decision::Local | route::Decision::Unreachable => None,
    }
}
