//! The kernel as the loop sees it, part by part: believed state, small changes, and full comparison. Clean-up is the same with
//! nothing desired.
//!
//! ```text
//!   Subsystem  part              made of                       its compiled state          on
//!   Nft        Backend (Tables)  everything (model::Synced)    of Pieces, in Tables        a thread of its own
//!   Net        Links             Nodes, attachments (Placed)   Compiler::net               the loop's
//! ```
//! That of another backend is a file beside `tables.rs` that is a [`KernelPart`], and a line of [`Backend::open`].

mod backend;
mod links;
mod tables;

use std::net::IpAddr;

use anyhow::Result;
use compile::Pieces;
use node::drift::Part;
use types::IfName;

use crate::drops::Drops;
use crate::flows::Flows;

pub use backend::{Answer, Backend, Followed, Look, Looked};
pub use links::{Links, listening_scope};
pub use node::Steps;
pub use tables::Guarded;
use tables::Tables;

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

    /// As drift knows it.
    pub fn part(self) -> Part {
        Part { name: self.name(), where_to_look: self.where_to_look() }
    }

    /// When the kernel refuses a change of it.
    fn where_to_look(self) -> &'static str {
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

/// What carries the pieces of one backend.
pub trait KernelPart: Send {
    /// New pieces in the place of those of the same units; the kernel follows later.
    fn take(&mut self, pieces: Pieces);

    /// Carries out what has changed by them; `None`: nothing has.
    fn update(&mut self) -> Option<Result<()>>;

    /// Whether it is known without a look that nobody else has changed anything since it was right.
    fn is_untouched(&mut self) -> Result<bool>;

    /// Looks and compares. It looks as long as `go_on` holds; `None`: given up, and nothing is done.
    fn differ(&mut self, go_on: &dyn Fn() -> bool) -> Result<Option<Steps>>;

    /// Looks, compares, mends; given up the same way.
    fn converge(&mut self, go_on: &dyn Fn() -> bool) -> Result<Option<Steps>>;

    /// What there is of the guard, of whichever process.
    fn guarded(&mut self) -> Result<Guarded>;

    /// Makes what these come to, before it is known what there should be in the end.
    fn begin(&mut self, guard: Pieces) -> Result<()>;

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

#[derive(Debug)]
pub struct Datapath {
    pub backend: Backend,
    pub links: Links,
    pub flows: Flows,
}

impl Datapath {
    /// In the network namespace of the calling thread. `drops`: what rules have counted before they are rewritten. `dns_ips`:
    /// addresses of the loopback device that are ours. `wake`: whoever reads the backend's answers.
    pub fn open(
        choice: types::Backend,
        drops: Drops,
        dns_ips: &[IpAddr],
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self> {
        let loopback = dns_ips.iter().copied().map(Into::into).collect();
        let backend = Backend::open(choice, drops, wake)?;
        Ok(Self { backend, links: Links::open(loopback)?, flows: Flows::open()? })
    }

    /// Takes away all that is recognised as ours (docs/ownership.md), whoever made it.
    pub fn clear(&mut self, subsystem: Subsystem) -> Result<Steps> {
        match subsystem {
            Subsystem::Nft => self.backend.clear(),
            Subsystem::Net => self.links.clear(),
        }
    }
}
