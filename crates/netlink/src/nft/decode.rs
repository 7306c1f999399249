//! Dumps as rulesets. Messages may come in any order of objects; the dump is whole when every request's answer
//! was taken. Counters, handles and elements that the packet path adds are no part of the value.

use std::collections::BTreeMap;
use std::sync::Arc;

use kstate::nft::{Chain, ElemData, ElemKey, Rule, Ruleset, Set, Table, TableId};

use super::encode::{decode_base, decode_comment};
use super::set::{self, RawElement, Shape};
use super::{NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE, expr, family_of};
use crate::message::Message;
use crate::nfnetlink::{self, DecodeError};

/// The kernel's number of every rule, in the order of the chain's rules: trace events name rules by it.
pub type Handles = BTreeMap<(TableId, String), Vec<u64>>;

/// A ruleset being read.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    ruleset: Ruleset,
    handles: Handles,
    raw: BTreeMap<(TableId, String), Vec<RawElement>>,
}

impl Dump {
    /// Takes one message. Objects of tables that were not seen themselves are left out.
    pub fn take(&mut self, message: &Message<'_>) -> Result<(), DecodeError> {
        let bad = DecodeError::new;
        let Some((family, attrs)) = nfnetlink::split(message) else { return Err(bad("an nf_tables header")) };
        let Some(family) = family_of(family) else { return Ok(()) };
        let table = nfnetlink::find(attrs, 1).and_then(nfnetlink::text).ok_or(bad("a table's name"))?;
        let id = TableId { family, name: table.into() };
        if message.kind == NEWTABLE {
            self.ruleset.tables.entry(id).or_default();
            return Ok(());
        }
        let Some(table) = self.ruleset.tables.get_mut(&id) else { return Ok(()) };
        match message.kind {
            NEWCHAIN => take_chain(table, attrs).ok_or(bad("a chain")),
            NEWRULE => {
                let (chain, handle, rule) = read_rule(&id, attrs).ok_or(bad("a rule"))?;
                // Chains are asked for first; one that is missing is in braces, or came after.
                if let Some(place) = table.chains.get_mut(&chain) {
                    place.rules.push(rule);
                    self.handles.entry((id, chain)).or_default().push(handle);
                }
                Ok(())
            }
            NEWSET => {
                let name = name(attrs, 2).ok_or(bad("a set's name"))?;
                if set::is_part_of_a_rule(attrs) {
                    return Ok(());
                }
                table.sets.insert(name.into(), set::decode_layout(attrs).ok_or(bad("a set"))?);
                Ok(())
            }
            NEWSETELEM => {
                let name = name(attrs, 2).ok_or(bad("a set's name"))?;
                let list = nfnetlink::find(attrs, 3).unwrap_or(&[]);
                self.raw.entry((id, name)).or_default().extend(set::decode_elements(list));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The sets whose elements are to be asked for: not those that the packet path fills.
    pub fn sets(&self) -> Vec<(TableId, String)> {
        let of = |(id, table): (&TableId, &Table)| {
            let wanted = |(_, set): &(&Arc<str>, &Set)| !set.dynamic;
            table
                .sets
                .iter()
                .filter(wanted)
                .map(|(name, _)| (id.clone(), name.to_string()))
                .collect::<Vec<_>>()
        };
        self.ruleset.tables.iter().flat_map(of).collect()
    }

    /// A dump goes on where it was by the number of elements it has told, and a hash table that is just growing has
    /// moved them by then: one that is told twice stands for another that is not told at all. The generation says
    /// nothing of it (nft_rhash_walk, lib/rhashtable.c).
    pub fn tells_an_element_twice(&self) -> bool {
        self.raw.values().any(|raw| {
            let mut known = std::collections::HashSet::with_capacity(raw.len());
            !raw.iter().all(|one| known.insert((&one.key, &one.key_end, one.closes)))
        })
    }

    /// What was told of a set that the packet path fills.
    pub fn remembered(mut self, table: &TableId, set: &str) -> BTreeMap<ElemKey, ElemData> {
        let raw = self.raw.remove(&(table.clone(), set.to_owned())).unwrap_or_default();
        set::join(raw, Shape::Single)
    }

    pub fn finish(mut self) -> (Ruleset, Handles) {
        for ((id, name), raw) in self.raw {
            if let Some(set) =
                self.ruleset.tables.get_mut(&id).and_then(|table| table.sets.get_mut(name.as_str()))
                && !set.dynamic
            {
                set.elements = set::join(raw, Shape::of(set));
            }
        }
        (self.ruleset, self.handles)
    }
}

fn name(attrs: &[u8], kind: u16) -> Option<String> {
    nfnetlink::find(attrs, kind).and_then(nfnetlink::text).map(str::to_owned)
}

fn take_chain(table: &mut Table, attrs: &[u8]) -> Option<()> {
    let base = nfnetlink::find(attrs, 4).and_then(|hook| {
        let policy = nfnetlink::find(attrs, 5).and_then(nfnetlink::be32);
        decode_base(hook, nfnetlink::text(nfnetlink::find(attrs, 7)?)?, policy)
    });
    // A chain in braces is part of the rule that leads to it, and goes with it.
    const BINDING: u32 = 1 << 2;
    if nfnetlink::find(attrs, 10).and_then(nfnetlink::be32).unwrap_or(0) & BINDING != 0 {
        return Some(());
    }
    let chain: &mut Chain = table.chains.entry(name(attrs, 3)?).or_default();
    chain.base = base;
    Some(())
}

fn read_rule(id: &TableId, attrs: &[u8]) -> Option<(String, u64, Rule)> {
    let chain = name(attrs, 2)?;
    let handle = nfnetlink::find(attrs, 3).and_then(nfnetlink::be64).unwrap_or(0);
    let exprs = expr::decode_all(nfnetlink::find(attrs, 4).unwrap_or(&[]), id.family)?;
    let comment = nfnetlink::find(attrs, 7).and_then(decode_comment).unwrap_or_default();
    Some((chain, handle, Rule { exprs, comment }))
}
