//! What the API did not take for reasons of its own (it is away, it answers 5xx), until it does: said again with growing
//! pauses, given up when it is old news or when too much waits. What no longer holds is taken out.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use super::Saying;

/// As many wait at most.
const MOST: usize = 256;
/// kube-apiserver forgets an Event after an hour (--event-ttl): what happened earlier is no news.
const OLD: Duration = Duration::from_secs(3600);
/// The longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(30);

/// Something to say, and when it came up.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub saying: Saying,
    pub at: SystemTime,
    pub since: Instant,
}

#[derive(Debug)]
pub struct Backlog {
    waiting: VecDeque<Waiting>,
    /// The pause after the first failure; it doubles.
    first: Duration,
    pause: Duration,
    due: Option<Instant>,
}

impl Backlog {
    pub fn new(first: Duration) -> Self {
        Self { waiting: VecDeque::new(), first, pause: first, due: None }
    }

    pub fn has(&self, saying: &Saying) -> bool {
        self.waiting.iter().any(|waiting| waiting.saying == *saying)
    }

    /// When the API is to be asked again: as long as it is away, nobody else need try.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.waiting.is_empty())
    }

    /// Something that the API refused just now, or that came up while others wait. `false`: too much waits.
    pub fn keep(&mut self, waiting: Waiting) -> bool {
        let room = self.waiting.len() < MOST;
        if room {
            self.waiting.push_back(waiting);
        }
        room
    }

    /// It no longer holds. Whether it waited.
    pub fn withdraw(&mut self, ended: &Saying) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| !waiting.saying.ends_with(ended));
        self.waiting.len() < before
    }

    /// How many are given up for their age.
    pub fn give_up_old(&mut self, now: Instant) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| now.duration_since(waiting.since) < OLD);
        before - self.waiting.len()
    }

    /// The oldest, to be tried.
    pub fn take(&mut self) -> Option<Waiting> {
        self.waiting.pop_front()
    }

    /// Tried in vain: it stays the first.
    pub fn put_back(&mut self, waiting: Waiting) {
        self.waiting.push_front(waiting);
    }

    pub fn failed(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST);
    }

    /// The API answers: what waits is said at once.
    pub fn answered(&mut self, now: Instant) {
        self.pause = self.first;
        self.due = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Key, Kind};
    use types::ObjectName;

    fn waiting(message: usize, since: Instant) -> Waiting {
        let object = Key::new(Kind::Node, ObjectName::cluster("node1"));
        let (uid, reason, message) = (String::new(), "NetworkDegraded", message.to_string());
        let saying = Saying { object, uid, normal: false, reason, message };
        Waiting { saying, at: SystemTime::UNIX_EPOCH, since }
    }

    #[test]
    fn pauses_grow_until_the_api_answers() {
        let (mut backlog, now) = (Backlog::new(Duration::from_secs(1)), Instant::now());
        assert_eq!(backlog.due(), None, "nothing waits");
        backlog.keep(waiting(1, now));
        let pauses = [(); 7].map(|()| {
            backlog.failed(now);
            backlog.due().map(|due| (due - now).as_secs()).unwrap_or_default()
        });
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        backlog.answered(now);
        assert_eq!(backlog.due(), Some(now));
        backlog.failed(now);
        assert_eq!(backlog.due(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn no_more_waits_than_there_is_room_for_and_nothing_for_ever() {
        let (mut backlog, now) = (Backlog::new(Duration::from_secs(1)), Instant::now());
        assert_eq!((0..MOST + 3).filter(|n| !backlog.keep(waiting(*n, now))).count(), 3);
        assert_eq!([(); 2].map(|()| backlog.withdraw(&waiting(0, now).saying)), [true, false]);
        assert!(!backlog.has(&waiting(0, now).saying) && backlog.has(&waiting(1, now).saying));
        assert!(backlog.keep(waiting(0, now + OLD)));
        assert_eq!(backlog.give_up_old(now + OLD), MOST - 1);
        assert_eq!(backlog.take().map(|first| first.saying.message), Some("0".to_owned()));
    }
}
