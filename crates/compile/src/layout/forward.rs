//! What is forwarded, and whose policies judge it; errors that pods send about flows.

use kstate::nft::build::{self, ct_state, rule};
use kstate::nft::{CmpOp, Expr, PayloadBase, Rule, key};
use types::{Family, IfName};

use super::{HAIRPIN, ICMPV6, IN_ISOLATED, OUT_ISOLATED, R0, dns, nets};
use crate::refusal::Refusal;
use crate::{fabric, wiring};
use semantics::Settings;
use semantics::conntrack::{self, Stance, State};
use semantics::policy::exempt::{Exempt, exempt};

/// Chain: what does not belong to a flow as other packets do.
pub const UNUSUAL: &str = "unusual";
/// ICMP's protocol number.
const ICMP: u8 = 1;

/// Most packets belong to a flow that conntrack knows. What is not of that kind leaves by one rule.
pub fn forward(settings: &Settings, family: Family) -> Vec<Rule> {
    let mut rules = vec![rule("", state(bits(&State::ALL)).chain([build::jump(UNUSUAL)]))];
    for exempt in exempt(settings, family) {
        match exempt {
            // What it sends and gets itself is not forwarded: none of it comes here.
            Exempt::TheNode => {}
            // Here only while our agent is away.
            Exempt::Dns(dns) => rules.extend(dns::queries_elsewhere(family, dns)),
        }
    }
    // Every packet of a known flow is judged like its first one (semantics::conntrack).
    rules.push(rule("", [build::original_saddr(family, R0), build::vmap(OUT_ISOLATED, R0)]));
    rules.push(rule("", [build::reply_saddr(family, R0), build::vmap(IN_ISOLATED, R0)]));
    rules
}

/// What is for pods leaves by the links that lead to pods only. A node that configures itself by router advertisements
/// believes any prefix in them to be on that link (RFC 4861 §6.3.4, `addrconf_prefix_rcv`, net/ipv6/addrconf.c), and one
/// longer than ours goes before it: whoever sends it on the nodes' network would get what nodes send to that pod. On output
/// the kernel still names the link on the way to the address before translation, so this looks later.
pub fn astray(settings: &Settings) -> Vec<Rule> {
    let mut leads = fabric::of(settings.fabric).leads(settings);
    leads.extend(IfName::new("lo"));
    let by_none = || leads.iter().flat_map(|name| [build::oifname(R0), build::is_not(R0, name)]);
    let not_to_pods = || wiring::of(settings.wiring).behind(build::oifname(R0), false);
    let of = |net| {
        let to_pods = [build::daddr(Family::V6, R0)].into_iter().chain(build::in_prefix(R0, net));
        let exprs = not_to_pods().into_iter().chain(to_pods).chain(by_none());
        Refusal::Astray.dropped(exprs)
    };
    nets(&settings.pod_pools, Family::V6).map(of).collect()
}

/// Is forwarded, and does not belong to a flow as other packets do.
pub fn unusual(settings: &Settings, family: Family) -> Vec<Rule> {
    conntrack::forwarded().iter().flat_map(|stance| taken(stance, settings, family)).collect()
}

/// The rules that take a stance.
fn taken(stance: &Stance, settings: &Settings, family: Family) -> Vec<Rule> {
    match stance {
        Stance::OwnError(states) => {
            let errors = errors_of_pods(settings, family, bits(states)).chain(its_own_flow(family));
            vec![rule("an error about its own flow", errors.chain([build::accept()]))]
        }
        Stance::OthersError(states) => {
            vec![Refusal::OthersError.dropped(errors_of_pods(settings, family, bits(states)))]
        }
        Stance::Passes(of) => vec![rule("", state(bits(&[*of])).chain([build::accept()]))],
        Stance::Dropped(of) => vec![Refusal::NoConnection.dropped(state(bits(&[*of])))],
        // Here it meets the same chains.
        Stance::Alone(of) => {
            let alone =
                |address, map| rule("no flow", state(bits(&[*of])).chain([address, build::vmap(map, R0)]));
            vec![alone(build::saddr(family, R0), OUT_ISOLATED), alone(build::daddr(family, R0), IN_ISOLATED)]
        }
    }
}

fn bits(states: &[State]) -> u32 {
    let bit = |state: &State| match state {
        State::Related => ct_state::RELATED,
        State::Invalid => ct_state::INVALID,
        State::Untracked => ct_state::UNTRACKED,
    };
    states.iter().map(bit).fold(0, |all, bit| all | bit)
}

fn state(bits: u32) -> impl Iterator<Item = Expr> {
    [build::ct_state(R0)].into_iter().chain(build::has_bits(R0, bits))
}

/// Conntrack calls errors about flows that it does not know invalid, and the kernel believes them: one "fragmentation
/// needed" about what nodes send each other, whose flows have a source port for each flow inside, and all pods' packets to that node would
/// be cut to 552 bytes for ten minutes (__udp4_lib_err_encap, net/ipv4/udp.c). ND and MLD are untracked, so none of this.
///
/// `served`: pods have addresses of the family, and may tell of their own flows.
pub fn errors_to_the_node(settings: &Settings, family: Family, served: bool) -> Vec<Rule> {
    conntrack::to_the_node(served).iter().flat_map(|stance| taken(stance, settings, family)).collect()
}

/// ICMP from a pod of this node, in these states.
fn errors_of_pods(settings: &Settings, family: Family, states: u32) -> impl Iterator<Item = Expr> + use<> {
    let icmp = [build::l4proto(R0), build::cmp(R0, CmpOp::Eq, [family.pick([ICMP, ICMPV6])])];
    let from = wiring::of(settings.wiring).behind(build::iifname(R0), true);
    state(states).chain(icmp).chain(from)
}

/// An error holds the packet that it is about (RFC 792, RFC 4443 §2.4). A host complains of what was sent to it: an error
/// about what was sent to somebody else is forged, and would pass all policies as RELATED.
fn its_own_flow(family: Family) -> impl Iterator<Item = Expr> {
    let (offset, len) = family.pick([(8 + 16, 4), (8 + 24, 16)]);
    let about = key::after(R0, key::address(family));
    let destination = build::payload(about, PayloadBase::Transport, offset, len);
    [build::saddr(family, R0), destination, build::lookup(HAIRPIN, R0)].into_iter()
}
