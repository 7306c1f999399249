//! ClientIP affinity: a set of clients for each endpoint, and one chain that looks through them.
//!
//! ```text
//!   aff_<port>:  client in @aff_<endpoint 1> ─> endpoint 1     a client that came before, and not long ago
//!                client in @aff_<endpoint 2> ─> endpoint 2
//!                one in 2 ──────────────────> endpoint 1     everybody else
//!                                             endpoint 2
//! ```
//!
//! Whoever passes is put into his endpoint's set anew, with the whole timeout (A-02). The packet path alone writes
//! these sets, so they outlive the agent (A-04); they belong to the Service's port whatever address it was asked by
//! (A-01); an endpoint that leaves takes its set along (A-03), and so does the end of the affinity (A-05).

use std::net::SocketAddr;

use kstate::nft::build::{self, encode, rule};
use kstate::nft::key::{address, after};
use kstate::nft::{Chain, CmpOp, Expr, Reg, Set, SetData};
use types::Family;

use super::AFFINITY;
use crate::fragment::Fragment;
use crate::layout;
use semantics::meaning::Meaning;

/// Clients that one endpoint is kept for at once.
const CLIENTS: u32 = 1 << 16;
/// The longest timeout that the API allows, in seconds; each client has its own.
const LONGEST: u64 = 86_400;

const CLIENT: Reg = Reg(0);

/// What the chain is about.
pub struct Pinned {
    /// Service, port and protocol: whose clients these are.
    pub port: Meaning,
    /// Which of the port's ways this is.
    pub role: &'static str,
    pub seconds: u32,
    pub masquerade: bool,
}

/// Adds sets and chain; yields the chain's name.
pub fn chain(fragment: &mut Fragment, pinned: &Pinned, endpoints: &[SocketAddr]) -> String {
    let mut known = Vec::new();
    let mut drawn = Vec::new();
    let mut left = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    for endpoint in endpoints {
        let family = Family::of(endpoint.ip());
        let (hash, check) = pinned.port.clone().text("clients").shown(endpoint).digest();
        let set = format!("{AFFINITY}_{hash}");
        fragment.mean(set.clone(), check);
        let client = build::saddr(family, CLIENT);
        let lead =
            [build::update(&set, CLIENT, u64::from(pinned.seconds) * 1000)].into_iter().chain(to(*endpoint));
        let came_before = [client.clone(), build::lookup(&set, CLIENT)].into_iter();
        known.push(rule("", came_before.chain(lead.clone())));
        // Each is as likely as the others: 1/n, then 1/(n-1) of the rest, …, at last all that is left.
        let chance = (left > 1).then(|| [build::numgen(CLIENT, left), build::cmp(CLIENT, CmpOp::Eq, [0; 4])]);
        drawn.push(rule("", chance.into_iter().flatten().chain([client]).chain(lead)));
        left = left.saturating_sub(1);
        fragment.sets.insert(set.into(), clients(family));
    }
    // A full set takes nobody, and its rule ends there: then the next endpoint, and at last one unremembered.
    drawn.extend(endpoints.last().map(|last| rule("", to(*last))));
    let mark = pinned.masquerade.then(layout::mark_masquerade);
    let (hash, check) = pinned.port.clone().text("chain").text(pinned.role).digest();
    let name = format!("{AFFINITY}_{}_{hash}", pinned.role);
    fragment.mean(name.clone(), check);
    let rules = mark.into_iter().chain(known).chain(drawn).collect();
    fragment.chains.insert(name.clone().into(), Chain { base: None, rules });
    name
}

fn clients(family: Family) -> Set {
    Set {
        dynamic: true,
        timeout_ms: Some(LONGEST * 1000),
        size: Some(CLIENTS),
        ..Set::new([address(family)], SetData::None)
    }
}

fn to(endpoint: SocketAddr) -> [Expr; 3] {
    let port = after(CLIENT, address(Family::of(endpoint.ip())));
    [
        build::immediate(CLIENT, encode(&[endpoint.ip().into()])),
        build::immediate(port, encode(&[endpoint.port().into()])),
        build::dnat(Family::of(endpoint.ip()), CLIENT, port),
    ]
}
