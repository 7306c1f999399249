//! NetworkPolicy as the API documents it: who isolates a pod, and which rule lets a connection pass.

use std::net::{IpAddr, SocketAddr};

use model::{Cluster, IntOrName, Peer, Pod, Policy, PolicyPort, PolicyRule};
use types::{ObjectName, Protocol};

use super::{further, local_pod};
use crate::packet::{Packet, Place};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A pod's policies on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub pod: ObjectName,
    /// The policies that isolate the pod in this direction; none: everything is allowed.
    pub isolated_by: Vec<ObjectName>,
    /// The first rule, counted from 1, that allows it.
    pub by: Option<(ObjectName, usize)>,
    /// Why each rule did not match; empty when one did.
    pub misses: Vec<Miss>,
    /// The node has the pod, and its labels have not come from the API: closed.
    pub unknown: bool,
}

/// Why a rule let a connection not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    pub policy: ObjectName,
    /// Counted from 1; 0: the policy has no rule at all.
    pub rule: usize,
    pub why: String,
}

impl Judgement {
    pub fn allowed(&self) -> bool {
        !self.unknown && (self.isolated_by.is_empty() || self.by.is_some())
    }
}

fn rules(policy: &Policy, direction: Direction) -> Option<&Vec<PolicyRule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}

/// `None`: no pod of this node is concerned in this direction.
pub fn judge(
    packet: &Packet,
    to: SocketAddr,
    cluster: &Cluster,
    place: &Place,
    direction: Direction,
) -> Option<Judgement> {
    let (subject, other) = match direction {
        Direction::Egress => (packet.src, to.ip()),
        Direction::Ingress => (to.ip(), packet.src),
    };
    let own = local_pod(subject, cluster);
    let attachment = own.or_else(|| further::speaker(subject, cluster, place))?;
    let question = Question { cluster, other, to, protocol: packet.protocol, direction };
    Some(question.about(&attachment.pod, &attachment.uid))
}

/// What the policies of a pod of another node say to who comes to it, as far as the objects tell. `None`: no pod has the
/// address.
pub fn judge_elsewhere(packet: &Packet, to: SocketAddr, cluster: &Cluster) -> Option<Judgement> {
    let (other, protocol) = (packet.src, packet.protocol);
    let question = Question { cluster, other, to, protocol, direction: Direction::Ingress };
    let pod = question.pods_at(to.ip()).next()?;
    Some(question.about(&pod.key, &pod.uid))
}

/// One connection, as a policy sees it.
struct Question<'a> {
    cluster: &'a Cluster,
    other: IpAddr,
    to: SocketAddr,
    protocol: types::Protocol,
    direction: Direction,
}

impl Question<'_> {
    fn about(&self, pod: &ObjectName, uid: &str) -> Judgement {
        let mut judgement = Judgement {
            pod: pod.clone(),
            isolated_by: Vec::new(),
            by: None,
            misses: Vec::new(),
            unknown: false,
        };
        let here = self.cluster.policies.values().filter(|policy| {
            policy.key.namespace == pod.namespace && rules(policy, self.direction).is_some()
        });
        let known = self.cluster.pods.get(pod);
        let Some(known) = known.filter(|pod| uid.is_empty() || pod.uid == uid) else {
            judgement.unknown = here.count() > 0;
            return judgement;
        };
        for policy in here.filter(|policy| policy.pods.matches(&known.labels)) {
            judgement.isolated_by.push(policy.key.clone());
            self.ask(policy, &mut judgement);
        }
        if judgement.by.is_some() {
            judgement.misses.clear();
        }
        judgement
    }

    fn ask(&self, policy: &Policy, judgement: &mut Judgement) {
        let rules = rules(policy, self.direction).map(Vec::as_slice).unwrap_or_default();
        let mut miss = |rule: usize, why: String| {
            judgement.misses.push(Miss { policy: policy.key.clone(), rule, why });
        };
        if rules.is_empty() {
            miss(0, "it allows nothing".to_owned());
        }
        for (at, rule) in rules.iter().enumerate() {
            match self.miss(policy, rule) {
                Some(why) => miss(at + 1, why),
                None => {
                    judgement.by.get_or_insert((policy.key.clone(), at + 1));
                    return;
                }
            }
        }
    }

    /// Why the rule does not match; `None`: it does.
    fn miss(&self, policy: &Policy, rule: &PolicyRule) -> Option<String> {
        let peers: Vec<&Peer> = rule.peers.iter().filter(|peer| self.is_peer(policy, peer)).collect();
        if !rule.peers.is_empty() && peers.is_empty() {
            return Some(self.no_peer());
        }
        let only_blocks = !peers.is_empty() && peers.iter().all(|peer| matches!(peer, Peer::Block { .. }));
        let ports_match = rule.ports.iter().any(|port| self.is_port(port, only_blocks));
        if !rule.ports.is_empty() && !ports_match {
            return Some(match self.protocol {
                // The API knows no port of it.
                Protocol::Icmp => "an echo has no port, and its ports are all that it allows".to_owned(),
                protocol => format!("{protocol}/{} is not among its ports", self.to.port()),
            });
        }
        None
    }

    fn no_peer(&self) -> String {
        let pods: Vec<_> = self.pods_at(self.other).map(|pod| pod.key.to_string()).collect();
        if pods.is_empty() {
            format!("{} is not among its peers", self.other)
        } else {
            format!("{} ({}) is not among its peers", pods.join(", "), self.other)
        }
    }

    /// Pods that have the address now: not those of a host network, not those that have ended.
    fn pods_at(&self, address: IpAddr) -> impl Iterator<Item = &Pod> {
        self.cluster.pods.values().map(Box::as_ref).filter(move |pod| {
            let alive = !pod.host_network && !pod.phase.finished();
            // The node knows a pod's address before the API does.
            let here = self.cluster.attachments.values().any(|a| {
                a.pod == pod.key && (a.uid.is_empty() || a.uid == pod.uid) && a.ips.contains(&address)
            });
            alive && if pod.ips.is_empty() { here } else { pod.ips.contains(&address) }
        })
    }

    fn is_peer(&self, policy: &Policy, peer: &Peer) -> bool {
        match peer {
            Peer::Block { cidr, except } => {
                cidr.contains(&self.other) && !except.iter().any(|hole| hole.contains(&self.other))
            }
            Peer::Pods { namespaces, pods } => self.pods_at(self.other).any(|pod| {
                let namespace = match namespaces {
                    None => pod.key.namespace == policy.key.namespace,
                    Some(selector) => self
                        .cluster
                        .namespaces
                        .get(&*pod.key.namespace)
                        .is_some_and(|namespace| selector.matches(&namespace.labels)),
                };
                namespace && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
            }),
        }
    }

    fn is_port(&self, port: &PolicyPort, only_blocks: bool) -> bool {
        if port.protocol != self.protocol {
            return false;
        }
        let number = self.to.port();
        match (&port.port, port.end_port) {
            (None, None) => true,
            (Some(IntOrName::Number(from)), None) => *from == number,
            (Some(IntOrName::Number(from)), Some(to)) => (*from..=to).contains(&number),
            (Some(IntOrName::Name(name)), None) => {
                let block = only_blocks && self.direction == Direction::Egress;
                !block
                    && self.pods_at(self.to.ip()).any(|pod| {
                        pod.ports
                            .iter()
                            .any(|p| p.name == *name && p.protocol == self.protocol && p.port == number)
                    })
            }
            (None | Some(IntOrName::Name(_)), Some(_)) => false,
        }
    }
}
