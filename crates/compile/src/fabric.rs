//! How packets reach pods of other nodes, in kernel state: one folder for each alternative and one row in [`of`]. Whoever
//! needs something of it asks the value for it, and knows none of them by name.
//!
//! ```text
//!   this node ──> own: its link into the fabric        peer ──> entries: what leads to that node's pods
//!   the guard ──> Guarding: rules, by the place where packets meet them
//! ```

pub mod vxlan;

use std::net::IpAddr;

use kstate::net::NetState;
use kstate::nft::Rule;
use semantics::Settings;
use semantics::node::{Announced, Own, Peer};
use semantics::topology::Sources;
use types::{Family, IfName};

use crate::fragment::Fragment;
use crate::net::entry::Entry;
use crate::role::Role;

/// The value of a choice.
pub fn of(choice: types::Fabric) -> &'static dyn Fabric {
    match choice {
        types::Fabric::Vxlan => &vxlan::Vxlan,
    }
}

/// Those of all choices: what an agent finds may be of another one than it has.
pub fn all() -> impl Iterator<Item = &'static dyn Fabric> {
    types::Fabric::ALL.iter().copied().map(of)
}

/// What one alternative has in the kernel of a node.
pub trait Fabric: Sync {
    /// The node's own link into the fabric. `None`: what is for other nodes' pods leaves by the uplinks as it is.
    fn device(&self) -> Option<&'static str>;

    /// By which links of the node what is for other nodes' pods leaves: its own, or the uplinks.
    fn leads(&self, settings: &Settings) -> Vec<IfName>;

    /// What this node has for it, whoever its peers are.
    fn own(&self, own: &Own, settings: &Settings) -> NetState;

    /// Its own link's, by path.
    fn sysctls(&self, family: Family) -> &'static [(&'static str, &'static str)];

    /// The UDP port at which nodes take what is for their pods, if it comes in datagrams.
    fn port(&self) -> Option<u16>;

    /// Bytes that a packet has more between nodes, from an address of this family.
    fn overhead(&self, underlay: IpAddr) -> u32;

    /// What the node of this name says of itself.
    fn announces(&self, node: &str) -> Announced;

    /// Why this node cannot reach that one yet.
    fn lacks(&self, own: &Own, peer: &Peer) -> Option<&'static str>;

    /// What leads to a peer's pods, in the order in which it grows.
    fn entries(&self, own: &Own, peer: &Peer) -> Vec<Entry>;

    /// What of a peer's announcement is another node's.
    fn clash(&self, peer: (&str, &Announced), rival: (&str, &Announced)) -> Option<Clash>;

    /// What of it is in the guard of a family's table.
    fn guard(&self, sources: &Sources, settings: &Settings, family: Family) -> Guarding;

    /// What of one peer is there.
    fn guard_peer(&self, fragment: &mut Fragment, peer: &Peer, family: Family);

    /// Every chain of the guard's that is this fabric's.
    fn chains(&self) -> &'static [OwnChain];

    /// What a set of the guard's is for, if it is this fabric's.
    fn set_role(&self, name: &str) -> Option<Role>;
}

/// Two nodes announce the same.
#[derive(Debug)]
pub struct Clash {
    pub message: String,
    pub next_step: String,
}

/// A chain beside the hooks.
#[derive(Debug)]
pub struct OwnChain {
    pub name: &'static str,
    pub role: Role,
    /// Whether rules in it drop, and count what they drop.
    pub drops: bool,
}

/// Rules of the guard that are a fabric's, by the place where packets meet them (`guard/links.rs` draws it).
#[derive(Debug, Default)]
pub struct Guarding {
    /// Its own sets and chains.
    pub own: Fragment,
    /// Before conntrack: by which of its links what comes.
    pub by_link: Vec<Rule>,
    /// Sent by a pod of this node: first of all by one of unknown address, and last by any other.
    pub from_pods: Vec<Rule>,
    /// By the node's other links: before and after all that may not come by them.
    pub from_wire: [Vec<Rule>; 2],
    /// Sent by the node, before conntrack.
    pub sent: Vec<Rule>,
    /// Forwarded to no pod of this node.
    pub onward: Vec<Rule>,
    /// Taken by the node.
    pub taken: Vec<Rule>,
}
