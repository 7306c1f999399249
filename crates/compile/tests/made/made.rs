//! A compiler and what its pieces come to, as one thread has both.

use compile::backend::nftables::Composed;
use compile::{Compiled, Compiler, Pieces};
use kstate::nft::{Plan, Ruleset};
use model::{Key, Synced};
use semantics::Settings;

pub struct Made {
    pub compiler: Compiler,
    tables: Composed,
}

impl Made {
    pub fn new(settings: Settings) -> Self {
        Self { compiler: Compiler::new(settings), tables: Composed::default() }
    }

    /// What changes in the tables, and all else.
    pub fn update(&mut self, cluster: Synced<'_>, changed: &[Key]) -> (Plan, Compiled) {
        let mut round = self.compiler.update(cluster, changed);
        let composed = round.pieces.take().map(|Pieces::Nftables(pieces)| self.tables.compose(pieces));
        (composed.unwrap_or_default(), round)
    }

    pub fn nft(&self) -> &Ruleset {
        self.tables.ruleset()
    }
}
