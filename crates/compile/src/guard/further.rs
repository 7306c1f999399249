//! Further sources as sets, maps and chains: of each pod on its port, of all pods of the node behind the bridge.

use kstate::nft::build::{self, encode, rule};
use kstate::nft::key;
use kstate::nft::{Chain, ElemData, Expr, Field, PayloadBase, Reg, Rule, Set, SetData, Verdict};
use types::{Family, IpNet};

use super::cause::Cause;
use crate::fragment::Fragment;
use semantics::meaning::Meaning;
use semantics::view::Sender;

/// Maps: port of a pod → chain of its further sources, and of ARP from there.
pub const FURTHER: [&str; 2] = ["further4", "further6"];
pub const FURTHER_ARP: &str = "further_arp";

const R0: Reg = Reg(0);

/// The bridge's maps, filled by pods.
pub fn maps() -> [(&'static str, Set); 3] {
    let map = |name| (name, Set::new([Field::IfName], SetData::Verdicts));
    [map(FURTHER[0]), map(FURTHER[1]), map(FURTHER_ARP)]
}

/// Leads a frame to the chain of its port, if that has further sources.
pub fn of_port(map: &str) -> Rule {
    rule("", [build::iifname(R0), build::vmap(map, R0)])
}

/// A pod's chains on its port.
pub fn pod(fragment: &mut Fragment, sender: &Sender<'_>) {
    let framed = || [build::ether_saddr(R0), build::is(R0, sender.pod.mac)].into_iter();
    // RFC 826: ar$sha at 8, ar$spa at 14.
    let told = [build::payload(R0, PayloadBase::Network, 8, 6), build::is(R0, sender.pod.mac)];
    let arp = build::payload(R0, PayloadBase::Network, 14, 4);
    for (family, nets) in &sender.further {
        let family = *family;
        let mut chain = |map: &'static str, rules: Vec<Rule>, else_cause: Cause| {
            let name = format!("{map}_{}", sender.pod.host_if);
            let lead = ElemData::Verdict(Verdict::Goto(name.clone()));
            fragment.element(map, encode(&[sender.pod.host_if.into()]), lead);
            let rules = rules.into_iter().chain(else_cause.dropped_by_port()).collect();
            fragment.chains.insert(name.into(), Chain { base: None, rules });
        };
        let of = |net: &IpNet, address: Expr| {
            let inside = [address].into_iter().chain(build::in_prefix(R0, *net));
            framed().chain(inside).chain([build::accept()])
        };
        let packets = nets.iter().map(|net| rule("", of(net, build::saddr(family, R0))));
        chain(family.pick(FURTHER), packets.collect(), family.pick([Cause::Ipv4Source, Cause::Ipv6Source]));
        if family == Family::V4 {
            // A host that has the address asks for its gateway from there (arp_announce 0, net/ipv4/arp.c).
            let asked = nets.iter().map(|net| rule("", told.iter().cloned().chain(of(net, arp.clone()))));
            chain(FURTHER_ARP, asked.collect(), Cause::ArpSender);
        }
    }
}

/// The set of all further sources of this node's pods, where there are any: named after what it holds.
pub fn set(fragment: &mut Fragment, nets: &[IpNet], family: Family) -> Option<String> {
    if nets.is_empty() {
        return None;
    }
    let whole = nets.iter().fold(Meaning::of("further").count(nets.len()), Meaning::shown);
    let name = format!("{}_{}", family.pick(FURTHER), whole.digest().0);
    let set = Set { interval: true, ..Set::new([key::address(family)], SetData::None) };
    fragment.sets.insert(name.clone().into(), set);
    for net in nets {
        let ends = [net.network(), net.broadcast()].map(|address| encode(&[address.into()]));
        fragment.range(name.clone(), ends, ElemData::None);
    }
    Some(name)
}
