//! Tiers of policies ([`semantics::policy::tier`]) as chains and elements.
//!
//! ```text
//!   out_iso: pod address ─jump─> out_<hash>_<objects>:  match → return (let through in this direction)
//!   in_iso:  pod address ─jump─> in_<hash>_<objects>:   match → goto the next tier's chain (pass)
//!                                    │                  match → counter log drop (deny)
//!                                    │                  the default, as one of these three
//!                                    └ many rules: port ─goto─> …_<class>: peers → the verdict, then what follows
//! ```
//!
//! What is judged is the flow and not the packet: who began it, who answers it and where, as conntrack knows them, which
//! is the same for what is sent and for what is answered. A policy that no longer allows a flow ends it both ways.
//!
//! An accept returns: what may leave its source must still be let in by its destination (NP-09). All but the first chain
//! are entered by goto, so a return anywhere ends the tiers as a whole, and no tier left to pass to means the same. A chain
//! is named after its own tier and those after it, to which it leads. Peers are hash sets that pods fill and trees of address
//! ranges, so rules change only when a policy does.

mod names;

use std::collections::BTreeSet;
use std::net::IpAddr;

use kstate::nft::build::{self, ct_state, encode, rule};
use kstate::nft::key::{self, Part};
use kstate::nft::{Chain, ElemData, Expr, Field, Reg, Rule, Set, SetData, Verdict};
use types::{Family, Protocol};

use crate::fragment::{Fragment, Name};
use crate::layout::{self, HAIRPIN, IN_ISOLATED, OUT_ISOLATED};
use crate::refusal::{Refusal, logged, truncate};
use names::{dispatch_meaning, of_class};
use semantics::meaning::{Check, Meaning};
use semantics::policy::lookup::{Apart, Form, Merged, Peers, runs};
use semantics::policy::resolve::{AddressSet, Direction, Member, PODS, PORT};
use semantics::policy::tier::{self, Cause, Identity, Judgement, PeerMatch, PortMatch, Tier};

pub use names::{chain_name, prefix, set_name};

/// How the names of sets begin that rules of policies look into: of pods, of their named ports, of ranges of addresses, of
/// ports, and of ports that lead to the class of each.
pub const PEERS: [&str; 5] = [PODS, PORT, BLOCKS, NUMBERS, PORTS];
const BLOCKS: &str = "blocks";
const NUMBERS: &str = "numbers";
const PORTS: &str = "ports";

const R0: Reg = Reg(0);

/// What a pod of this node needs: its way to itself through a Service, and the tiers that judge it.
pub fn attachment_fragment(
    addresses: &[IpAddr],
    tiers: &[(Direction, Vec<Tier>)],
    family: Family,
) -> Fragment {
    let mut fragment = Fragment::default();
    if addresses.is_empty() {
        return fragment;
    }
    for ip in addresses {
        fragment.element(HAIRPIN, encode(&[(*ip).into(), (*ip).into()]), ElemData::None);
    }
    for (direction, tiers) in tiers {
        let Some(chain) = tiers_chain(&mut fragment, tiers, *direction, family) else { continue };
        let map = match direction {
            Direction::Ingress => IN_ISOLATED,
            Direction::Egress => OUT_ISOLATED,
        };
        for ip in addresses {
            let lead = ElemData::Verdict(Verdict::Jump(chain.clone()));
            fragment.element(map, encode(&[(*ip).into()]), lead);
        }
    }
    fragment
}

/// Adds the chains of tiers in order, and yields the first; `None`: nothing judges.
pub fn tiers_chain(
    fragment: &mut Fragment,
    tiers: &[Tier],
    direction: Direction,
    family: Family,
) -> Option<String> {
    tiers.iter().rev().fold(None, |next, tier| {
        let mut writer = Writer::new(fragment, (&tier.identity, next), direction, family);
        writer.tier(tier);
        Some(writer.chain)
    })
}

/// Writes the chains of one tier.
struct Writer<'a> {
    fragment: &'a mut Fragment,
    family: Family,
    direction: Direction,
    chain: String,
    check: Option<Check>,
    /// The chain of the next tier.
    next: Option<String>,
}

impl<'a> Writer<'a> {
    fn new(
        fragment: &'a mut Fragment,
        (identity, next): (&Identity, Option<String>),
        direction: Direction,
        family: Family,
    ) -> Self {
        let (chain, check) = chain_name(identity, next.as_deref(), direction);
        Self { fragment, family, direction, chain, check, next }
    }

    /// Run by run from the end, as each goes on with what follows it.
    fn tier(&mut self, tier: &Tier) {
        let mut rules = self.default(&tier.default);
        let runs = runs(&tier.rules, self.family);
        let doubtful = runs.iter().position(|run| run.verdict != tier::Verdict::Accept && !run.of_all);
        for (at, run) in runs.iter().enumerate().rev() {
            let before = match &run.form {
                Form::Few(few) => few.iter().flat_map(|rule| self.written_out(rule)).collect(),
                Form::Apart(apart) => apart.iter().flat_map(|rule| self.apart(run.verdict, rule)).collect(),
                Form::Many(merged) => {
                    rules = self.shared(at + 1, rules);
                    self.merged((at, run.verdict), merged, &rules)
                }
            };
            let no_flow = (doubtful == Some(at)).then(|| self.no_flow(&tier.default.cause));
            rules = [no_flow.into_iter().collect(), before, rules].concat();
        }
        self.insert(self.chain.clone(), rules);
    }

    /// Rules ask for the ends of a flow. What conntrack does not see has none, and would meet no rule that denies.
    fn no_flow(&self, cause: &Cause) -> Rule {
        let untracked = [build::ct_state(R0)].into_iter().chain(build::has_bits(R0, ct_state::UNTRACKED));
        self.judged(tier::Verdict::Deny, cause, untracked)
    }

    fn insert(&mut self, name: String, rules: Vec<Rule>) {
        if let Some(check) = self.check {
            self.fragment.mean(name.clone(), check);
        }
        self.fragment.chains.insert(name.into(), Chain { base: None, rules });
    }

    /// What several chains go on with: a rule, or a chain of the rules.
    fn shared(&mut self, at: usize, rules: Vec<Rule>) -> Vec<Rule> {
        if rules.len() < 2 {
            return rules;
        }
        let name = self.place(at);
        self.insert(name.clone(), rules);
        vec![rule("", [build::goto(name)])]
    }

    /// What the names of chains begin with that belong to a run.
    fn place(&self, at: usize) -> String {
        if at == 0 { self.chain.clone() } else { format!("{}_{at}", self.chain) }
    }

    /// What becomes of a packet that no rule matches. It is at an end with the chain where no tier is left to pass to.
    fn default(&self, default: &Judgement) -> Vec<Rule> {
        let at_an_end = default.verdict == tier::Verdict::Pass && self.next.is_none();
        if at_an_end { Vec::new() } else { vec![self.judged(default.verdict, &default.cause, [])] }
    }

    /// The verdict on what these expressions let through. A deny is counted, logged with an id, and dropped.
    fn judged(&self, verdict: tier::Verdict, cause: &Cause, when: impl IntoIterator<Item = Expr>) -> Rule {
        let (comment, end) = match (verdict, &self.next) {
            (tier::Verdict::Accept, _) => (self.said("allow", cause), vec![build::ret()]),
            (tier::Verdict::Pass, None) => (self.said("pass", cause), vec![build::ret()]),
            (tier::Verdict::Pass, Some(next)) => (self.said("pass", cause), vec![build::goto(next)]),
            (tier::Verdict::Deny, _) => {
                let comment = Refusal::of_policy(self.direction).comment_about(cause);
                (comment, logged(&self.id(cause)).into_iter().chain([build::drop()]).collect())
            }
        };
        rule(truncate(&comment), when.into_iter().chain(end))
    }

    /// Of a rule that stands for rules of several objects there is nobody to name.
    fn said(&self, verb: &str, cause: &Cause) -> String {
        let word = self.direction.word();
        match cause {
            Cause::Rule(..) => format!("{verb} {word} {cause}"),
            Cause::Objects(_) | Cause::UnknownPod => format!("{verb} {word}"),
        }
    }

    /// With what the log of a denied packet begins: the chain, and the rule if one denies.
    fn id(&self, cause: &Cause) -> String {
        match cause {
            Cause::Rule(..) => format!("{} {cause}", self.chain),
            Cause::Objects(_) | Cause::UnknownPod => self.chain.clone(),
        }
    }

    /// Peers times ports.
    fn written_out(&mut self, rule: &tier::Rule) -> Vec<Rule> {
        let peers: Vec<Vec<Expr>> = match &rule.peers {
            None => vec![Vec::new()],
            Some(peers) => peers.iter().map(|peer| self.peer(peer)).collect(),
        };
        let ports: Vec<Vec<Expr>> = match &rule.ports {
            None => vec![Vec::new()],
            Some(ports) => ports.iter().map(|port| self.port(port)).collect(),
        };
        let Judgement { verdict, cause } = &rule.judgement;
        let both = peers.iter().flat_map(|peer| ports.iter().map(move |port| (peer, port)));
        both.map(|(peer, port)| self.judged(*verdict, cause, peer.iter().chain(port).cloned())).collect()
    }

    /// One match for all its ports of a protocol, times one for all its pods and one for all its ranges of addresses.
    fn apart(&mut self, verdict: tier::Verdict, of: &Apart<'_>) -> Vec<Rule> {
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
        both.map(|(peer, port)| self.judged(verdict, of.cause, port.iter().chain(peer).cloned())).collect()
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

    /// By port first. `rest`: what a packet meets that none of the rules matches.
    fn merged(&mut self, (at, verdict): (usize, tier::Verdict), merged: &Merged, rest: &[Rule]) -> Vec<Rule> {
        let cause = Cause::Objects(merged.objects.clone());
        let mut rules = Vec::new();
        for peers in self.peers(&merged.all_ports) {
            rules.push(self.judged(verdict, &cause, peers));
        }
        for ((protocol, name), peers) in &merged.named {
            let port = self.port(&PortMatch::Name { protocol: *protocol, name: name.clone() });
            for peers in self.peers(peers) {
                rules.push(self.judged(verdict, &cause, peers.into_iter().chain(port.iter().cloned())));
            }
        }
        let place = self.place(at);
        let mut classes = Vec::new();
        for peers in &merged.classes {
            let matches = self.peers(peers).into_iter();
            let mut rules: Vec<Rule> = matches.map(|peers| self.judged(verdict, &cause, peers)).collect();
            rules.extend_from_slice(rest);
            let (hash, check) = peers.mean(of_class(&place, verdict)).digest();
            let name = format!("{place}_{hash}");
            self.fragment.mean(name.clone(), check);
            self.fragment.chains.insert(name.clone().into(), Chain { base: None, rules });
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

/// What a pod has in the sets that rules of this node look at.
pub fn members(sets: Vec<(&Name, Vec<Member>)>) -> Fragment {
    let mut fragment = Fragment::default();
    for (set, entries) in sets {
        for (ip, port) in entries {
            let key = match port {
                None => encode(&[ip.into()]),
                Some(port) => encode(&[ip.into(), port.into()]),
            };
            fragment.element(set.clone(), key, ElemData::None);
        }
    }
    fragment
}
