//! Isolated pods and their policies as chains and elements.
//!
//! ```text
//!   out_iso: pod address ─jump─> out_<hash>_<policies>:  match → return (allowed in this direction)
//!   in_iso:  pod address ─jump─> in_<hash>_<policies>:   …
//!                                    │                   counter log drop
//!                                    └ many rules: port ─goto─> …_<class>: peers → return, counter log drop
//! ```
//!
//! What is judged is the flow and not the packet: who began it, who answers it and where, as conntrack knows them, which
//! is the same for what is sent and for what is answered. A policy that no longer allows a flow ends it both ways.
//!
//! An allow returns instead of accepting: what may leave its source must still be let in by its destination
//! (NP-09); a class is entered by goto, so its return ends the policies as a whole. Peers are hash sets that pods
//! fill and trees of address ranges, so rules change only when a policy does.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kstate::nft::build::{self, encode, rule};
use kstate::nft::key::{self, Part};
use kstate::nft::{Chain, ElemData, Expr, Field, Reg, Rule, Set, SetData, Verdict};
use model::{Attachment, Cluster, NamedPort, Pod};
use types::{Family, ObjectName, Protocol};

use crate::fragment::{Fragment, Name};
use crate::layout::{self, HAIRPIN, IN_ISOLATED, LOG_BYTES, LOG_GROUP, OUT_ISOLATED};
use crate::refusal::Refusal;
use semantics::meaning::{Check, Meaning};
use semantics::policy::allow::{Allow, Allows, Apart, Merged, PeerMatch, Peers, PortMatch, allows};
use semantics::policy::resolve::{AddressSet, Direction, Isolation, PODS, PORT, isolation};

/// How the names of sets begin that rules of policies look into: of pods, of their named ports, of ranges of addresses, of
/// ports, and of ports that lead to the class of each.
pub const PEERS: [&str; 5] = [PODS, PORT, BLOCKS, NUMBERS, PORTS];
const BLOCKS: &str = "blocks";
const NUMBERS: &str = "numbers";
const PORTS: &str = "ports";

/// The longest comment that the kernel's tools read back (NFTNL_UDATA_COMMENT_MAXLEN less its zero).
const COMMENT_MAX: usize = 127;
/// Characters of a chain's name, the end of which is for people; the log of a denied packet begins with them
/// (NF_LOG_PREFIXLEN, linux/netfilter/nf_log.h: 128).
const NAME_MAX: usize = 76;

const R0: Reg = Reg(0);

/// What a pod of this node needs: its way to itself through a Service, and its isolation.
pub fn attachment_fragment(cluster: &Cluster, attachment: &Attachment, family: Family) -> Fragment {
    let mut fragment = Fragment::default();
    let addresses = attachment.ips.iter().filter(|ip| Family::of(**ip) == family);
    for ip in addresses {
        fragment.element(HAIRPIN, encode(&[(*ip).into(), (*ip).into()]), ElemData::None);
        for direction in Direction::ALL {
            let chain = isolation_chain(&mut fragment, cluster, (attachment, family), direction);
            let map = match direction {
                Direction::Ingress => IN_ISOLATED,
                Direction::Egress => OUT_ISOLATED,
            };
            if let Some(chain) = chain {
                fragment.element(map, encode(&[(*ip).into()]), ElemData::Verdict(Verdict::Jump(chain)));
            }
        }
    }
    fragment
}

/// Adds the chain of what isolates a pod in a direction; `None`: it is open.
pub fn isolation_chain(
    fragment: &mut Fragment,
    cluster: &Cluster,
    (attachment, family): (&Attachment, Family),
    direction: Direction,
) -> Option<String> {
    Some(match isolation(cluster, attachment, direction) {
        Isolation::Open => return None,
        Isolation::Unknown => {
            let name = format!("{}_unknown_pod", prefix(direction));
            let rules = vec![deny(
                &name,
                &format!("{}: the pod is not known yet", Refusal::of_policy(direction).comment()),
            )];
            fragment.chains.insert(name.clone().into(), Chain { base: None, rules });
            name
        }
        Isolation::Policies(names) => {
            let allows = allows(cluster, &names, direction, family);
            let mut writer = Writer::new(fragment, &names, direction, family);
            writer.combination(&allows);
            writer.chain
        }
    })
}

/// The kernel's name of a set of addresses.
pub fn set_name(set: &AddressSet) -> (String, Check) {
    let (kind, meaning) = set.meaning();
    let (hash, check) = meaning.digest();
    (format!("{kind}_{hash}"), check)
}

pub fn prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

/// Writes the chains of one combination of policies: the union of what they allow, then the end.
struct Writer<'a> {
    fragment: &'a mut Fragment,
    family: Family,
    direction: Direction,
    chain: String,
    /// What the last rule of every chain does.
    deny: Rule,
}

impl<'a> Writer<'a> {
    fn new(
        fragment: &'a mut Fragment,
        names: &BTreeSet<ObjectName>,
        direction: Direction,
        family: Family,
    ) -> Self {
        let (chain, check) = chain_name(names, direction);
        fragment.mean(chain.clone(), check);
        let list = names.iter().map(ObjectName::to_string).collect::<Vec<_>>().join(", ");
        let deny = deny(&chain, &format!("{}: {list}", Refusal::of_policy(direction).comment()));
        Self { fragment, family, direction, chain, deny }
    }

    fn combination(&mut self, allows: &Allows) {
        let rules = match allows {
            Allows::Few(allows) => allows.iter().flat_map(|allow| self.written_out(allow)).collect(),
            Allows::Many(merged) => self.merged(merged),
            Allows::Apart(rules) => rules.iter().flat_map(|rule| self.apart(rule)).collect(),
        };
        self.insert(self.chain.clone(), rules);
    }

    fn insert(&mut self, name: String, mut rules: Vec<Rule>) {
        rules.push(self.deny.clone());
        self.fragment.chains.insert(name.into(), Chain { base: None, rules });
    }

    /// Peers times ports, each match ending in `return`.
    fn written_out(&mut self, allow: &Allow) -> Vec<Rule> {
        let text = format!("allow {} {} rule {}", self.direction.word(), allow.policy, allow.rule);
        let comment = truncate(&text, COMMENT_MAX);
        let peers: Vec<Vec<Expr>> = match &allow.peers {
            None => vec![Vec::new()],
            Some(peers) => peers.iter().map(|peer| self.peer(peer)).collect(),
        };
        let ports: Vec<Vec<Expr>> = match &allow.ports {
            None => vec![Vec::new()],
            Some(ports) => ports.iter().map(|port| self.port(port)).collect(),
        };
        let both = peers.iter().flat_map(|peer| ports.iter().map(move |port| (peer, port)));
        both.map(|(peer, port)| rule(comment.clone(), peer.iter().chain(port).cloned().chain([build::ret()])))
            .collect()
    }

    /// One match for all its ports of a protocol, times one for all its pods and one for all its ranges of addresses.
    fn apart(&mut self, of: &Apart) -> Vec<Rule> {
        let text = format!("allow {} {} rule {}", self.direction.word(), of.policy, of.rule);
        let comment = truncate(&text, COMMENT_MAX);
        let ports: Vec<Vec<Expr>> = match &of.ports {
            None => vec![Vec::new()],
            Some(ports) => {
                let named = ports
                    .named
                    .iter()
                    .map(|(protocol, name)| PortMatch::Name { protocol: *protocol, name: name.clone() });
                let mut found: Vec<Vec<Expr>> = named.map(|port| self.port(&port)).collect();
                for (protocol, ranges) in &ports.numbers {
                    found.push(self.numbers(*protocol, ranges));
                }
                found
            }
        };
        let peers = self.peers(&of.peers);
        let both = peers.iter().flat_map(|peer| ports.iter().map(move |port| (peer, port)));
        both.map(|(peer, port)| rule(comment.clone(), port.iter().chain(peer).cloned().chain([build::ret()])))
            .collect()
    }

    /// A set of ports, named after what it holds.
    fn numbers(&mut self, protocol: Protocol, ranges: &[(u16, u16)]) -> Vec<Expr> {
        if let [(from, to)] = ranges {
            return self.port(&PortMatch::Numbers { protocol, from: *from, to: *to });
        }
        let whole = Meaning::of("numbers").count(ranges.len());
        let whole = ranges.iter().fold(whole, |meaning, (from, to)| meaning.shown(from).shown(to));
        let (hash, check) = whole.digest();
        let name = format!("{NUMBERS}_{hash}");
        self.fragment.mean(name.clone(), check);
        let set = Set { interval: true, ..layout::set(&[Field::Port], SetData::None) };
        self.fragment.sets.insert(name.clone().into(), set);
        for (from, to) in ranges {
            self.fragment.range(
                name.clone(),
                [*from, *to].map(|port| encode(&[port.into()])),
                ElemData::None,
            );
        }
        let number = [build::ct_reply_sport(R0), build::lookup(name, R0)];
        [build::l4proto(R0), build::is(R0, protocol)].into_iter().chain(number).collect()
    }

    fn merged(&mut self, merged: &Merged) -> Vec<Rule> {
        let allow = format!("allow {}", self.direction.word());
        let mut rules = Vec::new();
        let mut pass = |peers: Vec<Expr>, port: &[Expr]| {
            rules.push(rule(
                allow.clone(),
                peers.into_iter().chain(port.iter().cloned()).chain([build::ret()]),
            ));
        };
        for peers in self.peers(&merged.all_ports) {
            pass(peers, &[]);
        }
        for ((protocol, name), peers) in &merged.named {
            let port = self.port(&PortMatch::Name { protocol: *protocol, name: name.clone() });
            for peers in self.peers(peers) {
                pass(peers, &port);
            }
        }
        let mut classes = Vec::new();
        for peers in &merged.classes {
            let rules = self.peers(peers).into_iter();
            let rules =
                rules.map(|peers| rule(allow.clone(), peers.into_iter().chain([build::ret()]))).collect();
            let (hash, check) = peers.mean(Meaning::of("class").text(&self.chain)).digest();
            let name = format!("{}_{hash}", self.chain);
            self.fragment.mean(name.clone(), check);
            self.insert(name.clone(), rules);
            classes.push(name);
        }
        for (protocol, ranges) in &merged.numbers {
            rules.push(self.dispatch(*protocol, ranges, &classes));
        }
        rules
    }

    /// `meta l4proto tcp ct reply proto-src vmap @ports_…`: to the class of each range of ports. Maps and classes are named
    /// after what they hold: a policy that changes gets new ones, and one rule turns from the old to the new.
    fn dispatch(&mut self, protocol: Protocol, ranges: &[(u16, u16, usize)], classes: &[String]) -> Rule {
        let named = |(from, to, class): &(u16, u16, usize)| Some((*from, *to, classes.get(*class)?));
        let ranges: Vec<_> = ranges.iter().filter_map(named).collect();
        let (hash, check) = dispatch_meaning(protocol, &ranges).digest();
        let name = format!("{PORTS}_{hash}");
        self.fragment.mean(name.clone(), check);
        let set = Set { interval: true, ..layout::set(&[Field::Port], SetData::Verdicts) };
        self.fragment.sets.insert(name.clone().into(), set);
        for (from, to, class) in ranges {
            let verdict = ElemData::Verdict(Verdict::Goto(class.clone()));
            self.fragment.range(name.clone(), [from, to].map(|port| encode(&[port.into()])), verdict);
        }
        let protocol = [build::l4proto(R0), build::is(R0, protocol)];
        rule("", protocol.into_iter().chain([build::ct_reply_sport(R0), build::vmap(name, R0)]))
    }

    /// A match for each kind of peer; none at all for nobody.
    fn peers(&mut self, peers: &Peers) -> Vec<Vec<Expr>> {
        if peers.everybody {
            return vec![Vec::new()];
        }
        let mut found = Vec::new();
        if !peers.pods.is_empty() {
            let set = self.want(AddressSet::Pods(peers.pods.clone()));
            found.push(vec![self.peer_address(), build::lookup(set, R0)]);
        }
        if !peers.ranges.is_empty() {
            let set = self.ranges(peers);
            found.push(vec![self.peer_address(), build::lookup(set, R0)]);
        }
        found
    }

    fn peer(&mut self, peer: &PeerMatch) -> Vec<Expr> {
        match peer {
            PeerMatch::Pods(pods) => {
                let set = self.want(AddressSet::Pods(BTreeSet::from([pods.clone()])));
                vec![self.peer_address(), build::lookup(set, R0)]
            }
            PeerMatch::Block { cidr, except } => {
                let mut exprs = vec![self.peer_address()];
                exprs.extend(build::in_prefix(R0, *cidr));
                for hole in except {
                    exprs.push(self.peer_address());
                    exprs.extend(build::not_in_prefix(R0, *hole));
                }
                exprs
            }
        }
    }

    fn peer_address(&self) -> Expr {
        match self.direction {
            Direction::Ingress => build::original_saddr(self.family, R0),
            Direction::Egress => build::reply_saddr(self.family, R0),
        }
    }

    fn port(&mut self, port: &PortMatch) -> Vec<Expr> {
        let is = |protocol: Protocol| [build::l4proto(R0), build::is(R0, protocol)];
        match port {
            PortMatch::Numbers { protocol, from: 0, to: u16::MAX } => is(*protocol).into(),
            PortMatch::Numbers { protocol, from, to } => {
                let number = if from == to { build::is(R0, *from) } else { build::within(R0, *from, *to) };
                is(*protocol).into_iter().chain([build::ct_reply_sport(R0), number]).collect()
            }
            PortMatch::Name { protocol, name } => {
                let set = self.want(AddressSet::Port { name: name.clone(), protocol: *protocol });
                let (key, _) = key::load(self.family, R0, &[Part::ReplySaddr, Part::ReplySport]);
                is(*protocol).into_iter().chain(key).chain([build::lookup(set, R0)]).collect()
            }
        }
    }

    fn want(&mut self, addresses: AddressSet) -> String {
        let (name, check) = set_name(&addresses);
        self.fragment.mean(name.clone(), check);
        let address = key::address(self.family);
        let key: &[Field] = match addresses {
            AddressSet::Pods(_) => &[address],
            AddressSet::Port { .. } => &[address, Field::Port],
        };
        self.fragment.sets.insert(name.clone().into(), layout::set(key, SetData::None));
        self.fragment.address_sets.insert(addresses);
        name
    }

    /// A set of address ranges, named after what it holds, so that equal ones of many policies are one.
    fn ranges(&mut self, peers: &Peers) -> String {
        let (hash, check) = peers.mean_ranges(Meaning::of("blocks")).digest();
        let name = format!("{BLOCKS}_{hash}");
        self.fragment.mean(name.clone(), check);
        let set = Set { interval: true, ..layout::set(&[key::address(self.family)], SetData::None) };
        self.fragment.sets.insert(name.clone().into(), set);
        for (from, to) in &peers.ranges {
            let range = [*from, *to].map(|address| encode(&[address.into()]));
            self.fragment.range(name.clone(), range, ElemData::None);
        }
        name
    }
}

/// `in_<hash>_<namespace>.<policy>[.<policy>…]`.
pub fn chain_name(names: &BTreeSet<ObjectName>, direction: Direction) -> (String, Check) {
    let whole = Meaning::of("policies").text(prefix(direction)).count(names.len());
    let whole = names.iter().fold(whole, |meaning, name| meaning.text(&name.namespace).text(&name.name));
    let (hash, check) = whole.digest();
    let namespace = names.first().map_or("", |name| &name.namespace);
    let short = names.iter().map(|n| &*n.name).collect::<Vec<_>>().join(".");
    (truncate(&format!("{}_{hash}_{namespace}.{short}", prefix(direction)), NAME_MAX), check)
}

fn dispatch_meaning(protocol: Protocol, ranges: &[(u16, u16, &String)]) -> Meaning {
    let whole = Meaning::of("ports").shown(protocol).count(ranges.len());
    ranges.iter().fold(whole, |meaning, (from, to, class)| meaning.shown(from).shown(to).text(class))
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

/// A pod's entries in the sets that rules of this node look at.
pub fn pod_fragment<'a>(
    (cluster, family): (&Cluster, Family),
    pod: &Pod,
    addresses: &BTreeSet<IpAddr>,
    wanted: impl Iterator<Item = (&'a AddressSet, &'a Name)>,
) -> Fragment {
    let mut fragment = Fragment::default();
    for (set, kernel_name) in wanted.filter(|(set, _)| set.has(cluster, pod)) {
        for ip in addresses.iter().filter(|ip| Family::of(**ip) == family) {
            match set {
                AddressSet::Pods(_) => {
                    fragment.element(kernel_name.clone(), encode(&[(*ip).into()]), ElemData::None);
                }
                AddressSet::Port { name, protocol } => {
                    let named = |p: &&NamedPort| p.name == *name && p.protocol == *protocol;
                    for port in pod.ports.iter().filter(named) {
                        fragment.element(
                            kernel_name.clone(),
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
