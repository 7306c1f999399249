//! Everything that the node's loop hears, in one queue.

use std::time::Duration;

use kstate::net::Told;
use node::{Answer, Doubt, Reply};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::datapath::Subsystem;
use crate::forgetter::Forgot;
use crate::reaper::Reaped;
use crate::snapshot::Question;
use crate::wirer::Wired;

pub enum Input {
    Watch(watch::Message),
    Cni(Box<CniInput>),
    /// What a wirer has made, or why it could not.
    Wired(Box<Wired>),
    /// What the reaper deleted, or why it could not.
    Reaped(Reaped),
    /// What the kernel was to forget, and whether it has.
    Forgot(Forgot),
    /// What the API itself says of a pod that the watch does not show.
    Confirmed(Doubt, Answer),
    /// Somebody else has changed something, or may have.
    KernelChanged(Subsystem),
    /// The backend has an answer.
    BackendTurned,
    /// What the kernel says of links and what is on them, after our own changes, too.
    Told(Vec<Told>),
    /// The machine's own links, addresses or routes are not what they were.
    GroundChanged,
    /// Somebody may lead packets of pods elsewhere.
    DetoursChanged,
    /// Drift is reported and not mended while paused.
    Pause(bool),
    /// Time for what waits for time: deadlines, retries, the full comparison.
    Tick,
    /// What the loop knows, as values.
    Asked(Question),
    /// The loop ends.
    Stop,
}

impl From<watch::Message> for Input {
    fn from(message: watch::Message) -> Self {
        Self::Watch(message)
    }
}

/// A CNI request with what was found out for it.
pub struct CniInput {
    pub request: cni::Request,
    /// The pod, from the API, when the watch had not seen it yet.
    pub pod: Option<model::Pod>,
    /// Since the machine's boot.
    pub received: Duration,
    pub reply: oneshot::Sender<Reply>,
}

/// The writing end, for tasks.
#[derive(Clone, Debug)]
pub struct Outbox(mpsc::Sender<Input>);

/// The reading end, for the loop's thread.
pub struct Inbox(mpsc::Receiver<Input>);

/// So many inputs wait at most; a watch that lists 150,000 pods is held back by it.
const WAITING: usize = 1024;
/// So many are taken together: changes that come together reach the kernel together.
const TOGETHER: usize = 1024;

pub fn new() -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Outbox(sender), Inbox(receiver))
}

impl Outbox {
    /// The end that the watches write to.
    pub fn for_watches(&self) -> mpsc::Sender<Input> {
        self.0.clone()
    }

    /// `false`: the loop has ended.
    pub async fn send(&self, input: Input) -> bool {
        self.0.send(input).await.is_ok()
    }

    /// Has the loop look for what lies elsewhere. When its queue is full it does so anyway.
    pub fn wake(&self, input: Input) {
        let _ = self.0.try_send(input);
    }

    /// For threads that are not tokio's.
    pub fn send_blocking(&self, input: Input) -> bool {
        self.0.blocking_send(input).is_ok()
    }

    /// `None` when the loop does not answer in time. The answer comes after what was sent before.
    pub async fn ask<T>(
        &self,
        patience: Duration,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Option<T> {
        let (answer, wait) = oneshot::channel();
        let exchange = async {
            self.0.send(Input::Asked(question(answer))).await.ok()?;
            wait.await.ok()
        };
        tokio::time::timeout(patience, exchange).await.ok()?
    }
}

impl Inbox {
    /// Waits for one input and takes what else is there. `None`: nobody can send any more. `rest`: how long more may
    /// come before they are taken, while nobody is served yet and a wake-up for each of a long list's objects would cost
    /// more than what is done with it.
    pub fn wait(&mut self, rest: Option<Duration>) -> Option<Vec<Input>> {
        let mut inputs = vec![self.0.blocking_recv()?];
        rest.into_iter().for_each(std::thread::sleep);
        self.take(&mut inputs);
        Some(inputs)
    }

    /// Takes what is there, for who has work to go on with. `None` as above.
    pub fn glance(&mut self) -> Option<Vec<Input>> {
        let mut inputs = Vec::new();
        match self.take(&mut inputs) {
            TryRecvError::Disconnected if inputs.is_empty() => None,
            _ => Some(inputs),
        }
    }

    fn take(&mut self, inputs: &mut Vec<Input>) -> TryRecvError {
        while inputs.len() < TOGETHER {
            match self.0.try_recv() {
                Ok(input) => inputs.push(input),
                Err(why) => return why,
            }
        }
        TryRecvError::Empty
    }
}
