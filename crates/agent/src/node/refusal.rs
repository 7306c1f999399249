//! What the kernel refuses is an Event of the Node once it has lasted: else only who looks at metrics or at the log hears of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use semantics::Diagnostic;

use super::Node;
use super::underlay::about;
use crate::inbox::Subsystem;

/// What is over sooner, by the next try or the one after, is no news.
const LASTING: Duration = Duration::from_secs(3);

/// Since when each subsystem is refused something, and what was told of it.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<Subsystem, (Instant, Option<Diagnostic>)>);

impl Refusals {
    /// What is to be told now, and what of it no longer holds. One that words itself anew with each try is told once.
    fn turn(
        &mut self,
        node: &str,
        failed: &BTreeMap<Subsystem, String>,
        now: Instant,
    ) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let (hold, over) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(subsystem, _)| failed.contains_key(subsystem));
        self.0 = hold;
        let mut news = Vec::new();
        for (subsystem, error) in failed {
            let (since, told) = self.0.entry(*subsystem).or_insert((now, None));
            if told.is_none() && now.duration_since(*since) >= LASTING {
                news.push(told.insert(refused(node, *subsystem, error)).clone());
            }
        }
        let over: BTreeMap<Subsystem, (Instant, Option<Diagnostic>)> = over;
        (news, over.into_values().filter_map(|(_, told)| told).collect())
    }
}

fn refused(node: &str, subsystem: Subsystem, error: &str) -> Diagnostic {
    let message = format!(
        "it did not take {}: {error}; until it does the node does not follow the cluster there",
        subsystem.name()
    );
    let next = "see whether another program holds what is named here, and what the kernel lacks (plumb features); the agent \
                tries again each second, and its log has the first refusal";
    about(node, "kernel", message, next)
}

impl Node {
    /// With every tick.
    pub(super) fn tell_what_is_refused(&mut self) {
        let (node, failed) = (&self.base.settings.node, &self.stale.failed);
        let (news, over) = self.refusals.turn(node, failed, Instant::now());
        news.iter().for_each(|finding| self.raise(finding));
        over.iter().for_each(|finding| self.lower(finding));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_lasts_is_told_once_and_its_end_too() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let failed = |why: &str| BTreeMap::from([(Subsystem::Net, why.to_owned())]);
        let mut turn = |failed: &BTreeMap<Subsystem, String>, seconds| {
            let (news, over) = refusals.turn("node1", failed, start + Duration::from_secs(seconds));
            (news.iter().map(ToString::to_string).collect::<Vec<_>>(), over.len())
        };
        let none = (Vec::new(), 0);
        assert_eq!(turn(&failed("busy"), 0), none);
        assert_eq!(turn(&BTreeMap::new(), 2), none, "it was over before it was news");
        assert_eq!(turn(&failed("busy"), 3), none);
        assert_eq!(turn(&failed("busy"), 5), none);
        let (news, _) = turn(&failed("held by rival"), 6);
        assert_eq!(news.len(), 1);
        for words in ["node node1: kernel: it did not take net: held by rival", "plumb features"] {
            assert!(news[0].contains(words), "{news:?}");
        }
        assert_eq!(turn(&failed("held by another"), 9), none, "told");
        assert_eq!(turn(&BTreeMap::new(), 10), (Vec::new(), 1));
    }
}
