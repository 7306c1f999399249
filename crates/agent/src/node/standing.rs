//! What holds beyond one round of the loop, for `plumb status`: which watches broke, what is wrong with objects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::Kind;

use crate::fault::Fault;

/// One cause is said again in the log after this long.
const REMINDER: Duration = Duration::from_secs(60);
/// So many causes are said within that time: words that are never the same twice fill no log.
const CAUSES: usize = 16;

#[derive(Debug, Default)]
pub struct Standing {
    /// Watches that broke and have not been answered since.
    watches: BTreeMap<Kind, Fault>,
    /// Why watches broke within [`REMINDER`], as the log has it.
    told: Vec<(Instant, String)>,
    /// The compiler's findings that hold.
    pub(super) found: BTreeSet<semantics::Diagnostic>,
}

impl Standing {
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
