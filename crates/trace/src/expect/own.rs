//! Destinations that a pod's packet does not pass the node's rules for: the pod's own addresses, which are looked up in
//! its `local` table, and what is link-local there, which no router passes on (RFC 4291 §2.5.6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::Attachment;
use types::Protocol;

use crate::hop::{Fact, Hop, Stage};

/// What such a packet is sent from; `None`: from the pod's address, as any other.
pub fn source(to: IpAddr) -> Option<IpAddr> {
    let here = to.is_loopback() || to.is_unspecified();
    here.then(|| match to {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    })
}

/// The whole way, if it ends in the pod.
pub fn hops(
    node: &str,
    attachment: &Attachment,
    (protocol, destination): (Protocol, SocketAddr),
) -> Option<Vec<Hop>> {
    let to = destination.ip();
    let why = match to {
        _ if to.is_loopback() => "the pod's own loopback",
        _ if to.is_unspecified() => "no address, which Linux takes for the pod's own loopback",
        _ if attachment.ips.contains(&to) => "the pod's own address",
        _ => return None,
    };
    let source = source(to).unwrap_or(to);
    let (pod, on, why) = (Some(attachment.pod.clone()), Some(node.to_owned()), why.to_owned());
    Some(vec![
        Hop::new(Stage::Socket, node, Fact::Socket { protocol, source, destination }),
        Hop::new(Stage::Veth, node, Fact::Own { host_if: attachment.host_if.clone(), destination, why }),
        Hop::new(Stage::Pod, node, Fact::Pod { pod, destination, on }),
    ])
}

/// Of the pod's link alone.
pub fn is_of_link(to: IpAddr) -> bool {
    matches!(to, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// What is to be said of a link-local address of IPv4: routers should not forward it (RFC 3927 §2.7), and Linux does.
pub fn remark(to: IpAddr) -> &'static str {
    match to {
        IpAddr::V4(v4) if v4.is_link_local() => {
            "stays: it is link-local, and Linux forwards it all the same, as clouds' metadata addresses need"
        }
        _ => "stays",
    }
}
