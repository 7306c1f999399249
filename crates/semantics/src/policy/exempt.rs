//! What no tier judges, whatever policies say.

use std::net::IpAddr;

use types::Family;

use crate::Settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// What the node itself sends to its pods, and what they send to any of its addresses (NP-12): kubelets probe pods.
    /// Who comes through the node is not the node, also where he is masqueraded.
    TheNode,
    /// A query to the cluster's DNS address. A pod reaches the DNS of its own node as it reaches its node, so also the one
    /// that stands in for it (NP-12, NP-49).
    Dns(IpAddr),
}

pub fn exempt(settings: &Settings, family: Family) -> Vec<Exempt> {
    [Exempt::TheNode].into_iter().chain(settings.dns_ip(family).map(Exempt::Dns)).collect()
}
