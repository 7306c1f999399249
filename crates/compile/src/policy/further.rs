//! Policies and further sources: what a pod sends from there, and what is sent to it there, meets the policies of the pod.
//! Nobody else of the node has the address (guard/further.rs), so it says whose they are.

use kstate::nft::build::{self, ct_state, encode, rule};
use kstate::nft::key;
use kstate::nft::{ElemData, Expr, Reg, Set, SetData, Verdict};
use types::{Family, IpNet};

use super::nftables::{prefix, tiers_chain};
use crate::fragment::Fragment;
use crate::layout::FORWARD;
use semantics::meaning::Meaning;
use semantics::policy::resolve::Direction;
use semantics::policy::tier::Tier;

/// How the names of its maps begin.
pub const FURTHER: &str = "further";

const R0: Reg = Reg(0);

/// Adds to the fixed part of a family's table, last in its chain `forward`, what isolated pods with further sources need.
pub fn isolate(fragment: &mut Fragment, further: &[(Direction, Vec<IpNet>, Vec<Tier>)], family: Family) {
    for direction in [Direction::Egress, Direction::Ingress] {
        let mut leads: Vec<(IpNet, String)> = Vec::new();
        for (_, nets, tiers) in further.iter().filter(|(judged, ..)| *judged == direction) {
            if let Some(chain) = tiers_chain(fragment, tiers, direction, family) {
                leads.extend(nets.iter().map(|net| (*net, chain.clone())));
            }
        }
        if !leads.is_empty() {
            leads.sort();
            // Two interfaces of one pod.
            leads.dedup();
            look(fragment, family, direction, &leads);
        }
    }
}

/// A map named after what it holds, so that no two of its ranges ever overlap, and the rules that look into it.
fn look(fragment: &mut Fragment, family: Family, direction: Direction, leads: &[(IpNet, String)]) {
    let whole = Meaning::of("further policies").text(direction.word()).count(leads.len());
    let whole = leads.iter().fold(whole, |meaning, (net, chain)| meaning.shown(net).text(chain));
    let (hash, check) = whole.digest();
    let name = format!("{FURTHER}_{}_{hash}", prefix(direction));
    fragment.mean(name.clone(), check);
    let map = Set { interval: true, ..Set::new([key::address(family)], SetData::Verdicts) };
    fragment.sets.insert(name.clone().into(), map);
    for (net, chain) in leads {
        let ends = [net.network(), net.broadcast()].map(|address| encode(&[address.into()]));
        fragment.range(name.clone(), ends, ElemData::Verdict(Verdict::Jump(chain.clone())));
    }
    let (of_flow, of_packet): (Expr, Expr) = match direction {
        Direction::Egress => (build::original_saddr(family, R0), build::saddr(family, R0)),
        Direction::Ingress => (build::reply_saddr(family, R0), build::daddr(family, R0)),
    };
    let no_flow = [build::ct_state(R0)].into_iter().chain(build::has_bits(R0, ct_state::UNTRACKED));
    let rules = [
        rule("", [of_flow, build::vmap(name.clone(), R0)]),
        rule("no flow", no_flow.chain([of_packet, build::vmap(name, R0)])),
    ];
    if let Some(forward) = fragment.chains.get_mut(FORWARD) {
        forward.rules.extend(rules);
    }
}
