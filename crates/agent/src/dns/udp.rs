//! The thread that answers UDP: two system calls per batch, and whatever is not the cluster's handed on.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dns::{Outcome, Rcode, Transport, Zone, answer};
use kernel::udp::{Batch, Peer};

use super::counters::{Count, Tally};
use super::forward::{Desk, Way};
use super::{DnsError, Shared};

pub fn spawn(
    name: &str,
    socket: Arc<UdpSocket>,
    shared: Shared,
    forward: Desk,
) -> Result<std::thread::JoinHandle<()>, DnsError> {
    let chance = Chance(kernel::udp::random()? | 1);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&socket, &shared, &forward, chance))
        .map_err(DnsError::Start)
}

fn run(socket: &UdpSocket, shared: &Shared, forward: &Desk, mut chance: Chance) {
    let mut batch = Batch::new();
    let mut tally = Tally::default();
    loop {
        let received = batch.receive(socket);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = received {
            // Nothing that a socket of this kind reports is for ever; the next call waits again.
            tracing::warn!(%error, "DNS cannot receive");
            std::thread::yield_now();
            continue;
        }
        let zone = shared.zone.read();
        let callers = shared.callers.read();
        batch.reply(socket, |query, peer, out| {
            tally.add(Count::UdpQueries);
            if !callers.may_ask(peer.address().ip()) {
                tally.add(Count::Strangers);
                return 0;
            }
            let length = answer(&zone, forward, (query, peer), out, (chance.draw(), &mut tally));
            match out.get(..length) {
                Some(answer) if length > 0 => tally.answer(answer),
                _ => {}
            }
            length
        });
        drop((zone, callers));
        shared.counters.absorb(&mut tally);
        if batch.ended() {
            return;
        }
    }
}

#[inline]
fn answer(
    zone: &Zone,
    forward: &Desk,
    (query, peer): (&[u8], Peer<'_>),
    out: &mut [u8],
    (chance, tally): (u32, &mut Tally),
) -> usize {
    let way = match zone.answer(query, out, Transport::Udp, chance) {
        Outcome::Answered(length) => return length,
        Outcome::Drop => return 0,
        Outcome::Forward => Way::Forward,
        Outcome::Follow { length, target } => {
            Way::Follow { ours: out.get(..length).unwrap_or_default().to_vec(), target }
        }
    };
    match forward.take(query, peer.address(), way) {
        true => 0,
        false => {
            tally.add(Count::Overload);
            answer::plain_reply(query, out, Rcode::SERVFAIL)
        }
    }
}

/// xorshift64: spreads clients over endpoints, guards nothing.
struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}
