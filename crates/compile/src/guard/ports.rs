//! `bridge plumb`: of a pod's port come only frames with its own MAC and addresses. Every pod is elements, no chain.
//!
//! ```text
//!   prerouting ─ a pod's port? ─┬─ IPv4 ── port . MAC . source          @senders4
//!                               ├─ ARP ─── port . MAC . sender, twice   @senders4
//!                               ├─ IPv6 ── port . MAC . source          @senders6, @link6 for ND and MLD
//!                               │        those of further.rs, of a port that has them
//!                               └─ anything else, tagged frames too: drop
//!
//! A frame whose checksum would be written to a wrong place has been marked and tagged at the port itself, so that these rules
//! need not ask each frame (crates/kernel/bpf/checksums.bpf.c).
//! ```
//!
//! Frames to the bridge group's own addresses (01:80:c2:00:00:00 to …0f) would come to the IP stack by the port itself, past
//! these hooks (br_handle_frame, net/bridge/br_input.c). Pods' ports have them bridged as any other
//! (`PortOptions::GROUP_FWD`), and the guard of links drops what comes by a port that does not.

use std::net::{IpAddr, Ipv6Addr};

use kstate::nft::build::{self, Value, encode, rule};
use kstate::nft::{
    BaseChain, Chain, ChainKind, CmpOp, ElemData, Expr, Field, Hook, PayloadBase, Reg, Rule, Set, SetData,
};
use types::Family;

use super::Guard;
use super::cause::Cause;
use super::further::{self as further, FURTHER, FURTHER_ARP};
use crate::fragment::{Fragment, Name};
use crate::layout::BEFORE_CONNTRACK;
use crate::net::link_local;
use semantics::view::Sender;

/// Set: the ports of pods.
pub const PORTS: &str = "ports";
/// Sets: port . MAC . address, of each pod.
pub const SENDERS: [&str; 2] = ["senders4", "senders6"];
/// Set: the same of its link-local address and `::`, which are for neighbour discovery and MLD alone.
pub const LINK6: &str = "link6";

/// Chains: every frame of a pod's port, by what it carries.
pub const FRAMES: &str = "frames";
pub const IPV4_FRAMES: &str = "ipv4_frames";
pub const IPV6_FRAMES: &str = "ipv6_frames";
pub const ARP_FRAMES: &str = "arp_frames";
/// Chains: neighbour discovery and MLD under a link-local source; advertisements; the addresses in them.
pub const DISCOVERY: &str = "discovery";
pub const ADVERTS: &str = "adverts";
pub const TARGETS: &str = "targets";
/// Chain: frames that the program at the port has marked.
pub const MISPLACED: &str = "misplaced";

const R0: Reg = Reg(0);
/// After the port's name, and after the MAC.
const MAC: Reg = Reg(4);
const ADDRESS: Reg = Reg(6);
/// Of frames that the program at the port turns away ("plmb"): nothing else marks what comes out of a veth, for a mark
/// stays behind in the namespace that set it (skb_scrub_packet).
const MISPLACED_MARK: u32 = 0x706c_6d62;
/// EtherTypes.
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
/// Neighbor Solicitation and Advertisement (RFC 4861 §4.3, §4.4), Version 2 Multicast Listener Report (RFC 3810 §5.2).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const LISTENER: u8 = 143;
/// Multicast Listener Report and Done (RFC 2710), Router Solicitation.
const REPORT_TO_ROUTER_SOLICITATION: [u8; 2] = [131, 133];

pub fn base() -> Fragment {
    let mut fragment = Fragment::default();
    let of = |address| Set::new([Field::IfName, Field::Mac, address], SetData::None);
    let sets = [
        (PORTS, Set::new([Field::IfName], SetData::None)),
        (SENDERS[0], of(Field::Ipv4)),
        (SENDERS[1], of(Field::Ipv6)),
        (LINK6, of(Field::Ipv6)),
    ];
    let sets = sets.into_iter().chain(further::maps());
    fragment.sets.extend(sets.map(|(name, set)| (Name::Borrowed(name), set)));
    Guard::Ports.tables().iter().for_each(|table| Cause::add_sets(table, &mut fragment));
    let regular = |rules| Chain { base: None, rules };
    let hooked = |hook, rules| Chain {
        base: Some(BaseChain { kind: ChainKind::Filter, hook, priority: BEFORE_CONNTRACK, drop: false }),
        rules,
    };
    let chains = [
        (FRAMES, hooked(Hook::Prerouting, frames())),
        (IPV4_FRAMES, regular(ipv4())),
        (ARP_FRAMES, regular(arp())),
        (IPV6_FRAMES, regular(ipv6())),
        (DISCOVERY, regular(discovery())),
        (ADVERTS, regular(adverts())),
        (TARGETS, regular(targets())),
        (MISPLACED, regular(or_drop([], Cause::ChecksumPlace))),
    ];
    fragment.chains.extend(chains.map(|(name, chain)| (Name::Borrowed(name), chain)));
    fragment
}

pub fn pod(sender: &Sender<'_>) -> Fragment {
    let mut fragment = Fragment::default();
    let port = Value::from(sender.pod.host_if);
    fragment.element(PORTS, encode(&[port]), ElemData::None);
    let mut may = |set: &'static str, address: IpAddr| {
        let key = encode(&[port, sender.pod.mac.into(), address.into()]);
        fragment.element(set, key, ElemData::None);
    };
    for ip in sender.pod.ips {
        may(Family::of(*ip).pick(SENDERS), *ip);
    }
    may(LINK6, link_local(sender.pod.mac).into());
    may(LINK6, Ipv6Addr::UNSPECIFIED.into());
    further::pod(&mut fragment, sender);
    fragment
}

fn frames() -> Vec<Rule> {
    let carries = |kind: [u8; 2], chain: &str| {
        rule("", [build::ether_type(R0), build::cmp(R0, CmpOp::Eq, kind), build::goto(chain)])
    };
    // Most of it, so it is asked about first.
    let own = [build::ether_type(R0), build::cmp(R0, CmpOp::Eq, IPV4)].into_iter();
    let own = own.chain(sender(build::ether_saddr(MAC), source(Family::V4)));
    let rules = [
        rule("", own.chain([build::lookup(SENDERS[0], R0), build::accept()])),
        rule("another's port", [build::iifname(R0), build::lookup_not(PORTS, R0), build::accept()]),
        carries(IPV4, IPV4_FRAMES),
        carries(IPV6, IPV6_FRAMES),
        carries(ARP, ARP_FRAMES),
        rule("", [build::mark(R0), build::is(R0, MISPLACED_MARK), build::goto(MISPLACED)]),
    ];
    or_drop(rules, Cause::FrameType)
}

/// What none of these rules took.
fn or_drop(rules: impl IntoIterator<Item = Rule>, cause: Cause) -> Vec<Rule> {
    rules.into_iter().chain(cause.dropped_by_port()).collect()
}

/// The port, the frame's MAC (or another one), and an address.
fn sender(mac: Expr, address: Expr) -> [Expr; 3] {
    [build::iifname(R0), mac, address]
}

fn source(family: Family) -> Expr {
    build::saddr(family, ADDRESS)
}

/// Accepts what the set has.
fn of_sender(set: &str, address: Expr) -> Rule {
    let key = sender(build::ether_saddr(MAC), address).into_iter();
    rule("", key.chain([build::lookup(set, R0), build::accept()]))
}

fn ipv4() -> Vec<Rule> {
    or_drop([further::of_port(FURTHER[0])], Cause::Ipv4Source)
}

/// The frame's MAC and the one in the message (RFC 826: ar$sha at 8, ar$spa at 14) are both the pod's.
fn arp() -> Vec<Rule> {
    let address = || build::payload(ADDRESS, PayloadBase::Network, 14, 4);
    let framed = sender(build::ether_saddr(MAC), address());
    let told = sender(build::payload(MAC, PayloadBase::Network, 8, 6), address());
    let known = || build::lookup(SENDERS[0], R0);
    let both = framed.into_iter().chain([known()]).chain(told).chain([known(), build::accept()]);
    or_drop([rule("", both), further::of_port(FURTHER_ARP)], Cause::ArpSender)
}

fn icmpv6() -> [Expr; 2] {
    [build::l4proto(R0), build::cmp(R0, CmpOp::Eq, [ICMPV6])]
}

fn kind() -> Expr {
    build::payload(R0, PayloadBase::Transport, 0, 1)
}

fn ipv6() -> Vec<Rule> {
    let advert = [kind(), build::cmp(R0, CmpOp::Eq, [ADVERTISEMENT]), build::goto(ADVERTS)];
    let link = sender(build::ether_saddr(MAC), source(Family::V6));
    let link = icmpv6().into_iter().chain(link).chain([build::lookup(LINK6, R0), build::goto(DISCOVERY)]);
    let rules = [
        rule("", icmpv6().into_iter().chain(advert)),
        of_sender(SENDERS[1], source(Family::V6)),
        rule("", link),
        further::of_port(FURTHER[1]),
    ];
    or_drop(rules, Cause::Ipv6Source)
}

/// What a host says before it has an address, and by its link-local one.
fn discovery() -> Vec<Rule> {
    let is = |number: u8| rule("", [kind(), build::cmp(R0, CmpOp::Eq, [number]), build::accept()]);
    let [from, to] = REPORT_TO_ROUTER_SOLICITATION;
    let range = Expr::Range { sreg: R0, invert: false, from: vec![from], to: vec![to] };
    let rules = [is(SOLICITATION), is(LISTENER), rule("", [kind(), range, build::accept()])];
    or_drop(rules, Cause::LinkLocal)
}

fn adverts() -> Vec<Rule> {
    let from = |set| {
        let key = sender(build::ether_saddr(MAC), source(Family::V6)).into_iter();
        rule("", key.chain([build::lookup(set, R0), build::goto(TARGETS)]))
    };
    or_drop([from(SENDERS[1]), from(LINK6)], Cause::AdvertSource)
}

/// The address that is advertised (RFC 4861 §4.4).
fn targets() -> Vec<Rule> {
    let target = || build::payload(ADDRESS, PayloadBase::Transport, 8, 16);
    or_drop([of_sender(SENDERS[1], target()), of_sender(LINK6, target())], Cause::AdvertisedAddress)
}
