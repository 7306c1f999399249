//! The work queue: each key at most once, at most one decision of a key under way, failures later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use control::Brain;
use control::brain::Key;
use tokio::time::Instant;

/// A brain and what it is asked about.
pub type Work = (Brain, Key);

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Queue {
    ready: VecDeque<Work>,
    queued: BTreeSet<Work>,
    under_way: BTreeSet<Work>,
    /// Woken while under way: the decision that is being performed may be outdated.
    again: BTreeSet<Work>,
    later: BTreeMap<Work, Instant>,
    failures: BTreeMap<Work, u32>,
}

impl Queue {
    pub fn wake(&mut self, work: Work) {
        if self.under_way.contains(&work) {
            self.again.insert(work);
        } else if self.queued.insert(work.clone()) {
            self.ready.push_back(work);
        }
    }

    /// Wakes it at a time, or earlier if that is planned already.
    pub fn wake_at(&mut self, work: Work, at: Instant) {
        let due = self.later.entry(work).or_insert(at);
        *due = at.min(*due);
    }

    /// The next one to decide about. It stays under way until [`Queue::done`] or [`Queue::failed`].
    pub fn next(&mut self, now: Instant) -> Option<Work> {
        let due: Vec<Work> =
            self.later.iter().filter(|(_, at)| **at <= now).map(|(w, _)| w.clone()).collect();
        for work in due {
            self.later.remove(&work);
            self.wake(work);
        }
        let work = self.ready.pop_front()?;
        self.queued.remove(&work);
        self.under_way.insert(work.clone());
        Some(work)
    }

    pub fn done(&mut self, work: &Work) {
        self.failures.remove(work);
        self.finish(work);
    }

    /// Tries again after 5 ms, 10 ms, … 30 s; a change of the world tries at once.
    pub fn failed(&mut self, work: &Work, now: Instant) {
        let failures = self.failures.entry(work.clone()).or_default();
        let pause = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(*failures).unwrap_or(u32::MAX));
        *failures = failures.saturating_add(1).min(24);
        self.wake_at(work.clone(), now + pause.min(LONGEST_PAUSE));
        self.finish(work);
    }

    fn finish(&mut self, work: &Work) {
        self.under_way.remove(work);
        if self.again.remove(work) {
            self.wake(work.clone());
        }
    }

    /// When the next postponed key is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.later.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        (Brain::Scheduler, Key::Everything)
    }

    #[test]
    fn many_wakes_make_one_decision() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for _ in 0..5 {
            queue.wake(work());
        }
        assert_eq!(queue.next(now), Some(work()));
        assert_eq!(queue.next(now), None);
    }

    #[test]
    fn a_wake_while_under_way_asks_again_afterwards() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake(work());
        queue.next(now);
        queue.wake(work());
        assert_eq!(queue.next(now), None, "never two at once");
        queue.done(&work());
        assert_eq!(queue.next(now), Some(work()));
        queue.done(&work());
        assert_eq!(queue.next(now), None);
    }

    #[test]
    fn failures_wait_longer_each_time_and_success_forgets_them() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..20 {
            queue.wake(work());
            queue.next(now);
            queue.failed(&work(), now);
            pauses.push(queue.next_due().unwrap() - now);
            queue.later.clear();
        }
        assert_eq!(pauses[..3], [5, 10, 20].map(Duration::from_millis));
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
        queue.wake(work());
        queue.next(now);
        queue.done(&work());
        queue.wake(work());
        queue.next(now);
        queue.failed(&work(), now);
        assert_eq!(queue.next_due(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn the_earlier_of_two_times_wins() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake_at(work(), now + Duration::from_secs(9));
        queue.wake_at(work(), now + Duration::from_secs(3));
        queue.wake_at(work(), now + Duration::from_secs(6));
        assert_eq!(queue.next(now), None);
        assert_eq!(queue.next_due(), Some(now + Duration::from_secs(3)));
        assert_eq!(queue.next(now + Duration::from_secs(3)), Some(work()));
    }
}
