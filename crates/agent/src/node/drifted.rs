//! Performs what follows from drift and from what the kernel refuses ([`node::drift`]).

use std::time::Duration;

use model::{Key, Kind};
use node::Steps;
use node::drift::{Found, Outcome, Told};
use types::ObjectName;

use super::Node;
use crate::clock;
use crate::datapath::{Look, Subsystem};
use crate::tell::Saying;

impl Node {
    pub(super) fn found(&mut self, subsystem: Subsystem, found: Found) {
        for outcome in self.drift.step(subsystem.part(), found, clock::since_boot()) {
            self.perform_drift(subsystem, outcome);
        }
    }

    /// With every tick.
    pub(super) fn tell_what_is_refused(&mut self) {
        for subsystem in Subsystem::ALL {
            let refuses = self.stale.failed.get(&subsystem).map(String::as_str);
            let node = &self.base.settings.node;
            let outcome = self.drift.tick(node, subsystem.part(), refuses, clock::since_boot());
            outcome.into_iter().for_each(|outcome| self.perform_drift(subsystem, outcome));
        }
    }

    fn perform_drift(&mut self, subsystem: Subsystem, outcome: Outcome) {
        let (name, metrics) = (subsystem.name(), &self.base.metrics);
        match outcome {
            Outcome::Right => {
                self.stale.failed.remove(&subsystem);
                if let Some(age) = self.since_right() {
                    metrics.right_now(clock::since_epoch().saturating_sub(age));
                }
            }
            Outcome::Wrong { error, is_news } => {
                metrics.apply_failed(name);
                if is_news {
                    tracing::error!(subsystem = name, error, "the kernel did not take a change");
                }
                self.stale.failed.insert(subsystem, error);
            }
            Outcome::Stands(count) => metrics.drift_stands(name, count),
            Outcome::Drifted { count, mended } => metrics.drift(name, count, mended),
            Outcome::Look => match subsystem {
                // Answered later.
                Subsystem::Nft => _ = self.base.datapath.backend.look(Look::Left),
                Subsystem::Net => {
                    if let Ok(left) = self.differ_links() {
                        self.found(subsystem, Found::Left(left));
                    }
                }
            },
            Outcome::Holds(told) => self.base.tell.holds(self.logged(subsystem, told)),
            Outcome::Happened(told) => self.base.tell.say(self.logged(subsystem, told)),
            Outcome::Over { was, over } => {
                let was = was.into_iter().map(|told| self.event(told)).collect();
                self.base.tell.over(was, self.logged(subsystem, over));
            }
            Outcome::Refuses(finding) => self.raise(&finding),
            Outcome::TakenAgain(finding, message) => self.mended(&finding, message),
        }
    }

    fn logged(&self, subsystem: Subsystem, told: Told) -> Saying {
        tracing::warn!(subsystem = subsystem.name(), steps = told.count, "{}", told.message);
        self.event(told)
    }

    fn event(&self, Told { reason, normal, message, .. }: Told) -> Saying {
        let object = Key::new(Kind::Node, ObjectName::cluster(&self.base.settings.node));
        Saying { object, uid: String::new(), normal, reason, message }
    }

    /// How long ago the kernel was known to be what it should be; `None`: it never was.
    pub fn since_right(&self) -> Option<Duration> {
        self.drift.since_right(&Subsystem::ALL.map(Subsystem::part), clock::since_boot())
    }

    /// What differs while nobody mends it, by subsystem.
    pub fn differing(&self) -> impl Iterator<Item = (&'static str, &Steps)> {
        self.drift.differs()
    }
}
