//! Deletes veths, many at once: one alone waits 10 to 20 ms for RCU, a group of a hundred 0.5 ms each. While one
//! deletion waits the next ones gather, so nobody has to guess a delay.

use std::sync::mpsc;

use anyhow::{Context, Result};
use kernel::{Rtnl, veth};
use types::IfName;

use crate::inbox::{Input, Outbox};

/// The queue's writing end. The thread ends with it.
#[derive(Debug)]
pub struct Reaper(mpsc::Sender<(String, IfName)>);

impl Reaper {
    /// In the network namespace of the calling thread.
    pub fn start(outbox: Outbox) -> Result<Self> {
        let mut rtnl = Rtnl::open()?;
        let (sender, queue) = mpsc::channel::<(String, IfName)>();
        let work = move || {
            while let Ok(first) = queue.recv() {
                let (handles, names): (Vec<_>, Vec<_>) =
                    std::iter::once(first).chain(queue.try_iter()).unzip();
                let result = veth::delete(&mut rtnl, &names).map(drop);
                if !outbox.send_blocking(Input::Unwired(handles, result)) {
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

    /// Deletes a veth soon; [`Input::Unwired`] tells when.
    pub fn delete(&self, handle: String, name: IfName) {
        // The thread lives as long as the loop that reads its answers.
        let _ = self.0.send((handle, name));
    }
}
