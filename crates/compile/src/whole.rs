//! Everything at once, with nf_tables: what a node's kernel should hold, as one value.

use std::collections::BTreeSet;
use std::sync::Arc;

use kstate::net::NetState;
use kstate::nft::Ruleset;
use model::Synced;
use semantics::{Diagnostic, Settings};

use crate::backend::nftables::Composed;
use crate::{Compiler, Pieces};

/// The whole desired state of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub nft: Ruleset,
    pub net: NetState,
    pub diagnostics: BTreeSet<Diagnostic>,
}

/// Compiles everything at once.
pub fn whole(cluster: Synced<'_>, settings: Settings) -> Desired {
    let (mut compiler, mut tables) = (Compiler::new(settings), Composed::default());
    let round = compiler.update(cluster, &[]);
    round.pieces.into_iter().for_each(|Pieces::Nftables(pieces)| drop(tables.compose(pieces)));
    Desired {
        diagnostics: compiler.diagnostics().cloned().collect(),
        net: compiler.net().clone(),
        nft: Arc::unwrap_or_clone(tables.into_ruleset()),
    }
}
