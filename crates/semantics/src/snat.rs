//! Under which source a packet leaves the node: the first case that it meets decides, and without one it keeps its own.

use types::{Family, IpNet};

use crate::Settings;

/// A packet that is about to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Case {
    /// A process of the node calls another one through a Service. Its address is the node's already; masqueraded it would
    /// be one of those on `lo`, which is the cluster's DNS address. The only case that keeps the source.
    Stays,
    /// The way that a Service chose asks for it ([`crate::service::plan::Way::masquerade`], M-04).
    AskedFor,
    /// A pod calls itself through a Service (M-01).
    ToItself,
    /// The node itself, to a Service.
    OfTheNode,
    /// Not from one of these pods, to one of these ClusterIPs: the answer of an endpoint that is no pod would not come back
    /// through here (M-02).
    StrangerToClusterIp { services: IpNet, pods: Vec<IpNet> },
    /// Not from one of these pods, to another node's pods: the answer would not come back by the fabric.
    StrangerIntoFabric { pods: Vec<IpNet> },
    /// From these pods, to where they do not keep their own addresses.
    Out { from: IpNet, unmasqueraded: Vec<IpNet> },
}

impl Case {
    /// In words, as the rule's comment has it.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Stays => "stays on the node",
            Self::AskedFor => "to a Service's external address",
            Self::ToItself => "a pod calls itself through a Service",
            Self::OfTheNode => "the node itself, to a Service",
            Self::StrangerToClusterIp { .. } => "not a pod, to a ClusterIP",
            Self::StrangerIntoFabric { .. } => "not a pod, into the tunnel",
            Self::Out { .. } => "a pod, out of the cluster",
        }
    }
}

/// All cases of a family, in the order in which they are asked.
pub fn cases(settings: &Settings, family: Family) -> Vec<Case> {
    let nets = |all: &[IpNet]| -> Vec<IpNet> {
        all.iter().filter(|net| Family::of_net(net) == family).map(IpNet::trunc).collect()
    };
    let pods = nets(&settings.pod_pools);
    let mut cases = vec![Case::Stays, Case::AskedFor, Case::ToItself, Case::OfTheNode];
    let services = nets(&settings.service_cidrs).into_iter();
    cases.extend(services.map(|services| Case::StrangerToClusterIp { services, pods: pods.clone() }));
    cases.push(Case::StrangerIntoFabric { pods: pods.clone() });
    let unmasqueraded = nets(&settings.unmasqueraded);
    cases.extend(pods.iter().map(|from| Case::Out { from: *from, unmasqueraded: unmasqueraded.clone() }));
    cases
}

/// Destinations to which the source is kept: receivers of multicast tell senders apart by it, and a link-local
/// address says nothing on another link.
pub fn kept(family: Family) -> impl Iterator<Item = IpNet> {
    let kept: &[&str] = match family {
        Family::V4 => &["224.0.0.0/4"],
        Family::V6 => &["ff00::/8", "fe80::/10"],
    };
    kept.iter().filter_map(|net| net.parse().ok())
}
