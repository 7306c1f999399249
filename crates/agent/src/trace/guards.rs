//! What the guards dropped while a flow was watched. Frames at a pod's port, and what is inside the tunnel, meet their
//! rules before the flow's mark: nft's trace says nothing of them, their counters do.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use compile::guard::cause::{Cause, KnownBy};
use kernel::nft::Nft;
use kstate::nft::TableId;
use trace::observed::{COUNTED, Decision};
use types::IfName;

use crate::drops::{Look, Who, senders};

/// What is in the tunnel's packets, or that they come at all.
const IN_TUNNEL: [Cause; 2] = [Cause::InnerSource, Cause::StrangerToTunnel];

/// What was sent by one port, by cause and table.
type Sent = BTreeMap<(Cause, TableId), u64>;

#[derive(Debug)]
pub struct Guards {
    nft: Nft,
    /// Of the pod that sends, on its node.
    port: Option<IfName>,
    before: (Sent, Look),
}

impl Guards {
    pub fn begin(port: Option<IfName>) -> Result<Self> {
        let nft = Nft::open()?;
        let mut guards = Self { nft, port, before: Default::default() };
        guards.before = guards.look()?;
        Ok(guards)
    }

    fn look(&mut self) -> Result<(Sent, Look)> {
        let look = Look::take(&mut self.nft).context("read the guards' counters")?;
        let mut sent = Sent::new();
        if let Some(port) = self.port.clone().map(Who::Port) {
            for cause in Cause::ALL.iter().filter(|cause| cause.known_by() == KnownBy::Port) {
                let found = senders(&mut self.nft, *cause).context("read who forges")?;
                let own = found.into_iter().filter(|((_, who), _)| *who == port);
                sent.extend(own.map(|((table, _), packets)| ((*cause, table), packets)));
            }
        }
        Ok((sent, look))
    }

    /// Each place where more was dropped meanwhile.
    pub fn finish(mut self) -> Result<Vec<Decision>> {
        let (sent, look) = self.look()?;
        let (sent_before, look_before) = &self.before;
        let by_port = sent.iter().filter_map(|((cause, table), packets)| {
            let before = sent_before.get(&(*cause, table.clone())).copied().unwrap_or_default();
            let more = packets.checked_sub(before).filter(|more| *more > 0)?;
            Some(decision(*cause, (table, look.chain(*cause, table)?), more))
        });
        let in_tunnel = IN_TUNNEL.into_iter().flat_map(|cause| {
            let grown = look.grown(cause, look_before).into_iter();
            grown.map(move |(place, more)| decision(cause, place, more)).collect::<Vec<_>>()
        });
        Ok(by_port.chain(in_tunnel).collect())
    }
}

fn decision(cause: Cause, (table, chain): (&TableId, &str), packets: u64) -> Decision {
    Decision {
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
    }
}
