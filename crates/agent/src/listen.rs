//! Hears from the kernel that somebody changed what is ours, and has the loop look.

use std::time::Duration;

use anyhow::{Context, Result};
use kernel::{net, nft};
use rustix::event::{PollFd, PollFlags, poll};

use crate::actual;
use crate::inbox::{Input, Outbox, Subsystem};

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
                vec![Subsystem::Nft, Subsystem::Net]
            });
            for subsystem in heard {
                if !outbox.send_blocking(Input::KernelChanged(subsystem)) {
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("plumb-listen".into())
        .spawn(work)
        .context("start the listener's thread")?;
    Ok(())
}

impl Listener {
    /// Waits for something worth a look.
    fn next(&mut self) -> Result<Vec<Subsystem>> {
        let mut fds = [PollFd::new(&self.rules, PollFlags::IN), PollFd::new(&self.links, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("wait for the kernel's notices")?;
        let mut rules = self.rules.take()?;
        let mut links = self.take_links()?;
        if rules || links {
            std::thread::sleep(GATHER);
            rules |= self.rules.take()?;
            links |= self.take_links()?;
        }
        let heard = [(Subsystem::Nft, rules), (Subsystem::Net, links)];
        Ok(heard.into_iter().filter(|(_, heard)| *heard).map(|(subsystem, _)| subsystem).collect())
    }

    fn take_links(&mut self) -> Result<bool> {
        let mut heard = false;
        while let Some(batch) = self.links.hear()? {
            heard |= !batch.is_empty();
        }
        Ok(heard)
    }
}
