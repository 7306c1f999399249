//! The containers of one sandbox: started, watched, probed, restarted, ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use kernel::process::{Process, Signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::container::{self, Refusal};
use crate::events::{Events, Kind};
use crate::moment;
use crate::probe::{Plan, Verdict};
use crate::record::{self, ContainerRecord, Exit, PodRecord, Sandbox};
use crate::runtime::{Runtime, ended};
use crate::status::{Seen, State, creating};

/// After its first end a container starts again at once, then after this, doubling. (kubelet: 10 s, too slow to watch
/// in a lab.)
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A container that ran this long has earned its first pause again.
const SETTLED: Duration = Duration::from_secs(600);

pub struct Containers {
    runtime: Arc<Runtime>,
    record: PodRecord,
    sandbox: Sandbox,
    list: Vec<One>,
    news: mpsc::Receiver<News>,
    sender: mpsc::Sender<News>,
}

struct One {
    seen: Seen,
    attempt: u32,
    /// When it is to be started; `None` while it runs or is to stay ended.
    due: Option<Instant>,
    pause: Duration,
    since: Instant,
    /// Its probes and the watch on its shim; they end with this run.
    tasks: JoinSet<()>,
}

/// From the tasks of one run.
struct News {
    container: usize,
    attempt: u32,
    what: What,
}

enum What {
    Ended(Exit),
    Probe(Verdict),
}

impl Containers {
    /// Finds what runs already.
    pub fn new(runtime: Arc<Runtime>, record: PodRecord, sandbox: Sandbox, pod: &Pod) -> Self {
        let (sender, news) = mpsc::channel(16);
        let mut containers = Self { runtime, record, sandbox, list: Vec::new(), news, sender };
        for (index, container) in specs(pod).iter().enumerate() {
            let one = containers.find(pod, container);
            containers.list.push(one);
            if matches!(containers.list.get(index).map(|one| &one.seen.state), Some(State::Running { .. })) {
                containers.attend(index, pod, container);
            }
        }
        containers
    }

    fn find(&self, pod: &Pod, container: &Container) -> One {
        let mut one = One {
            seen: creating(container),
            attempt: 0,
            due: Some(Instant::now()),
            pause: Duration::ZERO,
            since: Instant::now(),
            tasks: JoinSet::new(),
        };
        let Some(attempt) = self.record.last_attempt(&container.name) else { return one };
        one.attempt = attempt;
        one.seen.restarts = attempt;
        let run = self.record.container(&container.name, attempt);
        if attempt > 0 {
            one.seen.last = self.record.container(&container.name, attempt - 1).exit();
        }
        match run.shim() {
            Some(_) => {
                (one.seen.state, one.due) = (State::Running { since: moment::now() }, None);
            }
            None => {
                let exit = run.exit().unwrap_or_else(lost);
                let again = restarts(pod, &exit);
                end(&mut one, exit, again);
            }
        }
        one
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.list.iter().map(|one| one.seen.clone()).collect()
    }

    pub fn addresses(&self) -> &[String] {
        &self.sandbox.addresses
    }

    /// Every container has ended, and none will be started again.
    pub fn all_done(&self, pod: &Pod) -> bool {
        let done = |one: &One| matches!(&one.seen.state, State::Ended(exit) if !restarts(pod, exit));
        !self.list.is_empty() && self.list.iter().all(done)
    }

    /// The object has changed: an image that could not be had may be another one now.
    pub fn reconsider(&mut self, pod: &Pod) {
        for (one, container) in self.list.iter_mut().zip(specs(pod)) {
            let image = container.image.clone().unwrap_or_default();
            if one.seen.image != image {
                one.seen.image = image;
                if matches!(one.seen.state, State::Waiting { .. }) {
                    one.due = Some(Instant::now());
                }
            }
        }
    }

    /// Starts every container whose time has come.
    pub async fn start_due(&mut self, pod: &Pod) {
        for (index, container) in specs(pod).iter().enumerate() {
            let now = Instant::now();
            let due = self.list.get(index).and_then(|one| one.due).is_some_and(|due| due <= now);
            if due {
                self.start(index, pod, container).await;
            }
        }
    }

    async fn start(&mut self, index: usize, pod: &Pod, container: &Container) {
        let Some(one) = self.list.get_mut(index) else { return };
        let first = self.record.last_attempt(&container.name).is_none();
        let attempt = if first { 0 } else { one.attempt + 1 };
        if let State::Ended(exit) = &one.seen.state {
            one.seen.last = Some(exit.clone());
        }
        one.due = None;
        let outcome =
            container::start(&self.runtime, pod, (&self.record, &self.sandbox), container, attempt).await;
        let Some(one) = self.list.get_mut(index) else { return };
        match outcome {
            Ok(_shim) => {
                (one.attempt, one.seen.restarts, one.since) = (attempt, attempt, Instant::now());
                one.seen.state = State::Running { since: moment::now() };
                let message = format!("Container started: {}", container.name);
                self.runtime.events.pod(pod, Kind::Normal, "Started", &message);
                self.attend(index, pod, container);
            }
            Err(refusal) => refuse(&self.runtime.events, one, pod, &refusal),
        }
    }

    /// Watches the end of a run, and probes it.
    fn attend(&mut self, index: usize, pod: &Pod, container: &Container) {
        let Some(one) = self.list.get_mut(index) else { return };
        let (attempt, sender) = (one.attempt, self.sender.clone());
        let run = self.record.container(&container.name, attempt);
        one.tasks = JoinSet::new();
        one.tasks.spawn(async move {
            let exit = exit_of(&run).await;
            let _ = sender.send(News { container: index, attempt, what: What::Ended(exit) }).await;
        });
        one.seen.ready = container.readiness_probe.is_none();
        let address = self.sandbox.addresses.first().cloned().unwrap_or_default();
        for (probe, life) in [(&container.readiness_probe, false), (&container.liveness_probe, true)] {
            let Some(probe) = probe else { continue };
            let plan = match Plan::new(probe, container, &address) {
                Ok(plan) => plan,
                Err(why) => {
                    self.runtime.events.pod(pod, Kind::Warning, "Unhealthy", &why);
                    continue;
                }
            };
            let (verdicts, mut receiver) = mpsc::channel(1);
            let sender = self.sender.clone();
            one.tasks.spawn(async move {
                if life { plan.watch_life(verdicts).await } else { plan.watch_readiness(verdicts).await }
            });
            one.tasks.spawn(async move {
                while let Some(verdict) = receiver.recv().await {
                    let _ = sender.send(News { container: index, attempt, what: What::Probe(verdict) }).await;
                }
            });
        }
    }

    /// Waits for something to happen, and takes it in.
    pub async fn next_change(&mut self, pod: &Pod) {
        let due = self.list.iter().filter_map(|one| one.due).min();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let news = tokio::select! {
            Some(news) = self.news.recv() => news,
            () = timer => return,
        };
        let Some(one) = self.list.get_mut(news.container).filter(|one| one.attempt == news.attempt) else {
            return;
        };
        let events = &self.runtime.events;
        match news.what {
            What::Ended(exit) => {
                one.tasks = JoinSet::new();
                let again = restarts(pod, &exit);
                end(one, exit, again);
                if one.due.is_some_and(|due| due > Instant::now()) {
                    let message = format!("Back-off restarting failed container {}", one.seen.name);
                    events.pod(pod, Kind::Warning, "BackOff", &message);
                }
            }
            What::Probe(verdict) => {
                let run = self.record.container(&one.seen.name, one.attempt);
                judge(events, one, pod, verdict, run);
            }
        }
    }

    /// TERM to all, then KILL to what is left after the grace period.
    pub async fn terminate(&mut self, pod: &Pod, grace: Duration) {
        let mut tasks = JoinSet::new();
        for one in &mut self.list {
            one.tasks = JoinSet::new();
            if matches!(one.seen.state, State::Running { .. }) {
                let message = format!("Stopping container {}", one.seen.name);
                self.runtime.events.pod(pod, Kind::Normal, "Killing", &message);
                let run = self.record.container(&one.seen.name, one.attempt);
                tasks.spawn(async move {
                    kill(&run, grace).await;
                    exit_of(&run).await
                });
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// The pause process is gone, and the kernel has ended every container with it: waits for their shims.
    pub async fn abandon(&mut self) {
        for one in &mut self.list {
            one.tasks = JoinSet::new();
            let run = self.record.container(&one.seen.name, one.attempt);
            // Containers of a host network pod live in its PID namespace too.
            exit_of(&run).await;
        }
    }
}

/// A run has ended; `again` says whether there is to be another.
fn end(one: &mut One, exit: Exit, again: bool) {
    one.seen.ready = false;
    if one.since.elapsed() > SETTLED {
        one.pause = Duration::ZERO;
    }
    one.due = again.then(|| Instant::now() + one.pause);
    one.seen.state = if again && !one.pause.is_zero() {
        one.seen.last = Some(exit);
        let message = format!("back-off {:?} restarting failed container={}", one.pause, one.seen.name);
        State::Waiting { reason: "CrashLoopBackOff".into(), message }
    } else {
        State::Ended(exit)
    };
    one.pause = if one.pause.is_zero() { FIRST_PAUSE } else { (one.pause * 2).min(LONGEST_PAUSE) };
}

fn judge(events: &Events, one: &mut One, pod: &Pod, verdict: Verdict, run: ContainerRecord) {
    match verdict {
        Verdict::Ready => one.seen.ready = true,
        Verdict::NotReady(why) => {
            one.seen.ready = false;
            events.pod(pod, Kind::Warning, "Unhealthy", &format!("Readiness probe failed: {why}"));
        }
        Verdict::Dead(why) => {
            events.pod(pod, Kind::Warning, "Unhealthy", &format!("Liveness probe failed: {why}"));
            let message = format!("Container {} failed liveness probe, will be restarted", one.seen.name);
            events.pod(pod, Kind::Normal, "Killing", &message);
            let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
            let grace = Duration::from_secs(grace.and_then(|grace| u64::try_from(grace).ok()).unwrap_or(30));
            one.tasks.spawn(async move { kill(&run, grace).await });
        }
    }
}

fn refuse(events: &Events, one: &mut One, pod: &Pod, refusal: &Refusal) {
    let message = refusal.to_string();
    events.pod(pod, Kind::Warning, "Failed", &message);
    one.seen.state = State::Waiting { reason: refusal.reason().into(), message };
    one.seen.ready = false;
    if !refusal.is_final() {
        one.due = Some(Instant::now() + one.pause.max(FIRST_PAUSE));
        one.pause = (one.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }
}

fn specs(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |spec| spec.containers.as_slice())
}

fn restarts(pod: &Pod, exit: &Exit) -> bool {
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => false,
        Some("OnFailure") => exit.code != 0,
        _ => true,
    }
}

/// Waits for a shim's end and reads what it wrote.
async fn exit_of(run: &ContainerRecord) -> Exit {
    if let Some(shim) = run.shim() {
        let _ = ended(&shim).await;
    }
    record::reap(&run.file("shim"));
    run.exit().unwrap_or_else(lost)
}

/// A shim that was killed wrote nothing; its container died with it.
fn lost() -> Exit {
    let now = moment::now();
    Exit { code: 137, signal: Some(9), error: None, started: now.clone(), finished: now }
}

async fn kill(run: &ContainerRecord, grace: Duration) {
    let Some(process) = run.process() else { return };
    signal(&process, Signal::TERM);
    if tokio::time::timeout(grace, ended(&process)).await.is_err() {
        signal(&process, Signal::KILL);
    }
}

fn signal(process: &Process, signal: Signal) {
    if let Err(error) = process.signal(signal) {
        tracing::warn!("{error}");
    }
}
