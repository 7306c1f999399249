//! Who may send what by which link: everything else is dropped before conntrack sees it, so that a forged packet begins
//! no flow, answers none and ends none.
//!
//! ```text
//!   pod ── veth ──(bridge plumb: its own MAC and addresses)── cni0 ──(inet plumb: a pod of this node)── node
//!   node2 ── UDP 8472 ──(inet plumb: from a node, and inside only that node's pods)── plumb.1 ── node
//!   anybody ── uplink ──(inet plumb: no address of a pod or Service)── node
//! ```
//!
//! The port by which a frame comes is known to the bridge's hooks only: behind them all pods come by `cni0`.

pub mod cause;
pub mod further;
pub mod links;
pub mod ports;

use kstate::nft::{TableFamily, TableId};
use model::Cluster;
use types::wire::TABLE;

use crate::Settings;
use crate::fragment::{Fragment, Unit};

/// A table of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    Links,
    Ports,
}

impl Guard {
    pub const ALL: [Self; 2] = [Self::Links, Self::Ports];

    pub fn table(self) -> TableId {
        let family = match self {
            Self::Links => TableFamily::Inet,
            Self::Ports => TableFamily::Bridge,
        };
        TableId { family, name: TABLE.into() }
    }

    /// Whether such a unit has anything to say here.
    pub fn concerns(self, unit: &Unit) -> bool {
        match unit {
            Unit::Base | Unit::Attachment(_) => true,
            Unit::Node(_) => self == Self::Links,
            Unit::Service(_) | Unit::Pod(_) => false,
        }
    }

    pub fn fragment(self, cluster: &Cluster, settings: &Settings, unit: &Unit) -> Fragment {
        let fragment = match (self, unit) {
            (Self::Links, Unit::Base) => Some(links::base(cluster, settings)),
            (Self::Ports, Unit::Base) => Some(ports::base()),
            (Self::Links, Unit::Attachment(container)) => {
                cluster.attachments.get(container).map(|attachment| links::pod(attachment))
            }
            (Self::Ports, Unit::Attachment(container)) => cluster
                .attachments
                .get(container)
                .map(|attachment| ports::pod((cluster, settings), attachment)),
            (Self::Links, Unit::Node(name)) if *name != settings.node => {
                cluster.nodes.get(name).map(links::peer)
            }
            _ => None,
        };
        fragment.unwrap_or_default()
    }
}
