//! Who is isolated and what may pass, from policies and labels alone (NP-01..NP-34). A rule with something that
//! this version does not know is not here any more: `model::from_k8s` left it out and said so.
//!
//! A pod's state is its *combination*: the policies that select it, per direction. Pods of one combination share
//! everything; addresses come in only through [`AddressSet`]s, which pods enter and leave by themselves.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Attachment, Cluster, Pod, Policy, PolicyPort, PolicyRule};
use types::{ObjectName, Protocol, Selector};

use crate::meaning::Meaning;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The rules of a policy in this direction; `None`: it does not isolate it.
    pub fn rules(self, policy: &Policy) -> Option<&[PolicyRule]> {
        match self {
            Self::Ingress => policy.ingress.as_deref(),
            Self::Egress => policy.egress.as_deref(),
        }
    }
}

/// The kinds of [`AddressSet`]s.
pub const PODS: &str = "pods";
pub const PORT: &str = "port";

/// Addresses that rules ask for and pods provide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressSet {
    /// Addresses of pods that any of these select.
    Pods(BTreeSet<PodPeer>),
    /// (address, port) of pods that name a port so: the number may differ from pod to pod (NP-21).
    Port { name: String, protocol: Protocol },
}

/// Pods by their labels and their namespaces' (NP-05).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodPeer {
    pub namespaces: Scope,
    pub pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The policy's own namespace.
    Own(String),
    Labelled(Selector),
}

impl AddressSet {
    /// What it means: its kind, and a hash by which equal peers of many policies are one.
    pub fn meaning(&self) -> (&'static str, Meaning) {
        match self {
            Self::Pods(peers) => {
                (PODS, peers.iter().fold(Meaning::of(PODS).count(peers.len()), |m, peer| peer.mean(m)))
            }
            Self::Port { name, protocol } => (PORT, Meaning::of(PORT).text(name).shown(protocol)),
        }
    }

    /// Pods that may provide addresses, among which all are that do: those of the namespaces that it names.
    pub fn candidates<'a>(&self, cluster: &'a Cluster) -> Box<dyn Iterator<Item = &'a Pod> + 'a> {
        let Self::Pods(peers) = self else {
            return Box::new(cluster.pods.values().map(Box::as_ref));
        };
        let named = peers.iter().flat_map(|peer| match &peer.namespaces {
            Scope::Own(namespace) => vec![namespace.clone()],
            Scope::Labelled(labels) => {
                let matching = cluster.namespaces.values().filter(|n| labels.matches(&n.labels));
                matching.map(|namespace| namespace.name.clone()).collect()
            }
        });
        let named: BTreeSet<String> = named.collect();
        Box::new(named.into_iter().flat_map(|namespace| cluster.pods_of(&namespace)))
    }

    /// Whether a pod provides addresses: it has its own (not its node's, NP-13), and has not given them back
    /// (NP-43).
    pub fn has(&self, cluster: &Cluster, pod: &Pod) -> bool {
        if !provides(pod) {
            return false;
        }
        match self {
            Self::Port { name, protocol } => {
                pod.ports.iter().any(|p| p.name == *name && p.protocol == *protocol)
            }
            Self::Pods(peers) => peers.iter().any(|peer| peer.selects(cluster, pod)),
        }
    }
}

impl PodPeer {
    pub fn selects(&self, cluster: &Cluster, pod: &Pod) -> bool {
        let namespace = match &self.namespaces {
            Scope::Own(namespace) => *pod.key.namespace == **namespace,
            Scope::Labelled(labels) => {
                cluster.namespaces.get(&*pod.key.namespace).is_some_and(|n| labels.matches(&n.labels))
            }
        };
        namespace && self.pods.matches(&pod.labels)
    }

    /// Adds all that it says.
    pub fn mean(&self, meaning: Meaning) -> Meaning {
        let meaning = match &self.namespaces {
            Scope::Own(namespace) => meaning.text("own").text(namespace),
            Scope::Labelled(labels) => meaning.text("labelled").selector(labels),
        };
        meaning.selector(&self.pods)
    }
}

pub fn provides(pod: &Pod) -> bool {
    !pod.host_network && !pod.phase.finished()
}

/// Policies that isolate one pod in one direction; `None`: it is open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    Open,
    /// By these policies, of one namespace.
    Policies(BTreeSet<ObjectName>),
    /// The node has the pod and the API's row of it has not come: nothing passes where a policy might apply
    /// (NP-40).
    Unknown,
}

/// The policies of a namespace, by name.
pub fn policies_in<'a>(cluster: &'a Cluster, namespace: &'a str) -> impl Iterator<Item = &'a Policy> {
    let first = ObjectName::new(namespace, "");
    cluster.policies.range(first..).map(|(_, p)| &**p).take_while(move |p| *p.key.namespace == *namespace)
}

pub fn isolation(cluster: &Cluster, attachment: &Attachment, direction: Direction) -> Isolation {
    let mut isolating = policies_in(cluster, &attachment.pod.namespace)
        .filter(|policy| direction.rules(policy).is_some())
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

/// What a pod has to give to sets: the API's addresses, or before it knows them the node's own.
pub fn addresses<'a>(pod: &'a Pod, attachments: impl Iterator<Item = &'a Attachment>) -> BTreeSet<IpAddr> {
    if !pod.ips.is_empty() {
        return pod.ips.iter().copied().collect();
    }
    attachments.filter(|a| a.uid.is_empty() || a.uid == pod.uid).flat_map(|a| a.ips.iter().copied()).collect()
}

/// Whether a port of a rule can be honoured at all; a range needs a number to start from (NP-23).
pub fn valid_range(port: &PolicyPort) -> bool {
    match (&port.port, port.end_port) {
        (_, None) => true,
        (Some(model::IntOrName::Number(from)), Some(to)) => from <= &to,
        (_, Some(_)) => false,
    }
}
