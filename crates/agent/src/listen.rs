//! Hears from the kernel what becomes of what is ours, and tells the loop, which knows what of it is its own doing.

use std::time::Duration;

use anyhow::{Context, Result};
use kernel::net::{self, Change};
use kernel::nft;
use kstate::net::Told;
use rustix::event::{PollFd, PollFlags, poll};

use crate::actual;
use crate::datapath::Subsystem;
use crate::inbox::{Input, Outbox};

/// One change seldom comes alone: look once it is over, and not more often than this.
const GATHER: Duration = Duration::from_millis(200);
/// Of more at once nobody goes through each: a look costs less.
const MANY: usize = 50_000;

struct Listener {
    rules: nft::ForeignChanges,
    links: net::Changes,
}

/// Listens in the network namespace of the calling thread, from now on. `portid`: our own nf_tables transactions,
/// which are no news.
pub fn start(outbox: Outbox, portid: u32, scope: net::Scope) -> Result<()> {
    let rules = nft::ForeignChanges::open(actual::our_tables(), portid).context("listen to nf_tables")?;
    let links = net::Changes::listen(scope).context("listen to rtnetlink")?;
    let mut listener = Listener { rules, links };
    let work = move || {
        loop {
            let heard = listener.next().unwrap_or_else(|error| {
                tracing::warn!(error = format!("{error:#}"), "listening to the kernel; looking anyway");
                std::thread::sleep(GATHER);
                Heard { rules: true, links: true, ground: true, detours: true, told: Vec::new() }
            });
            if !heard.inputs().into_iter().all(|input| outbox.send_blocking(input)) {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("plumb-listen".into())
        .spawn(work)
        .context("start the listener's thread")?;
    Ok(())
}

/// What is worth a look.
#[derive(Debug, Default)]
struct Heard {
    rules: bool,
    /// Something of them is not known.
    links: bool,
    ground: bool,
    detours: bool,
    told: Vec<Told>,
}

impl Heard {
    fn is_nothing(&self) -> bool {
        !(self.rules || self.links || self.ground || self.detours) && self.told.is_empty()
    }

    fn note(&mut self, change: Change) {
        match change {
            Change::Ours(_) if self.links => {}
            Change::Ours(told) if self.told.len() < MANY => self.told.push(told),
            Change::Ours(_) => self.look_at_links(),
            Change::Ground => self.ground = true,
            Change::Detour => self.detours = true,
            Change::Overrun => {
                self.look_at_links();
                (self.ground, self.detours) = (true, true);
            }
        }
    }

    fn look_at_links(&mut self) {
        self.links = true;
        self.told = Vec::new();
    }

    fn inputs(self) -> Vec<Input> {
        let told = (!self.told.is_empty()).then_some(Input::Told(self.told));
        let ground = self.ground.then_some(Input::GroundChanged);
        let detours = self.detours.then_some(Input::DetoursChanged);
        let ours = [(Subsystem::Nft, self.rules), (Subsystem::Net, self.links)];
        let ours = ours.into_iter().filter(|(_, heard)| *heard);
        ground
            .into_iter()
            .chain(detours)
            .chain(ours.map(|(subsystem, _)| Input::KernelChanged(subsystem)))
            .chain(told)
            .collect()
    }
}

impl Listener {
    /// Waits for something worth a look.
    fn next(&mut self) -> Result<Heard> {
        let mut fds = [PollFd::new(&self.rules, PollFlags::IN), PollFd::new(&self.links, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("wait for the kernel's notices")?;
        let mut heard = Heard::default();
        self.take(&mut heard)?;
        if !heard.is_nothing() {
            std::thread::sleep(GATHER);
            self.take(&mut heard)?;
        }
        Ok(heard)
    }

    fn take(&mut self, heard: &mut Heard) -> Result<()> {
        heard.rules |= self.rules.take()?;
        while let Some(batch) = self.links.hear()? {
            batch.into_iter().for_each(|change| heard.note(change));
        }
        Ok(())
    }
}
