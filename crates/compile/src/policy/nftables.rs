//! Isolated pods and their policies as chains and elements.
//!
//! ```text
//!   out_iso: pod address ─jump─> out_<hash>_<policies>:  match → return (allowed in this direction)
//!   in_iso:  pod address ─jump─> in_<hash>_<policies>:   …
//!                                                        counter log drop
//! ```
//!
//! An allow returns instead of accepting: what may leave its source must still be let in by its destination
//! (NP-09). Peers are hash sets that pods fill, so rules change only when a policy does.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kstate::nft::build::{self, encode, rule};
use kstate::nft::key::{self, Part};
use kstate::nft::{Chain, ElemData, Expr, Field, Reg, Rule, SetData, Verdict};
use model::{Attachment, Cluster, IntOrName, NamedPort, Peer, Pod, Policy, PolicyPort, PolicyRule};
use types::{Family, ObjectName, Selector};

use super::resolve::{AddressSet, Direction, Isolation, Scope, hash16, isolation, valid_range};
use crate::fragment::Fragment;
use crate::layout::{self, HAIRPIN, IN_ISOLATED, LOG_BYTES, LOG_GROUP, OUT_ISOLATED};

/// The longest comment that the kernel's tools read back (NFTNL_UDATA_COMMENT_MAXLEN less its zero).
const COMMENT_MAX: usize = 127;
/// Characters of a chain's name that are for people.
const NAME_MAX: usize = 60;

const ADDRESS: Reg = Reg(0);
const PORT: Reg = Reg(1);

/// What a pod of this node needs: its way to itself through a Service, and its isolation.
pub fn attachment_fragment(cluster: &Cluster, attachment: &Attachment, family: Family) -> Fragment {
    let mut fragment = Fragment::default();
    let addresses = attachment.ips.iter().filter(|ip| Family::of(**ip) == family);
    for ip in addresses {
        fragment.element(HAIRPIN, encode(&[(*ip).into(), (*ip).into()]), ElemData::None);
        for direction in Direction::ALL {
            isolate(&mut fragment, cluster, (attachment, *ip), direction);
        }
    }
    fragment
}

fn isolate(
    fragment: &mut Fragment,
    cluster: &Cluster,
    (attachment, ip): (&Attachment, IpAddr),
    direction: Direction,
) {
    let family = Family::of(ip);
    let chain = match isolation(cluster, attachment, direction) {
        Isolation::Open => return,
        Isolation::Unknown => {
            let name = format!("{}_unknown_pod", prefix(direction));
            let rules = vec![deny(&name, &format!("deny {}: the pod is not known yet", direction.word()))];
            fragment.chains.insert(name.clone().into(), Chain { base: None, rules });
            name
        }
        Isolation::Policies(names) => combination(fragment, (cluster, family), &names, direction),
    };
    let map = match direction {
        Direction::Ingress => IN_ISOLATED,
        Direction::Egress => OUT_ISOLATED,
    };
    fragment.element(map, encode(&[ip.into()]), ElemData::Verdict(Verdict::Jump(chain)));
}

fn prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

/// The chain of a combination of policies: the union of what they allow, then the end.
fn combination(
    fragment: &mut Fragment,
    (cluster, family): (&Cluster, Family),
    names: &BTreeSet<ObjectName>,
    direction: Direction,
) -> String {
    let name = chain_name(names, direction);
    let mut rules = Vec::new();
    for policy in names.iter().filter_map(|name| cluster.policies.get(name)) {
        for (at, allow) in direction.rules(policy).unwrap_or_default().iter().enumerate() {
            let comment =
                truncate(&format!("allow {} {} rule {}", direction.word(), policy.key, at + 1), COMMENT_MAX);
            for exprs in allows(fragment, (policy, family), allow, direction) {
                rules.push(rule(comment.clone(), exprs));
            }
        }
    }
    let list = names.iter().map(ObjectName::to_string).collect::<Vec<_>>().join(", ");
    rules.push(deny(&name, &format!("deny {}: {list}", direction.word())));
    fragment.chains.insert(name.clone().into(), Chain { base: None, rules });
    name
}

/// `in_<hash>_<namespace>.<policy>[.<policy>…]`.
pub fn chain_name(names: &BTreeSet<ObjectName>, direction: Direction) -> String {
    let full = names.iter().map(ObjectName::to_string).collect::<Vec<_>>().join(",");
    let namespace = names.first().map_or("", |name| &name.namespace);
    let short = names.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(".");
    truncate(&format!("{}_{}_{namespace}.{short}", prefix(direction), hash16(&full)), NAME_MAX)
}

fn truncate(text: &str, max: usize) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= max).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

/// Counted, logged with the chain's name as its id, dropped; the comment names the policies.
fn deny(chain: &str, comment: &str) -> Rule {
    let exprs = [build::counter(), build::log(LOG_GROUP, LOG_BYTES, chain), build::drop()];
    rule(truncate(comment, COMMENT_MAX), exprs)
}

/// The matches of one rule, each ending in `return`: peers times ports.
fn allows(
    fragment: &mut Fragment,
    (policy, family): (&Policy, Family),
    rule: &PolicyRule,
    direction: Direction,
) -> Vec<Vec<Expr>> {
    let peers = peer_matches(fragment, (policy, family), rule, direction);
    let mut found = Vec::new();
    for peer in &peers {
        if rule.ports.is_empty() {
            found.push(peer.exprs.iter().cloned().chain([build::ret()]).collect());
        }
        for port in rule.ports.iter().filter(|port| valid_range(port)) {
            // A block knows no pods, so no port has a name there (NP-21).
            let named = matches!(port.port, Some(IntOrName::Name(_)));
            if named && peer.block && direction == Direction::Egress {
                continue;
            }
            let port = port_match(fragment, port, family);
            found.push(peer.exprs.iter().cloned().chain(port).chain([build::ret()]).collect());
        }
    }
    found
}

struct PeerMatch {
    exprs: Vec<Expr>,
    block: bool,
}

fn peer_matches(
    fragment: &mut Fragment,
    (policy, family): (&Policy, Family),
    rule: &PolicyRule,
    direction: Direction,
) -> Vec<PeerMatch> {
    if rule.peers.is_empty() {
        return vec![PeerMatch { exprs: Vec::new(), block: false }];
    }
    let address = || match direction {
        Direction::Ingress => build::saddr(family, ADDRESS),
        Direction::Egress => build::daddr(family, ADDRESS),
    };
    let mut found = Vec::new();
    for peer in &rule.peers {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let scope = match namespaces {
                    None => Scope::Own(policy.key.namespace.clone()),
                    Some(labels) => Scope::Labelled(labels.clone()),
                };
                let pods = pods.clone().unwrap_or_else(Selector::default);
                let set = want(fragment, AddressSet::Pods { namespaces: scope, pods }, family);
                found.push(PeerMatch { exprs: vec![address(), build::lookup(set, ADDRESS)], block: false });
            }
            Peer::Block { cidr, except } if Family::of_net(cidr) == family => {
                let mut exprs = vec![address()];
                exprs.extend(build::in_prefix(ADDRESS, cidr.trunc()));
                for hole in except.iter().filter(|hole| Family::of_net(hole) == family) {
                    exprs.push(address());
                    exprs.extend(build::not_in_prefix(ADDRESS, hole.trunc()));
                }
                found.push(PeerMatch { exprs, block: true });
            }
            // 0.0.0.0/0 does not hold IPv6, nor the reverse (NP-33).
            Peer::Block { .. } => {}
        }
    }
    found
}

fn port_match(fragment: &mut Fragment, port: &PolicyPort, family: Family) -> Vec<Expr> {
    let mut exprs = vec![build::l4proto(PORT), build::is(PORT, port.protocol)];
    match (&port.port, port.end_port) {
        (None, _) => {}
        (Some(IntOrName::Number(number)), None) => {
            exprs.extend([build::th_dport(PORT), build::is(PORT, *number)]);
        }
        (Some(IntOrName::Number(from)), Some(to)) => {
            exprs.extend([build::th_dport(PORT), build::within(PORT, *from, to)]);
        }
        (Some(IntOrName::Name(name)), _) => {
            let named = AddressSet::Port { name: name.clone(), protocol: port.protocol };
            let set = want(fragment, named, family);
            exprs.extend(key::load(family, ADDRESS, &[Part::Daddr, Part::Dport]).0);
            exprs.push(build::lookup(set, ADDRESS));
        }
    }
    exprs
}

fn want(fragment: &mut Fragment, addresses: AddressSet, family: Family) -> String {
    let name = addresses.name();
    let key: &[Field] = match addresses {
        AddressSet::Pods { .. } => &[key::address(family)],
        AddressSet::Port { .. } => &[key::address(family), Field::Port],
    };
    fragment.sets.insert(name.clone().into(), layout::set(key, SetData::None));
    fragment.address_sets.insert(addresses);
    name
}

/// A pod's entries in the sets that rules of this node look at.
pub fn pod_fragment<'a>(
    (cluster, family): (&Cluster, Family),
    pod: &Pod,
    addresses: &BTreeSet<IpAddr>,
    wanted: impl Iterator<Item = &'a AddressSet>,
) -> Fragment {
    let mut fragment = Fragment::default();
    for set in wanted.filter(|set| set.has(cluster, pod)) {
        for ip in addresses.iter().filter(|ip| Family::of(**ip) == family) {
            match set {
                AddressSet::Pods { .. } => {
                    fragment.element(set.name(), encode(&[(*ip).into()]), ElemData::None);
                }
                AddressSet::Port { name, protocol } => {
                    let named = |p: &&NamedPort| p.name == *name && p.protocol == *protocol;
                    for port in pod.ports.iter().filter(named) {
                        fragment.element(
                            set.name(),
                            encode(&[(*ip).into(), port.port.into()]),
                            ElemData::None,
                        );
                    }
                }
            }
        }
    }
    fragment
}
