//! The part of the kernel that carries the backend's pieces, on a thread of its own, so that nothing else of a node waits for
//! it: neither for a first load nor for a look at all of it.
//!
//! ```text
//!   loop    take(pieces)… ─ follow ─> Order::Follow ─┐            ┌─> Answer ─ hear ─> what waits for this generation
//!           suspicion ────── look ──> Order::Look ───┤            │
//!                                                    └─ thread: compose, plan, apply; observe, compare, mend
//! ```
//! A look is given up for what comes meanwhile, and begun anew after it: pods do not wait for it.
//!
//! What is followed is counted: a generation holds all pieces that were taken before it was sent. One is on its way at a time;
//! what comes meanwhile goes together in the next one, and of two pieces of one unit only the later.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use compile::Pieces;
use compile::backend::nftables::Composed;
use kstate::nft::Ruleset;
use semantics::due::Round;

use super::{Guarded, KernelPart, Steps, Tables};
use crate::drops::Drops;

/// Counts what was sent; 0: nothing.
pub type Generation = u64;

/// Why the kernel is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// To mend what differs.
    Mend,
    /// While paused.
    Only,
    /// For what differs still after a refusal.
    Left,
}

/// What became of a generation.
#[derive(Debug, Default)]
pub struct Followed {
    /// All changes up to this round of the compiler are in it, and in those before.
    pub through: Round,
    /// It is the first that the kernel had to follow.
    pub is_first: bool,
    /// Why the kernel did not take the change by itself.
    pub refused: Option<anyhow::Error>,
    /// Whether it took it.
    pub taken: bool,
    /// The kernel was compared as a whole.
    pub compared: Option<Result<Steps>>,
    pub took: Duration,
}

#[derive(Debug)]
pub struct Looked {
    pub why: Look,
    /// It was not known without a look.
    pub was_needed: bool,
    pub done: Result<Steps>,
}

#[derive(Debug)]
pub enum Answer {
    Followed(Followed),
    Looked(Looked),
}

type Question = Box<dyn FnOnce(&mut dyn KernelPart) + Send>;

enum Order {
    /// `whole`: nothing is missing in the pieces so far, so the kernel may follow.
    Follow {
        pieces: Option<Pieces>,
        whole: bool,
    },
    /// `given_up`: so often so far.
    Look {
        why: Look,
        given_up: u32,
    },
    Ask(Question),
}

/// A generation on its way.
#[derive(Debug)]
struct OnItsWay {
    through: Round,
    whole: bool,
}

/// The loop's end. The thread ends with it.
pub struct Backend {
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    composed: Arc<Mutex<Composed>>,
    portid: u32,
    /// In /proc.
    thread: PathBuf,
    /// What was taken and not sent yet.
    open: Option<Pieces>,
    sent: Generation,
    on_its_way: Option<OnItsWay>,
    is_looking: bool,
    has_followed: bool,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend at generation {}, on its way: {:?}", self.sent, self.on_its_way)
    }
}

impl Backend {
    /// In the network namespace of the calling thread. `wake`: the loop, when there is an answer.
    pub fn open(choice: types::Backend, drops: Drops, wake: impl Fn() + Send + 'static) -> Result<Self> {
        let tables = match choice {
            types::Backend::Nftables => Tables::open(drops)?,
        };
        let (portid, composed) = (tables.portid(), tables.composed());
        let (orders, queue) = mpsc::channel();
        let (sender, answers) = mpsc::channel();
        let (begun, thread) = mpsc::channel();
        let work = move || {
            // Nobody waits for the name when the start has failed.
            let _ = begun.send(std::fs::read_link("/proc/thread-self"));
            Hand { part: Box::new(tables), unsure: true }.work(&queue, &sender, &wake);
        };
        std::thread::Builder::new()
            .name("plumb-tables".into())
            .spawn(work)
            .context("start the thread of the tables")?;
        let thread = Path::new("/proc").join(thread.recv().map_err(|_| ended())??);
        Ok(Self {
            orders,
            answers,
            composed,
            portid,
            thread,
            open: None,
            sent: 0,
            on_its_way: None,
            is_looking: false,
            has_followed: false,
        })
    }

    /// Marks our own transactions among those that the kernel tells of.
    pub fn portid(&self) -> u32 {
        self.portid
    }

    /// Of its thread, in /proc.
    pub fn thread(&self) -> &Path {
        &self.thread
    }

    /// The tables as they should be: those of what was sent. Whoever has it keeps what it was then.
    pub fn desired(&self) -> Arc<Ruleset> {
        Arc::clone(self.composed.lock().unwrap_or_else(PoisonError::into_inner).ruleset())
    }

    /// New pieces in the place of those of the same units.
    pub fn take(&mut self, pieces: Pieces) {
        self.open = Some(match self.open.take() {
            Some(before) => before.then(pieces),
            None => pieces,
        });
    }

    /// The generation that what is taken now comes with.
    pub fn next(&self) -> Generation {
        self.sent + 1
    }

    /// The kernel has followed up to it, as far as it takes what it should.
    pub fn followed_through(&self) -> Generation {
        self.sent - u64::from(self.on_its_way.is_some())
    }

    /// Whether a generation is on its way.
    pub fn is_following(&self) -> bool {
        self.on_its_way.is_some()
    }

    /// Whether something was taken that was not sent yet.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the kernel has all that was taken.
    pub fn is_done(&self) -> bool {
        self.open.is_none() && self.on_its_way.is_none()
    }

    /// Whether the kernel was made what it should be, or has refused to be.
    pub fn has_followed(&self) -> bool {
        self.has_followed
    }

    /// Whether it is being made what it should be for the first time.
    pub fn is_beginning(&self) -> bool {
        !self.has_followed && self.on_its_way.as_ref().is_some_and(|sent| sent.whole)
    }

    /// Sends what is open, if nothing is on its way. `false`: there is nothing to follow, which is a generation, too.
    pub fn follow(&mut self, through: Round, whole: bool) -> bool {
        let first = whole && !self.has_followed;
        if self.open.is_none() && !first {
            self.sent += 1;
            return false;
        }
        self.sent += 1;
        self.on_its_way = Some(OnItsWay { through, whole });
        let pieces = self.open.take();
        self.order(Order::Follow { pieces, whole });
        true
    }

    /// `false`: it is being looked at already.
    pub fn look(&mut self, why: Look) -> bool {
        if std::mem::replace(&mut self.is_looking, true) {
            return false;
        }
        self.order(Order::Look { why, given_up: 0 });
        true
    }

    /// That the thread has ended is found where its answers are read.
    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    #[cfg(test)]
    pub fn is_looking(&self) -> bool {
        self.is_looking
    }

    /// The next answer that there is.
    pub fn hear(&mut self) -> Result<Option<Answer>> {
        match self.answers.try_recv() {
            Ok(answer) => Ok(Some(self.heard(answer))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ended()),
        }
    }

    /// The next answer, whenever it comes.
    #[cfg(test)]
    pub fn wait(&mut self) -> Option<Answer> {
        let answer = self.answers.recv().ok()?;
        Some(self.heard(answer))
    }

    fn heard(&mut self, answer: Answer) -> Answer {
        match answer {
            Answer::Followed(mut followed) => {
                if let Some(OnItsWay { through, whole }) = self.on_its_way.take() {
                    followed.through = through;
                    followed.is_first = whole && !self.has_followed;
                    self.has_followed |= whole;
                }
                Answer::Followed(followed)
            }
            Answer::Looked(looked) => {
                self.is_looking = false;
                Answer::Looked(looked)
            }
        }
    }

    /// What there is of the guard, of whichever process. Waits for what was ordered before.
    pub fn guarded(&self) -> Result<Guarded> {
        self.ask(|part| part.guarded())?
    }

    /// Makes these, before it is known what there should be in the end.
    pub fn begin(&self, guard: Pieces) -> Result<()> {
        self.ask(|part| part.begin(guard))?
    }

    /// Takes away all that is recognised as ours.
    pub fn clear(&self) -> Result<Steps> {
        self.ask(|part| part.clear())?
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn KernelPart) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, wait) = mpsc::channel();
        self.order(Order::Ask(Box::new(move |part| {
            // Who asked waits for it.
            let _ = answer.send(question(part));
        })));
        wait.recv().map_err(|_| ended())
    }
}

fn ended() -> anyhow::Error {
    anyhow!("the thread of the tables has ended; see above")
}

/// The thread's end.
struct Hand {
    part: Box<dyn KernelPart>,
    /// The kernel may hold something else than what was composed: it was not looked at yet, or refused something.
    unsure: bool,
}

/// So often a look is given up for what comes meanwhile: where pods come and go all the time it must end, too.
const GIVEN_UP: u32 = 3;

/// Orders in their order, but for looks, which go after what comes meanwhile.
struct Queue<'a> {
    orders: &'a Receiver<Order>,
    waiting: RefCell<VecDeque<Order>>,
}

impl Queue<'_> {
    fn next(&self) -> Option<Order> {
        let waiting = self.waiting.borrow_mut().pop_front();
        waiting.or_else(|| self.orders.recv().ok())
    }

    /// Whether somebody waits for what else was ordered.
    fn is_awaited(&self) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        waiting.extend(self.orders.try_iter());
        !waiting.is_empty()
    }

    fn later(&self, order: Order) {
        self.waiting.borrow_mut().push_back(order);
    }
}

impl Hand {
    fn work(mut self, orders: &Receiver<Order>, answers: &Sender<Answer>, wake: &impl Fn()) {
        let queue = Queue { orders, waiting: RefCell::default() };
        while let Some(order) = queue.next() {
            let answer = match order {
                Order::Follow { pieces, whole } => Some(Answer::Followed(self.follow(pieces, whole))),
                Order::Look { why, given_up } => {
                    let go_on = || given_up >= GIVEN_UP || !queue.is_awaited();
                    let looked = self.look(why, &go_on);
                    if looked.is_none() {
                        queue.later(Order::Look { why, given_up: given_up + 1 });
                    }
                    looked.map(Answer::Looked)
                }
                Order::Ask(question) => {
                    question(&mut *self.part);
                    None
                }
            };
            let Some(answer) = answer else { continue };
            if answers.send(answer).is_err() {
                return;
            }
            wake();
        }
    }

    /// The incremental way; what the kernel refuses in parts is compared as a whole.
    fn follow(&mut self, pieces: Option<Pieces>, whole: bool) -> Followed {
        let mut followed = Followed::default();
        let began = Instant::now();
        pieces.into_iter().for_each(|pieces| self.part.take(pieces));
        if !whole {
            return followed;
        }
        if !self.unsure {
            match self.part.update() {
                None => {}
                Some(Ok(())) => followed.taken = true,
                Some(Err(error)) => {
                    followed.refused = Some(error);
                    self.unsure = true;
                }
            }
        }
        if self.unsure {
            let done = self.part.converge(&|| true);
            self.unsure = done.is_err();
            followed.compared = Some(done.map(Option::unwrap_or_default));
        }
        followed.took = began.elapsed();
        followed
    }

    /// `None`: given up.
    fn look(&mut self, why: Look, go_on: &dyn Fn() -> bool) -> Option<Looked> {
        if why != Look::Mend {
            let done = self.part.differ(go_on).transpose()?;
            self.unsure &= done.as_ref().map_or(true, |steps| steps.count > 0);
            return Some(Looked { why, was_needed: true, done });
        }
        match self.part.is_untouched() {
            Ok(true) => Some(Looked { why, was_needed: false, done: Ok(Steps::default()) }),
            Ok(false) => {
                let done = self.part.converge(go_on).transpose()?;
                self.unsure = done.is_err();
                Some(Looked { why, was_needed: true, done })
            }
            Err(error) => Some(Looked { why, was_needed: false, done: Err(error) }),
        }
    }
}

#[cfg(test)]
mod tests;
