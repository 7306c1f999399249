//! NetworkPolicy as a tier: each rule accepts, and what no rule accepts is denied (NP-01..NP-34). A rule with something that
//! this version does not know is not here any more: `model::from_k8s` left it out and said so.
//!
//! Which policies select a pod in a direction is its *combination*. Pods of one combination share their tier.

use std::collections::BTreeSet;

use model::{Attachment, Cluster, IntOrName, Peer, Policy, PolicyPort, PolicyRule};
use types::{Family, IpNet, ObjectName, Selector};

use super::resolve::{Direction, PodPeer, Scope};
use super::tier::{Cause, Identity, Judgement, PeerMatch, PortMatch, Rule, Tier, Verdict};

/// What sort of tier it is.
const SORT: &str = "policies";

/// Policies that isolate one pod in one direction; `None`: it is open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isolation {
    Open,
    /// By these policies, of one namespace.
    Policies(BTreeSet<ObjectName>),
    /// The node has the pod and the API's row of it has not come: nothing passes where a policy might apply
    /// (NP-40).
    Unknown,
}

/// `None`: no policy isolates the pod in this direction.
pub(super) fn tier(
    cluster: &Cluster,
    attachment: &Attachment,
    direction: Direction,
    family: Family,
) -> Option<Tier> {
    match isolation(cluster, attachment, direction) {
        Isolation::Open => None,
        Isolation::Unknown => Some(Tier {
            identity: Identity::Fixed("unknown_pod"),
            rules: Vec::new(),
            default: Judgement { verdict: Verdict::Deny, cause: Cause::UnknownPod },
        }),
        Isolation::Policies(names) => Some(combination(cluster, names, direction, family)),
    }
}

/// The tier of these policies, of one namespace, about addresses of a family.
pub fn combination(
    cluster: &Cluster,
    names: BTreeSet<ObjectName>,
    direction: Direction,
    family: Family,
) -> Tier {
    let mut rules = Vec::new();
    for policy in names.iter().filter_map(|name| cluster.policies.get(name)) {
        for (at, rule) in rules_of(policy, direction).unwrap_or_default().iter().enumerate() {
            rules.extend(parts(policy, (at + 1, rule), direction, family));
        }
    }
    let default = Judgement { verdict: Verdict::Deny, cause: Cause::Objects(names.clone()) };
    Tier { identity: Identity::Objects { sort: SORT, names }, rules, default }
}

/// The rules of a policy in a direction; `None`: it does not isolate it.
fn rules_of(policy: &Policy, direction: Direction) -> Option<&[PolicyRule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// The policies of a namespace, by name.
fn policies_in<'a>(cluster: &'a Cluster, namespace: &'a str) -> impl Iterator<Item = &'a Policy> {
    let first = ObjectName::new(namespace, "");
    cluster.policies.range(first..).map(|(_, p)| &**p).take_while(move |p| *p.key.namespace == *namespace)
}

pub(super) fn isolation(cluster: &Cluster, attachment: &Attachment, direction: Direction) -> Isolation {
    let mut isolating = policies_in(cluster, &attachment.pod.namespace)
        .filter(|policy| rules_of(policy, direction).is_some())
        .peekable();
    if isolating.peek().is_none() {
        return Isolation::Open;
    }
    let pod = cluster.pods.get(&attachment.pod);
    let Some(pod) = pod.filter(|pod| attachment.uid.is_empty() || attachment.uid == pod.uid) else {
        return Isolation::Unknown;
    };
    let names: BTreeSet<_> =
        isolating.filter(|p| p.pods.matches(&pod.labels)).map(|p| p.key.clone()).collect();
    if names.is_empty() { Isolation::Open } else { Isolation::Policies(names) }
}

/// A rule without what can never match. A block knows no pods, so no port has a name there: such a rule for
/// egress is taken apart (NP-21).
fn parts(
    policy: &Policy,
    (at, rule): (usize, &PolicyRule),
    direction: Direction,
    family: Family,
) -> Vec<Rule> {
    let cause = Cause::Rule(policy.key.clone(), at);
    let judgement = Judgement { verdict: Verdict::Accept, cause };
    let allow = |peers, ports| Rule { peers, ports, judgement: judgement.clone() };
    let ports = (!rule.ports.is_empty())
        .then(|| rule.ports.iter().filter_map(port_match).collect::<BTreeSet<_>>().into_iter().collect());
    if rule.peers.is_empty() {
        return vec![allow(None, ports)];
    }
    let peers: Vec<PeerMatch> =
        rule.peers.iter().filter_map(|peer| peer_match(policy, peer, family)).collect();
    let named = |port: &PortMatch| matches!(port, PortMatch::Name { .. });
    let apart = direction == Direction::Egress && ports.as_ref().is_some_and(|ports| ports.iter().any(named));
    let (blocks, pods): (Vec<_>, Vec<_>) =
        peers.into_iter().partition(|peer| apart && matches!(peer, PeerMatch::Block { .. }));
    let numbers = ports.clone().map(|ports: Vec<_>| ports.into_iter().filter(|port| !named(port)).collect());
    let both = [allow(Some(pods), ports), allow(Some(blocks), numbers)];
    both.into_iter().filter(|rule| rule.matches() > 0).collect()
}

fn peer_match(policy: &Policy, peer: &Peer, family: Family) -> Option<PeerMatch> {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let namespaces = match namespaces {
                None => Scope::Own(policy.key.namespace.to_string()),
                Some(labels) => Scope::Labelled(labels.clone()),
            };
            let pods = pods.clone().unwrap_or_else(Selector::default);
            Some(PeerMatch::Pods(PodPeer { namespaces, pods }))
        }
        // 0.0.0.0/0 does not hold IPv6, nor the reverse (NP-33).
        Peer::Block { cidr, except } => (Family::of(cidr.addr()) == family).then(|| PeerMatch::Block {
            cidr: cidr.trunc(),
            except: except
                .iter()
                .filter(|hole| Family::of(hole.addr()) == family)
                .map(IpNet::trunc)
                .collect(),
        }),
    }
}

fn port_match(port: &PolicyPort) -> Option<PortMatch> {
    if !valid_range(port) {
        return None;
    }
    let protocol = port.protocol;
    Some(match &port.port {
        None => PortMatch::Numbers { protocol, from: 0, to: u16::MAX },
        Some(IntOrName::Number(from)) => {
            PortMatch::Numbers { protocol, from: *from, to: port.end_port.unwrap_or(*from) }
        }
        Some(IntOrName::Name(name)) => PortMatch::Name { protocol, name: name.clone() },
    })
}

/// Whether a port of a rule can be honoured at all; a range needs a number to start from (NP-23).
fn valid_range(port: &PolicyPort) -> bool {
    match (&port.port, port.end_port) {
        (_, None) => true,
        (Some(IntOrName::Number(from)), Some(to)) => from <= &to,
        (_, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests;
