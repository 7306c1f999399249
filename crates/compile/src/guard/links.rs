//! What may come by each link, on the hooks of a family's table. The fabric has rules of its own at each place.
//!
//! ```text
//!   raw (prerouting) ─┬─ cni0 ──── a pod of this node, or a further source of one; then the fabric's
//!                     ├─ the fabric's own link: all its
//!                     ├─ veth… ─── nothing: pods come by the bridge
//!                     └─ others ── the fabric's ── no address of a pod or Service ── the fabric's
//!   raw_output ── the fabric's
//!   forward ───── to no pod of this node: the fabric's; no pod's: host unreachable
//!   input ─────── the fabric's; a segment of no connection is not answered
//! ```
//!
//! Each packet meets these, so what most packets are is asked first, in few rules; the rest is in chains of its own.

use kstate::nft::build::{self, Value, ct_state, ct_status, encode, rule};
use kstate::nft::key;
use kstate::nft::{Chain, CmpOp, ElemData, Expr, Field, Reg, Rule, Set, SetData, TableId, Verdict};
use semantics::node::Peer;
use semantics::snat::kept;
use types::wire::TABLE;
use types::{Family, IpNet, Protocol};

use super::cause::Cause;
use super::further;
use crate::fabric::{self, Guarding};
use crate::fragment::{Fragment, Name};
use crate::layout::daddr_outside;
use crate::wiring;
use semantics::Settings;
use semantics::topology::{Attached, Sources};

/// Map: link → chain of what may come by it, of all but those that most of it comes by; one that is not in it is the node's own.
pub const LINKS: &str = "links";
/// Set: addresses of this node's pods.
pub const PODS: &str = "pods";
/// Set: addresses of the other nodes.
pub const NODES: &str = "nodes";

/// Chain: what comes by the pods' bridge.
pub const FROM_PODS: &str = "from_pods";
/// Chain: by the pods' bridge, from no address of a pod of this node.
pub const NO_POD: &str = "no_pod";
/// Chain: what comes by a pod's port itself.
pub const FROM_PORT: &str = "from_port";
pub const FROM_WIRE: &str = "from_wire";
/// Chain: what is forwarded to an address of no pod of this node.
pub const ONWARD: &str = "onward";
/// Chain: what comes to this node and does not belong to a flow as other packets do.
pub const UNEXPECTED: &str = "unexpected";

/// Those that drop and count, whoever the fabric is. [`UNEXPECTED`] has refusals, too.
const DROPPING: [&str; 5] = [NO_POD, FROM_PORT, FROM_WIRE, ONWARD, UNEXPECTED];

/// Chains that drop and count.
pub fn dropping() -> impl Iterator<Item = &'static str> {
    let of_fabrics = fabric::all().flat_map(|fabric| fabric.chains()).filter(|chain| chain.drops);
    DROPPING.into_iter().chain(of_fabrics.map(|chain| chain.name))
}

/// Whether a chain beside the hooks is the guard's.
pub fn is_own(chain: &str) -> bool {
    let of_fabrics = || fabric::all().flat_map(|fabric| fabric.chains());
    chain == FROM_PODS || DROPPING.contains(&chain) || of_fabrics().any(|own| own.name == chain)
}

const R0: Reg = Reg(0);

/// The guard of links: sets, and the chains beside those on the hooks, which layout.rs has; and what the fabric has in those.
#[derive(Debug)]
pub struct Base {
    pub fragment: Fragment,
    pub of_fabric: Guarding,
}

pub fn base(sources: &Sources, settings: &Settings, family: Family) -> Base {
    let mut of_fabric = fabric::of(settings.fabric).guard(sources, settings, family);
    let fragment = beside_hooks(sources, settings, family, &mut of_fabric);
    Base { fragment, of_fabric }
}

fn beside_hooks(
    sources: &Sources,
    settings: &Settings,
    family: Family,
    of_fabric: &mut Guarding,
) -> Fragment {
    let mut fragment = std::mem::take(&mut of_fabric.own);
    fragment.sets.insert(LINKS.into(), Set::new([Field::IfName], SetData::Verdicts));
    for set in [PODS, NODES] {
        fragment.sets.insert(set.into(), Set::new([key::address(family)], SetData::None));
    }
    fragment.element(LINKS, encode(&[Value::IfName("lo")]), ElemData::Verdict(Verdict::Accept));
    let further = further::set(&mut fragment, &sources.further, family);
    let chains = [
        (FROM_PODS, from_pods(family, of_fabric)),
        (NO_POD, no_pod(family, further.as_deref(), of_fabric)),
        // A frame to the bridge group's own address, or a port that somebody took out of the bridge.
        (FROM_PORT, Cause::PastBridge.dropped_by_port().into()),
        (FROM_WIRE, from_wire(settings, family, of_fabric)),
        (ONWARD, onward(settings, family, further.as_deref(), of_fabric)),
    ];
    Cause::add_sets(&TableId { family: family.into(), name: TABLE.into() }, &mut fragment);
    let regular = chains.map(|(name, rules)| (Name::Borrowed(name), Chain { base: None, rules }));
    fragment.chains.extend(regular);
    fragment
}

/// A pod of this node.
pub fn pod(fragment: &mut Fragment, pod: Attached<'_>, settings: &Settings, family: Family) {
    for ip in pod.ips.iter().filter(|ip| Family::of(**ip) == family) {
        fragment.element(PODS, encode(&[(*ip).into()]), ElemData::None);
    }
    if let Some(chain) = wiring::of(settings.wiring).past() {
        let past = ElemData::Verdict(Verdict::Goto(chain.to_owned()));
        fragment.element(LINKS, encode(&[Value::from(pod.host_if)]), past);
    }
}

/// A node that joins: its address, and what the fabric lets in from there.
pub fn peer(peer: &Peer, settings: &Settings, family: Family) -> Fragment {
    let mut fragment = Fragment::default();
    let Some(address) = peer.address(family) else { return fragment };
    fragment.element(NODES, encode(&[address.into()]), ElemData::None);
    fabric::of(settings.fabric).guard_peer(&mut fragment, peer, family);
    fragment
}

/// Compares the name of a link.
pub(crate) fn device(load: Expr, op: CmpOp, name: &str) -> Vec<Expr> {
    vec![load, build::cmp(R0, op, Vec::from(encode(&[Value::IfName(name)])))]
}

/// A Service or a host port led here.
pub(crate) fn translated() -> impl Iterator<Item = Expr> {
    [build::ct_status(R0)].into_iter().chain(build::has_bits(R0, ct_status::DST_NAT))
}

/// Before conntrack. What pods send and what the fabric brings is most of it: a comparison costs less than the map.
pub fn sources(settings: &Settings, of_fabric: &Guarding) -> Vec<Rule> {
    let by_pods = wiring::of(settings.wiring).behind(build::iifname(R0), true);
    let mut rules = vec![rule("", by_pods.into_iter().chain([build::goto(FROM_PODS)]))];
    rules.extend(of_fabric.by_link.iter().cloned());
    rules.push(rule("", [build::iifname(R0), build::vmap(LINKS, R0)]));
    rules.push(rule("", [build::goto(FROM_WIRE)]));
    rules
}

fn from_pods(family: Family, of_fabric: &Guarding) -> Vec<Rule> {
    let mut rules =
        vec![rule("", [build::saddr(family, R0), build::lookup_not(PODS, R0), build::goto(NO_POD)])];
    rules.extend(of_fabric.from_pods.iter().cloned());
    rules
}

/// By the pods' bridge, from an address that is no pod's of this node.
///
/// What the node itself sends to a group or by broadcast comes back to it by the link that it leaves by (ip_mc_output,
/// net/ipv4/ip_output.c): mDNS of the node, or its answer to an IGMP query of a pod. The bridge's hooks drop what a pod
/// sends under the node's address, and so does the kernel where these are away (ip_mc_validate_source).
///
/// `further`: the set of further sources, if there are any.
fn no_pod(family: Family, further: Option<&str>, of_fabric: &Guarding) -> Vec<Rule> {
    // The bridge's own hooks have seen whose these are. They go no further than the node.
    let link = |net: &str| {
        let net = net.parse::<IpNet>().ok()?;
        let inside = [build::saddr(family, R0)].into_iter().chain(build::in_prefix(R0, net));
        Some(rule("", inside.chain([build::accept()])))
    };
    let own = [build::fib_saddr_type(R0), build::is(R0, build::RTN_LOCAL)].into_iter();
    let many = build::within(R0, build::RTN_BROADCAST, build::RTN_MULTICAST);
    let mut rules = of_fabric.from_pods.clone();
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

fn from_wire(settings: &Settings, family: Family, of_fabric: &Guarding) -> Vec<Rule> {
    let [first, last] = &of_fabric.from_wire;
    let mut rules = first.clone();
    for (nets, cause) in
        [(&settings.pod_pools, Cause::PodFromOutside), (&settings.service_cidrs, Cause::ServiceFromOutside)]
    {
        for net in nets.iter().filter(|net| Family::of_net(net) == family) {
            // No node has such an address: its own agent would make nothing (agent, underlay.rs). A Node object that
            // says so is wrong or lies.
            let inside = [build::saddr(family, R0)].into_iter().chain(build::in_prefix(R0, net.trunc()));
            rules.push(cause.dropped(inside));
        }
    }
    rules.extend(last.iter().cloned());
    rules
}

/// After all translation, and before policies, which judge only what may be there at all. To this node's pods is most of it.
pub fn forwarded(family: Family) -> Rule {
    rule("", [build::daddr(family, R0), build::lookup_not(PODS, R0), build::jump(ONWARD)])
}

fn onward(settings: &Settings, family: Family, further: Option<&str>, of_fabric: &Guarding) -> Vec<Rule> {
    let mut rules = of_fabric.onward.clone();
    // Somebody has the node route it to the pod.
    rules.extend(further.map(|set| {
        let has = [build::daddr(family, R0), build::lookup(set, R0), build::ret()];
        rule("a further address of a pod", has)
    }));
    // Else the kernel would ask for each of them by ARP or ND, and remember the question: some hundred fill the table of
    // neighbours for all (gc_thresh3).
    let to_pods = wiring::of(settings.wiring).behind(build::oifname(R0), true);
    let nobody = to_pods.into_iter().chain(daddr_outside(family, kept(family)));
    let refused = nobody.chain([build::counter(), build::reject_host()]);
    rules.push(rule(Cause::NoSuchPod.comment(), refused));
    rules
}

/// What the chain `input` asks first.
pub fn taken(of_fabric: &Guarding) -> Vec<Rule> {
    let odd =
        [build::ct_state(R0)].into_iter().chain(build::has_bits(R0, ct_state::INVALID | ct_state::RELATED));
    let mut rules = of_fabric.taken.clone();
    rules.push(rule("", odd.chain([build::jump(UNEXPECTED)])));
    rules
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
