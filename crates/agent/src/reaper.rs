//! Deletes veths, many at once: one alone waits 10 to 20 ms for RCU, a group of a hundred 0.5 ms each. While one
//! deletion waits the next ones gather, so nobody has to guess a delay.

use std::sync::mpsc;

use anyhow::{Context, Result};
use kernel::{Error, Rtnl, veth};
use types::IfName;

use crate::inbox::{Input, Outbox};

/// The queue's writing end. The thread ends with it.
#[derive(Debug)]
pub struct Reaper(mpsc::Sender<Doomed>);

/// An attachment that goes.
#[derive(Debug)]
pub struct Doomed {
    pub handle: String,
    pub host_if: IfName,
}

/// What was done, together.
#[derive(Debug)]
pub struct Reaped {
    pub handles: Vec<String>,
    pub deleted: Result<(), Error>,
}

impl Reaper {
    /// In the network namespace of the calling thread.
    pub fn start(outbox: Outbox) -> Result<Self> {
        let mut rtnl = Rtnl::open()?;
        let (sender, queue) = mpsc::channel::<Doomed>();
        let work = move || {
            while let Ok(first) = queue.recv() {
                let all = std::iter::once(first).chain(queue.try_iter());
                let (handles, names): (Vec<String>, Vec<IfName>) =
                    all.map(|doomed| (doomed.handle, doomed.host_if)).unzip();
                let deleted = veth::delete(&mut rtnl, &names).map(drop);
                if !outbox.send_blocking(Input::Reaped(Reaped { handles, deleted })) {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("plumb-reaper".into())
            .spawn(work)
            .context("start the reaper's thread")?;
        Ok(Self(sender))
    }

    /// Deletes a veth soon; [`Input::Reaped`] tells when.
    pub fn delete(&self, doomed: Doomed) {
        // The thread lives as long as the loop that reads its answers.
        let _ = self.0.send(doomed);
    }
}
