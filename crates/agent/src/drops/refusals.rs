//! What policies, Services and the rest of `ip plumb` and `ip6 plumb` refused, from the kernel's own counters. Nobody is
//! told by Events: that a policy drops is what it is for.
//!
//! ```text
//!   somebody asks ─> all rules of both tables       at most a twentieth of the time is spent on it
//!   a plan ────────> the chains that it rewrites     what they counted would be lost
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use compile::refusal::Refusal;
use kernel::nft::Nft;
use kstate::nft::{Op, Plan, TableId};
use netlink::nft::CountedRule;
use types::Family;
use types::wire::TABLE;

use super::FRESH;

/// Rules grow with policies: a look is as old as this many times what it took.
const SHARE: u32 = 20;
/// More chains than this are read with their tables.
const ONE_BY_ONE: usize = 16;
/// So many rules that are gone are nothing to look for.
const STALE: usize = 64;

/// The counters of this node; clones are of one.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    nft: Option<Nft>,
    fresh_until: Option<Instant>,
    rules: BTreeMap<(TableId, u64), u64>,
    /// How many of them the last look at all of them found.
    found: usize,
    totals: BTreeMap<Refusal, u64>,
}

fn tables() -> [TableId; 2] {
    Family::ALL.map(|family| TableId { family: family.into(), name: TABLE.into() })
}

impl Refusals {
    /// From now on counters are read, in the network namespace of the calling thread.
    pub fn open(&self) -> Result<(), kernel::Error> {
        self.state().nft = Some(Nft::open()?);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Packets by refusal, since the tables were made or the agent began, whichever came later for a rule. Of every one.
    pub fn totals(&self) -> Vec<(Refusal, u64)> {
        let mut state = self.state();
        if state.fresh_until.is_none_or(|until| Instant::now() >= until) {
            state.look();
        }
        let total = |refusal: &Refusal| state.totals.get(refusal).copied().unwrap_or_default();
        Refusal::ALL.iter().map(|refusal| (*refusal, total(refusal))).collect()
    }

    /// To be called before this plan is carried out.
    pub fn keep_before(&self, plan: &Plan) {
        let Some(chains) = rewritten(plan) else { return };
        let mut state = self.state();
        match chains.len() > ONE_BY_ONE || state.is_stale() {
            true => state.look(),
            false => state.look_at(&chains),
        }
    }
}

/// The chains of our tables whose rules this plan replaces; `None`: none. A table that is deleted was not ours to keep.
fn rewritten(plan: &Plan) -> Option<BTreeSet<(&TableId, &str)>> {
    let tables = tables();
    let (mut chains, mut made) = (BTreeSet::new(), BTreeSet::new());
    for op in plan.ops.iter().filter(|op| tables.contains(op.table())) {
        match op {
            Op::AddChain { table, chain, .. } => _ = made.insert((table, chain.as_str())),
            Op::SetRules { table, chain, .. } | Op::DeleteChain { table, chain } => {
                chains.insert((table, chain.as_str()));
            }
            _ => {}
        }
    }
    chains.retain(|chain| !made.contains(chain));
    (!chains.is_empty()).then_some(chains)
}

impl State {
    /// What cannot be read now is read the next time: the counters are the kernel's.
    fn look(&mut self) {
        let began = Instant::now();
        let Some(nft) = &mut self.nft else { return };
        let looked = tables().iter().map(|table| nft.counted_rules(table)).collect::<Result<Vec<_>, _>>();
        match looked {
            Ok(rules) => self.keep(rules.concat()),
            Err(error) => tracing::debug!(%error, "what rules refused cannot be read"),
        }
        self.fresh_until = Some(Instant::now() + FRESH.max(began.elapsed() * SHARE));
    }

    fn look_at(&mut self, chains: &BTreeSet<(&TableId, &str)>) {
        let Some(nft) = &mut self.nft else { return };
        let mut rules = Vec::new();
        for (table, chain) in chains {
            match nft.counted_rules_of(table, chain) {
                Ok(found) => rules.extend(found),
                Err(error) => tracing::debug!(%error, chain, "what a chain refused cannot be read"),
            }
        }
        self.add(rules);
    }

    /// Most of what is known is of rules that are gone: each plan leaves some, and only a look at all finds out.
    fn is_stale(&self) -> bool {
        self.rules.len() > 2 * self.found + STALE
    }

    /// These are all that there are.
    fn keep(&mut self, rules: Vec<CountedRule>) {
        let there: BTreeSet<_> = rules.iter().map(|rule| (rule.table.clone(), rule.handle)).collect();
        self.add(rules);
        self.rules.retain(|rule, _| there.contains(rule));
        self.found = self.rules.len();
    }

    /// A rule that was not there before has counted all that it shows; one that shows less than before was made anew.
    fn add(&mut self, rules: Vec<CountedRule>) {
        for CountedRule { table, handle, comment, packets, .. } in rules {
            let Some(refusal) = Refusal::of_comment(&comment) else { continue };
            let known = self.rules.insert((table, handle), packets).filter(|known| *known <= packets);
            *self.totals.entry(refusal).or_default() += packets - known.unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(handle: u64, comment: &str, packets: u64) -> CountedRule {
        let [table, _] = tables();
        CountedRule { table, chain: "in_1".into(), handle, comment: comment.into(), packets }
    }

    const DENY: &str = "deny ingress: shop/db";

    #[test]
    fn totals_grow_over_chains_that_are_made_anew() {
        let mut state = State::default();
        let mut total = |all: bool, rules: Vec<CountedRule>| {
            if all {
                state.keep(rules)
            } else {
                state.add(rules)
            }
            state.totals.get(&Refusal::Ingress).copied().unwrap_or_default()
        };
        assert_eq!(total(true, vec![counted(3, DENY, 5), counted(4, "no endpoint", 9)]), 5);
        // One chain alone, before it is rewritten; the other rule is still known afterwards.
        assert_eq!(total(false, vec![counted(3, DENY, 7)]), 7);
        assert_eq!(total(true, vec![counted(9, DENY, 1), counted(4, "no endpoint", 9)]), 8);
        assert_eq!(total(true, vec![counted(9, DENY, 0)]), 8, "the table was made anew");
        assert_eq!(state.totals.get(&Refusal::NoEndpoint), Some(&9));
    }

    /// Nobody scrapes, and policies come and go.
    #[test]
    fn what_is_known_of_rules_that_are_gone_has_an_end() {
        let mut state = State::default();
        let mut most = 0;
        for handle in 0..10_000 {
            match state.is_stale() {
                true => state.keep(vec![counted(handle, DENY, 1)]),
                false => state.add(vec![counted(handle, DENY, 1)]),
            }
            most = most.max(state.rules.len());
        }
        assert!(most < 2 * STALE, "{most}");
        assert_eq!(state.totals.get(&Refusal::Ingress), Some(&10_000));
    }

    #[test]
    fn only_chains_that_lose_their_counters_are_read_before_a_plan() {
        let [table, _] = tables();
        let other = TableId { name: "other".into(), ..table.clone() };
        let rules = |table: &TableId, chain: &str| Op::SetRules {
            table: table.clone(),
            chain: chain.into(),
            rules: Vec::new(),
        };
        let made = Op::AddChain { table: table.clone(), chain: "new".into(), base: None };
        let gone = Op::DeleteChain { table: table.clone(), chain: "gone".into() };
        let plan = Plan {
            ops: vec![made, rules(&table, "new"), rules(&table, "old"), rules(&other, "theirs"), gone],
        };
        assert_eq!(rewritten(&plan), Some([(&table, "gone"), (&table, "old")].into()));
        assert_eq!(rewritten(&Plan { ops: vec![rules(&other, "theirs")] }), None);
    }
}
