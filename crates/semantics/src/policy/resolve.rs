//! Which addresses rules ask for, and which pods have them: by labels alone. Addresses come into rules only through
//! [`AddressSet`]s, which pods enter and leave by themselves.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Attachment, Cluster, NamedPort, Pod};
use types::{Family, Protocol, Selector};

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

/// An address of a pod, with a port where the set is of ports.
pub type Member = (IpAddr, Option<u16>);

/// What a pod has of a set.
pub fn entries<'a>(
    set: &'a AddressSet,
    pod: &'a Pod,
    addresses: &'a BTreeSet<IpAddr>,
    family: Family,
) -> impl Iterator<Item = Member> + 'a {
    let ports: Vec<Option<u16>> = match set {
        AddressSet::Pods(_) => vec![None],
        AddressSet::Port { name, protocol } => {
            let named = |port: &&NamedPort| port.name == *name && port.protocol == *protocol;
            pod.ports.iter().filter(named).map(|port| Some(port.port)).collect()
        }
    };
    let of_family = addresses.iter().filter(move |ip| Family::of(**ip) == family);
    of_family.flat_map(move |ip| ports.clone().into_iter().map(|port| (*ip, port)))
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

/// What a pod has to give to sets: the API's addresses, or before it knows them the node's own.
pub fn addresses<'a>(pod: &'a Pod, attachments: impl Iterator<Item = &'a Attachment>) -> BTreeSet<IpAddr> {
    if !pod.ips.is_empty() {
        return pod.ips.iter().copied().collect();
    }
    attachments.filter(|a| a.uid.is_empty() || a.uid == pod.uid).flat_map(|a| a.ips.iter().copied()).collect()
}
