//! `inet plumb`: each link states which sources come by it, and the tunnel's port is for nodes only.
//!
//! ```text
//!   prerouting (raw) ─┬─ cni0 ──── a pod of this node, or a further source of one; never to the tunnel's port
//!                     ├─ veth… ─── nothing: pods come by the bridge
//!                     ├─ plumb.1 ─ what the tunnel let in; never to the tunnel's port
//!                     └─ others ── UDP 8472? ─> from a node, and inside only its own ── no address of a pod or Service
//!   output (raw) ── what goes into the tunnel is no flow, nor is what comes by it
//!   forward ── no pod and no Service leads to the tunnel's port of another node; nobody has the address: say so
//!   input ──── no Service leads to the tunnel's port of this node; a segment of no connection is not answered
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use kstate::nft::build::{self, Value, ct_state, ct_status, encode, rule};
use kstate::nft::key;
use kstate::nft::{
    BaseChain, Chain, ChainKind, CmpOp, ElemData, Expr, Field, Hook, PayloadBase, Reg, Rule, Set, SetData,
    Verdict,
};
use model::{Attachment, Cluster, Node};
use types::wire::{BRIDGE, VXLAN_DEVICE, VXLAN_PORT, VXLAN_VNI};
use types::{Family, IpNet, Protocol};

use super::Guard;
use super::cause::Cause;
use super::further::rules as further;
use crate::Settings;
use crate::fabric::{internal_ip, pod_subnets};
use crate::fragment::{Fragment, Name};
use crate::layout::{BEFORE_CONNTRACK, daddr_outside, kept};

/// Map: link → chain of what may come by it, of all but the bridge and the tunnel; one that is not in it is the node's own.
pub const LINKS: &str = "links";
/// Sets: addresses of this node's pods.
pub const PODS: [&str; 2] = ["pods4", "pods6"];
/// Sets: addresses of the other nodes.
pub const NODES: [&str; 2] = ["nodes4", "nodes6"];
/// Chain: a packet to the tunnel's port in which a node sends what is its own.
const INNER: &str = "inner";
/// Chain: any other packet to the tunnel's port that does not come from a pod.
const TUNNEL: &str = "tunnel";
/// Chain: what is forwarded to a tunnel's port.
const AWAY: &str = "away";
/// Chain: by the pods' bridge, from no pod of this node.
const NO_POD: &str = "no_pod";
/// Chain: what a Service led to the tunnel's port of this node.
const SERVICE_TO_TUNNEL: &str = "service_to_tunnel";
/// Chain: a pod's packet to a tunnel's port, of whatever node.
const POD_TO_TUNNEL: &str = "pod_to_tunnel";

/// Set: (node, network of this length) that its tunnel brings packets from, such as `inside4in4_24`. A network has a set of
/// its length, since its first address alone does not say how far it goes: 10.244.3.0/25 is not 10.244.3.0/24.
fn inside(outer: Family, inner: Family, length: u8) -> String {
    let number = |family: Family| family.pick([4, 6]);
    format!("inside{}in{}_{length}", number(inner), number(outer))
}

const R0: Reg = Reg(0);
/// Before NF_IP_PRI_FILTER: policies judge only what may be there at all.
const BEFORE_POLICIES: i32 = -10;
/// RFC 7348 §5, from the outer UDP header on: the network's number, the inner frame's type, the inner IP header.
const VNI_AT: u32 = 12;
const TYPE_AT: u32 = 28;
const INNER_AT: u32 = 30;

pub fn base(cluster: &Cluster, settings: &Settings) -> Fragment {
    let mut fragment = Fragment::default();
    fragment.sets.insert(LINKS.into(), Set::new([Field::IfName], SetData::Verdicts));
    for family in Family::ALL {
        for set in [family.pick(PODS), family.pick(NODES)] {
            fragment.sets.insert(set.into(), Set::new([key::address(family)], SetData::None));
        }
    }
    for (outer, inner, length) in tunnels(cluster, settings) {
        let set = Set::new([key::address(outer), key::address(inner)], SetData::None);
        fragment.sets.insert(inside(outer, inner, length).into(), set);
    }
    fragment.element(LINKS, encode(&[Value::IfName("lo")]), ElemData::Verdict(Verdict::Accept));
    let further = Family::ALL.map(|family| further::set(&mut fragment, (cluster, settings), family));
    let regular = |rules| Chain { base: None, rules };
    let hooked = |hook, priority, rules| Chain {
        base: Some(BaseChain { kind: ChainKind::Filter, hook, priority, drop: false }),
        rules,
    };
    let chains = [
        ("sources", hooked(Hook::Prerouting, BEFORE_CONNTRACK, sources())),
        ("from_pods", regular(from_pods(&further))),
        (NO_POD, regular(no_pod())),
        // A frame to the bridge group's own address, or a port that somebody took out of the bridge.
        ("from_port", regular(Cause::PastBridge.dropped_by_port().into())),
        ("from_tunnel", regular(vec![Cause::TunnelToTunnel.dropped(to_own_vxlan())])),
        ("from_wire", regular(from_wire(settings))),
        ("sent", hooked(Hook::Output, BEFORE_CONNTRACK, sent())),
        (INNER, regular(tunnels(cluster, settings).into_iter().map(inner_source).collect())),
        (TUNNEL, regular(tunnel())),
        ("onward", hooked(Hook::Forward, BEFORE_POLICIES, onward(&further))),
        (AWAY, regular(away())),
        ("local", hooked(Hook::Input, BEFORE_POLICIES, local())),
        ("to_tunnel", regular(to_tunnel())),
        (SERVICE_TO_TUNNEL, regular(service_to_tunnel())),
        (POD_TO_TUNNEL, regular(Cause::PodToTunnel.dropped_by_pod(PODS))),
    ];
    Cause::add_sets(Guard::Links, &mut fragment);
    fragment.chains.extend(chains.map(|(name, chain)| (Name::Borrowed(name), chain)));
    fragment
}

pub fn pod(attachment: &Attachment) -> Fragment {
    let mut fragment = Fragment::default();
    for ip in &attachment.ips {
        fragment.element(Family::of(*ip).pick(PODS), encode(&[(*ip).into()]), ElemData::None);
    }
    let past = ElemData::Verdict(Verdict::Goto("from_port".to_owned()));
    fragment.element(LINKS, encode(&[Value::from(&attachment.host_if)]), past);
    fragment
}

/// A node that joins: its addresses, and that its tunnel brings its pods and its tunnel's address.
///
/// The inner source is compared while the outer one is still to be seen. A tunnel device shows no more who sent what, and
/// a node that was broken into must not speak for the pods of all others. What it says of itself in its status counts for
/// the outer source only: its pods' network was assigned to it, its addresses it may make up.
pub fn peer(node: &Node) -> Fragment {
    let mut fragment = Fragment::default();
    for outer in Family::ALL {
        let Some(address) = internal_ip(node, outer) else { continue };
        fragment.element(outer.pick(NODES), encode(&[address.into()]), ElemData::None);
        for subnet in pod_subnets(node) {
            let (inner, net) = (Family::of_net(&subnet.net), subnet.net);
            let pair = encode(&[address.into(), net.network().into()]);
            fragment.element(inside(outer, inner, net.prefix_len()), pair, ElemData::None);
        }
    }
    fragment
}

pub(super) fn of_family(family: Family) -> [Expr; 2] {
    // NFPROTO_IPV4, NFPROTO_IPV6.
    [build::nfproto(R0), build::cmp(R0, CmpOp::Eq, [family.pick([2_u8, 10])])]
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

/// What pods send and what the tunnel brings is most of it: a comparison costs less than the map.
fn sources() -> Vec<Rule> {
    let by =
        |link, chain| device(build::iifname(R0), CmpOp::Eq, link).into_iter().chain([build::goto(chain)]);
    vec![
        rule("", by(BRIDGE, "from_pods")),
        rule("", by(VXLAN_DEVICE, "from_tunnel")),
        rule("", [build::iifname(R0), build::vmap(LINKS, R0)]),
        rule("", [build::goto("from_wire")]),
    ]
}

/// `further`: names of the sets of further sources, where there are any.
fn from_pods(further: &[Option<String>; 2]) -> Vec<Rule> {
    let stranger = |family: Family| {
        let source =
            [build::saddr(family, R0), build::lookup_not(family.pick(PODS), R0), build::goto(NO_POD)];
        rule("", of_family(family).into_iter().chain(source))
    };
    // The bridge's own hooks have seen whose these are. They go no further than the node.
    let link = |net: &str| {
        let net = net.parse::<IpNet>().ok()?;
        let inside = [build::saddr(Family::V6, R0)].into_iter().chain(build::in_prefix(R0, net));
        Some(rule("", of_family(Family::V6).into_iter().chain(inside).chain([build::accept()])))
    };
    let mut rules = vec![rule("", to_own_vxlan().chain([build::goto(POD_TO_TUNNEL)]))];
    rules.extend(of_further("a further source of a pod", further, build::saddr));
    rules.push(stranger(Family::V4));
    rules.extend(["fe80::/10", "::/128"].into_iter().filter_map(link));
    rules.push(stranger(Family::V6));
    rules
}

/// What the node itself sends to a group or by broadcast comes back to it by the link that it leaves by (ip_mc_output,
/// net/ipv4/ip_output.c): mDNS of the node, or its answer to an IGMP query of a pod. The bridge's hooks drop what a pod
/// sends under the node's address, and so does the kernel where these are away (ip_mc_validate_source).
fn no_pod() -> Vec<Rule> {
    let own = [build::fib_saddr_type(R0), build::is(R0, build::RTN_LOCAL)].into_iter();
    let many = build::within(R0, build::RTN_BROADCAST, build::RTN_MULTICAST);
    vec![
        rule("the node's own, looped back", own.chain([build::fib_daddr_type(R0), many, build::accept()])),
        Cause::UnknownPod.dropped([]),
    ]
}

fn of_further(
    comment: &'static str,
    further: &[Option<String>; 2],
    address: fn(Family, Reg) -> Expr,
) -> impl Iterator<Item = Rule> {
    let sets =
        Family::ALL.into_iter().filter_map(|family| Some((family, family.pick(further.each_ref()).clone()?)));
    sets.map(move |(family, set)| {
        let has = [address(family, R0), build::lookup(set, R0), build::accept()];
        rule(comment, of_family(family).into_iter().chain(has))
    })
}

/// What nodes send each other is most of it: it is let in first, without asking whose the address is that it came to.
fn from_wire(settings: &Settings) -> Vec<Rule> {
    let mut rules = vec![rule("", to_vxlan().into_iter().chain([build::jump(INNER)]))];
    for (nets, cause) in [
        (&settings.cluster_cidrs, Cause::PodFromOutside),
        (&settings.service_cidrs, Cause::ServiceFromOutside),
    ] {
        for net in nets {
            // No node has such an address: its own agent would make nothing (agent, underlay.rs). A Node object that
            // says so is wrong or lies.
            let family = Family::of_net(net);
            let inside = [build::saddr(family, R0)].into_iter().chain(build::in_prefix(R0, net.trunc()));
            rules.push(cause.dropped(of_family(family).into_iter().chain(inside)));
        }
    }
    rules.push(rule("", to_own_vxlan().chain([build::goto(TUNNEL)])));
    rules
}

/// What other nodes' tunnels bring: outer family, inner family, and lengths of the networks that pods have there.
fn tunnels(cluster: &Cluster, settings: &Settings) -> BTreeSet<(Family, Family, u8)> {
    let peers = cluster.nodes.values().filter(|node| node.name != settings.node);
    let nets = peers.flat_map(pod_subnets).map(|subnet| subnet.net);
    let found: BTreeSet<_> = nets.map(|net| (Family::of_net(&net), net.prefix_len())).collect();
    let by_outer = |(inner, length)| Family::ALL.map(|outer| (outer, inner, length));
    found.into_iter().flat_map(by_outer).collect()
}

/// The tunnel's packets are no flows: conntrack would translate them by a flow of a pod that was masqueraded to the tunnel's
/// port, and each node would remember every flow twice.
fn sent() -> Vec<Rule> {
    let to = |family: Family| {
        let node = [build::daddr(family, R0), build::lookup(family.pick(NODES), R0), build::notrack()];
        rule("the tunnel's", to_vxlan().into_iter().chain(of_family(family)).chain(node))
    };
    Family::ALL.map(to).into()
}

/// Comes here what [`INNER`] did not let in.
fn tunnel() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for outer in Family::ALL {
        let source = [build::saddr(outer, R0), build::lookup_not(outer.pick(NODES), R0)];
        rules.push(Cause::StrangerToTunnel.dropped(of_family(outer).into_iter().chain(source)));
    }
    let [_, vni @ ..] = VXLAN_VNI.to_be_bytes();
    let other = [transport(R0, VNI_AT, 3), build::cmp(R0, CmpOp::Ne, vni)];
    rules.push(rule("another's tunnel", other.into_iter().chain([build::accept()])));
    rules.push(Cause::InnerSource.dropped([]));
    rules
}

fn transport(dreg: Reg, offset: u32, len: u32) -> Expr {
    build::payload(dreg, PayloadBase::Transport, offset, len)
}

/// The network of this length that the inner source lies in is the sending node's.
fn inner_source((outer, inner, length): (Family, Family, u8)) -> Rule {
    let carries: [u8; 2] = inner.pick([[0x08, 0x00], [0x86, 0xdd]]);
    let kind = [transport(R0, TYPE_AT, 2), build::cmp(R0, CmpOp::Eq, carries)];
    let at = key::after(R0, key::address(outer));
    let (offset, len) = inner.pick([(12, 4), (8, 16)]);
    let pair = [build::saddr(outer, R0), transport(at, INNER_AT + offset, len)];
    let exprs = of_family(outer).into_iter().chain(kind).chain(pair).chain(mask(at, inner, length));
    let own = build::lookup(inside(outer, inner, length), R0);
    rule("", exprs.chain([own, build::notrack(), build::accept()]))
}

fn mask(reg: Reg, family: Family, length: u8) -> Option<Expr> {
    let any = family.pick([IpAddr::from([0, 0, 0, 0]), Ipv6Addr::UNSPECIFIED.into()]);
    let net = IpNet::new(any, length).ok().filter(|net| length < net.max_prefix_len())?;
    let mask = Vec::from(encode(&[net.netmask().into()]));
    let xor = vec![0; mask.len()];
    Some(Expr::Bitwise { sreg: reg, dreg: reg, mask, xor })
}

/// After all translation. What leaves by another link than these is to bear this node's address, which other nodes
/// believe: no pod, and nobody by a Service, has it sent to a tunnel's port, at whatever address of whatever node.
fn onward(further: &[Option<String>; 2]) -> Vec<Rule> {
    let nobody = |family: Family| {
        let to = [build::daddr(family, R0), build::lookup_not(family.pick(PODS), R0)];
        let bridge = device(build::oifname(R0), CmpOp::Eq, BRIDGE);
        let exprs = of_family(family).into_iter().chain(bridge);
        let exprs = exprs.chain(daddr_outside(family, kept(family))).chain(to);
        rule(Cause::NoSuchPod.comment(), exprs.chain([build::counter(), build::reject_host()]))
    };
    let mut rules = vec![rule("", to_vxlan().into_iter().chain([build::jump(AWAY)]))];
    // Somebody has the node route it to the pod.
    rules.extend(of_further("a further address of a pod", further, build::daddr));
    // Else the kernel would ask for each of them by ARP or ND, and remember the question: some hundred fill the table of
    // neighbours for all (gc_thresh3).
    rules.extend(Family::ALL.map(nobody));
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

/// A segment that conntrack cannot place (out of the window, say) is not translated back, so what belongs to a
/// masqueraded connection comes here: no socket knows it, and the node's reset would end a connection that RFC 9293
/// §3.10.7.4 has go on. A socket that does know it answers as ever. `nf_conntrack_tcp_be_liberal` would do for that, and
/// have every blind segment taken for the connection's own, in the whole network namespace.
fn local() -> Vec<Rule> {
    let unknown = || {
        let invalid = [build::ct_state(R0)].into_iter().chain(build::has_bits(R0, ct_state::INVALID));
        invalid.chain([build::l4proto(R0), build::is(R0, Protocol::Tcp)])
    };
    vec![
        rule("", to_vxlan().into_iter().chain([build::goto("to_tunnel")])),
        rule("a socket takes it", unknown().chain([build::socket_wildcard(R0), build::accept()])),
        Cause::StraySegment.dropped(unknown()),
    ]
}

/// What a Service led here is no node's, whoever it seems to be from: on its way a pod's packet to a node port of another
/// node bears the address of its own.
fn to_tunnel() -> Vec<Rule> {
    let node = |family: Family| {
        let source = [build::saddr(family, R0), build::lookup(family.pick(NODES), R0), build::accept()];
        rule("", of_family(family).into_iter().chain(source))
    };
    let own = device(build::iifname(R0), CmpOp::Eq, "lo").into_iter().chain([build::accept()]);
    vec![
        rule("", translated().chain([build::goto(SERVICE_TO_TUNNEL)])),
        node(Family::V4),
        node(Family::V6),
        rule("", own),
        Cause::StrangerToTunnel.dropped([]),
    ]
}

fn service_to_tunnel() -> Vec<Rule> {
    let pod = device(build::iifname(R0), CmpOp::Eq, BRIDGE).into_iter().chain([build::goto(POD_TO_TUNNEL)]);
    vec![rule("", pod), Cause::ServiceToTunnel.dropped([])]
}
