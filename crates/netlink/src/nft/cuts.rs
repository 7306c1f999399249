//! Where a plan must be cut although the kernel performs each transaction whole. A packet takes its rules when it begins,
//! but asks each set when it comes to it, so one that is on its way while a transaction is performed meets old rules and
//! new elements, or the reverse:
//!
//! ```text
//!   add element of ranges      ── cut ── what leads to it         sets of ranges show what they hold only when the kernel
//!                                                                has gone through the whole transaction (`->commit`,
//!                                                                net/netfilter/nf_tables_api.c)
//!   add chain, its rules       ── cut ── element that leads to it  who came before finds the new chain without rules
//!   rules that lead elsewhere  ── cut ── delete set              who has the old rules still asks it
//!   rules or values that do    ── cut ── delete element of map   who has the old number still asks for what it led to
//! ```
//! In between everything is as it was: [`kstate::nft::diff`] orders steps so that every cut is safe.

use std::collections::BTreeSet;

use kstate::nft::{ElemData, Op, Plan, Ruleset, SetData, TableId, target};

type Names<'a> = BTreeSet<(&'a TableId, &'a str)>;

#[derive(Debug)]
pub struct Cuts<'a> {
    known: &'a Ruleset,
    /// Sets that the plan deletes.
    doomed: Names<'a>,
    /// Sets of ranges that the plan adds.
    intervals: Names<'a>,
    /// Sets and regular chains that the transaction adds.
    sets: Names<'a>,
    chains: Names<'a>,
    /// It adds ranges.
    ranges: bool,
    /// It does more than take away.
    gives: bool,
    /// It has what was there before lead elsewhere.
    turns: bool,
}

impl<'a> Cuts<'a> {
    /// `known` tells the layout of sets that stay.
    pub fn new(plan: &'a Plan, known: &'a Ruleset) -> Self {
        let doomed = plan.ops.iter().filter_map(|op| match op {
            Op::DeleteSet { table, set, .. } => Some((table, &**set)),
            _ => None,
        });
        let doomed = doomed.collect();
        let (intervals, sets, chains) = Default::default();
        Self { known, doomed, intervals, sets, chains, ranges: false, gives: false, turns: false }
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        self.sets.clear();
        self.chains.clear();
        (self.ranges, self.gives, self.turns) = (false, false, false);
    }

    /// Whether these steps, which stay together, must be of the next transaction; if not, they are of this one.
    pub fn before(&mut self, steps: &'a [Op]) -> bool {
        let forgets = self.turns && self.forgets(steps);
        let cut = forgets
            || steps
                .iter()
                .any(|op| self.gives && self.takes(op) || self.ranges && self.leads(op) || self.is_early(op));
        if !cut {
            self.turns |= self.turns(steps);
            steps.iter().for_each(|op| self.note(op));
        }
        cut
    }

    fn takes(&self, op: &Op) -> bool {
        match op {
            Op::DeleteSet { .. } => true,
            Op::DeleteElement { table, set, .. } => self.doomed.contains(&(table, &**set)),
            _ => false,
        }
    }

    /// An element of a set that rules may ask already, to a chain that comes in this transaction.
    fn is_early(&self, op: &Op) -> bool {
        let Op::AddElement { table, set, data, .. } = op else { return false };
        let fresh = target(data).is_some_and(|chain| self.chains.contains(&(table, chain)));
        fresh && !self.sets.contains(&(table, &**set))
    }

    /// What a key leads to goes, and nothing comes in its place.
    fn forgets(&self, steps: &[Op]) -> bool {
        let [Op::DeleteElement { table, set, .. }] = steps else { return false };
        let known = self.known.tables.get(table).and_then(|table| table.sets.get(set));
        known.is_some_and(|set| set.data != SetData::None)
    }

    /// Rules that were there before, or what a key leads to that was.
    fn turns(&self, steps: &[Op]) -> bool {
        match steps {
            [Op::SetRules { table, chain, .. }] => !self.chains.contains(&(table, &**chain)),
            [Op::DeleteElement { key: old, .. }, Op::AddElement { key: new, data, .. }] => {
                old == new && matches!(data, ElemData::Value(_))
            }
            _ => false,
        }
    }

    /// From what was there before to what is new.
    fn leads(&self, op: &Op) -> bool {
        match op {
            Op::AddChain { base, .. } => base.is_some(),
            Op::SetRules { table, chain, rules } => {
                !rules.is_empty() && !self.chains.contains(&(table, &**chain))
            }
            Op::AddElement { table, set, data, .. } => {
                target(data).is_some() && !self.sets.contains(&(table, &**set))
            }
            _ => false,
        }
    }

    fn has_ranges(&self, table: &TableId, set: &str) -> bool {
        let known = || self.known.tables.get(table).and_then(|table| table.sets.get(set));
        self.intervals.contains(&(table, set)) || known().is_some_and(|set| set.interval)
    }

    fn note(&mut self, op: &'a Op) {
        self.gives |= !self.takes(op);
        match op {
            Op::AddSet { table, set, layout } => {
                self.sets.insert((table, set));
                if layout.interval {
                    self.intervals.insert((table, set));
                }
            }
            Op::AddElement { table, set, .. } => self.ranges = self.ranges || self.has_ranges(table, set),
            Op::AddChain { table, chain, base: None } => _ = self.chains.insert((table, chain)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kstate::nft::build::{lookup, map, ret, vmap};
    use kstate::nft::{
        Chain, ElemData, ElemKey, Field, Reg, Rule, Ruleset, Set, SetData, Table, TableFamily, Verdict, diff,
    };

    use super::super::{STOCK_LIMIT, Transactions};
    use super::*;

    fn id() -> TableId {
        TableId { family: TableFamily::Ip, name: "plumb".into() }
    }

    /// A key of a map leads to a chain that looks into a set.
    fn ruleset(chain: &str, set: &str, interval: bool) -> Ruleset {
        let rule = Rule { exprs: vec![lookup(set, Reg(0)), ret()], comment: String::new() };
        let chains = [(chain.to_owned(), Chain { base: None, rules: vec![rule] })];
        let mut map = Set::new([Field::Proto], SetData::Verdicts);
        let verdict = ElemData::Verdict(Verdict::Goto(chain.to_owned()));
        map.elements.insert(ElemKey::point([6].into()), verdict);
        let key = match interval {
            true => ElemKey::range([0, 80].into(), [0, 90].into()),
            false => ElemKey::point([0, 80].into()),
        };
        let ports = Set {
            interval,
            elements: [(key, ElemData::None)].into(),
            ..Set::new([Field::Port], SetData::None)
        };
        let sets = [(Arc::from("svc"), map), (Arc::from(set), ports)];
        Ruleset { tables: [(id(), Table { chains: chains.into(), sets: sets.into() })].into() }
    }

    /// The first words of each transaction's steps.
    fn transactions(desired: &Ruleset, actual: &Ruleset) -> Vec<String> {
        let plan = diff(desired, actual);
        let all = Transactions::new(&plan, actual, 1, STOCK_LIMIT);
        let ops = |range: std::ops::Range<usize>| plan.ops[range].iter();
        let words = |op: &Op| op.to_string().split(' ').take(2).collect::<Vec<_>>().join(" ");
        all.map(|one| ops(one.expect("it is written").ops).map(words).collect::<Vec<_>>().join(", "))
            .collect()
    }

    #[test]
    fn ranges_are_there_before_anything_leads_to_them_and_until_nobody_asks() {
        let (old, new) = (ruleset("a", "old", true), ruleset("b", "new", true));
        let right = [
            "add set, add chain, set rules, add element",
            "delete element, add element, flush chain",
            "delete set, delete chain",
        ];
        assert_eq!(transactions(&new, &old), right);
    }

    #[test]
    fn wherever_a_plan_is_cut_for_its_size_ranges_are_there_before_anything_leads_to_them() {
        let (old, new) = (ruleset("a", "old", true), ruleset("b", "new", true));
        let plan = diff(&new, &old);
        for limit in 1..2000 {
            for transaction in Transactions::new(&plan, &old, 1, limit) {
                let ops = &plan.ops[transaction.expect("it is written").ops];
                let adds = |name: &str| {
                    ops.iter().any(|op| matches!(op, Op::AddElement { set, .. } if &**set == name))
                };
                assert!(!(adds("new") && adds("svc")), "{limit}: {ops:?}");
            }
        }
    }

    #[test]
    fn chains_are_there_before_any_key_leads_to_them() {
        let (old, new) = (ruleset("a", "old", false), ruleset("b", "new", false));
        let right = [
            "add set, add chain, set rules, add element",
            "delete element, add element, flush chain",
            "delete set, delete chain",
        ];
        assert_eq!(transactions(&new, &old), right);
        assert_eq!(transactions(&new, &Ruleset::default()).len(), 1);
        assert_eq!(transactions(&old, &old), [] as [&str; 0]);
    }

    /// A frontend holds a number, by which a rule finds where to go.
    fn numbered(number: u8) -> Ruleset {
        let chain = format!("n{number}");
        let mut all = ruleset(&chain, "ep", false);
        let table = all.tables.get_mut(&id()).expect("the table");
        let mut leads = Set::new([Field::Mark], SetData::Verdicts);
        leads.elements.insert(ElemKey::point([number].into()), ElemData::Verdict(Verdict::Goto(chain)));
        let mut front = Set::new([Field::Proto], SetData::Values(vec![Field::Mark]));
        front.elements.insert(ElemKey::point([6].into()), ElemData::Value([number].into()));
        let exprs = vec![map("front", Reg(0), Reg(0)), vmap("leads", Reg(0))];
        let rules = vec![Rule { exprs, comment: String::new() }];
        table.chains.insert("services".to_owned(), Chain { base: None, rules });
        table.sets.remove("svc");
        table.sets.extend([(Arc::from("leads"), leads), (Arc::from("front"), front)]);
        all
    }

    #[test]
    fn who_has_an_old_number_still_finds_where_it_leads() {
        let right = [
            "add chain, set rules",
            "add element, delete element, add element",
            "delete element, flush chain, delete chain",
        ];
        assert_eq!(transactions(&numbered(4), &numbered(3)), right);
    }
}
