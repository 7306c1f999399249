//! What holds beyond one round of the loop, for `plumb status`: when the kernel was last known to be right, what
//! differs while nobody mends it, which watches broke.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::Kind;

use crate::datapath::Steps;
use crate::datapath::Subsystem;
use crate::fault::Fault;
use crate::tell::Saying;

/// One cause is said again in the log after this long.
const REMINDER: Duration = Duration::from_secs(60);
/// So many causes are said within that time: words that are never the same twice fill no log.
const CAUSES: usize = 16;

/// So many differences of one drift are told at most: words that are new with each look make no Events without end.
const MANY: usize = 1024;

/// Of one drift: the differences that are known from its Events, and those Events.
#[derive(Debug, Default)]
struct Told {
    known: BTreeSet<String>,
    events: Vec<Saying>,
}

#[derive(Debug, Default)]
pub struct Standing {
    /// When the kernel was last made, or found, what it should be.
    right: BTreeMap<Subsystem, Instant>,
    /// What differs: there while the agent is paused, or the kernel refuses.
    drift: BTreeMap<Subsystem, Steps>,
    /// What was told of drift that stands.
    drift_told: BTreeMap<Subsystem, Told>,
    /// Watches that broke and have not been answered since.
    watches: BTreeMap<Kind, Fault>,
    /// Why watches broke within [`REMINDER`], as the log has it.
    told: Vec<(Instant, String)>,
    /// The compiler's findings that hold.
    pub(super) found: BTreeSet<semantics::Diagnostic>,
}

impl Standing {
    /// The kernel took a change or a comparison ended well. What differs while paused stays wrong.
    pub(super) fn is_right(&mut self, subsystem: Subsystem) {
        if !self.drift.contains_key(&subsystem) {
            self.right.insert(subsystem, Instant::now());
        }
    }

    pub(super) fn differs(&mut self, subsystem: Subsystem, left: &Steps) {
        match left.count {
            0 => drop(self.drift.remove(&subsystem)),
            _ => drop(self.drift.insert(subsystem, left.clone())),
        }
    }

    /// What there is to tell of drift that stands, if anything is new in it: that first.
    pub(super) fn news_of_drift(&mut self, subsystem: Subsystem, steps: Steps) -> Option<Steps> {
        let told = self.drift_told.entry(subsystem).or_default();
        let is_known = told.known.len() >= MANY || steps.known().iter().all(|step| told.known.contains(step));
        if is_known {
            return None;
        }
        let steps = steps.new_first(&told.known);
        told.known.extend(steps.known().iter().cloned());
        Some(steps)
    }

    pub(super) fn told_drift(&mut self, subsystem: Subsystem, event: Saying) {
        self.drift_told.entry(subsystem).or_default().events.push(event);
    }

    /// Nothing differs any more; what was told of it, and which differences these were.
    pub(super) fn end_drift(&mut self, subsystem: Subsystem) -> (Vec<Saying>, Vec<String>) {
        let told = self.drift_told.remove(&subsystem).unwrap_or_default();
        (told.events, told.known.into_iter().collect())
    }

    /// Whether that is news: all watches break where one does for the API's sake, and again with every try.
    pub(super) fn watch_broke(&mut self, kind: Kind, fault: Fault) -> bool {
        let now = Instant::now();
        let is_news = self.is_news(&fault.what, now);
        self.watches.insert(kind, fault);
        is_news
    }

    fn is_news(&mut self, why: &str, now: Instant) -> bool {
        self.told.retain(|(at, _)| now.duration_since(*at) < REMINDER);
        let cause = cause(why);
        let is_news = self.told.len() < CAUSES && !self.told.iter().any(|(_, told)| *told == cause);
        if is_news {
            self.told.push((now, cause));
        }
        is_news
    }

    pub(super) fn watch_answered(&mut self, kind: Kind) {
        self.watches.remove(&kind);
    }

    /// How long ago both were right; `None`: one never was.
    pub fn since_right(&self) -> Option<Duration> {
        let ages = [Subsystem::Nft, Subsystem::Net]
            .map(|subsystem| self.right.get(&subsystem).map(Instant::elapsed));
        ages.into_iter().collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    pub(super) fn has_drift(&self, subsystem: Subsystem) -> bool {
        self.drift.contains_key(&subsystem)
    }

    pub fn drift(&self) -> impl Iterator<Item = (Subsystem, &Steps)> {
        self.drift.iter().map(|(subsystem, steps)| (*subsystem, steps))
    }

    /// Watches that are broken now.
    pub fn broken_watches(&self) -> impl Iterator<Item = (Kind, &Fault)> {
        self.watches.iter().map(|(kind, fault)| (*kind, fault))
    }

    /// What is wrong with objects, in the compiler's words.
    pub fn findings(&self) -> impl Iterator<Item = &semantics::Diagnostic> {
        self.found.iter()
    }
}

/// The words without their numbers: a revision or a port that differs makes no other cause.
fn cause(why: &str) -> String {
    let mut cause = String::with_capacity(why.len());
    for char in why.chars() {
        match char.is_ascii_digit() {
            true if cause.ends_with('0') => {}
            true => cause.push('0'),
            false => cause.push(char),
        }
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_not_right_until_it_is_gone() {
        let mut standing = Standing::default();
        standing.is_right(Subsystem::Nft);
        assert_eq!(standing.since_right(), None, "links were never looked at");
        standing.is_right(Subsystem::Net);
        let before = standing.since_right().unwrap();
        standing.differs(Subsystem::Net, &["+ route"].into_iter().collect());
        standing.is_right(Subsystem::Net);
        assert!(standing.since_right().unwrap() >= before);
        assert_eq!(
            standing.drift().map(|(subsystem, steps)| (subsystem, steps.count)).collect::<Vec<_>>(),
            [(Subsystem::Net, 1)]
        );
        standing.differs(Subsystem::Net, &Steps::default());
        assert_eq!(standing.drift().count(), 0);
    }

    /// Looks at one drift, in other orders and with parts of it gone: an Event is due where something is new, and names that.
    #[test]
    fn one_drift_is_told_once_and_again_with_what_is_new() {
        let mut standing = Standing::default();
        let look = |standing: &mut Standing, steps: &[&str]| {
            let news = standing.news_of_drift(Subsystem::Net, steps.iter().collect());
            news.map(|news| news.to_string())
        };
        assert_eq!(look(&mut standing, &["a", "b"]).as_deref(), Some("a; b"));
        for again in [&["a", "b"][..], &["b", "a"], &["b"], &["a"]] {
            assert_eq!(look(&mut standing, again), None, "{again:?}");
        }
        assert_eq!(
            look(&mut standing, &["a", "b", "c", "d", "e"]).as_deref(),
            Some("c; d; e; a; and 1 more")
        );
        assert_eq!(look(&mut standing, &["e", "c"]), None);
        standing.end_drift(Subsystem::Net);
        assert_eq!(look(&mut standing, &["e", "c"]).as_deref(), Some("e; c"));
        let many = (0..2 * MANY).filter(|n| look(&mut standing, &[&*format!("rule {n}")]).is_some());
        assert!(many.count() <= MANY, "words without end");
    }

    #[test]
    fn a_watch_is_broken_until_it_is_answered() {
        let mut standing = Standing::default();
        let fault = Fault::new("connection refused", "see that it runs");
        assert!(standing.watch_broke(Kind::Pod, fault.clone()));
        assert_eq!(standing.broken_watches().collect::<Vec<_>>(), [(Kind::Pod, &fault)]);
        assert!(!standing.watch_broke(Kind::Node, fault.clone()), "the same cause");
        assert!(standing.watch_broke(Kind::Pod, Fault::new("forbidden", "give it the right")), "another");
        assert_eq!(standing.broken_watches().count(), 2);
        standing.watch_answered(Kind::Pod);
        assert_eq!(standing.broken_watches().collect::<Vec<_>>(), [(Kind::Node, &fault)]);
        standing.watch_answered(Kind::Node);
        assert_eq!(standing.broken_watches().count(), 0);
    }

    /// Watches break for two reasons in turn while an API server comes up behind a load balancer.
    #[test]
    fn each_cause_is_said_once_a_minute_however_they_alternate() {
        let (mut standing, start) = (Standing::default(), Instant::now());
        let (refused, expired) = ("connection refused", "too old resource version: ");
        let mut said = Vec::new();
        for second in 0..130_u64 {
            let revision = format!("{expired}{second}");
            let why = if second % 2 == 0 { refused } else { &revision };
            if standing.is_news(why, start + Duration::from_secs(second)) {
                said.push(second);
            }
        }
        assert_eq!(said, [0, 1, 60, 61, 120, 121]);
        let letters = |number: usize| "x".repeat(number + 1);
        let news = (0..100).filter(|n| standing.is_news(&letters(*n), start + Duration::from_secs(1000)));
        assert_eq!(news.count(), CAUSES);
    }
}
