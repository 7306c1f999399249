//! What the guards have dropped: read from the kernel's own counters, when somebody asks and before rules are rewritten,
//! which begins their counters anew.
//!
//! ```text
//!   counters of rules ──┬> totals by cause, which only grow     /metrics, at most once a second
//!   of uplinks' program ┘
//!   sets of senders ────> which port, which pod                 the loop, for Events; a trace
//! ```
//!
//! What is read grows with the rules of the guards (some ninety) and the ports that forge, not with pods or nodes.

mod refusals;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use compile::guard::cause::{Cause, KnownBy};
use compile::guard::{Guard, links};
use kernel::checksums::{self, Program};
use kernel::nft::Nft;
use kstate::nft::{Op, Plan, TableId};
use netlink::nft::CountedRule;
use types::IfName;

pub use refusals::Refusals;

/// Anybody may ask for metrics as often as he likes.
const FRESH: Duration = Duration::from_secs(1);
/// A dump of a set that the packet path changes may pass an element over.
const MISSED: u8 = 3;

/// Who sent what was dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Port(IfName),
    Pod(IpAddr),
}

/// What the kernel's counters say at one moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    rules: BTreeMap<(TableId, u64), Dropping>,
}

/// A rule that drops.
#[derive(Clone, Debug)]
struct Dropping {
    cause: Cause,
    chain: String,
    packets: u64,
}

impl Look {
    pub fn take(nft: &mut Nft) -> Result<Self, kernel::Error> {
        let mut counted = Vec::new();
        for table in Guard::Ports.tables() {
            counted.extend(nft.counted_rules(&table)?);
        }
        // The rest of these tables grows with policies.
        for table in Guard::Links.tables() {
            for chain in links::dropping() {
                counted.extend(nft.counted_rules_of(&table, chain)?);
            }
        }
        let dropping = |rule: CountedRule| {
            let cause = Cause::of_comment(&rule.comment)?;
            let dropping = Dropping { cause, chain: rule.chain, packets: rule.packets };
            Some(((rule.table, rule.handle), dropping))
        };
        Ok(Self { rules: counted.into_iter().filter_map(dropping).collect() })
    }

    /// The chain of a table that drops for this cause, or the first such one.
    pub fn chain(&self, cause: Cause, table: &TableId) -> Option<&str> {
        let mut rules = self.rules.iter();
        let of = rules.find(|((of, _), rule)| of == table && rule.cause == cause);
        of.map(|(_, rule)| rule.chain.as_str())
    }

    /// Where packets were dropped for this cause since the look before, and how many: table, chain.
    pub fn grown(&self, cause: Cause, before: &Self) -> BTreeMap<(&TableId, &str), u64> {
        let mut grown = BTreeMap::new();
        for (id, rule) in self.rules.iter().filter(|(_, rule)| rule.cause == cause) {
            let then = before.rules.get(id).map_or(0, |rule| rule.packets);
            // One that shows less was made anew.
            let more = rule.packets.checked_sub(then).unwrap_or(rule.packets);
            if more > 0 {
                *grown.entry((&id.0, rule.chain.as_str())).or_default() += more;
            }
        }
        grown
    }
}

/// Who sent what was dropped for this cause, as far as that is known.
/// By table, each of which counts by itself.
pub fn senders(nft: &mut Nft, cause: Cause) -> Result<BTreeMap<(TableId, Who), u64>, kernel::Error> {
    let mut found = BTreeMap::new();
    for (table, set) in cause.sets() {
        for (key, packets) in nft.counted_elements(&table, &set)? {
            if let Some(who) = who(cause.known_by(), &key) {
                found.insert((table.clone(), who), packets);
            }
        }
    }
    Ok(found)
}

fn who(sender: KnownBy, key: &[u8]) -> Option<Who> {
    match sender {
        KnownBy::Port => {
            let name = key.split(|byte| *byte == 0).next()?;
            Some(Who::Port(IfName::new(std::str::from_utf8(name).ok()?).ok()?))
        }
        KnownBy::Pod => {
            let v4 = <[u8; 4]>::try_from(key).map(IpAddr::from);
            Some(Who::Pod(v4.or_else(|_| <[u8; 16]>::try_from(key).map(IpAddr::from)).ok()?))
        }
        KnownBy::Unknown => None,
    }
}

/// What was dropped since the last time that this was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    pub known: Vec<(Cause, Who, u64)>,
    pub unknown: Vec<(Cause, u64)>,
}

/// The counters of this node; clones are of one.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    state: Arc<Mutex<State>>,
    /// What rules refused that are not the guard's.
    pub refusals: Refusals,
}

#[derive(Debug, Default)]
struct State {
    nft: Option<Nft>,
    looked: Option<Instant>,
    rules: BTreeMap<(TableId, u64), u64>,
    totals: BTreeMap<Cause, u64>,
    /// Totals of the last news; `None`: what was dropped before this agent began is not its news.
    told: Option<BTreeMap<Cause, u64>>,
    senders: BTreeMap<(Cause, (TableId, Who)), Counted>,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    packets: u64,
    missed: u8,
}

impl Drops {
    /// From now on counters are read, in the network namespace of the calling thread.
    pub fn open(&self) -> Result<(), kernel::Error> {
        self.state().nft = Some(Nft::open()?);
        self.refusals.open()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Packets by cause, since the guard was made. Of every cause.
    pub fn totals(&self) -> Vec<(Cause, u64)> {
        let mut state = self.state();
        if state.looked.is_none_or(|at| at.elapsed() >= FRESH) {
            state.look();
        }
        Cause::ALL.iter().map(|cause| (*cause, state.total(*cause))).collect()
    }

    /// To be called before this plan is carried out.
    pub fn keep_before(&self, plan: &Plan) {
        self.refusals.keep_before(plan);
        let [bridge, families] = [Guard::Ports.tables(), Guard::Links.tables()];
        let begins_anew = |op: &Op| match op {
            Op::SetRules { table, chain, .. } | Op::DeleteChain { table, chain } => {
                bridge.contains(table)
                    || families.contains(table) && links::dropping().any(|own| own == *chain)
            }
            Op::DeleteTable(table) => bridge.contains(table) || families.contains(table),
            _ => false,
        };
        if plan.ops.iter().any(begins_anew) {
            self.state().look();
        }
    }

    /// What was dropped since the last news, and by whom.
    pub fn news(&self) -> News {
        let mut state = self.state();
        state.look();
        state.news()
    }
}

impl State {
    fn total(&self, cause: Cause) -> u64 {
        self.totals.get(&cause).copied().unwrap_or_default()
    }

    /// What cannot be read now is read the next time: the counters are the kernel's.
    fn look(&mut self) {
        self.looked = Some(Instant::now());
        let Some(nft) = &mut self.nft else { return };
        match Look::take(nft) {
            Ok(look) => self.add(look),
            Err(error) => tracing::debug!(%error, "what the guards dropped cannot be read"),
        }
        match checksums::program().map(Program::dropped) {
            Ok(Ok(dropped)) => drop(self.totals.insert(Cause::ChecksumFromOutside, dropped)),
            Ok(Err(error)) => tracing::debug!(%error, "what the nodes' links dropped cannot be read"),
            Err(_none) => {}
        }
    }

    /// A rule that was not there before has counted all that it shows; one that shows less than before was made anew.
    fn add(&mut self, look: Look) {
        let before = std::mem::take(&mut self.rules);
        for (rule, Dropping { cause, packets, .. }) in look.rules {
            let known = before.get(&rule).copied().filter(|known| *known <= packets).unwrap_or_default();
            *self.totals.entry(cause).or_default() += packets - known;
            self.rules.insert(rule, packets);
        }
    }

    fn news(&mut self) -> News {
        let mut news = News::default();
        let first = self.told.is_none();
        let told = self.told.replace(self.totals.clone()).unwrap_or_default();
        for cause in Cause::ALL {
            let more = self.total(*cause) - told.get(cause).copied().unwrap_or_default();
            match cause.known_by() {
                _ if more == 0 => {}
                KnownBy::Unknown => news.unknown.push((*cause, more)),
                KnownBy::Port | KnownBy::Pod => {
                    let more = self.by_sender(*cause);
                    news.known.extend(more.into_iter().map(|(who, packets)| (*cause, who, packets)));
                }
            }
        }
        if first { News::default() } else { news }
    }

    /// What each sender has sent more.
    fn by_sender(&mut self, cause: Cause) -> BTreeMap<Who, u64> {
        let Some(nft) = &mut self.nft else { return BTreeMap::new() };
        let seen = senders(nft, cause).unwrap_or_else(|error| {
            tracing::debug!(%error, cause = cause.word(), "who forges cannot be read");
            BTreeMap::new()
        });
        self.senders.retain(|(of, who), counted| {
            let gone = *of == cause && !seen.contains_key(who);
            counted.missed += u8::from(gone);
            counted.missed < MISSED
        });
        let mut more = BTreeMap::new();
        for (who, packets) in seen {
            let known = self.senders.insert((cause, who.clone()), Counted { packets, missed: 0 });
            let known = known.map(|known| known.packets).filter(|known| *known <= packets);
            match packets - known.unwrap_or_default() {
                0 => {}
                new => *more.entry(who.1).or_default() += new,
            }
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(rules: &[(u64, Cause, u64)]) -> Look {
        let [table] = &Guard::Ports.tables()[..] else { panic!("one bridge") };
        let rule = |(handle, cause, packets): &(u64, Cause, u64)| {
            let dropping = Dropping { cause: *cause, chain: String::new(), packets: *packets };
            ((table.clone(), *handle), dropping)
        };
        Look { rules: rules.iter().map(rule).collect() }
    }

    #[test]
    fn totals_grow_over_rules_that_are_made_anew() {
        let mut state = State::default();
        let mut total = |rules: &[(u64, Cause, u64)]| {
            state.add(look(rules));
            state.total(Cause::ArpSender)
        };
        assert_eq!(total(&[(3, Cause::ArpSender, 5), (4, Cause::Ipv4Source, 9)]), 5, "what was there");
        assert_eq!(total(&[(3, Cause::ArpSender, 7), (5, Cause::ArpSender, 1)]), 8, "two rules");
        assert_eq!(total(&[(8, Cause::ArpSender, 2)]), 10, "another rule");
        assert_eq!(total(&[(8, Cause::ArpSender, 1)]), 11, "another table's rule of the same number");
        assert_eq!(total(&[]), 11, "none");
    }

    #[test]
    fn what_was_dropped_before_is_no_news() {
        let mut state = State::default();
        state.add(look(&[(3, Cause::InnerSource, 5)]));
        assert_eq!(state.news(), News::default());
        assert_eq!(state.news(), News::default());
        state.add(look(&[(3, Cause::InnerSource, 6)]));
        assert_eq!(state.news().unknown, [(Cause::InnerSource, 1)]);
    }

    #[test]
    fn keys_are_read_as_the_kernel_has_them() {
        let port = b"veth1\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(who(KnownBy::Port, port), Some(Who::Port(IfName::new("veth1").unwrap())));
        assert_eq!(who(KnownBy::Pod, &[10, 0, 0, 1]), Some(Who::Pod([10, 0, 0, 1].into())));
        assert_eq!(who(KnownBy::Pod, &[0; 5]), None);
    }
}
