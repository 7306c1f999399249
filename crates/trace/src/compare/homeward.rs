//! The judge of the way back, which is a matter of every node of the way: what is wrong there is told of the node that has it.

use super::Wrong;
use super::evidence::Evidence;
use super::judge::{describe, drifted, told};
use crate::hop::{Fact, Hop, Stage};
use crate::observed::SocketEnd;

impl Evidence<'_> {
    pub fn way_back(&self, hop: &Hop) -> Result<String, Wrong> {
        let wrong = |on: &str, what: &str| Wrong { on: on.to_owned(), why: format!("on {on}: {what}") };
        if let Some((on, text)) = self.drift_back(hop) {
            return Err(match self.end() {
                Some(end @ SocketEnd::Stalled) => wrong(on, &format!("{text}; {}", describe(end))),
                _ => wrong(on, text),
            });
        }
        if let Some((on, rule)) = self.answer_dropped() {
            return Err(wrong(on, &told(rule)));
        }
        let here = |why: String| Wrong { on: hop.node.clone(), why };
        let Fact::Return { steps, .. } = &hop.fact else { return Err(here("no way back".to_owned())) };
        // That a port is closed ICMP says, which belongs to no port (RFC 1122 §4.1.3.1).
        if self.end() == Some(&SocketEnd::Refused) && self.is_datagram() {
            return Ok("the same way".to_owned());
        }
        let mut last = "it was sent".to_owned();
        for step in steps {
            for glimpse in &step.glimpses {
                let on = &step.node;
                if self.glimpse(on, glimpse).is_none() {
                    let why = format!("the answer was lost after {last}: it did not go {glimpse} on {on}");
                    return Err(Wrong { on: on.clone(), why });
                }
                last = format!("it went {glimpse} on {on}");
            }
        }
        match self.end() {
            Some(end @ SocketEnd::Stalled) => Err(here(describe(end))),
            _ => Ok("the same way".to_owned()),
        }
    }

    /// What is not as it should be on the way back, and on which node: the first that the answer comes to.
    pub fn drift_back<'b>(&'b self, hop: &'b Hop) -> Option<(&'b str, &'b str)> {
        let steps = match &hop.fact {
            Fact::Return { steps, .. } if hop.stage == Stage::Return => steps.as_slice(),
            _ => return None,
        };
        let passed = steps.iter().map(|step| step.node.as_str());
        let on = |node| {
            let drift = self.sightings(node).iter().find_map(|sighting| drifted(sighting, Stage::Return));
            drift.map(|text| (node, text))
        };
        passed.chain(self.nodes()).find_map(on)
    }
}
