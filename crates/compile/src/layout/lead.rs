//! Where a frontend leads, as a number that its element holds:
//!
//! ```text
//!   front: frontend ─> 3        leads: 3 ─> goto n3         draw one of three slots of ep
//!                                      0x01000003 ─> goto m3
//!                                      0xff000001 ─> goto rej
//!                                      0xff000004 ─> goto pinned ─> svc: frontend ─> its own chain
//! ```
//!
//! Why not straight to the chain: when an element leads to another chain the kernel walks all elements of all verdict
//! maps of the table (nft_table_validate), which at 50,000 Services takes it 16 ms. A number may change for nothing, and
//! `leads` has an element for each number of endpoints that some Service has.
//!
//! The number goes from one map to the other through the packet's mark, which is as before when the rule's last expression
//! begins; nobody sees the packet in between, and nothing in between can end the rule. It could stay in its register,
//! but then `nft list` 1.0.6 aborts: it takes what a map yields to have no length (map_expr_alloc), and asserts that the
//! parts of a key have one (netlink_parse_concat_expr).

use kstate::nft::build::{self, encode, rule};
use kstate::nft::key::{self, Part};
use kstate::nft::{Chain, ElemData, Expr, Field, Rule, Set, SetData, Verdict};
use types::Family;

use super::mark_masquerade;
use super::{ENDPOINTS, FRONTENDS, LEADS, OUTSIDE, PINNED, PINNED_OUTSIDE, R0, REJECT, UNREACHABLE};
use crate::fragment::{Fragment, Name};
use crate::refusal::Refusal;
use semantics::service::cause::Lack;

/// What becomes of a new connection to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    Draw(Draw),
    Without(Lack),
    /// The node itself answers.
    Accept,
    /// Clients return to their endpoint: the frontend has a chain of its own.
    Pinned,
    /// The same in [`PINNED_OUTSIDE`].
    PinnedOutside,
}

/// How a chain draws an endpoint for a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// From how many: as many as the frontend has endpoints, or up to a quarter more.
    slots: u32,
    /// Where the frontend's slots begin: 0, or [`LOCAL_SLOTS`] for those that only the outside draws from.
    first_slot: u32,
    masquerade: bool,
}

/// More slots than a Service can have endpoints in reach of one node's memory.
pub const LOCAL_SLOTS: u32 = 1 << 16;

/// Up to so many slots the chains are always there: a rule that asks `ep` in a new chain has the kernel walk all its
/// elements (nf_tables_bind_set), 40 ms for 500,000.
const ALWAYS: u32 = 64;
/// From more slots than these not every number of them has a chain, but four between a power of two and the next.
const EXACT: u32 = 8;
/// How often an empty slot is drawn again, before one of those that are all filled.
const TRIES: usize = 3;

/// The first byte of numbers that are no draws, and of those that are: which of them.
const FIXED: u32 = 0xff << 24;
const KIND: u32 = 1 << 24;

impl Draw {
    /// For so many endpoints.
    pub fn of(count: u32, first_slot: u32, masquerade: bool) -> Self {
        let count = count.clamp(1, LOCAL_SLOTS);
        let slots = if count <= EXACT { count } else { count.next_multiple_of(step(count)) };
        Self { slots, first_slot, masquerade }
    }

    /// Whether its chain and its number are always there.
    pub fn is_always(self) -> bool {
        self.slots <= ALWAYS
    }

    /// The chain that all frontends share which draw alike: `n3`, masqueraded `m3`, of the outside's own slots `l3`.
    pub fn chain(self) -> String {
        let letters = match (self.first_slot, self.masquerade) {
            (0, false) => "n",
            (0, true) => "m",
            (_, false) => "l",
            (_, true) => "lm",
        };
        format!("{letters}{}", self.slots)
    }

    /// Whether some draw has a chain of this name.
    pub fn is_chain(name: &str) -> bool {
        let count = ["lm", "l", "m", "n"].into_iter().find_map(|letters| name.strip_prefix(letters));
        count.is_some_and(|count| !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()))
    }

    /// Draws a slot and goes where it leads; where it leads nowhere, draws again, and at last one of so many that all
    /// frontends of this chain have an endpoint in each: an endpoint beyond these is drawn 0.8 % too seldom at the worst.
    pub fn rules(self, family: Family) -> Chain {
        let one_of = |modulus| {
            let slot = Part::Slot { modulus, offset: self.first_slot };
            let (mut exprs, to) = key::load(family, R0, &[slot, Part::Daddr, Part::Proto, Part::Dport]);
            exprs.push(build::map(ENDPOINTS, R0, to));
            exprs.push(build::dnat(family, to, key::after(to, key::address(family))));
            rule("", exprs)
        };
        let mut rules = Vec::new();
        if self.masquerade {
            rules.push(mark_masquerade());
        }
        rules.push(one_of(self.slots));
        if self.slots > EXACT {
            rules.extend((1..TRIES).map(|_| one_of(self.slots)));
            rules.push(one_of(self.slots - step(self.slots)));
        }
        // For a packet that drew a slot which a shrinking service has just lost: slot 0 is always there.
        rules.push(one_of(1));
        rules.push(Refusal::EndpointsLeft.dropped([]));
        Chain { base: None, rules }
    }

    fn always() -> impl Iterator<Item = Self> {
        let ways = [(0, false), (0, true), (LOCAL_SLOTS, false), (LOCAL_SLOTS, true)];
        let counts = (1..=ALWAYS).filter(|count| Self::of(*count, 0, false).slots == *count);
        counts.flat_map(move |count| ways.map(|(first, masquerade)| Self::of(count, first, masquerade)))
    }
}

/// From one number of slots to the next, above [`EXACT`].
fn step(slots: u32) -> u32 {
    (slots - 1).checked_ilog2().map_or(1, |octave| (1_u32 << octave) / 4).max(1)
}

const NO_ENDPOINT: Lead = Lead::Without(Lack::Endpoint);
const NO_LOCAL_ENDPOINT: Lead = Lead::Without(Lack::LocalEndpoint);

impl Lead {
    const ALWAYS: [Self; 5] =
        [NO_ENDPOINT, NO_LOCAL_ENDPOINT, Self::Accept, Self::Pinned, Self::PinnedOutside];

    fn number(self) -> u32 {
        match self {
            Self::Draw(Draw { slots, first_slot, masquerade }) => {
                let kind = u32::from(masquerade) + 2 * u32::from(first_slot != 0);
                slots | (kind * KIND)
            }
            Self::Without(Lack::Endpoint) => FIXED | 1,
            Self::Without(Lack::LocalEndpoint) => FIXED | 2,
            Self::Accept => FIXED | 3,
            Self::Pinned => FIXED | 4,
            Self::PinnedOutside => FIXED | 5,
        }
    }

    fn verdict(self) -> Verdict {
        let goto = |chain: &str| Verdict::Goto(chain.to_owned());
        match self {
            Self::Draw(draw) => Verdict::Goto(draw.chain()),
            Self::Without(Lack::Endpoint) => goto(REJECT),
            Self::Without(Lack::LocalEndpoint) => goto(UNREACHABLE),
            Self::Accept => Verdict::Accept,
            Self::Pinned => goto(PINNED_CHAIN),
            Self::PinnedOutside => goto(PINNED_OUTSIDE_CHAIN),
        }
    }

    /// What a frontend's element holds.
    pub fn data(self) -> ElemData {
        ElemData::Value(encode(&[self.number().into()]))
    }

    /// Has the number lead there.
    pub fn known(self, fragment: &mut Fragment) {
        fragment.element(LEADS, encode(&[self.number().into()]), ElemData::Verdict(self.verdict()));
    }
}

/// Chains: the frontend's own chain, from [`PINNED`] and from [`PINNED_OUTSIDE`].
pub const PINNED_CHAIN: &str = "pinned";
pub const PINNED_OUTSIDE_CHAIN: &str = "pinnedx";

/// Whether elements of this map hold numbers of leads: they come after what they lead to and go before it.
pub fn holds_numbers(set: &str) -> bool {
    set == FRONTENDS || set == OUTSIDE
}

pub(super) fn sets(family: Family) -> [(&'static str, Set); 5] {
    use Field::{Mark, Port, Proto};
    let map = |data| super::set(&[key::address(family), Proto, Port], data);
    [
        (FRONTENDS, map(SetData::Values(vec![Mark]))),
        (OUTSIDE, map(SetData::Values(vec![Mark]))),
        (PINNED, map(SetData::Verdicts)),
        (PINNED_OUTSIDE, map(SetData::Verdicts)),
        (LEADS, super::set(&[Mark], SetData::Verdicts)),
    ]
}

/// The numbers that do not depend on any Service, and their chains.
pub(super) fn always(fragment: &mut Fragment, family: Family) {
    for lead in Lead::ALWAYS.into_iter().chain(Draw::always().map(Lead::Draw)) {
        lead.known(fragment);
    }
    for draw in Draw::always() {
        fragment.chains.insert(Name::Owned(draw.chain()), draw.rules(family));
    }
    for (chain, map) in [(PINNED_CHAIN, PINNED), (PINNED_OUTSIDE_CHAIN, PINNED_OUTSIDE)] {
        // The second rule is for a packet that came while the Service turned away from affinity.
        let rules =
            vec![rule("", super::translate::frontend(family, map)), Refusal::EndpointsLeft.dropped([])];
        fragment.chains.insert(Name::Borrowed(chain), Chain { base: None, rules });
    }
}

/// Goes where the destination's element in a map of numbers leads, after `conditions`.
pub(super) fn follow(family: Family, map: &str, conditions: impl IntoIterator<Item = Expr>) -> Rule {
    let (destination, spare) = key::load(family, R0, &[Part::Daddr, Part::Proto, Part::Dport]);
    let number = [build::map(map, R0, R0), build::set_mark(R0), build::mark(R0)];
    let exprs = conditions.into_iter().chain([build::mark(spare)]).chain(destination).chain(number);
    rule("the mark is put back", exprs.chain([build::set_mark(spare), build::vmap(LEADS, R0)]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kstate::nft::MetaKey;

    use super::*;

    #[test]
    fn each_lead_has_a_number_of_its_own() {
        let draws = [72, 1000, LOCAL_SLOTS].into_iter().flat_map(|count| {
            [(0, false), (0, true), (LOCAL_SLOTS, false), (LOCAL_SLOTS, true)]
                .map(|(first_slot, masquerade)| Draw::of(count, first_slot, masquerade))
        });
        let draws = draws.chain(Draw::always()).map(Lead::Draw);
        let all: Vec<Lead> = draws.chain(Lead::ALWAYS).collect();
        let numbers: BTreeSet<u32> = all.iter().map(|lead| lead.number()).collect();
        let verdicts: BTreeSet<Verdict> = all.iter().map(|lead| lead.verdict()).collect();
        assert_eq!((numbers.len(), verdicts.len()), (all.len(), all.len()));
    }

    /// A look-up that finds nothing ends the rule: none is between the two, and the second puts back what the first
    /// expression has read.
    #[test]
    fn the_mark_is_as_before_when_the_rule_leads_away() {
        for family in Family::ALL {
            let exprs = follow(family, FRONTENDS, []).exprs;
            let [Expr::Meta { dreg: kept, key: MetaKey::Mark }, rest @ ..] = &exprs[..] else {
                panic!("{exprs:?}")
            };
            let sets = |expr: &Expr| matches!(expr, Expr::MetaSet { .. });
            let first = rest.iter().position(sets).expect("the mark is set");
            let (before, after) = rest.split_at(first);
            let back = Expr::MetaSet { sreg: *kept, key: MetaKey::Mark };
            assert_eq!(after[1..], [build::mark(R0), back, build::vmap(LEADS, R0)]);
            let free = |expr: &Expr| match expr {
                Expr::Payload { dreg, len, .. } => u32::from(dreg.0) + len.div_ceil(4) <= u32::from(kept.0),
                Expr::Meta { dreg, .. } | Expr::LookupMap { dreg, .. } => dreg < kept,
                _ => false,
            };
            assert!(before.iter().all(free), "{exprs:?}");
        }
    }

    /// All slots of the last draw before slot 0 are filled, whatever the number of endpoints, and most of the first.
    #[test]
    fn few_draws_are_in_vain() {
        let slots = |count| Draw::of(count, 0, false).slots;
        assert_eq!([1, 2, 8, 9, 10, 11, 16, 17, 33, 64].map(slots), [1, 2, 8, 10, 10, 12, 16, 20, 40, 64]);
        for count in 1..=LOCAL_SLOTS {
            let slots = slots(count);
            assert!(count <= slots && (slots <= EXACT || slots - step(slots) < count), "{count}");
            assert!(slots * 4 < count * 5, "{count}");
        }
        assert_eq!(slots(LOCAL_SLOTS + 1), LOCAL_SLOTS);
        assert_eq!(Draw::always().count(), 4 * 20);
    }
}
