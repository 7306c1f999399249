//! What a plan makes of a ruleset: the same steps on values that the kernel performs on its own.

use std::collections::BTreeMap;

use super::{Chain, Op, Plan, Ruleset, Set, Table};

impl Ruleset {
    /// Performs the plan. A step about what is not there does nothing, as in the kernel it would fail.
    pub fn edit(&mut self, plan: &Plan) {
        for op in &plan.ops {
            self.step(op);
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::AddTable(id) => {
                self.tables.entry(id.clone()).or_default();
            }
            Op::DeleteTable(id) => {
                self.tables.remove(id);
            }
            op => {
                if let Some(table) = self.tables.get_mut(op.table()) {
                    table.step(op);
                }
            }
        }
    }
}

impl Table {
    fn step(&mut self, op: &Op) {
        match op {
            Op::AddTable(_) | Op::DeleteTable(_) => {}
            Op::AddChain { chain, base, .. } => {
                self.chains.entry(chain.clone()).or_insert(Chain { base: *base, rules: Vec::new() });
            }
            Op::DeleteChain { chain, .. } => {
                self.chains.remove(chain);
            }
            Op::SetRules { chain, rules, .. } => {
                if let Some(chain) = self.chains.get_mut(chain) {
                    chain.rules.clone_from(rules);
                }
            }
            Op::AddSet { set, layout, .. } => {
                self.sets.entry(set.clone()).or_insert_with(|| layout.layout());
            }
            Op::DeleteSet { set, .. } => {
                self.sets.remove(set);
            }
            Op::AddElement { set, key, data, .. } => {
                if let Some(set) = self.sets.get_mut(set) {
                    set.elements.entry(key.clone()).or_insert_with(|| data.clone());
                }
            }
            Op::DeleteElement { set, key, .. } => {
                if let Some(set) = self.sets.get_mut(set) {
                    set.elements.remove(key);
                }
            }
        }
    }
}

impl Set {
    /// The set without its elements.
    pub fn layout(&self) -> Self {
        Self { elements: BTreeMap::new(), key: self.key.clone(), data: self.data.clone(), ..*self }
    }

    pub fn same_layout(&self, other: &Self) -> bool {
        let plain = |s: &Self| (s.interval, s.dynamic, s.timeout_ms, s.size);
        self.key == other.key && self.data == other.data && plain(self) == plain(other)
    }
}
