//! What the kernel refuses is an Event of the Node once it has lasted: else only who looks at metrics or at the log hears of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use semantics::Diagnostic;

use super::Node;
use super::underlay::about;
use crate::datapath::Steps;
use crate::datapath::Subsystem;

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
    ) -> (Vec<Diagnostic>, Vec<(Subsystem, Diagnostic)>) {
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
        let told =
            |(subsystem, (_, told)): (Subsystem, (Instant, Option<Diagnostic>))| Some((subsystem, told?));
        (news, over.into_iter().filter_map(told).collect())
    }

    /// It took what it refused; what was told of that, if it was.
    fn end(&mut self, subsystem: Subsystem) -> Option<Diagnostic> {
        self.0.remove(&subsystem).and_then(|(_, told)| told)
    }
}

pub(super) fn refused(node: &str, subsystem: Subsystem, error: &str) -> Diagnostic {
    let message = format!(
        "it did not take {}: {error}; until it does the node does not follow the cluster there",
        subsystem.name()
    );
    let look = subsystem.where_to_look();
    let next = format!(
        "see whether another program holds what is named here ({look}), and what the kernel lacks (`plumb features` on the node); the agent \
         tries again each second"
    );
    about(node, "kernel", message, next)
}

impl Node {
    /// With every tick.
    pub(super) fn tell_what_is_refused(&mut self) {
        let (node, failed) = (&self.base.settings.node, &self.stale.failed);
        let (news, over) = self.refusals.turn(node, failed, Instant::now());
        news.iter().for_each(|finding| self.raise(finding));
        over.into_iter()
            .for_each(|(subsystem, finding)| self.taken_again(subsystem, &finding, &Steps::default()));
    }

    /// Whether there was anything to tell: the refusal had been told.
    pub(super) fn tell_what_is_taken_again(&mut self, subsystem: Subsystem, steps: &Steps) -> bool {
        let Some(finding) = self.refusals.end(subsystem) else { return false };
        self.taken_again(subsystem, &finding, steps);
        true
    }

    fn taken_again(&self, subsystem: Subsystem, finding: &Diagnostic, steps: &Steps) {
        let done = if steps.count > 0 { format!("; found and mended: {steps}") } else { String::new() };
        self.mended(finding, format!("kernel: it takes {} again{done}", subsystem.name()));
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
        for words in [
            "node node1: kernel: it did not take net: held by rival",
            "`plumb features` on the node",
            "`ip -d link show`",
        ] {
            assert!(news[0].contains(words), "{news:?}");
        }
        assert_eq!(turn(&failed("held by another"), 9), none, "told");
        assert_eq!(turn(&BTreeMap::new(), 10), (Vec::new(), 1));
    }

    /// Whoever mends it tells of the end, with what was mended; the next tick has nothing left to tell.
    #[test]
    fn the_end_of_a_refusal_is_told_once() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let failed = BTreeMap::from([(Subsystem::Nft, "not permitted".to_owned())]);
        refusals.turn("node1", &failed, start);
        assert_eq!(refusals.turn("node1", &failed, start + LASTING).0.len(), 1);
        assert!(refusals.end(Subsystem::Nft).is_some_and(|told| told.to_string().contains("not permitted")));
        assert_eq!(refusals.end(Subsystem::Nft), None);
        assert_eq!(refusals.turn("node1", &BTreeMap::new(), start + 2 * LASTING), (Vec::new(), Vec::new()));
        refusals.turn("node1", &failed, start);
        assert_eq!(refusals.end(Subsystem::Nft), None, "nobody has heard of it");
    }
}
