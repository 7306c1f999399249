//! The fixed part of a family's table: sets that units fill, and the chains on the kernel's hooks that read them.
//!
//! ```text
//!   raw ─┬─ dns VIP:53 over UDP, and our socket is here ─> no flow (layout/dns.rs)
//!        ├─ loopback addresses from a wire ─> drop
//!        └─ by which link? ─> may this source come by it (guard/links.rs)
//!   prerouting (nat) ─┬─ dns VIP:53 ─> dns: a local socket answers, else another node's agent
//!   output     (nat) ─┤
//!                     ├─ guard ─> may this source come at all?
//!                     ├─ frontx > not from the cluster (prerouting): m<k>, l<k>, …
//!                     └─> services ─┬─ front ──────> n<k>: draw a slot, dnat to ep[slot . frontend]
//!                                   │                m<k>: the same, and masquerade (layout/lead.rs)
//!                                   ├─ clusterips ─> rej      (a Service, but not this port)
//!                                   ├─ service CIDR ─> drop   (no Service at all, V-08)
//!                                   └─ an address of the node ─> hostports: dnat to a pod that wants the port
//!   forward (filter) ─┬─ to no pod of this node ─> onward (guard/links.rs)
//!                     ├─ no part of a flow, or an error about one ─> unusual
//!                     └─ out_iso[who began the flow] ── in_iso[who answers it]
//!   input   (filter) ─┬─ the fabric's (guard/links.rs)
//!                     ├─ no part of a flow, or an error about one ─> unexpected
//!                     └─ dns VIP:53 over UDP, and no socket of ours ─> drop
//!   postrouting (nat) ── marked, hairpin, node → Service, node → fabric, pod → outside: masquerade
//! ```

use kstate::nft::build::{self, rule};
use kstate::nft::key;
use kstate::nft::{
    BaseChain, Chain, ChainKind, CmpOp, Expr, Field, Hook, PayloadBase, Reg, Rule, Set, SetData,
};
use types::wire::MASQUERADE_MARK;
use types::{Family, IfName, IpNet};

use crate::fragment::{Fragment, Name};
use crate::guard::links;
use crate::policy;
use crate::refusal::Refusal;
use crate::wiring;
use semantics::Settings;
use semantics::service::precedence::Caller;
use semantics::view::Base;

mod dns;
pub(crate) mod forward;
mod lead;
mod source;
mod translate;

pub use lead::{Draw, LOCAL_SLOTS, Lead, PINNED_CHAIN, PINNED_OUTSIDE_CHAIN, holds_numbers};

/// Map: address . protocol . port of a Service → the number of where a new connection goes.
pub const FRONTENDS: &str = "front";
/// The same map for callers from outside of the cluster, of frontends that the outside knows.
pub const OUTSIDE: &str = "frontx";
/// Map: number → where it goes.
pub const LEADS: &str = "leads";
/// Maps: frontend → chain of its own, which keeps clients at their endpoint. Earlier versions had all frontends in maps of
/// these names: by them an upgrade finds whose clients to keep (`kstate::nft::heirs`).
pub const PINNED: &str = "svc";
pub const PINNED_OUTSIDE: &str = "svcx";
/// Map: frontend → chain that lets only some sources pass.
pub const GUARDS: &str = "guard";
/// Map: slot . frontend → endpoint.
pub const ENDPOINTS: &str = "ep";
/// Maps: a port of the node → the pod that wants it, at one address and at all of them.
pub const HOST_PORTS_AT: &str = "hostportsat";
pub const HOST_PORTS: &str = "hostports";
/// Set: every ClusterIP.
pub const CLUSTER_IPS: &str = "clusterips";
/// Set: (pod, pod) of each pod of this node; it calls itself through a Service (M-01).
pub const HAIRPIN: &str = "hairpin";
/// Map: slot → another node's agent, for DNS while ours is away.
pub const DNS_PEERS: &str = "dnspeers";
/// Maps: address of an isolated pod of this node → chain of the policies that isolate it.
pub const IN_ISOLATED: &str = "in_iso";
pub const OUT_ISOLATED: &str = "out_iso";
/// Chains: the caller is told; nothing is told.
pub const REJECT: &str = "rej";
pub const UNREACHABLE: &str = "unreachable";
pub const SERVICES: &str = "services";
pub const DNS: &str = "dns";
pub const NODE: &str = "node";
/// Chains on the kernel's hooks; nat has one of its own beside each.
pub const RAW: &str = "raw";
pub const RAW_OUTPUT: &str = "raw_output";
pub const PREROUTING: &str = "prerouting";
pub const OUTPUT: &str = "output";
pub const FORWARD: &str = "forward";
pub const INPUT: &str = "input";
pub const POSTROUTING: &str = "postrouting";
/// Chain: no ICMPv6 redirects to pods.
pub const REDIRECTS: &str = "redirects";
/// Chain: what is for pods leaves by links to pods.
pub const ASTRAY: &str = "astray";

/// nflog group of packets that a policy denied or a Service turned away for its endpoints or source ranges.
pub const LOG_GROUP: u16 = 100;
/// How much of such a packet is logged: its headers.
pub const LOG_BYTES: u32 = 64;

/// Has the packet leave under an address of the node (M-04: the bit is cleared on its way out).
pub fn mark_masquerade() -> Rule {
    rule("", [build::mark(R0), build::or(R0, MASQUERADE_MARK), build::set_mark(R0)])
}

const R0: Reg = Reg(0);
/// NF_IP_PRI_RAW
pub(crate) const BEFORE_CONNTRACK: i32 = -300;

/// What depends on settings and nodes only. Of a family that pods have no addresses of: the guard, loopback addresses from a
/// wire, and pods' errors.
///
/// `links`: what the guard of links has.
pub fn fragment(links: links::Base, given: &Base, settings: &Settings, family: Family) -> Fragment {
    let mut fragment = base(links, Some(given).filter(|_| settings.serves(family)), settings, family);
    policy::further::isolate(&mut fragment, &given.further, family);
    fragment
}

/// The guard alone: nothing that leads, translates or refuses what is for a Service, whoever carries that.
pub fn guard(links: links::Base, settings: &Settings, family: Family) -> Fragment {
    base(links, None, settings, family)
}

fn base(links: links::Base, given: Option<&Base>, settings: &Settings, family: Family) -> Fragment {
    let (links::Base { mut fragment, of_fabric }, served) = (links, given.is_some());
    if let Some(given) = given {
        services_and_policies(&mut fragment, given, settings, family);
    }
    // The cluster's DNS is asked at an address of this family.
    let dns = settings.dns_ip(family).filter(|_| served);
    let mut raw = dns.map_or_else(Vec::new, |address| dns::untracked_queries(family, address));
    if family == Family::V4 {
        raw.extend(from_a_wire());
    }
    raw.extend(links::sources(settings, &of_fabric));
    let mut output = dns.map_or_else(Vec::new, |address| dns::untracked_answers(family, address));
    output.extend(of_fabric.sent.iter().cloned());
    let mut forward = vec![links::forwarded(family)];
    if served {
        forward.extend(forward::forward(settings, family));
    }
    let mut input = links::taken(&of_fabric);
    input.extend(dns.into_iter().flat_map(|address| dns::unheard(family, address)));
    let errors = forward::errors_to_the_node(settings, family, served);
    let unexpected = links::stray().into_iter().chain(errors).collect();
    // NF_IP_PRI_FILTER
    let filter = |hook, rules| on(ChainKind::Filter, (hook, 0), rules);
    let before = |hook, rules| on(ChainKind::Filter, (hook, BEFORE_CONNTRACK), rules);
    let chains = [
        (RAW, before(Hook::Prerouting, raw)),
        (RAW_OUTPUT, before(Hook::Output, output)),
        (FORWARD, filter(Hook::Forward, forward)),
        (INPUT, filter(Hook::Input, input)),
        (links::UNEXPECTED, Chain { base: None, rules: unexpected }),
    ];
    fragment.chains.extend(chains.map(|(name, chain)| (Name::Borrowed(name), chain)));
    fragment
}

fn on(kind: ChainKind, (hook, priority): (Hook, i32), rules: Vec<Rule>) -> Chain {
    Chain { base: Some(BaseChain { kind, hook, priority, drop: false }), rules }
}

/// Sets that Services and pods fill, and what looks into them beside the chains of [`fragment`].
fn services_and_policies(fragment: &mut Fragment, given: &Base, settings: &Settings, family: Family) {
    for (name, set) in sets(family).into_iter().chain(lead::sets(family)) {
        fragment.sets.insert(Name::Borrowed(name), set);
    }
    lead::always(fragment, family);
    let stand_ins = dns::stand_ins(fragment, &given.stand_ins);
    let regular = |rules| Chain { base: None, rules };
    let questions = &given.questions;
    let first = |caller| translate::first(settings, family, caller);
    let nat = |at, rules| on(ChainKind::Nat, at, rules);
    let chains = [
        (REJECT, regular(translate::reject())),
        (UNREACHABLE, regular(translate::unreachable())),
        (DNS, regular(dns::answerer(stand_ins, family))),
        (SERVICES, regular(translate::services(questions, family))),
        (NODE, regular(translate::node(questions, family))),
        // NF_IP_PRI_NAT_DST
        (PREROUTING, nat((Hook::Prerouting, -100), first(Caller::Other))),
        (OUTPUT, nat((Hook::Output, -100), first(Caller::Node))),
        (forward::UNUSUAL, regular(forward::unusual(settings, family))),
        // NF_IP_PRI_NAT_SRC
        (POSTROUTING, nat((Hook::Postrouting, 100), source::postrouting(settings, family))),
    ];
    fragment.chains.extend(chains.map(|(name, chain)| (Name::Borrowed(name), chain)));
    if family == Family::V6 {
        let filter = |hook, rules| on(ChainKind::Filter, (hook, 0), rules);
        let chains = [
            (REDIRECTS, filter(Hook::Output, no_redirects(settings))),
            (ASTRAY, filter(Hook::Postrouting, forward::astray(settings))),
        ];
        fragment.chains.extend(chains.map(|(name, chain)| (Name::Borrowed(name), chain)));
    }
}

/// Loopback addresses are the node's own. The kernel drops them when they come from a wire, but after `prerouting`,
/// where a host port of 127.0.0.1 would have changed the destination; and not on the bridge, which has
/// `route_localnet` while a pod has a host port (CVE-2020-8558 is what comes of that alone).
fn from_a_wire() -> Vec<Rule> {
    let (Ok(lo), Ok(net)) = (IfName::new("lo"), "127.0.0.0/8".parse::<IpNet>()) else { return Vec::new() };
    let from_wire = |address| {
        let loopback = [address].into_iter().chain(build::in_prefix(R0, net));
        loopback.chain([build::iifname(R0), build::is_not(R0, &lo)])
    };
    vec![
        Refusal::ToLoopback.dropped(from_wire(build::daddr(Family::V4, R0))),
        Refusal::FromLoopback.dropped(from_wire(build::saddr(Family::V4, R0))),
    ]
}

const ICMPV6: u8 = 58;
/// Of ICMPv6 (RFC 4861 §4.5).
const REDIRECT: u8 = 137;

/// A pod must not be told to reach its neighbour on the bridge directly, which isolation forbids: it would believe it
/// and lose every further packet. IPv4 has `send_redirects` for that; IPv6 routers have nothing to say no with.
fn no_redirects(settings: &Settings) -> Vec<Rule> {
    let kind = Expr::Payload { dreg: R0, base: PayloadBase::Transport, offset: 0, len: 1 };
    let message = [
        build::l4proto(R0),
        build::cmp(R0, CmpOp::Eq, [ICMPV6]),
        kind,
        build::cmp(R0, CmpOp::Eq, [REDIRECT]),
        build::drop(),
    ];
    let to_pods = wiring::of(settings.wiring).behind(build::oifname(R0), true);
    vec![rule("pods are reached through this node", to_pods.into_iter().chain(message))]
}

/// A set of plain keys or a map, filled by units.
pub fn set(key: &[Field], data: SetData) -> Set {
    Set::new(key, data)
}

fn sets(family: Family) -> [(&'static str, Set); 9] {
    use Field::{Mark, Port, Proto};
    let address = key::address(family);
    let endpoint = || SetData::Values(vec![address, Port]);
    [
        (GUARDS, set(&[address, Proto, Port], SetData::Verdicts)),
        (ENDPOINTS, set(&[Mark, address, Proto, Port], endpoint())),
        (HOST_PORTS_AT, set(&[address, Proto, Port], endpoint())),
        (HOST_PORTS, set(&[Proto, Port], endpoint())),
        (CLUSTER_IPS, set(&[address], SetData::None)),
        (HAIRPIN, set(&[address, address], SetData::None)),
        (DNS_PEERS, set(&[Mark], endpoint())),
        (IN_ISOLATED, set(&[address], SetData::Verdicts)),
        (OUT_ISOLATED, set(&[address], SetData::Verdicts)),
    ]
}

fn saddr_outside(family: Family, nets: impl Iterator<Item = IpNet>) -> Vec<Expr> {
    nets.flat_map(|net| [build::saddr(family, R0)].into_iter().chain(build::not_in_prefix(R0, net))).collect()
}

pub(crate) fn daddr_outside(family: Family, nets: impl Iterator<Item = IpNet>) -> Vec<Expr> {
    nets.flat_map(|net| [build::daddr(family, R0)].into_iter().chain(build::not_in_prefix(R0, net))).collect()
}

fn nets(cidrs: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> + '_ {
    cidrs.iter().filter(move |cidr| Family::of_net(cidr) == family).map(IpNet::trunc)
}
