//! Destinations that a pod's packet does not pass the node's rules for: the pod's own addresses, which are looked up in
//! its `local` table, and what is link-local there, which no router passes on (RFC 4291 §2.5.6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::Attachment;
use types::{Mac, Protocol};

use crate::hop::{Fact, Hop, Stage};
use crate::packet::Place;

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
        _ if attachment.ips.contains(&to) || to == link_local(attachment.mac) => "the pod's own address",
        _ => return None,
    };
    let same_family = || attachment.ips.iter().copied().find(|ip| is_of_link(to) && ip.is_ipv6());
    let source = source(to).or_else(same_family).unwrap_or(to);
    let (pod, on, why) = (Some(attachment.pod.clone()), Some(node.to_owned()), why.to_owned());
    Some(vec![
        Hop::new(Stage::Socket, node, Fact::Socket { protocol, source, destination }),
        Hop::new(Stage::Veth, node, Fact::Own { host_if: attachment.host_if.clone(), destination, why }),
        Hop::new(Stage::Pod, node, Fact::Pod { pod, destination, on }),
    ])
}

/// What the kernel gives a link of this MAC (EUI-64, RFC 4291 appendix A).
fn link_local(mac: Mac) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0;
    let pairs = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]].map(u16::from_be_bytes);
    let [g, h, i, j] = pairs;
    Ipv6Addr::new(0xfe80, 0, 0, 0, g, h, i, j).into()
}

/// Why no link-local packet of a pod's leaves it for this address; `None`: the node has it. Ports of the bridge are
/// isolated, so that nobody else is there to answer for one.
pub fn is_nobodys(to: IpAddr, place: &Place) -> Option<String> {
    if place.of_link.contains(&to) {
        return None;
    }
    let own = place.of_link.first().map(|own| format!(", as {own}%eth0"));
    Some(format!("nobody on the pod's link has it; the node is alone there{}", own.unwrap_or_default()))
}

/// For whoever listens on one link: multicast, and broadcast to it.
pub fn is_of_many(to: IpAddr) -> bool {
    to.is_multicast() || to == Ipv4Addr::BROADCAST
}

/// Why what is for many goes no further than to the node, and the hop that it ends at. What a pod cannot tell from another
/// address outside goes to its node as any packet does.
pub fn ends_at_node(to: IpAddr, place: &Place) -> Option<(Stage, String)> {
    let (stage, what) = match to {
        _ if to.is_multicast() => (Stage::Veth, "a multicast address, for who listens on the same link"),
        _ if to == Ipv4Addr::BROADCAST => (Stage::Veth, "the broadcast address of a link"),
        _ if place.broadcasts.contains(&to) && !place.is_pod_address(to) => {
            (Stage::Route, "the broadcast address of a network of the node's")
        }
        _ => return None,
    };
    Some((stage, format!("it is {what}, and no node forwards such; send to one address")))
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
