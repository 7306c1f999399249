//! Addresses that no pod has and that nobody gets yet, for people.

use std::time::Duration;

use super::Node;
use crate::clock;
use crate::report::Resting;

impl Node {
    /// Why each address is held that no pod has, each in a sentence.
    pub fn held(&self) -> Vec<String> {
        self.attachments.held(self.facts().situation.orphan_grace, clock::since_boot())
    }

    /// Addresses that were released and that nobody gets yet.
    pub fn resting(&self) -> Resting {
        let now = clock::since_boot();
        let resting = self.pools().iter().flat_map(|pool| pool.resting(now));
        let (addresses, rests): (Vec<_>, Vec<Duration>) = resting.unzip();
        Resting { addresses, last: rests.iter().max().map_or(0, |longest| longest.as_secs() + 1) }
    }
}
