//! Hears from the kernel that somebody changed what is ours, and has the loop look.

use std::time::Duration;

use anyhow::{Context, Result};
use kernel::net::{self, Change};
use kernel::nft;
use rustix::event::{PollFd, PollFlags, poll};

use crate::actual;
use crate::datapath::Subsystem;
use crate::inbox::{Input, Outbox};

/// One change seldom comes alone: look once it is over, and not more often than this.
const GATHER: Duration = Duration::from_millis(200);

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
                Heard { rules: true, links: true, ground: true, detours: true }
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
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    rules: bool,
    links: bool,
    ground: bool,
    detours: bool,
}

impl Heard {
    fn inputs(self) -> Vec<Input> {
        let ground = self.ground.then_some(Input::GroundChanged);
        let detours = self.detours.then_some(Input::DetoursChanged);
        let ours = [(Subsystem::Nft, self.rules), (Subsystem::Net, self.links)];
        let ours = ours.into_iter().filter(|(_, heard)| *heard);
        ground
            .into_iter()
            .chain(detours)
            .chain(ours.map(|(subsystem, _)| Input::KernelChanged(subsystem)))
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
        if heard.rules || heard.links || heard.ground || heard.detours {
            std::thread::sleep(GATHER);
            self.take(&mut heard)?;
        }
        Ok(heard)
    }

    fn take(&mut self, heard: &mut Heard) -> Result<()> {
        heard.rules |= self.rules.take()?;
        while let Some(batch) = self.links.hear()? {
            for change in batch {
                heard.ground |= matches!(change, Change::Ground | Change::Overrun);
                heard.detours |= matches!(change, Change::Detour | Change::Overrun);
                heard.links |= matches!(change, Change::Ours(_) | Change::Overrun);
            }
        }
        Ok(())
    }
}
