//! Who may use the tunnel: its port is for nodes only, and each brings packets of its own pods only.
//!
//! ```text
//!   raw (prerouting) ─┬─ plumb.1 ─ what the tunnel let in; never to the tunnel's port
//!                     ├─ pods ──── never to the tunnel's port
//!                     └─ others ── UDP 8472? ─> from a node, and inside only its own
//!   raw_output ── what goes into the tunnel is no flow, nor is what comes by it
//!   forward ───── to no pod of this node: never to a tunnel's port for a pod or a Service
//!   input ─────── no Service leads to the tunnel's port of this node
//! ```

use std::net::{IpAddr, Ipv6Addr};

use kstate::nft::build::{self, encode, rule};
use kstate::nft::key;
use kstate::nft::{Chain, CmpOp, ElemData, Expr, PayloadBase, Reg, Rule, Set, SetData};
use semantics::Settings;
use semantics::node::Peer;
use semantics::topology::Sources;
use types::wire::{VXLAN_DEVICE, VXLAN_PORT, VXLAN_VNI};
use types::{Family, IpNet, Protocol};

use crate::fabric::{Guarding, OwnChain};
use crate::fragment::{Fragment, Name};
use crate::guard::cause::Cause;
use crate::guard::links::{NODES, device, translated};
use crate::role::Role;
use crate::wiring;

/// How the names of the sets begin that [`inside`] names.
pub const INSIDE: &str = "inside";

pub const FROM_TUNNEL: &str = "from_tunnel";
/// Chain: a packet to the tunnel's port in which a node sends what is its own.
pub const INNER: &str = "inner";
/// Chain: any other packet to the tunnel's port that does not come from a pod.
pub const TUNNEL: &str = "tunnel";
/// Chain: what is forwarded to a tunnel's port.
pub const AWAY: &str = "away";
/// Chain: what this node takes at the tunnel's port.
pub const TO_TUNNEL: &str = "to_tunnel";
/// Chain: what a Service led to the tunnel's port of this node.
pub const SERVICE_TO_TUNNEL: &str = "service_to_tunnel";
/// Chain: a pod's packet to a tunnel's port, of whatever node.
pub const POD_TO_TUNNEL: &str = "pod_to_tunnel";

pub const CHAINS: &[OwnChain] = &[
    OwnChain { name: FROM_TUNNEL, role: Role::Unwrapped, drops: true },
    OwnChain { name: INNER, role: Role::Stranger, drops: false },
    OwnChain { name: TUNNEL, role: Role::Stranger, drops: true },
    OwnChain { name: AWAY, role: Role::Sender, drops: true },
    OwnChain { name: TO_TUNNEL, role: Role::Stranger, drops: true },
    OwnChain { name: SERVICE_TO_TUNNEL, role: Role::Own, drops: true },
    OwnChain { name: POD_TO_TUNNEL, role: Role::Sender, drops: true },
];

const R0: Reg = Reg(0);
/// RFC 7348 §5, from the outer UDP header on: the network's number, the inner frame's type, the inner IP header.
const VNI_AT: u32 = 12;
const TYPE_AT: u32 = 28;
const INNER_AT: u32 = 30;

/// Set: (node, network of this length) that its tunnel brings packets from, such as `inside4_24`. A network has a set of
/// its length, since its first address alone does not say how far it goes: 10.244.3.0/25 is not 10.244.3.0/24.
fn inside(inner: Family, length: u8) -> String {
    format!("{INSIDE}{}_{length}", inner.pick([4, 6]))
}

pub fn guarding(sources: &Sources, settings: &Settings, family: Family) -> Guarding {
    let mut own = Fragment::default();
    for &(inner, length) in &sources.elsewhere {
        let set = Set::new([key::address(family), key::address(inner)], SetData::None);
        own.sets.insert(inside(inner, length).into(), set);
    }
    let inner = sources.elsewhere.iter().map(|inside| inner_source(family, *inside));
    let chains = [
        (FROM_TUNNEL, vec![Cause::TunnelToTunnel.dropped(to_own_vxlan())]),
        (INNER, inner.collect()),
        (TUNNEL, tunnel(family)),
        (AWAY, away(settings)),
        (TO_TUNNEL, to_tunnel(family)),
        (SERVICE_TO_TUNNEL, service_to_tunnel(settings)),
        (POD_TO_TUNNEL, Cause::PodToTunnel.dropped_by_pod(family)),
    ];
    let regular = chains.map(|(name, rules)| (Name::Borrowed(name), Chain { base: None, rules }));
    own.chains.extend(regular);
    let by_tunnel = device(build::iifname(R0), CmpOp::Eq, VXLAN_DEVICE);
    Guarding {
        own,
        by_link: vec![rule("", by_tunnel.into_iter().chain([build::goto(FROM_TUNNEL)]))],
        from_pods: vec![rule("", to_own_vxlan().chain([build::goto(POD_TO_TUNNEL)]))],
        // What nodes send each other is most of it: it is let in first, without asking whose the address is that it came to.
        from_wire: [
            vec![rule("", to_vxlan().into_iter().chain([build::jump(INNER)]))],
            vec![rule("", to_own_vxlan().chain([build::goto(TUNNEL)]))],
        ],
        sent: vec![sent(family)],
        onward: vec![rule("", to_vxlan().into_iter().chain([build::jump(AWAY)]))],
        taken: vec![rule("", to_vxlan().into_iter().chain([build::goto(TO_TUNNEL)]))],
    }
}

/// A node that joins: that its tunnel brings its pods and its tunnel's address.
///
/// The inner source is compared while the outer one is still to be seen. A tunnel device shows no more who sent what, and
/// a node that was broken into must not speak for the pods of all others. What it says of itself in its status counts for
/// the outer source only: its pods' network was assigned to it, its addresses it may make up.
pub fn peer(fragment: &mut Fragment, peer: &Peer, family: Family) {
    let Some(address) = peer.address(family) else { return };
    for subnet in peer.subnets() {
        let net = subnet.net;
        let pair = encode(&[address.into(), net.network().into()]);
        fragment.element(inside(Family::of_net(&net), net.prefix_len()), pair, ElemData::None);
    }
}

fn to_vxlan() -> [Expr; 4] {
    let port = build::is(R0, VXLAN_PORT);
    [build::l4proto(R0), build::is(R0, Protocol::Udp), build::th_dport(R0), port]
}

/// To the tunnel's port of this node, at whatever address: the tunnel's socket hears broadcasts, groups and anycast
/// addresses (of each IPv6 network the first, RFC 4291 §2.6.1), too.
fn to_own_vxlan() -> impl Iterator<Item = Expr> {
    let heard = build::within(R0, build::RTN_LOCAL, build::RTN_MULTICAST);
    to_vxlan().into_iter().chain([build::fib_daddr_type(R0), heard])
}

/// Before conntrack. The tunnel's packets are no flows: conntrack would translate them by a flow of a pod that was
/// masqueraded to the tunnel's port, and each node would remember every flow twice.
fn sent(family: Family) -> Rule {
    let node = [build::daddr(family, R0), build::lookup(NODES, R0), build::notrack()];
    rule("the tunnel's", to_vxlan().into_iter().chain(node))
}

/// Comes here what [`INNER`] did not let in.
fn tunnel(family: Family) -> Vec<Rule> {
    let source = [build::saddr(family, R0), build::lookup_not(NODES, R0)];
    let [_, vni @ ..] = VXLAN_VNI.to_be_bytes();
    let other = [transport(R0, VNI_AT, 3), build::cmp(R0, CmpOp::Ne, vni)];
    vec![
        Cause::StrangerToTunnel.dropped(source),
        rule("another's tunnel", other.into_iter().chain([build::accept()])),
        Cause::InnerSource.dropped([]),
    ]
}

fn transport(dreg: Reg, offset: u32, len: u32) -> Expr {
    build::payload(dreg, PayloadBase::Transport, offset, len)
}

/// The network of this length that the inner source lies in is the sending node's.
fn inner_source(outer: Family, (inner, length): (Family, u8)) -> Rule {
    let carries: [u8; 2] = inner.pick([[0x08, 0x00], [0x86, 0xdd]]);
    let kind = [transport(R0, TYPE_AT, 2), build::cmp(R0, CmpOp::Eq, carries)];
    let at = key::after(R0, key::address(outer));
    let (offset, len) = inner.pick([(12, 4), (8, 16)]);
    let pair = [build::saddr(outer, R0), transport(at, INNER_AT + offset, len)];
    let exprs = kind.into_iter().chain(pair).chain(mask(at, inner, length));
    let own = build::lookup(inside(inner, length), R0);
    rule("", exprs.chain([own, build::notrack(), build::accept()]))
}

fn mask(reg: Reg, family: Family, length: u8) -> Option<Expr> {
    let any = family.pick([IpAddr::from([0, 0, 0, 0]), Ipv6Addr::UNSPECIFIED.into()]);
    let net = IpNet::new(any, length).ok().filter(|net| length < net.max_prefix_len())?;
    let mask = Vec::from(encode(&[net.netmask().into()]));
    let xor = vec![0; mask.len()];
    Some(Expr::Bitwise { sreg: reg, dreg: reg, mask, xor })
}

/// What leaves by another link than the bridge and the tunnel is to bear this node's address, which other nodes believe:
/// no pod, and nobody by a Service, has it sent to a tunnel's port, at whatever address of whatever node.
fn away(settings: &Settings) -> Vec<Rule> {
    let wiring = wiring::of(settings.wiring);
    let leaves = || {
        let not_to_pods = wiring.behind(build::oifname(R0), false).into_iter();
        not_to_pods.chain(device(build::oifname(R0), CmpOp::Ne, VXLAN_DEVICE))
    };
    let by_pods = wiring.behind(build::iifname(R0), true);
    let by_tunnel = device(build::iifname(R0), CmpOp::Eq, VXLAN_DEVICE);
    vec![
        rule("", leaves().chain(by_pods).chain([build::goto(POD_TO_TUNNEL)])),
        Cause::TunnelToTunnel.dropped(leaves().chain(by_tunnel)),
        Cause::ServiceToTunnel.dropped(leaves().chain(translated())),
    ]
}

/// What a Service led here is no node's, whoever it seems to be from: on its way a pod's packet to a node port of another
/// node bears the address of its own.
fn to_tunnel(family: Family) -> Vec<Rule> {
    let own = device(build::iifname(R0), CmpOp::Eq, "lo").into_iter().chain([build::accept()]);
    vec![
        rule("", translated().chain([build::goto(SERVICE_TO_TUNNEL)])),
        rule("", [build::saddr(family, R0), build::lookup(NODES, R0), build::accept()]),
        rule("", own),
        Cause::StrangerToTunnel.dropped([]),
    ]
}

fn service_to_tunnel(settings: &Settings) -> Vec<Rule> {
    let by_pods = wiring::of(settings.wiring).behind(build::iifname(R0), true);
    vec![
        rule("", by_pods.into_iter().chain([build::goto(POD_TO_TUNNEL)])),
        Cause::ServiceToTunnel.dropped([]),
    ]
}
