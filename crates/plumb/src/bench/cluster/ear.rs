//! Hears each transaction on the ruleset of a node, when it comes.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kernel::Netns;
use kernel::nft::{Changes, Notice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Ends its thread when it goes.
pub struct Ear {
    heard: Receiver<Instant>,
}

impl Ear {
    /// Transactions of programs whose name begins so: `plumb`, or `nft`, which kube-proxy runs.
    pub fn open(netns: &Netns, program: &'static str) -> Result<Self> {
        let mut changes = Changes::open_in(netns)?;
        let (tell, heard) = mpsc::channel();
        let listen = move || {
            // Wakes up now and then, to end when nobody listens any more.
            let nap = Timespec { tv_sec: 1, tv_nsec: 0 };
            loop {
                let mut fds = [PollFd::new(&changes, PollFlags::IN)];
                let woken = poll(&mut fds, Some(&nap));
                let at = Instant::now();
                let Ok(notices) = changes.take() else { return };
                let theirs = notices.iter().any(|notice| match notice {
                    Notice::Event(change) => change.process.starts_with(program),
                    Notice::Lost => true,
                });
                if (theirs && tell.send(at).is_err()) || woken.is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("bench-ear".into()).spawn(listen)?;
        Ok(Self { heard })
    }

    /// What has been heard until now no longer counts.
    pub fn forget(&self) {
        while self.heard.try_recv().is_ok() {}
    }

    /// When the next one came.
    pub fn next(&self, patience: Duration) -> Result<Instant> {
        match self.heard.recv_timeout(patience) {
            Ok(at) => Ok(at),
            Err(_) => bail!("no transaction on the node's ruleset within {patience:?}"),
        }
    }

    /// When the last one came: none followed for so long.
    pub fn last(&self, quiet: Duration, patience: Duration) -> Result<Instant> {
        let mut last = self.next(patience)?;
        loop {
            match self.heard.recv_timeout(quiet) {
                Ok(at) => last = at,
                Err(RecvTimeoutError::Timeout) => return Ok(last),
                Err(RecvTimeoutError::Disconnected) => bail!("nobody listens to the node's ruleset any more"),
            }
        }
    }
}
