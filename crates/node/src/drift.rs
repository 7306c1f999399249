//! What follows from a look at the kernel: what is mended, who is told of it and once, what stands while nobody mends, and what
//! of that is over.

mod refusal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipam::Now;
use semantics::Diagnostic;

use crate::steps::Steps;
use refusal::Refusals;

/// So many differences of one drift are told at most: words that are new with each look make no Events without end.
const MANY: usize = 1024;

/// Part of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub name: &'static str,
    /// When the kernel refuses a change of it.
    pub where_to_look: &'static str,
}

/// What became of a part.
#[derive(Clone, Debug)]
pub enum Found {
    /// It took a change.
    Taken,
    /// It refused a change, or could not be looked at.
    Refused(String),
    /// Nobody mends: by these steps it differs.
    Seen(Steps),
    /// It was compared and made what it should be, in these steps. `suspected`: they are what somebody had changed; else what
    /// was refused a moment ago.
    Mended { steps: Steps, suspected: bool },
    /// It was compared, and refuses to be what it should be.
    Unmended(String),
    /// Answers [`Outcome::Look`].
    Left(Steps),
}

/// To be performed in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It takes what it is given.
    Right,
    /// It does not. `is_news`: it did, or for another cause.
    Wrong { error: String, is_news: bool },
    /// So many steps differ from now on, and nobody takes them.
    Stands(usize),
    /// So many steps of others were found.
    Drifted { count: usize, mended: bool },
    /// By what does it differ? Answered by [`Found::Left`].
    Look,
    /// An Event that holds until [`Outcome::Over`].
    Holds(Told),
    /// An Event of something that is over already.
    Happened(Told),
    /// All of these are over, and this is an Event, unless nobody has heard that they were.
    Over { was: Vec<Told>, over: Told },
    /// This holds until [`Outcome::TakenAgain`].
    Refuses(Diagnostic),
    /// It is over, in these words.
    TakenAgain(Diagnostic, String),
}

/// An Event of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub reason: &'static str,
    pub normal: bool,
    pub message: String,
    /// How many differences it is about.
    pub count: usize,
}

/// Of one drift: the differences that are known from its Events, and those Events.
#[derive(Debug, Default)]
struct Standing {
    known: BTreeSet<String>,
    events: Vec<Told>,
}

/// What is known of drift.
#[derive(Debug, Default)]
pub struct Drift {
    /// When each part was last made, or found, what it should be.
    right: BTreeMap<Part, Now>,
    /// What differs: there while nobody mends, or the kernel refuses.
    differs: BTreeMap<Part, Steps>,
    told: BTreeMap<Part, Standing>,
    /// Why it refuses.
    wrong: BTreeMap<Part, String>,
    refusals: Refusals,
}

impl Drift {
    /// What follows from what became of a part.
    pub fn step(&mut self, part: Part, found: Found, now: Now) -> Vec<Outcome> {
        let mut out = Vec::new();
        match found {
            Found::Taken => self.taken(part, now, &mut out),
            Found::Refused(error) => drop(self.refused(part, error, &mut out)),
            Found::Seen(steps) => self.seen(part, steps, now, &mut out),
            Found::Mended { steps, suspected } => {
                self.stands(part, Steps::default(), &mut out);
                let was_told = self.refusals.end(part).map(|was| refusal::taken_again(part, was, &steps));
                let drifted = suspected && steps.count > 0;
                let is_news = drifted && was_told.is_none();
                out.extend(was_told);
                out.extend(drifted.then_some(Outcome::Drifted { count: steps.count, mended: true }));
                self.ended(part, &steps, is_news, &mut out);
                self.taken(part, now, &mut out);
            }
            // One look for each reason: a kernel that refuses is asked again every second.
            Found::Unmended(error) => {
                if self.refused(part, error, &mut out) || !self.differs.contains_key(&part) {
                    out.push(Outcome::Look);
                }
            }
            Found::Left(steps) => self.stands(part, steps, &mut out),
        }
        out
    }

    /// With every tick: why a part refuses now, if it does.
    pub fn tick(&mut self, node: &str, part: Part, refuses: Option<&str>, now: Now) -> Option<Outcome> {
        self.refusals.turn(node, part, refuses, now)
    }

    /// What differs stays wrong.
    fn taken(&mut self, part: Part, now: Now, out: &mut Vec<Outcome>) {
        self.wrong.remove(&part);
        if !self.differs.contains_key(&part) {
            self.right.insert(part, now);
        }
        out.push(Outcome::Right);
    }

    fn refused(&mut self, part: Part, error: String, out: &mut Vec<Outcome>) -> bool {
        let is_news = self.wrong.insert(part, error.clone()).as_ref() != Some(&error);
        out.push(Outcome::Wrong { error, is_news });
        is_news
    }

    /// Who only looked and found a difference has not shown that the kernel takes anything.
    fn seen(&mut self, part: Part, steps: Steps, now: Now, out: &mut Vec<Outcome>) {
        self.stands(part, steps.clone(), out);
        if steps.count == 0 {
            self.ended(part, &steps, false, out);
            return self.taken(part, now, out);
        }
        out.push(Outcome::Drifted { count: steps.count, mended: false });
        let standing = self.told.entry(part).or_default();
        let is_known = |step: &String| standing.known.contains(step);
        if standing.known.len() >= MANY || steps.known().iter().all(is_known) {
            return;
        }
        let steps = steps.new_first(&standing.known);
        standing.known.extend(steps.known().iter().cloned());
        let done = format!("found and left so while the agent is paused: {steps}");
        let told = told(part, SEEN, &done, steps.count);
        standing.events.push(told.clone());
        out.push(Outcome::Holds(told));
    }

    fn stands(&mut self, part: Part, left: Steps, out: &mut Vec<Outcome>) {
        out.push(Outcome::Stands(left.count));
        match left.count {
            0 => drop(self.differs.remove(&part)),
            _ => drop(self.differs.insert(part, left)),
        }
    }

    /// By the agent, in these steps, or by somebody else. `is_news`: also where nothing was told of it.
    fn ended(&mut self, part: Part, steps: &Steps, is_news: bool, out: &mut Vec<Outcome>) {
        let Standing { known, events } = self.told.remove(&part).unwrap_or_default();
        if events.is_empty() && !is_news {
            return;
        }
        // What was told and is right again without the agent belongs to it.
        let all = steps.clone().and(known);
        let done = match steps.count {
            0 => format!("put back while the agent was paused, and not by it: {all}"),
            _ => format!("found and put back: {all}"),
        };
        let over = told(part, MENDED, &done, steps.count);
        out.push(match events.is_empty() {
            true => Outcome::Happened(over),
            false => Outcome::Over { was: events, over },
        });
    }

    /// How long ago these were all right; `None`: one never was.
    pub fn since_right(&self, parts: &[Part], now: Now) -> Option<Duration> {
        let ages = parts.iter().map(|part| Some(now.saturating_sub(*self.right.get(part)?)));
        ages.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// What differs now, by the name of its part.
    pub fn differs(&self) -> impl Iterator<Item = (&'static str, &Steps)> {
        self.differs.iter().map(|(part, steps)| (part.name, steps))
    }
}

const SEEN: &str = "DriftSeen";
const MENDED: &str = "DriftMended";

fn told(part: Part, reason: &'static str, done: &str, count: usize) -> Told {
    let message = format!("{reason}: somebody changed Plumb's {}; {done}", part.name);
    Told { reason, normal: reason == MENDED, message, count }
}

pub use refusal::refused;

#[cfg(test)]
mod tests;
