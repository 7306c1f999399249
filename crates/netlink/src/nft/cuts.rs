//! Where a plan must be cut although the kernel performs each transaction whole. A packet takes its rules when it begins,
//! but asks each set when it comes to it, so one that is on its way while a transaction is performed meets old rules and
//! new elements, or the reverse:
//!
//! ```text
//!   add set, its elements      ── cut ── rules that lead to it    sets of ranges show what they hold only when the kernel
//!                                                                has gone through the whole transaction (`->commit`,
//!                                                                net/netfilter/nf_tables_api.c)
//!   rules that lead elsewhere  ── cut ── delete set              who has the old rules still asks it
//! ```
//! In between everything is as it was: [`kstate::nft::diff`] orders steps so that every cut is safe.

use std::collections::BTreeSet;

use kstate::nft::{Op, Plan, TableId, target};

type Names<'a> = BTreeSet<(&'a TableId, &'a str)>;

#[derive(Debug)]
pub struct Cuts<'a> {
    /// Sets that the plan deletes.
    doomed: Names<'a>,
    /// Sets and regular chains that the transaction adds, and whether there are sets of ranges among them.
    sets: Names<'a>,
    chains: Names<'a>,
    ranges: bool,
    /// It does more than take away.
    gives: bool,
}

impl<'a> Cuts<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        let doomed = plan.ops.iter().filter_map(|op| match op {
            Op::DeleteSet { table, set, .. } => Some((table, &**set)),
            _ => None,
        });
        let (sets, chains) = (Names::new(), Names::new());
        Self { doomed: doomed.collect(), sets, chains, ranges: false, gives: false }
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        self.sets.clear();
        self.chains.clear();
        (self.ranges, self.gives) = (false, false);
    }

    /// Whether these steps, which stay together, must be of the next transaction; if not, they are of this one.
    pub fn before(&mut self, steps: &'a [Op]) -> bool {
        let cut = steps.iter().any(|op| self.gives && self.takes(op) || self.ranges && self.leads(op));
        if !cut {
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

    fn note(&mut self, op: &'a Op) {
        self.gives |= !self.takes(op);
        match op {
            Op::AddSet { table, set, layout } => {
                self.sets.insert((table, set));
                self.ranges |= layout.interval;
            }
            Op::AddChain { table, chain, base: None } => _ = self.chains.insert((table, chain)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kstate::nft::build::{lookup, ret};
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
    fn sets_of_single_keys_may_come_with_what_leads_to_them() {
        let (old, new) = (ruleset("a", "old", false), ruleset("b", "new", false));
        let right = [
            "add set, add chain, set rules, add element, delete element, add element, flush chain",
            "delete set, delete chain",
        ];
        assert_eq!(transactions(&new, &old), right);
        assert_eq!(transactions(&new, &Ruleset::default()).len(), 1);
        assert_eq!(transactions(&old, &old), [] as [&str; 0]);
    }
}
