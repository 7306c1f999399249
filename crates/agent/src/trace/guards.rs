//! What the guards dropped while a flow was watched. Frames at a pod's port, and what is inside the tunnel, meet their
//! rules before the flow's mark: nft's trace says nothing of them, their counters do.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use compile::guard::cause::{Cause, Sender};
use kernel::nft::Nft;
use trace::observed::{COUNTED, Decision};
use types::IfName;

use crate::drops::{Look, Who, senders};

/// What is in the tunnel's packets, or that they come at all.
const IN_TUNNEL: [Cause; 2] = [Cause::InnerSource, Cause::StrangerToTunnel];

#[derive(Debug)]
pub struct Guards {
    nft: Nft,
    /// Of the pod that sends, on its node.
    port: Option<IfName>,
    before: (BTreeMap<Cause, u64>, Look),
}

impl Guards {
    pub fn begin(port: Option<IfName>) -> Result<Self> {
        let nft = Nft::open()?;
        let mut guards = Self { nft, port, before: Default::default() };
        guards.before = guards.look()?;
        Ok(guards)
    }

    fn look(&mut self) -> Result<(BTreeMap<Cause, u64>, Look)> {
        let look = Look::take(&mut self.nft).context("read the guards' counters")?;
        let mut counts: BTreeMap<Cause, u64> =
            IN_TUNNEL.into_iter().map(|cause| (cause, look.of(cause))).collect();
        if let Some(port) = self.port.clone().map(Who::Port) {
            for cause in Cause::ALL.iter().filter(|cause| cause.sender() == Sender::Port) {
                let found = senders(&mut self.nft, *cause).context("read who forges")?;
                counts.insert(*cause, found.get(&port).copied().unwrap_or_default());
            }
        }
        Ok((counts, look))
    }

    /// Each cause for which more was dropped meanwhile.
    pub fn finish(mut self) -> Result<Vec<Decision>> {
        let (after, look) = self.look()?;
        let more = |(cause, after): (Cause, u64)| {
            let (counts, before) = &self.before;
            let before_it = counts.get(&cause).copied().unwrap_or_default();
            let packets = after.checked_sub(before_it).filter(|packets| *packets > 0)?;
            let (table, chain) = look.place(cause, before)?;
            Some(Decision {
                hook: COUNTED.to_owned(),
                family: table.family.to_string(),
                table: table.name.to_string(),
                chain: chain.to_owned(),
                verdict: format!("drop of {packets} packets meanwhile"),
                comment: cause.comment(),
                packet: None,
                oif: None,
                answer: false,
                guard: true,
            })
        };
        Ok(after.into_iter().filter_map(more).collect())
    }
}
