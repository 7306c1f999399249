//! What a node means, in kernel state: one folder for each alternative and one row in [`of`]. Whoever needs pieces asks the
//! value for them, and knows none of them by name.
//!
//! ```text
//!   units that changed ── make ──> Pieces ── compose ──> its state, and a plan     the part of the kernel of the
//!   (semantics::unit)   here, pure           where the state is                    same alternative (agent/datapath)
//! ```
//! Pieces are values that need neither cluster nor state, so the two sides may be threads that do not wait for each other.

pub mod nftables;

use std::collections::BTreeSet;
use std::fmt::Debug;

use semantics::View;
use semantics::unit::Unit;

use crate::compiler::Findings;

/// The value of a choice, which has made nothing yet.
pub(crate) fn of(choice: types::Backend) -> Box<dyn Backend> {
    match choice {
        types::Backend::Nftables => Box::<nftables::Nftables>::default(),
    }
}

/// What one alternative makes of units.
pub(crate) trait Backend: Debug + Send {
    /// The pieces of these units, and of others that must join them. In parts or at once, whatever the order: they compose to
    /// the same state, as long as all that changed comes in the end.
    fn make(&mut self, view: &View<'_>, units: &BTreeSet<Unit>, findings: &mut Findings) -> Pieces;

    /// Those of a node that has nothing yet, before anything can come by its fabric: the guard, and no Service.
    fn guard_alone(&self, view: &View<'_>) -> Pieces;
}

/// What was made of some units.
#[derive(Debug, PartialEq, Eq)]
pub enum Pieces {
    Nftables(nftables::Pieces),
}

impl Pieces {
    /// With later ones in the place of those of the same units.
    pub fn then(self, later: Self) -> Self {
        let (Self::Nftables(before), Self::Nftables(later)) = (self, later);
        Self::Nftables(before.then(later))
    }
}
