use std::collections::{BTreeMap, BTreeSet};

use model::{Key, Kind};
use proptest::prelude::*;
use types::ObjectName;

use super::*;

const HOUR: u64 = 3600;
/// Of one fault within an hour: four within 210 s, then ten minutes without, and so on. One that never rests has half of it.
const WARNINGS: usize = 20;

fn fault(of: usize) -> Saying {
    let object = Key::new(Kind::Node, ObjectName::cluster("node1"));
    let (uid, message) = (String::new(), of.to_string());
    Saying { object, uid, normal: false, reason: "NetworkDegraded", message }
}

/// Faults that come and go, second by second, and the Events that are written of them.
struct Play {
    start: Instant,
    now: u64,
    quiet: Quiet,
    holds: BTreeSet<usize>,
    /// When, and whether it says that the fault holds.
    events: BTreeMap<usize, Vec<(u64, bool)>>,
}

impl Play {
    fn new() -> Self {
        let (start, quiet) = (Instant::now(), Quiet::new(SILENCE));
        Self { start, now: 0, quiet, holds: BTreeSet::new(), events: BTreeMap::new() }
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn write(&mut self, of: usize, holds: bool) {
        self.events.entry(of).or_default().push((self.now, holds));
        if holds {
            self.quiet.told(fault(of), self.at());
        }
    }

    fn turn(&mut self, of: usize) {
        let now = self.at();
        if self.holds.remove(&of) {
            if self.quiet.ends(&fault(of), false, true) {
                self.write(of, false);
            }
        } else {
            self.holds.insert(of);
            if self.quiet.begins(&fault(of), now) {
                self.write(of, true);
            }
        }
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1;
            for saying in self.quiet.take_due(self.at()) {
                let of = saying.message.parse().unwrap();
                self.write(of, true);
            }
        }
    }

    /// The newest Event; before the first nothing holds.
    fn says(&self, of: usize) -> bool {
        self.events.get(&of).and_then(|events| events.last()).is_some_and(|(_, holds)| *holds)
    }
}

#[test]
fn what_happens_again_is_said_again_with_growing_pauses() {
    let (mut quiet, begin, what) = (Quiet::new(SILENCE), Instant::now(), fault(0));
    let mut said = Vec::new();
    for second in 0..3 * HOUR {
        let now = begin + Duration::from_secs(second);
        if quiet.happens(&what, now) {
            quiet.told(what.clone(), now);
            said.push(second);
        }
    }
    assert_eq!(said[..8], [0, 30, 90, 210, 450, 930, 1530, 2130], "ten minutes at most");
}

#[test]
fn a_fault_that_returns_is_told_once_its_quiet_time_is_over() {
    let mut play = Play::new();
    for seconds in [2, 3, 100] {
        play.turn(0);
        play.wait(seconds);
    }
    play.turn(0);
    assert_eq!(play.events[&0], [(0, true), (2, false), (30, true), (105, false)]);
    // Over before it could be told: no word of it, nor of its end.
    play.wait(5);
    play.turn(0);
    play.wait(10);
    play.turn(0);
    play.wait(HOUR);
    assert_eq!(play.events[&0].len(), 6, "a minute has passed: {:?}", play.events);
    assert_eq!(play.events[&0][4..], [(110, true), (120, false)]);
    let mut play = Play::new();
    for seconds in [2, 2, 2, HOUR] {
        play.turn(0);
        play.wait(seconds);
    }
    assert_eq!(play.events[&0], [(0, true), (2, false)]);
}

#[test]
fn without_an_event_of_its_end_what_returns_is_told_again_and_what_stays_is_not() {
    let (mut quiet, begin, what) = (Quiet::new(SILENCE), Instant::now(), fault(0));
    assert!(quiet.begins(&what, begin));
    quiet.told(what.clone(), begin);
    assert!(!quiet.begins(&what, begin) && quiet.due().is_none(), "the newest Event says it");
    quiet.ends(&what, false, false);
    assert!(!quiet.begins(&what, begin));
    assert_eq!(quiet.due(), Some(begin + SILENCE));
    assert_eq!(quiet.take_due(begin + SILENCE), [what]);
    assert_eq!(quiet.due(), None);
}

#[test]
fn the_end_of_what_only_waited_for_the_api_is_not_told() {
    let (mut quiet, begin, what) = (Quiet::new(SILENCE), Instant::now(), fault(0));
    assert!(quiet.begins(&what, begin));
    assert!(!quiet.ends(&what, true, true));
    quiet.told(what.clone(), begin);
    assert!(quiet.ends(&what, false, true) && !quiet.ends(&what, false, true));
    assert!(Quiet::new(SILENCE).ends(&what, false, true), "an agent that has said it long ago");
}

fn most_within_an_hour(events: &[(u64, bool)]) -> usize {
    let warnings: Vec<u64> = events.iter().filter(|(_, holds)| *holds).map(|(at, _)| *at).collect();
    let within = |from: u64| warnings.iter().filter(|at| (from..from + HOUR).contains(at)).count();
    warnings.iter().map(|from| within(*from)).max().unwrap_or(0)
}

proptest! {
    /// Whatever comes and goes, and when.
    #[test]
    fn the_newest_event_says_what_is_true_after_the_quiet_time_and_there_are_few(
        history in prop::collection::vec((prop_oneof![0..8_u64, 0..90_u64, 0..1500_u64], 0..3_usize), 0..80)
    ) {
        let mut play = Play::new();
        for (seconds, of) in history {
            play.wait(seconds);
            play.turn(of);
            for of in 0..3 {
                let events = play.events.get(&of).map_or(&[][..], |events| events);
                let told = events.iter().rev().find(|(_, holds)| *holds).map(|(at, _)| *at);
                let warnings = events.iter().filter(|(_, holds)| *holds).count();
                let pause = if warnings > 1 { LONGEST_SILENCE } else { SILENCE };
                let is_quiet = told.is_some_and(|at| play.now < at + pause.as_secs());
                let says = play.says(of);
                prop_assert!(says == play.holds.contains(&of) || is_quiet && !says, "{events:?}");
            }
        }
        play.wait(LONGEST_SILENCE.as_secs());
        for (of, events) in &play.events {
            prop_assert_eq!(play.says(*of), play.holds.contains(of));
            let told = |at: usize| at.is_multiple_of(2);
            prop_assert!(events.iter().enumerate().all(|(at, (_, holds))| *holds == told(at)), "{events:?}");
            prop_assert!(most_within_an_hour(events) <= WARNINGS, "{events:?}");
        }
    }
}
