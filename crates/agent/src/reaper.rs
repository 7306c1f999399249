//! Deletes veths, many at once: one alone waits 10 to 20 ms for RCU, a group of a hundred 0.5 ms each. While one
//! deletion waits the next ones gather, so nobody has to guess a delay. Then the kernel forgets the connections of those
//! who had them, which may have to look at every connection of the node: not on the loop's thread.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernel::{Error, Rtnl, veth};
use types::{IfName, IpNet};

use crate::flows::{Flows, Part};
use crate::inbox::{Input, Outbox};

/// The queue's writing end. The thread ends with it.
#[derive(Debug)]
pub struct Reaper(mpsc::Sender<Work>);

#[derive(Debug)]
enum Work {
    Attachment(Doomed),
    Vacated(Vec<IpNet>),
    Lost(Vec<IpNet>),
}

/// An attachment that goes.
#[derive(Debug)]
pub struct Doomed {
    pub handle: String,
    pub host_if: IfName,
    /// Where it alone could send from, as far as that is known.
    pub sources: Vec<IpNet>,
}

/// What was done, together.
#[derive(Debug)]
pub struct Reaped {
    pub gone: Vec<Doomed>,
    pub deleted: Result<(), Error>,
    /// Addresses of pods of other nodes.
    pub vacated: Vec<IpNet>,
    /// Further sources of pods of this node.
    pub lost: Vec<IpNet>,
    /// How many connections; nothing is forgotten while a veth is there.
    pub forgotten: Result<usize, Error>,
    pub forgetting: Duration,
}

impl Reaper {
    /// In the network namespace of the calling thread.
    pub fn start(outbox: Outbox) -> Result<Self> {
        let (mut rtnl, mut flows) = (Rtnl::open()?, Flows::open()?);
        let (sender, queue) = mpsc::channel::<Work>();
        let work = move || {
            while let Ok(first) = queue.recv() {
                let all = std::iter::once(first).chain(queue.try_iter());
                let reaped = reap(&mut rtnl, &mut flows, all);
                if !outbox.send_blocking(Input::Reaped(reaped)) {
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

    /// Deletes a veth soon, and has its connections forgotten; [`Input::Reaped`] tells when.
    pub fn delete(&self, doomed: Doomed) {
        // The thread lives as long as the loop that reads its answers.
        let _ = self.0.send(Work::Attachment(doomed));
    }

    /// Has what pods of other nodes began forgotten that no longer have these addresses.
    pub fn forget_vacated(&self, vacated: Vec<IpNet>) {
        let _ = self.0.send(Work::Vacated(vacated));
    }

    /// Has the connections of pods of this node forgotten that no longer have these further sources.
    pub fn forget_lost(&self, lost: Vec<IpNet>) {
        let _ = self.0.send(Work::Lost(lost));
    }
}

fn reap(rtnl: &mut Rtnl, flows: &mut Flows, all: impl Iterator<Item = Work>) -> Reaped {
    let (mut gone, mut vacated, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for work in all {
        match work {
            Work::Attachment(doomed) => gone.push(doomed),
            Work::Vacated(nets) => vacated.extend(nets),
            Work::Lost(nets) => lost.extend(nets),
        }
    }
    let names: Vec<IfName> = gone.iter().map(|doomed| doomed.host_if.clone()).collect();
    let deleted = if names.is_empty() { Ok(()) } else { veth::delete(rtnl, &names).map(drop) };
    let began = Instant::now();
    // What a veth that is still there sends would begin them anew.
    let of_gone = gone.iter().filter(|_| deleted.is_ok()).flat_map(|doomed| &doomed.sources);
    let sources: Vec<IpNet> = of_gone.chain(&lost).copied().collect();
    let forgotten = flows
        .forget_of(&sources, Part::Any)
        .and_then(|count| Ok(count + flows.forget_of(&vacated, Part::Began)?));
    Reaped { gone, deleted, vacated, lost, forgotten, forgetting: began.elapsed() }
}
