//! Has the kernel forget connections of addresses that changed hands, on a thread of its own: of IPv6 all that the node knows
//! have to be looked at (netlink's conntrack.rs says why), 0.2 s for 100,000 of them. Neither the loop nor a DEL waits for
//! that; whoever is to have such an address next does.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernel::Error;
use types::IpNet;

use crate::flows::{Flows, Part};
use crate::inbox::{Input, Outbox};

/// The queue's writing end. The thread ends with it.
#[derive(Debug)]
pub struct Forgetter(mpsc::Sender<Owed>);

/// Addresses whose connections are to be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// Those that they began and those that they answer.
    pub any: Vec<IpNet>,
    /// Those that they began.
    pub began: Vec<IpNet>,
}

/// What became of it.
#[derive(Debug)]
pub struct Forgot {
    pub owed: Owed,
    /// How many connections.
    pub done: Result<usize, Error>,
    pub took: Duration,
}

impl Forgetter {
    /// In the network namespace of the calling thread.
    pub fn start(outbox: Outbox) -> Result<Self> {
        let mut flows = Flows::open()?;
        let (sender, queue) = mpsc::channel::<Owed>();
        let work = move || {
            while let Ok(owed) = queue.recv() {
                let began = Instant::now();
                let done = flows
                    .forget_of(&owed.any, Part::Any)
                    .and_then(|count| Ok(count + flows.forget_of(&owed.began, Part::Began)?));
                if !outbox.send_blocking(Input::Forgot(Forgot { owed, done, took: began.elapsed() })) {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("plumb-forgetter".into())
            .spawn(work)
            .context("start the forgetter's thread")?;
        Ok(Self(sender))
    }

    /// Has them forgotten soon; [`Input::Forgot`] tells when.
    pub fn forget(&self, owed: Owed) {
        // The thread lives as long as the loop that reads its answers.
        let _ = self.0.send(owed);
    }
}
