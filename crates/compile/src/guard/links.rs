//! What may come by each link, on the hooks of a family's table, and that the tunnel's port is for nodes only.
//!
//! ```text
//!   raw (prerouting) ─┬─ cni0 ──── a pod of this node, or a further source of one; never to the tunnel's port
//!                     ├─ plumb.1 ─ what the tunnel let in; never to the tunnel's port
//!                     ├─ veth… ─── nothing: pods come by the bridge
//!                     └─ others ── UDP 8472? ─> from a node, and inside only its own ── no address of a pod or Service
//!   raw_output ── what goes into the tunnel is no flow, nor is what comes by it
//!   forward ───── to no pod of this node: never to a tunnel's port for a pod or a Service; no pod's: host unreachable
//!   input ─────── no Service leads to the tunnel's port of this node; a segment of no connection is not answered
//! ```
//!
//! Each packet meets these, so what most packets are is asked first, in few rules; the rest is in chains of its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use kstate::nft::build::{self, Value, ct_state, ct_status, encode, rule};
use kstate::nft::key;
use kstate::nft::{
    Chain, CmpOp, ElemData, Expr, Field, PayloadBase, Reg, Rule, Set, SetData, TableId, Verdict,
};
use model::{Attachment, Cluster, Node};
use semantics::node::{internal_ip, pod_subnets};
use semantics::snat::kept;
use types::wire::{BRIDGE, TABLE, VXLAN_DEVICE, VXLAN_PORT, VXLAN_VNI};
use types::{Family, IpNet, Protocol};

use super::cause::Cause;
use super::further;
use crate::fragment::{Fragment, Name};
use crate::layout::daddr_outside;
use semantics::Settings;

/// Map: link → chain of what may come by it, of all but the bridge and the tunnel; one that is not in it is the node's own.
pub const LINKS: &str = "links";
/// Set: addresses of this node's pods.
pub const PODS: &str = "pods";
/// Set: addresses of the other nodes.
pub const NODES: &str = "nodes";

/// How the names of the sets begin that [`inside`] names.
pub const INSIDE: &str = "inside";

/// Chain: what comes by the pods' bridge.
pub const FROM_PODS: &str = "from_pods";
/// Chain: by the pods' bridge, from no address of a pod of this node.
pub const NO_POD: &str = "no_pod";
/// Chain: what comes by a pod's port itself.
pub const FROM_PORT: &str = "from_port";
pub const FROM_TUNNEL: &str = "from_tunnel";
pub const FROM_WIRE: &str = "from_wire";
/// Chain: a packet to the tunnel's port in which a node sends what is its own.
pub const INNER: &str = "inner";
/// Chain: any other packet to the tunnel's port that does not come from a pod.
pub const TUNNEL: &str = "tunnel";
/// Chain: what is forwarded to an address of no pod of this node.
pub const ONWARD: &str = "onward";
/// Chain: what is forwarded to a tunnel's port.
pub const AWAY: &str = "away";
/// Chain: what this node takes at the tunnel's port.
pub const TO_TUNNEL: &str = "to_tunnel";
/// Chain: what a Service led to the tunnel's port of this node.
pub const SERVICE_TO_TUNNEL: &str = "service_to_tunnel";
/// Chain: a pod's packet to a tunnel's port, of whatever node.
pub const POD_TO_TUNNEL: &str = "pod_to_tunnel";
/// Chain: what comes to this node and does not belong to a flow as other packets do.
pub const UNEXPECTED: &str = "unexpected";

/// Chains that drop and count. [`UNEXPECTED`] has refusals, too.
pub const DROPPING: [&str; 11] = [
    NO_POD,
    FROM_PORT,
    FROM_TUNNEL,
    FROM_WIRE,
    TUNNEL,
    ONWARD,
    AWAY,
    TO_TUNNEL,
    SERVICE_TO_TUNNEL,
    POD_TO_TUNNEL,
    UNEXPECTED,
];

/// Whether a chain beside the hooks is the guard's.
pub fn is_own(chain: &str) -> bool {
    [FROM_PODS, INNER].contains(&chain) || DROPPING.contains(&chain)
}

/// Set: (node, network of this length) that its tunnel brings packets from, such as `inside4_24`. A network has a set of
/// its length, since its first address alone does not say how far it goes: 10.244.3.0/25 is not 10.244.3.0/24.
fn inside(inner: Family, length: u8) -> String {
    format!("{INSIDE}{}_{length}", inner.pick([4, 6]))
}

const R0: Reg = Reg(0);
/// RFC 7348 §5, from the outer UDP header on: the network's number, the inner frame's type, the inner IP header.
const VNI_AT: u32 = 12;
const TYPE_AT: u32 = 28;
const INNER_AT: u32 = 30;

/// Sets, and the chains beside those on the hooks, which layout.rs has.
pub fn base(cluster: &Cluster, settings: &Settings, family: Family) -> Fragment {
    let mut fragment = Fragment::default();
    fragment.sets.insert(LINKS.into(), Set::new([Field::IfName], SetData::Verdicts));
    for set in [PODS, NODES] {
        fragment.sets.insert(set.into(), Set::new([key::address(family)], SetData::None));
    }
    for (inner, length) in tunnels(cluster, settings) {
        let set = Set::new([key::address(family), key::address(inner)], SetData::None);
        fragment.sets.insert(inside(inner, length).into(), set);
    }
    fragment.element(LINKS, encode(&[Value::IfName("lo")]), ElemData::Verdict(Verdict::Accept));
    let further = further::set(&mut fragment, (cluster, settings), family);
    let inner = tunnels(cluster, settings).into_iter().map(|inside| inner_source(family, inside));
    let chains = [
        (FROM_PODS, from_pods(family)),
        (NO_POD, no_pod(family, further.as_deref())),
        // A frame to the bridge group's own address, or a port that somebody took out of the bridge.
        (FROM_PORT, Cause::PastBridge.dropped_by_port().into()),
        (FROM_TUNNEL, vec![Cause::TunnelToTunnel.dropped(to_own_vxlan())]),
        (FROM_WIRE, from_wire(settings, family)),
        (INNER, inner.collect()),
        (TUNNEL, tunnel(family)),
        (ONWARD, onward(family, further.as_deref())),
        (AWAY, away()),
        (TO_TUNNEL, to_tunnel(family)),
        (SERVICE_TO_TUNNEL, service_to_tunnel()),
        (POD_TO_TUNNEL, Cause::PodToTunnel.dropped_by_pod(family)),
    ];
    Cause::add_sets(&TableId { family: family.into(), name: TABLE.into() }, &mut fragment);
    let regular = chains.map(|(name, rules)| (Name::Borrowed(name), Chain { base: None, rules }));
    fragment.chains.extend(regular);
    fragment
}

/// A pod of this node.
pub fn pod(fragment: &mut Fragment, attachment: &Attachment, family: Family) {
    for ip in attachment.ips.iter().filter(|ip| Family::of(**ip) == family) {
        fragment.element(PODS, encode(&[(*ip).into()]), ElemData::None);
    }
    let past = ElemData::Verdict(Verdict::Goto(FROM_PORT.to_owned()));
    fragment.element(LINKS, encode(&[Value::from(&attachment.host_if)]), past);
}

/// A node that joins: its address, and that its tunnel brings its pods and its tunnel's address.
///
/// The inner source is compared while the outer one is still to be seen. A tunnel device shows no more who sent what, and
/// a node that was broken into must not speak for the pods of all others. What it says of itself in its status counts for
/// the outer source only: its pods' network was assigned to it, its addresses it may make up.
pub fn peer(node: &Node, family: Family) -> Fragment {
    let mut fragment = Fragment::default();
    let Some(address) = internal_ip(node, family) else { return fragment };
    fragment.element(NODES, encode(&[address.into()]), ElemData::None);
    for subnet in pod_subnets(node) {
        let net = subnet.net;
        let pair = encode(&[address.into(), net.network().into()]);
        fragment.element(inside(Family::of_net(&net), net.prefix_len()), pair, ElemData::None);
    }
    fragment
}

fn device(load: Expr, op: CmpOp, name: &str) -> Vec<Expr> {
    vec![load, build::cmp(R0, op, Vec::from(encode(&[Value::IfName(name)])))]
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

/// A Service or a host port led here.
fn translated() -> impl Iterator<Item = Expr> {
    [build::ct_status(R0)].into_iter().chain(build::has_bits(R0, ct_status::DST_NAT))
}

/// Before conntrack. What pods send and what the tunnel brings is most of it: a comparison costs less than the map.
pub fn sources() -> Vec<Rule> {
    let by =
        |link, chain| device(build::iifname(R0), CmpOp::Eq, link).into_iter().chain([build::goto(chain)]);
    vec![
        rule("", by(BRIDGE, FROM_PODS)),
        rule("", by(VXLAN_DEVICE, FROM_TUNNEL)),
        rule("", [build::iifname(R0), build::vmap(LINKS, R0)]),
        rule("", [build::goto(FROM_WIRE)]),
    ]
}

fn from_pods(family: Family) -> Vec<Rule> {
    vec![
        rule("", [build::saddr(family, R0), build::lookup_not(PODS, R0), build::goto(NO_POD)]),
        rule("", to_own_vxlan().chain([build::goto(POD_TO_TUNNEL)])),
    ]
}

/// By the pods' bridge, from an address that is no pod's of this node.
///
/// What the node itself sends to a group or by broadcast comes back to it by the link that it leaves by (ip_mc_output,
/// net/ipv4/ip_output.c): mDNS of the node, or its answer to an IGMP query of a pod. The bridge's hooks drop what a pod
/// sends under the node's address, and so does the kernel where these are away (ip_mc_validate_source).
///
/// `further`: the set of further sources, if there are any.
fn no_pod(family: Family, further: Option<&str>) -> Vec<Rule> {
    // The bridge's own hooks have seen whose these are. They go no further than the node.
    let link = |net: &str| {
        let net = net.parse::<IpNet>().ok()?;
        let inside = [build::saddr(family, R0)].into_iter().chain(build::in_prefix(R0, net));
        Some(rule("", inside.chain([build::accept()])))
    };
    let own = [build::fib_saddr_type(R0), build::is(R0, build::RTN_LOCAL)].into_iter();
    let many = build::within(R0, build::RTN_BROADCAST, build::RTN_MULTICAST);
    let mut rules = vec![rule("", to_own_vxlan().chain([build::goto(POD_TO_TUNNEL)]))];
    rules.extend(further.map(|set| {
        let has = [build::saddr(family, R0), build::lookup(set, R0), build::accept()];
        rule("a further source of a pod", has)
    }));
    if family == Family::V6 {
        rules.extend(["fe80::/10", "::/128"].into_iter().filter_map(link));
    }
    rules.push(rule(
        "the node's own, looped back",
        own.chain([build::fib_daddr_type(R0), many, build::accept()]),
    ));
    rules.push(Cause::UnknownPod.dropped([]));
    rules
}

/// What nodes send each other is most of it: it is let in first, without asking whose the address is that it came to.
fn from_wire(settings: &Settings, family: Family) -> Vec<Rule> {
    let mut rules = vec![rule("", to_vxlan().into_iter().chain([build::jump(INNER)]))];
    for (nets, cause) in [
        (&settings.cluster_cidrs, Cause::PodFromOutside),
        (&settings.service_cidrs, Cause::ServiceFromOutside),
    ] {
        for net in nets.iter().filter(|net| Family::of_net(net) == family) {
            // No node has such an address: its own agent would make nothing (agent, underlay.rs). A Node object that
            // says so is wrong or lies.
            let inside = [build::saddr(family, R0)].into_iter().chain(build::in_prefix(R0, net.trunc()));
            rules.push(cause.dropped(inside));
        }
    }
    rules.push(rule("", to_own_vxlan().chain([build::goto(TUNNEL)])));
    rules
}

/// What other nodes' tunnels bring: families, and lengths of the networks that pods have there.
fn tunnels(cluster: &Cluster, settings: &Settings) -> BTreeSet<(Family, u8)> {
    let peers = cluster.nodes.values().filter(|node| node.name != settings.node);
    let nets = peers.flat_map(pod_subnets).map(|subnet| subnet.net);
    nets.map(|net| (Family::of_net(&net), net.prefix_len())).collect()
}

/// Before conntrack. The tunnel's packets are no flows: conntrack would translate them by a flow of a pod that was
/// masqueraded to the tunnel's port, and each node would remember every flow twice.
pub fn sent(family: Family) -> Rule {
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

/// After all translation, and before policies, which judge only what may be there at all. To this node's pods is most of it.
pub fn forwarded(family: Family) -> Rule {
    rule("", [build::daddr(family, R0), build::lookup_not(PODS, R0), build::jump(ONWARD)])
}

/// What leaves by another link than the bridge and the tunnel is to bear this node's address, which other nodes believe:
/// no pod, and nobody by a Service, has it sent to a tunnel's port, at whatever address of whatever node.
fn onward(family: Family, further: Option<&str>) -> Vec<Rule> {
    let mut rules = vec![rule("", to_vxlan().into_iter().chain([build::jump(AWAY)]))];
    // Somebody has the node route it to the pod.
    rules.extend(further.map(|set| {
        let has = [build::daddr(family, R0), build::lookup(set, R0), build::ret()];
        rule("a further address of a pod", has)
    }));
    // Else the kernel would ask for each of them by ARP or ND, and remember the question: some hundred fill the table of
    // neighbours for all (gc_thresh3).
    let bridge = device(build::oifname(R0), CmpOp::Eq, BRIDGE);
    let nobody = bridge.into_iter().chain(daddr_outside(family, kept(family)));
    let refused = nobody.chain([build::counter(), build::reject_host()]);
    rules.push(rule(Cause::NoSuchPod.comment(), refused));
    rules
}

fn away() -> Vec<Rule> {
    let leaves = || {
        let links = [BRIDGE, VXLAN_DEVICE].into_iter();
        links.flat_map(|link| device(build::oifname(R0), CmpOp::Ne, link))
    };
    let from = |link| device(build::iifname(R0), CmpOp::Eq, link);
    vec![
        rule("", leaves().chain(from(BRIDGE)).chain([build::goto(POD_TO_TUNNEL)])),
        Cause::TunnelToTunnel.dropped(leaves().chain(from(VXLAN_DEVICE))),
        Cause::ServiceToTunnel.dropped(leaves().chain(translated())),
    ]
}

/// What the chain `input` asks first.
pub fn taken() -> Vec<Rule> {
    let odd =
        [build::ct_state(R0)].into_iter().chain(build::has_bits(R0, ct_state::INVALID | ct_state::RELATED));
    vec![
        rule("", to_vxlan().into_iter().chain([build::goto(TO_TUNNEL)])),
        rule("", odd.chain([build::jump(UNEXPECTED)])),
    ]
}

/// A segment that conntrack cannot place (out of the window, say) is not translated back, so what belongs to a
/// masqueraded connection comes here: no socket knows it, and the node's reset would end a connection that RFC 9293
/// §3.10.7.4 has go on. A socket that does know it answers as ever. `nf_conntrack_tcp_be_liberal` would do for that, and
/// have every blind segment taken for the connection's own, in the whole network namespace.
pub fn stray() -> Vec<Rule> {
    let unknown = || {
        let invalid = [build::ct_state(R0)].into_iter().chain(build::has_bits(R0, ct_state::INVALID));
        invalid.chain([build::l4proto(R0), build::is(R0, Protocol::Tcp)])
    };
    vec![
        rule("a socket takes it", unknown().chain([build::socket_wildcard(R0), build::accept()])),
        Cause::StraySegment.dropped(unknown()),
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

fn service_to_tunnel() -> Vec<Rule> {
    let pod = device(build::iifname(R0), CmpOp::Eq, BRIDGE).into_iter().chain([build::goto(POD_TO_TUNNEL)]);
    vec![rule("", pod), Cause::ServiceToTunnel.dropped([])]
}
