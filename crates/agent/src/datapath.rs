//! The kernel as the loop sees it, part by part: believed state, small changes, and full comparison. Clean-up is the same with
//! nothing desired.
//!
//! ```text
//!   Subsystem  part    made of                       its compiled state
//!   Nft        Tables  everything (model::Synced)    of Pieces (compile/backend.rs), in Tables itself
//!   Net        Links   Nodes, attachments (Placed)   Compiler::net
//! ```
//! Another part is a file here, a variant of [`Subsystem`] and a line of [`Datapath::part`]; that of another backend has a line
//! of [`Datapath::take`], too.

mod links;
mod steps;
mod tables;

use std::net::IpAddr;

use anyhow::Result;
use compile::{Compiled, Compiler, Pieces};
use types::IfName;

use crate::drops::Drops;
use crate::flows::Flows;

pub use links::{Links, listening_scope};
pub use steps::Steps;
pub use tables::{Guarded, Tables};

/// Part of the kernel that the node makes, and that somebody (we ourselves, perhaps) has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subsystem {
    Nft,
    Net,
}

impl Subsystem {
    pub const ALL: [Self; 2] = [Self::Nft, Self::Net];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Net => "net",
        }
    }

    /// When the kernel refuses a change of it.
    pub fn where_to_look(self) -> &'static str {
        match self {
            Self::Nft => "`nft list ruleset` on the node; a table with an owner goes when that program ends",
            Self::Net => "`ip -d link show` on the node",
        }
    }

    /// Whether it is made before everything is listed, of Nodes and attachments.
    pub fn is_early(self) -> bool {
        match self {
            Self::Nft => false,
            Self::Net => true,
        }
    }
}

/// One thing that can be observed, compared, changed and emptied.
pub trait KernelPart {
    /// Carries out what the compiler says has changed; `None`: nothing of this part has.
    fn update(&mut self, change: &Compiled, desired: &Compiler) -> Option<Result<()>>;

    /// Whether it is known without a look that nobody else has changed anything since it was right.
    fn is_untouched(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Looks and compares.
    fn differ(&mut self, desired: &Compiler) -> Result<Found>;

    /// Looks, compares, mends.
    fn converge(&mut self, desired: &Compiler) -> Result<Found>;

    /// Takes away all that is recognised as ours (docs/ownership.md), whoever made it.
    fn clear(&mut self) -> Result<Steps>;
}

/// How the kernel differs, or did.
#[derive(Debug, Default)]
pub struct Found {
    pub steps: Steps,
    /// Pods' veths that are gone, which no plan makes.
    pub lost: Vec<IfName>,
}

impl From<Steps> for Found {
    fn from(steps: Steps) -> Self {
        Self { steps, lost: Vec::new() }
    }
}

#[derive(Debug)]
pub struct Datapath {
    pub tables: Tables,
    pub links: Links,
    pub flows: Flows,
}

impl Datapath {
    /// In the network namespace of the calling thread. `drops`: what rules have counted before they are rewritten. `dns_ips`:
    /// addresses of the loopback device that are ours.
    pub fn open(drops: Drops, dns_ips: &[IpAddr]) -> Result<Self> {
        let loopback = dns_ips.iter().copied().map(Into::into).collect();
        Ok(Self { tables: Tables::open(drops)?, links: Links::open(loopback)?, flows: Flows::open()? })
    }

    /// To the part that they are for.
    pub fn take(&mut self, pieces: Pieces) {
        match pieces {
            Pieces::Nftables(pieces) => self.tables.take(pieces),
        }
    }

    pub fn part(&mut self, subsystem: Subsystem) -> &mut dyn KernelPart {
        match subsystem {
            Subsystem::Nft => &mut self.tables,
            Subsystem::Net => &mut self.links,
        }
    }
}
