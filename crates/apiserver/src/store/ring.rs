//! The last events, shared by all watchers; each has only a cursor.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{Key, Stored};
use crate::status::Failure;

/// More than a lab changes while a watcher reconnects; older than that, it lists again.
const MAX_EVENTS: usize = 8192;
/// Bounds what deleted and replaced objects may hold in memory.
const MAX_BYTES: usize = 12 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// One change of one object. `before` lets a watcher with a selector tell what entered and left it.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: u64,
    pub change: Change,
    pub key: Arc<Key>,
    pub now: Arc<Stored>,
    pub before: Option<Arc<Stored>>,
}

pub(super) struct Ring {
    events: VecDeque<Event>,
    bytes: usize,
    /// Events up to this revision are not held.
    compacted: u64,
}

impl Ring {
    pub(super) fn starting_at(revision: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, compacted: revision }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.bytes += event.now.raw.len();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            let Some(old) = self.events.pop_front() else { return };
            self.bytes -= old.now.raw.len();
            self.compacted = old.revision;
        }
    }

    fn check(&self, revision: u64) -> Result<(), Failure> {
        if revision < self.compacted {
            let message = format!("too old resource version: {revision} ({})", self.compacted);
            return Err(Failure::expired(message));
        }
        Ok(())
    }

    pub(super) fn after(
        &self,
        resource: &str,
        cursor: u64,
        until: u64,
        limit: usize,
    ) -> Result<(Vec<Event>, u64), Failure> {
        self.check(cursor)?;
        let first = self.events.partition_point(|event| event.revision <= cursor);
        let (mut found, mut at) = (Vec::new(), cursor);
        for event in self.events.range(first..) {
            if event.revision > until || found.len() >= limit {
                break;
            }
            at = event.revision;
            if event.key.resource == resource {
                found.push(event.clone());
            }
        }
        Ok((found, at))
    }

    /// For every object changed after `revision`: what it was then, or `None` if it did not exist.
    pub(super) fn states_at(
        &self,
        revision: u64,
        resource: &str,
    ) -> Result<BTreeMap<Key, Option<Arc<Stored>>>, Failure> {
        self.check(revision)?;
        let first = self.events.partition_point(|event| event.revision <= revision);
        let mut was = BTreeMap::new();
        for event in self.events.range(first..).filter(|event| event.key.resource == resource) {
            was.entry((*event.key).clone()).or_insert_with(|| event.before.clone());
        }
        Ok(was)
    }
}
