//! Tables of nf_tables: one for each family, and the guard's on the bridge.

mod family;

use std::collections::BTreeSet;
use std::sync::Arc;

use kstate::nft::{Plan, Ruleset};
use semantics::View;
use semantics::unit::Unit;
use types::Family;
use types::wire::TABLE;

use self::family::FamilyTable;
use super::Backend;
use crate::compiler::Findings;
use crate::fragment::{Composer, Fragment};
use crate::guard::{Guard, links};
use crate::{layout, wiring};

/// Makes the pieces.
#[derive(Debug)]
pub struct Nftables {
    /// One for each family.
    tables: [FamilyTable; 2],
}

/// Fragments by unit: of each family, and of each bridge.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    families: [Fragments; 2],
    bridges: Vec<Fragments>,
}

type Fragments = Vec<(Unit, Fragment)>;

impl Pieces {
    /// With later ones in the place of those of the same units.
    pub(super) fn then(mut self, later: Self) -> Self {
        let lists = self.families.iter_mut().chain(&mut self.bridges);
        for (list, later) in lists.zip(later.families.into_iter().chain(later.bridges)) {
            let again: BTreeSet<Unit> = later.iter().map(|(unit, _)| unit.clone()).collect();
            list.retain(|(unit, _)| !again.contains(unit));
            list.extend(later);
        }
        self
    }
}

/// The tables as they should be: what all pieces come to, whatever their order.
#[derive(Debug)]
pub struct Composed {
    families: [Composer; 2],
    bridges: Vec<Composer>,
    /// Whoever has it keeps what it was then: it is copied when it changes meanwhile.
    ruleset: Arc<Ruleset>,
}

impl Default for Nftables {
    fn default() -> Self {
        Self { tables: Family::ALL.map(FamilyTable::new) }
    }
}

impl Backend for Nftables {
    fn make(&mut self, view: &View<'_>, units: &BTreeSet<Unit>, findings: &mut Findings) -> super::Pieces {
        let families = self.tables.each_mut().map(|table| table.make(view, units, findings));
        let on_bridge = || {
            let units = units.iter().filter(|unit| matches!(unit, Unit::Base | Unit::Attachment(_)));
            units.map(|unit| (unit.clone(), family::on_bridge(view, unit))).collect()
        };
        let bridges = Guard::Ports.tables().into_iter().map(|_| on_bridge()).collect();
        super::Pieces::Nftables(Pieces { families, bridges })
    }

    fn guard_alone(&self, view: &View<'_>) -> super::Pieces {
        let (settings, topology) = (view.settings, view.topology());
        let families = Family::ALL.map(|family| {
            let peers = topology.peers();
            let peers =
                peers.map(|(name, peer)| (Unit::Node(name.to_owned()), links::peer(&peer, settings, family)));
            let links = links::base(&topology.sources(family), settings, family);
            peers.chain([(Unit::Base, layout::guard(links, settings, family))]).collect()
        });
        let guard = || vec![(Unit::Base, wiring::of(settings.wiring).guard())];
        let bridges = Guard::Ports.tables().into_iter().map(|_| guard()).collect();
        super::Pieces::Nftables(Pieces { families, bridges })
    }
}

impl Default for Composed {
    fn default() -> Self {
        Self {
            families: Family::ALL.map(|family| Composer::new(family, TABLE)),
            bridges: Guard::Ports.tables().into_iter().map(Composer::of).collect(),
            ruleset: Arc::default(),
        }
    }
}

impl Composed {
    /// Takes new pieces in the place of those of the same units; from the ruleset before to the ruleset now. A change of one
    /// endpoint is a few elements.
    pub fn compose(&mut self, Pieces { families, bridges }: Pieces) -> Plan {
        let composers = self.families.iter_mut().chain(&mut self.bridges);
        let mut plan = Plan::default();
        for (composer, fragments) in composers.zip(families.into_iter().chain(bridges)) {
            if !fragments.is_empty() {
                plan.ops.extend(composer.replace(Arc::make_mut(&mut self.ruleset), fragments).ops);
            }
        }
        plan
    }

    pub fn ruleset(&self) -> &Arc<Ruleset> {
        &self.ruleset
    }

    pub fn into_ruleset(self) -> Arc<Ruleset> {
        self.ruleset
    }
}
