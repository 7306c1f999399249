//! What a new connection is asked, in order: the first question with an answer decides where it goes, and without one it goes
//! on to its own destination.
//!
//! ```text
//!   of each caller   Dns ─> SourceRanges ─> Outside (not of the node's own processes)
//!   of all           Frontends ─> OtherPort ─> NoService ─> ports of the node: kept for its own ─> hostPort
//! ```
//! The guards come before any of it: what they drop asks nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use model::Cluster;
use types::{Family, IpNet};

use super::reserved;
use crate::Settings;

/// Who begins the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process of the node itself.
    Node,
    /// A pod of it, or somebody from another host.
    Other,
}

/// A question to a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Is it a query to the cluster's DNS address? Nodes answer it ([`crate::dns`]).
    Dns(IpAddr),
    /// Has its frontend source ranges? A caller in none of them is turned away; others are asked on.
    SourceRanges,
    /// Does the outside know the frontend? For callers that are none of these pods.
    Outside { pods: Vec<IpNet> },
    /// Is it for a frontend of a Service, or for one at which the node answers health checks?
    Frontends,
    /// Is it for a ClusterIP, whose Service then has no such port? Refused.
    OtherPort,
    /// Is it for one of these addresses of Services, which then nobody has? Dropped (V-08).
    NoService(IpNet),
    /// Is it for an address of the node? Then these are asked.
    OfNode(Vec<AtNode>),
}

/// A question to a connection to an address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtNode {
    /// The API is there, and no pod: its address may be one that machines have in turn, and all nodes would lose it with this
    /// one.
    Api(SocketAddr),
    /// IPv6 has no `route_localnet`: what is sent to a pod from there could not leave the node.
    Loopback(IpAddr),
    /// Does a pod want this port of this address?
    PodAtAddress,
    /// Does a pod want this port at all addresses?
    PodEverywhere,
}

/// What callers of one kind are asked first.
pub fn first(settings: &Settings, family: Family, caller: Caller) -> Vec<Question> {
    let dns = settings.dns_ip(family).map(Question::Dns);
    let outside = || Question::Outside { pods: of_family(&settings.pod_pools, family) };
    let outside = (caller == Caller::Other).then(outside);
    dns.into_iter().chain([Question::SourceRanges]).chain(outside).collect()
}

/// What all are asked then.
pub fn then(cluster: &Cluster, settings: &Settings, family: Family) -> Vec<Question> {
    let unused = of_family(&settings.service_cidrs, family).into_iter().map(Question::NoService);
    let apis = reserved::api_servers(cluster, settings).filter(|at| Family::of(at.ip()) == family);
    let apis = apis.collect::<BTreeSet<SocketAddr>>().into_iter().map(AtNode::Api);
    let loopback = (family == Family::V6).then_some(AtNode::Loopback(Ipv6Addr::LOCALHOST.into()));
    let pods = [AtNode::PodAtAddress, AtNode::PodEverywhere];
    let of_node = Question::OfNode(apis.chain(loopback).chain(pods).collect());
    [Question::Frontends, Question::OtherPort].into_iter().chain(unused).chain([of_node]).collect()
}

fn of_family(nets: &[IpNet], family: Family) -> Vec<IpNet> {
    nets.iter().filter(|net| Family::of_net(net) == family).map(IpNet::trunc).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod that wants the API's port does not get it, and a Service comes before any pod.
    #[test]
    fn services_come_before_the_nodes_own_and_these_before_pods() {
        let settings = Settings {
            dns_ips: vec!["10.96.0.10".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00::/112".parse().unwrap()],
            api: vec!["192.168.1.10:6443".parse().unwrap(), "[fd01::1]:6443".parse().unwrap()],
            ..Settings::new("node1", vec!["10.244.0.0/16".parse().unwrap()], 1450)
        };
        let pods = vec!["10.244.0.0/16".parse().unwrap()];
        let [dns, ranges] = [Question::Dns("10.96.0.10".parse().unwrap()), Question::SourceRanges];
        let node = first(&settings, Family::V4, Caller::Node);
        assert_eq!(node, [dns.clone(), ranges.clone()], "the node's own processes are never outside");
        assert_eq!(first(&settings, Family::V4, Caller::Other), [dns, ranges, Question::Outside { pods }]);
        let api = AtNode::Api("192.168.1.10:6443".parse().unwrap());
        let found = then(&Cluster::default(), &settings, Family::V4);
        assert_eq!(
            found,
            [
                Question::Frontends,
                Question::OtherPort,
                Question::NoService("10.96.0.0/12".parse().unwrap()),
                Question::OfNode(vec![api, AtNode::PodAtAddress, AtNode::PodEverywhere]),
            ]
        );
    }
}
