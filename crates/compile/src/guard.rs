//! Who may send what by which link: everything else is dropped before conntrack sees it, so that a forged packet begins
//! no flow, answers none and ends none.
//!
//! ```text
//!   pod ── veth ──(bridge plumb: its own MAC and addresses)── cni0 ──(ip plumb: a pod of this node)── node
//!   node2 ── UDP 8472 ──(ip plumb: from a node, and inside only that node's pods)── plumb.1 ── node
//!   anybody ── uplink ──(ip plumb: no address of a pod or Service)── node
//! ```
//! For IPv6 the same is in `ip6 plumb`. It is there without IPv6 pods, too, because the kernel speaks IPv6.
//!
//! The port by which a frame comes is known to the bridge's hooks only: behind them all pods come by `cni0`.

pub mod cause;
pub mod further;
pub mod links;
pub mod ports;

use kstate::nft::{TableFamily, TableId};
use types::Family;
use types::wire::TABLE;

/// A part of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// On the hooks of each family, beside what Services and policies have there: a packet pays for every hook.
    Links,
    /// On the bridge.
    Ports,
}

impl Guard {
    pub const ALL: [Self; 2] = [Self::Links, Self::Ports];

    /// Where its rules are.
    pub fn tables(self) -> Vec<TableId> {
        let table = |family| TableId { family, name: TABLE.into() };
        match self {
            Self::Links => Family::ALL.map(|family| table(family.into())).into(),
            Self::Ports => vec![table(TableFamily::Bridge)],
        }
    }
}
