//! How often the same words are written: again after a pause that grows. What lasts and is held back in the pause is written
//! when that ends, if it still holds; its end is written if the newest Event said that it holds. So the newest Event is
//! contrary to the truth for no longer than the pause, however often something comes and goes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Saying;

/// The same words on the same object are not said again within this time, then within twice that, and so on.
pub const SILENCE: Duration = Duration::from_secs(30);
const LONGEST_SILENCE: Duration = Duration::from_secs(600);
/// Where more is known than this, what was said is forgotten sooner.
const CROWD: usize = 1024;

/// What the newest Event about something says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newest {
    /// And nobody has said otherwise.
    Holds,
    /// The same, and it is over without an Event.
    Ended,
    Over,
}

/// When something was said last, and for how long it is not said again.
#[derive(Debug)]
struct Said {
    at: Instant,
    silence: Duration,
    newest: Newest,
    /// It holds again, which is not said yet.
    withheld: bool,
}

impl Said {
    fn until(&self) -> Instant {
        self.at + self.silence
    }

    /// It is new then. Sooner for a crowd.
    fn is_forgotten(&self, now: Instant, is_crowd: bool) -> bool {
        let least = if is_crowd { Duration::ZERO } else { LONGEST_SILENCE };
        !self.withheld && now.duration_since(self.at) >= least.max(2 * self.silence)
    }
}

#[derive(Debug)]
pub struct Quiet {
    /// The first pause.
    silence: Duration,
    said: HashMap<Saying, Said>,
}

impl Quiet {
    pub fn new(silence: Duration) -> Self {
        Self { silence, said: HashMap::new() }
    }

    /// Something happened that has no end: whether it is said.
    pub fn happens(&mut self, saying: &Saying, now: Instant) -> bool {
        self.forget(now);
        self.said.get(saying).is_none_or(|said| said.until() <= now)
    }

    /// Something holds from now on: whether it is said now. Else it is due later, unless it ends.
    pub fn begins(&mut self, saying: &Saying, now: Instant) -> bool {
        self.forget(now);
        let Some(said) = self.said.get_mut(saying) else { return true };
        let is_quiet = now < said.until();
        said.withheld = is_quiet && said.newest != Newest::Holds;
        !is_quiet
    }

    /// It no longer holds: whether its newest Event said that it does. `waited`: an Event of it waited for the API.
    /// `told`: that it is over is an Event, if so.
    pub fn ends(&mut self, ended: &Saying, waited: bool, told: bool) -> bool {
        let (mut is_known, mut heard) = (false, false);
        for (_, said) in self.said.iter_mut().filter(|(saying, _)| saying.ends_with(ended)) {
            is_known = true;
            said.withheld = false;
            heard |= said.newest != Newest::Over;
            said.newest = match said.newest {
                Newest::Over => Newest::Over,
                _ if told => Newest::Over,
                _ => Newest::Ended,
            };
        }
        // What was said long ago is no longer known here.
        heard || !is_known && !waited
    }

    /// When the first of what is held back may be said.
    pub fn due(&self) -> Option<Instant> {
        self.said.values().filter(|said| said.withheld).map(Said::until).min()
    }

    /// What may be said by now.
    pub fn take_due(&mut self, now: Instant) -> Vec<Saying> {
        let due = self.said.iter_mut().filter(|(_, said)| said.withheld && said.until() <= now);
        due.map(|(saying, said)| {
            said.withheld = false;
            saying.clone()
        })
        .collect()
    }

    /// An Event was written.
    pub fn told(&mut self, saying: Saying, at: Instant) {
        let first = self.silence;
        let again = |said: &mut Said| {
            let silence = (said.silence * 2).min(LONGEST_SILENCE);
            *said = Said { at, silence, newest: Newest::Holds, withheld: false };
        };
        let once = Said { at, silence: first, newest: Newest::Holds, withheld: false };
        self.said.entry(saying).and_modify(again).or_insert(once);
    }

    fn forget(&mut self, now: Instant) {
        let is_crowd = self.said.len() > CROWD;
        self.said.retain(|_, said| !said.is_forgotten(now, is_crowd));
    }
}

#[cfg(test)]
mod tests;
