//! The routing decision, from the routes and addresses that are ours.

use std::net::IpAddr;

use kstate::net::{NetState, RouteKind};
use types::{IfName, IpNet};

/// How a packet leaves a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// `None`: no route of ours, so the node's own default route decides.
    pub dev: Option<IfName>,
    pub via: Option<IpAddr>,
    pub onlink: bool,
    pub prefix: Option<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Local,
    Out(Exit),
    Unreachable,
}

/// Whether the node has the address.
pub fn is_local(net: &NetState, local: &[IpAddr], address: IpAddr) -> bool {
    address.is_loopback()
        || local.contains(&address)
        || net.addresses.iter().any(|(_, own)| own.addr() == address)
}

/// Longest prefix among our routes and the subnets of our addresses.
pub fn route(net: &NetState, local: &[IpAddr], to: IpAddr) -> Decision {
    if is_local(net, local, to) {
        return Decision::Local;
    }
    let connected =
        net.addresses.iter().filter(|(_, address)| address.prefix_len() < address.max_prefix_len());
    let connected = connected.map(|(dev, address)| {
        let prefix = address.trunc();
        (prefix, RouteKind::Unicast, Exit { dev: Some(dev.clone()), prefix: Some(prefix), ..Exit::default() })
    });
    let routes = net.routes.iter().map(|(key, route)| {
        let exit =
            Exit { dev: route.dev.clone(), via: route.via, onlink: route.onlink, prefix: Some(key.dst) };
        (key.dst, route.kind, exit)
    });
    let best = connected
        .chain(routes)
        .filter(|(prefix, _, _)| prefix.contains(&to))
        .max_by_key(|(prefix, _, _)| prefix.prefix_len());
    match best {
        Some((_, RouteKind::Unreachable, _)) => Decision::Unreachable,
        Some((_, RouteKind::Unicast, exit)) => Decision::Out(exit),
        None => Decision::Out(Exit::default()),
    }
}
