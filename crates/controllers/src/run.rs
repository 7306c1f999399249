//! The loop. One task owns the world; requests run beside it, so that a slow one delays only its own key.
//!
//! ```text
//!   watch ─┐                    ┌─> decide ─> writes ─> perform ─┐
//!   watch ─┼─> world ─> wake ─> queue                            │
//!   watch ─┘     ^                                               │
//!                └──────────── what the API answered ────────────┘
//! ```

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use control::wake::wake_all;
use control::{Change, Decision, Kind, Row, Settings, World, Write, decide, wake};
use futures::StreamExt;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::perform::{Outcome, PerformError, perform};
use crate::queue::{Queue, Work};
use crate::watch::{Seen, watch};

/// Requests of one decision that run at the same time.
const AT_ONCE: usize = 16;

/// A clock that went that many seconds otherwise than time did was set. adjtimex(2) alone makes less than 2 s in an hour.
const ADJUSTED: f64 = 2.0;

/// Runs every controller until the future is dropped. Nothing is written before every kind has been listed.
pub async fn run(client: Client, settings: Settings) -> Infallible {
    let (out, mut seen) = mpsc::channel(1024);
    let mut watches = JoinSet::new();
    for kind in Kind::ALL {
        watches.spawn(watch(client.clone(), kind, out.clone()));
    }
    let mut controllers = Controllers {
        client,
        settings,
        world: World::default(),
        clock: None,
        unlisted: Kind::ALL.into(),
        queue: Queue::default(),
        performing: JoinSet::new(),
    };
    loop {
        controllers.dispatch();
        let due = controllers.queue.next_due().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            Some(first) = seen.recv() => {
                controllers.observe(first);
                // What arrived together is decided together.
                while let Ok(more) = seen.try_recv() {
                    controllers.observe(more);
                }
            }
            Some(performed) = controllers.performing.join_next() => match performed {
                Ok(performed) => controllers.settle(performed),
                Err(error) => tracing::error!(%error, "controllers: a request task ended by itself"),
            },
            () = tokio::time::sleep_until(due) => {}
        }
    }
}

/// One key's decision, performed.
struct Performed {
    work: Work,
    outcomes: Vec<Result<Outcome, PerformError>>,
}

struct Controllers {
    client: Client,
    settings: Settings,
    world: World,
    /// What the clock showed last, and when by one that nobody can set.
    clock: Option<(Timestamp, Instant)>,
    /// Kinds of which nothing is known yet: until there is none, absence means nothing.
    unlisted: BTreeSet<Kind>,
    queue: Queue,
    performing: JoinSet<Performed>,
}

impl Controllers {
    fn observe(&mut self, seen: Seen) {
        match seen {
            Seen::Applied(kind, row) => {
                let change = self.world.put(kind, *row);
                self.changed(change);
            }
            Seen::Deleted(kind, name, uid) => {
                let change = self.world.remove(kind, &name, &uid);
                self.changed(change);
            }
            Seen::Listed(kind, rows) => self.listed(kind, rows),
        }
    }

    fn listed(&mut self, kind: Kind, rows: Vec<Row>) {
        let there: BTreeSet<String> = rows.iter().map(|row| row.meta().uid.clone()).collect();
        for name in self.world.names(kind) {
            let uid = self.world.meta(kind, &name).map(|meta| meta.uid.clone()).unwrap_or_default();
            if !there.contains(&uid) {
                // Without the uid: an object younger than the list comes back with the next event.
                let change = self.world.remove(kind, &name, "");
                self.changed(change);
            }
        }
        for row in rows {
            let change = self.world.put(kind, row);
            self.changed(change);
        }
        if self.unlisted.remove(&kind) && self.unlisted.is_empty() {
            tracing::info!("controllers: every kind is listed, deciding from now on");
            for work in wake_all(&self.world) {
                self.queue.wake(work);
            }
        }
    }

    fn changed(&mut self, change: Option<Change>) {
        if let Some(change) = change.filter(|_| self.unlisted.is_empty()) {
            for work in wake(&self.world, &change) {
                self.queue.wake(work);
            }
        }
    }

    /// In whole seconds, as conditions and Events bear them (metav1.Time). What is written in the world was dated by
    /// this clock too: that somebody set it is learnt before anything is decided.
    fn look_at_clock(&mut self, shown: Timestamp, instant: Instant) -> Timestamp {
        let now = Timestamp::from_second(shown.as_second()).unwrap_or_default();
        let before = self.clock.replace((shown, instant));
        let jumped = before.is_none_or(|(then, at)| {
            let passed = instant.saturating_duration_since(at).as_secs_f64();
            (shown.duration_since(then).as_secs_f64() - passed).abs() > ADJUSTED
        });
        if jumped {
            self.world.clock_was_set(now);
        }
        if jumped && before.is_some() && self.unlisted.is_empty() {
            tracing::warn!(%now, "controllers: the clock was set; silence counts from now on");
            for work in wake_all(&self.world) {
                self.queue.wake(work);
            }
        }
        now
    }

    /// Decides about everything that is awake; what has to be written goes to a task of its own.
    fn dispatch(&mut self) {
        let instant = Instant::now();
        let now = self.look_at_clock(Timestamp::now(), instant);
        while let Some(work) = self.queue.next(instant) {
            let Decision { writes, again_in } = decide(work.0, &self.world, &work.1, (&self.settings, now));
            if let Some(seconds) = again_in {
                let pause = Duration::from_secs(seconds.unsigned_abs());
                self.queue.wake_at(work.clone(), instant + pause);
            }
            if writes.is_empty() {
                self.queue.done(&work);
                continue;
            }
            let client = self.client.clone();
            self.performing.spawn(async move {
                let outcomes = perform_all(&client, writes).await;
                Performed { work, outcomes }
            });
        }
    }

    fn settle(&mut self, performed: Performed) {
        let Performed { work, outcomes } = performed;
        let mut failed = false;
        for outcome in outcomes {
            match outcome {
                Ok(outcome) => self.learn(outcome),
                Err(error) => {
                    failed = true;
                    if error.is_conflict() {
                        tracing::debug!(%error, "controllers: somebody else was faster");
                    } else {
                        tracing::warn!(brain = work.0.component(), %error, "controllers: write failed");
                    }
                }
            }
        }
        if failed {
            self.queue.failed(&work, Instant::now());
        } else {
            self.queue.done(&work);
        }
    }

    fn learn(&mut self, outcome: Outcome) {
        let change = match outcome {
            Outcome::Stored(kind, object) => {
                Row::parse(kind, &object).ok().and_then(|row| self.world.put(kind, row))
            }
            Outcome::Gone(target) => self.world.remove(target.kind, &target.name, &target.uid),
            Outcome::Bound(pod, node) => {
                self.world.assume_bound(&pod, &node);
                None
            }
            Outcome::Nothing => None,
        };
        self.changed(change);
    }
}

/// Writes of one sort run together, sorts one after the other (events of a namespace go before its finalizer).
async fn perform_all(client: &Client, writes: Vec<Write>) -> Vec<Result<Outcome, PerformError>> {
    let mut outcomes = Vec::with_capacity(writes.len());
    for sort in writes.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
        let requests = sort.iter().cloned().map(|write| {
            let client = client.clone();
            async move { perform(&client, &write).await }
        });
        let mut running = futures::stream::iter(requests).buffer_unordered(AT_ONCE);
        while let Some(outcome) = running.next().await {
            outcomes.push(outcome);
        }
    }
    outcomes
}
