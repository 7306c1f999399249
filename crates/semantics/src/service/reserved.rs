//! What no Service and no pod may take: how the node's own processes are reached, how they reach the API, and addresses
//! that mean something else on every host.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::{Cluster, HostPort};
use types::wire::{LOOPBACK_PORTS, NODE_PORTS};
use types::{Family, IpNet, ObjectName, Protocol};

use crate::Settings;

/// The API server itself, which no node may lose.
const API: &str = "the Kubernetes API";
/// Who calls a pod by its address means that pod, and no Service of others.
const PODS: &str = "pods";

/// The Service whose endpoints are the API servers (kube-apiserver keeps it).
pub fn api_service() -> ObjectName {
    ObjectName::new("default", "kubernetes")
}

/// What an address and port are kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept<'a> {
    what: &'static str,
    /// Whose status has the address.
    node: Option<&'a str>,
}

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        self.node.map_or(Ok(()), |node| write!(f, " of node {node}"))
    }
}

/// Why no external address and no node port may be this; `None`: one may.
///
/// A node may say of any address that it is its own, so that takes the few ports of [`NODE_PORTS`] from Services and no
/// more: it makes no pod's address one that Services may have, and where the API is it says for itself alone.
pub fn front<'a>(
    (cluster, settings): (&'a Cluster, &Settings),
    (address, protocol, port): (IpAddr, Protocol, u16),
) -> Option<Kept<'a>> {
    let nobodys = |what| Some(Kept { what, node: None });
    let own = |ip: IpAddr| is_own((cluster, settings), ip);
    let here = |at: &SocketAddr| at.ip() == address || own(at.ip()) && own(address);
    if protocol == Protocol::Tcp && api_servers(cluster, settings).any(|at| at.port() == port && here(&at)) {
        return nobodys(API);
    }
    if settings.pod_pools.iter().any(|cidr: &IpNet| cidr.contains(&address)) {
        return nobodys(PODS);
    }
    let what = of_node(protocol, port)?;
    let mut nodes = cluster.nodes.values();
    let by_tunnel = nodes.clone().find(|node| node.addresses.contains(&address));
    let node = by_tunnel.or_else(|| nodes.find(|node| node.others.contains(&address)))?;
    Some(Kept { what, node: Some(&node.name) })
}

/// Why no pod may have this port of the node.
pub fn host_port(node: (&Cluster, &Settings), asked: &HostPort) -> Option<&'static str> {
    let at_loopback = asked.is_everywhere(Family::V4) || asked.host_ip == Some(Ipv4Addr::LOCALHOST.into());
    let local = LOOPBACK_PORTS.iter().filter(|_| at_loopback).find(|(p, n, _)| asked.is(*p, *n));
    // An API server of this node listens at all of its addresses unless it is told otherwise (--bind-address of
    // kube-apiserver); what is at its loopback address, there alone. An address that a host port names is this node's, or
    // it leads nowhere: one that several nodes have in turn, say.
    let met = |at: &SocketAddr| {
        let everywhere = asked.host_ip.is_none_or(|ip| ip.is_unspecified());
        asked.host_ip == Some(at.ip()) || is_own(node, at.ip()) || at.ip().is_loopback() && everywhere
    };
    if api_servers(node.0, node.1).any(|at| asked.is(Protocol::Tcp, at.port()) && met(&at)) {
        return Some(API);
    }
    of_node(asked.protocol, asked.port).or(local.map(|(_, _, what)| *what))
}

fn is_own((cluster, settings): (&Cluster, &Settings), address: IpAddr) -> bool {
    let own = cluster.nodes.get(&settings.node);
    own.is_some_and(|node| node.every_address().any(|at| at == address))
}

fn of_node(protocol: Protocol, port: u16) -> Option<&'static str> {
    let found = NODE_PORTS.iter().find(|(known, number, _)| (*known, *number) == (protocol, port));
    found.map(|(_, _, what)| *what)
}

/// Where this agent reaches the API, and where the API says that it is.
pub fn api_servers(cluster: &Cluster, settings: &Settings) -> impl Iterator<Item = SocketAddr> {
    let listed = cluster.slices_of(&api_service()).flat_map(|slice| {
        let ports =
            slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp).filter_map(|port| port.port);
        ports.flat_map(|port| {
            slice.endpoints.iter().map(move |endpoint| SocketAddr::new(endpoint.address, port))
        })
    });
    settings.api.iter().copied().chain(listed)
}

/// What is special about an address that no packet should be sent to or taken from on anybody's behalf; `None`:
/// nothing. The API refuses most of these (ValidateNonSpecialIP, pkg/apis/core/validation); a slice of an older API,
/// or of a store that somebody wrote to, may hold them.
pub fn special(address: IpAddr) -> Option<&'static str> {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let (link_local, nowhere) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[0] == 0 || v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.is_unspecified()),
    };
    [
        (nowhere, "no host's address"),
        (address.is_loopback(), "a loopback address"),
        (link_local, "a link-local address"),
        (address.is_multicast(), "a multicast address"),
        (mapped, "an IPv4 address in IPv6's form"),
    ]
    .into_iter()
    .find_map(|(is, what)| is.then_some(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_those_that_mean_something_else_on_each_host() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "ff05::fb",
            "::ffff:127.0.0.1",
        ] {
            assert!(special(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in ["10.244.1.4", "192.168.1.10", "203.0.113.10", "fd00::1", "2001:db8::1"] {
            assert_eq!(special(text.parse().unwrap()), None, "{text}");
        }
    }
}
