//! Steps in words for people: what an object is, its table and its name, in one line. What a set or a chain holds is shown by
//! who lists it.

use std::fmt;

use super::{ElemData, ElemKey, Op, Ruleset, Set, Table, TableId};

/// What a step of a plan is there for: how the kernel differs from what it should be.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    pub op: &'a Op,
    pub desired: &'a Ruleset,
    pub actual: &'a Ruleset,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, desired, actual } = *self;
        let [wanted, found] = [desired, actual].map(|state| state.tables.get(op.table()));
        let of = |table: Option<&Table>, has: fn(&Table, &str) -> bool, name: &str| {
            table.is_some_and(|table| has(table, name))
        };
        // In the way of what it should be, or nobody's.
        let extra = |is_wanted: bool| if is_wanted { "is made otherwise" } else { "should not be there" };
        write!(f, "{}", Object { op, known: [desired, actual] })?;
        match op {
            Op::AddTable(_) | Op::AddChain { .. } | Op::AddSet { .. } | Op::AddElement { .. } => {
                f.write_str(" is missing")
            }
            Op::DeleteTable(_) => f.write_str(" should not be there"),
            Op::SetRules { chain, .. } if of(found, has_chain, chain) => f.write_str(" differ"),
            Op::SetRules { .. } => f.write_str(" are missing"),
            Op::DeleteChain { chain, .. } => write!(f, " {}", extra(of(wanted, has_chain, chain))),
            Op::DeleteSet { set, .. } => write!(f, " {}", extra(of(wanted, has_set, set))),
            Op::DeleteElement { set, key, .. } => {
                let set = wanted.and_then(|table| table.sets.get(set));
                write!(f, " {}", extra(set.is_some_and(|set| set.elements.contains_key(key))))
            }
        }
    }
}

fn has_chain(table: &Table, name: &str) -> bool {
    table.chains.contains_key(name)
}

fn has_set(table: &Table, name: &str) -> bool {
    table.sets.contains_key(name)
}

/// A step that the kernel was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub op: &'a Op,
    /// Of the sets that the step is about.
    pub known: &'a Ruleset,
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, known } = *self;
        let verb = match op {
            Op::AddTable(_) | Op::AddChain { .. } | Op::AddSet { .. } | Op::AddElement { .. } => "add",
            Op::SetRules { rules, .. } if rules.is_empty() => "take away",
            Op::SetRules { .. } => "write",
            Op::DeleteTable(_) | Op::DeleteChain { .. } | Op::DeleteSet { .. } | Op::DeleteElement { .. } => {
                "delete"
            }
        };
        write!(f, "{verb} {}", Object { op, known: [known, known] })?;
        match op {
            Op::AddElement { data: ElemData::Verdict(verdict), .. } => {
                write!(f, ", which leads to {verdict}")
            }
            _ => Ok(()),
        }
    }
}

/// What a step is about: `set ip plumb svc`.
struct Object<'a> {
    op: &'a Op,
    known: [&'a Ruleset; 2],
}

impl Object<'_> {
    fn set(&self, table: &TableId, name: &str) -> Option<&Set> {
        self.known.into_iter().find_map(|state| state.tables.get(table)?.sets.get(name))
    }

    fn element(
        &self,
        f: &mut fmt::Formatter<'_>,
        (table, set): (&TableId, &str),
        key: &ElemKey,
    ) -> fmt::Result {
        match self.set(table, set) {
            Some(known) => write!(f, "element {} of {} {table} {set}", known.show_key(key), known.word()),
            None => write!(f, "an element of set {table} {set}"),
        }
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Op::AddTable(table) | Op::DeleteTable(table) => write!(f, "table {table}"),
            Op::AddChain { table, chain, .. } | Op::DeleteChain { table, chain } => {
                write!(f, "chain {table} {chain}")
            }
            Op::SetRules { table, chain, .. } => write!(f, "the rules of chain {table} {chain}"),
            Op::AddSet { table, set, layout } | Op::DeleteSet { table, set, layout } => {
                write!(f, "{} {table} {set}", layout.word())
            }
            Op::AddElement { table, set, key, .. } | Op::DeleteElement { table, set, key } => {
                self.element(f, (table, set), key)
            }
        }
    }
}
