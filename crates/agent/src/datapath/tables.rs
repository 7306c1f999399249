//! nf_tables: rules, sets, maps.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use compile::backend::nftables::Composed;
use compile::guard::{Guard, links};
use compile::{Pieces, layout};
use kernel::nft::{ApplyError, Nft, Observed};
use kstate::nft::{ElemData, ElemKey, Heir, Plan, Ruleset, TableId};
use types::Family;
use types::wire::TRACE_TABLE;

use super::{KernelPart, Steps};
use crate::actual;
use crate::drops::Drops;

#[derive(Debug)]
pub struct Tables {
    nft: Nft,
    /// The generation at which the kernel's tables were known to be right. As long as only we have raised it, they
    /// are, and need no look, however many Services there are.
    right_at: Option<u32>,
    /// Others read it.
    composed: Arc<Mutex<Composed>>,
    /// What of it was not given to the kernel yet.
    open: Plan,
    drops: Drops,
}

/// Whether it is known already who may send by which link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// No table of ours is there.
    Nothing,
    Whole,
    /// By tables of an earlier version, or in part.
    Otherwise,
}

/// Elements by table and set.
type Inherited = BTreeMap<(TableId, Arc<str>), BTreeMap<ElemKey, ElemData>>;

fn steps_of(plan: &Plan, desired: &Ruleset, actual: &Ruleset) -> Steps {
    plan.ops.iter().map(|op| kstate::nft::Difference { op, desired, actual }).collect()
}

impl KernelPart for Tables {
    fn take(&mut self, pieces: Pieces) {
        let Pieces::Nftables(pieces) = pieces;
        let plan = self.held().compose(pieces);
        self.open.ops.extend(plan.ops);
    }

    fn update(&mut self) -> Option<Result<()>> {
        let plan = std::mem::take(&mut self.open);
        (!plan.is_empty()).then(|| {
            let (right_at, desired) = (self.right_at.take(), self.desired());
            self.drops.keep_before(&plan);
            self.right_at = self.applied(right_at, |nft| nft.apply(&plan, &desired))?;
            Ok(())
        })
    }

    fn is_untouched(&mut self) -> Result<bool> {
        Ok(match self.right_at.take() {
            Some(right_at) if right_at == self.nft.generation()? => {
                self.right_at = Some(right_at);
                true
            }
            _ => false,
        })
    }

    fn differ(&mut self, go_on: &dyn Fn() -> bool) -> Result<Option<Steps>> {
        let desired = self.desired();
        let seen = self.plan(&desired, go_on)?;
        Ok(seen.map(|(plan, observed)| steps_of(&plan, &desired, &observed.ruleset)))
    }

    fn converge(&mut self, go_on: &dyn Fn() -> bool) -> Result<Option<Steps>> {
        self.open = Plan::default();
        let desired = self.desired();
        self.make(&desired, go_on)
    }

    fn guarded(&mut self) -> Result<Guarded> {
        let mut found = Vec::new();
        for table in actual::our_tables() {
            found.extend(self.nft.chains(&table)?.map(|chains| (table, chains)));
        }
        let has_guard = |table: &TableId| {
            let has = |chain: &str| {
                found.iter().any(|(other, chains)| other == table && chains.contains_key(chain))
            };
            has(layout::RAW) && has(links::FROM_WIRE)
        };
        Ok(match found.is_empty() {
            true => Guarded::Nothing,
            false if Guard::Links.tables().iter().all(has_guard) => Guarded::Whole,
            false => Guarded::Otherwise,
        })
    }

    fn begin(&mut self, guard: Pieces) -> Result<()> {
        let Pieces::Nftables(guard) = guard;
        let mut first = Composed::default();
        first.compose(guard);
        self.make(first.ruleset(), &|| true)?;
        self.right_at = None;
        Ok(())
    }

    /// Those of traces, too, which are no drift while an agent runs.
    fn clear(&mut self) -> Result<Steps> {
        let of_traces = Family::ALL.map(|family| TableId { family: family.into(), name: TRACE_TABLE.into() });
        let all: Vec<TableId> = actual::our_tables().into_iter().chain(of_traces).collect();
        let observed = self.nft.observe(&all)?;
        let plan = kstate::nft::diff(&Ruleset::default(), &observed.ruleset);
        self.nft.apply(&plan, &observed.ruleset)?;
        self.right_at = None;
        Ok(plan.ops.iter().collect())
    }
}

impl Tables {
    /// In the network namespace of the calling thread. `drops`: what rules have counted before they are rewritten.
    pub fn open(drops: Drops) -> Result<Self> {
        let nft = Nft::open()?;
        drops.open()?;
        Ok(Self { nft, right_at: None, composed: Arc::default(), open: Plan::default(), drops })
    }

    /// What pieces have come to, for who reads it.
    pub fn composed(&self) -> Arc<Mutex<Composed>> {
        Arc::clone(&self.composed)
    }

    fn held(&self) -> MutexGuard<'_, Composed> {
        self.composed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn desired(&self) -> Arc<Ruleset> {
        Arc::clone(self.held().ruleset())
    }

    /// Marks our own transactions among those that the kernel tells of.
    pub fn portid(&self) -> u32 {
        self.nft.portid()
    }

    /// The generation after our own transactions.
    fn applied(
        &mut self,
        from: Option<u32>,
        apply: impl FnOnce(&mut Nft) -> Result<(), ApplyError>,
    ) -> Result<Option<u32>> {
        let before = self.nft.committed();
        apply(&mut self.nft)?;
        Ok(from.map(|generation| generation.wrapping_add(self.nft.committed().wrapping_sub(before))))
    }

    /// The steps by which the kernel's tables differ from what they should be.
    fn plan(&mut self, desired: &Ruleset, go_on: &dyn Fn() -> bool) -> Result<Option<(Plan, Observed)>> {
        let observed = actual::tables_while(&mut self.nft, go_on)?;
        Ok(observed.map(|observed| (kstate::nft::diff(desired, &observed.ruleset), observed)))
    }

    /// Looks, compares, mends.
    fn make(&mut self, desired: &Ruleset, go_on: &dyn Fn() -> bool) -> Result<Option<Steps>> {
        self.right_at = None;
        let Some((mut plan, observed)) = self.plan(desired, go_on)? else { return Ok(None) };
        let steps = steps_of(&plan, desired, &observed.ruleset);
        plan.begin_with(self.inherited(desired, &observed.ruleset));
        self.drops.keep_before(&plan);
        // Layouts of sets that exist come from the actual state, those of new ones from the plan.
        let actual = &observed.ruleset;
        self.right_at = match plan.is_empty() {
            true => Some(observed.generation),
            false => self.applied(Some(observed.generation), |nft| nft.apply(&plan, actual))?,
        };
        Ok(Some(steps))
    }

    /// What sets under new names take over from those under the old ones: the clients of an agent of before keep their
    /// endpoints. Without it they would be drawn anew, which is no reason to leave the rest as it is.
    fn inherited(&mut self, desired: &Ruleset, actual: &Ruleset) -> Inherited {
        let mut found = Inherited::new();
        for Heir { table, set, of } in kstate::nft::heirs(desired, actual) {
            match self.nft.remembered(&table, &of) {
                Ok(clients) => _ = found.insert((table, set), clients),
                Err(error) => {
                    tracing::warn!(%error, "clients in the set {of} of table {table} are drawn anew: it cannot be read");
                }
            }
        }
        found
    }
}
