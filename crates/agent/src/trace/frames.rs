//! The flow's frames on every interface of the node, as captures show them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use kernel::Rtnl;
use kernel::capture::{Capture, Captured, Direction, Filter};
use netlink::packet::{Frame, Packet};
use trace::Sighting;
use trace::exchange::Flow;
use trace::observed::{Outer, Seen, Way};
use types::wire::VXLAN_PORT;
use types::{Family, IfName, Protocol};

/// Frames that one trace reports at most: a connection's first packets are what is asked for.
const MOST: usize = 256;

#[derive(Debug)]
pub struct Frames {
    flow: Flow,
    capture: Capture,
    /// Packets of addresses towards which the flow may lose its port.
    masqueraded: Option<Capture>,
}

/// Both ends of the flow as its packets have them after masquerade.
pub type Ends = [SocketAddr; 2];

impl Frames {
    /// Everything of the flow by its client's port, whatever its addresses become on the way. Masquerade changes
    /// the port as well: packets of `masqueraded` addresses are captured whole, and told apart afterwards.
    pub fn open(flow: Flow, masqueraded: Vec<IpAddr>) -> Result<Self> {
        let protocol = Some(flow.protocol.number_in(Family::of(flow.source.ip())));
        let ports = vec![flow.source.port()];
        let by_port = Filter { addresses: Vec::new(), ports, protocol, tunnel: Some(VXLAN_PORT) };
        let by_address =
            Filter { addresses: masqueraded, ports: Vec::new(), protocol, tunnel: Some(VXLAN_PORT) };
        let capture = Capture::open(None, &by_port)?;
        let also =
            (!by_address.addresses.is_empty()).then(|| Capture::open(None, &by_address)).transpose()?;
        Ok(Self { flow, capture, masqueraded: also })
    }

    /// What has been captured so far, in the order of time. `ends`: what masquerade has made of the flow, if it did.
    pub fn take(&mut self, ends: Option<Ends>) -> Result<Vec<Sighting>> {
        let names: BTreeMap<u32, IfName> =
            Rtnl::open()?.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let flow = self.flow;
        let mut seen = read(&mut self.capture, &names, |packet| has_port(packet, flow))?;
        if let Some((capture, ends)) = self.masqueraded.as_mut().zip(ends) {
            // What kept its port the first capture has.
            let more = |packet: &Seen| is_between(packet, flow, ends) && !has_port(packet, flow);
            seen.extend(read(capture, &names, more)?);
        }
        seen.sort_by_key(|(at, _)| *at);
        Ok(seen.into_iter().map(|(_, sighting)| sighting).collect())
    }
}

fn has_port(packet: &Seen, flow: Flow) -> bool {
    packet.protocol == flow.protocol
        && [packet.source, packet.destination].iter().any(|end| end.port() == flow.source.port())
}

fn is_between(packet: &Seen, flow: Flow, ends: Ends) -> bool {
    packet.protocol == flow.protocol && ends.contains(&packet.source) && ends.contains(&packet.destination)
}

fn read(
    capture: &mut Capture,
    names: &BTreeMap<u32, IfName>,
    belongs: impl Fn(&Seen) -> bool,
) -> Result<Vec<(u64, Sighting)>> {
    let mut seen = Vec::new();
    while let Some(captured) = capture.receive()? {
        let Some(dev) = names.get(&captured.interface).filter(|_| seen.len() < MOST) else { continue };
        let at = super::watch::nanos(captured.at);
        seen.extend(sighting(dev, at, &captured, &belongs).map(|sighting| (at, sighting)));
    }
    Ok(seen)
}

fn sighting(
    dev: &IfName,
    at: u64,
    captured: &Captured<'_>,
    belongs: impl Fn(&Seen) -> bool,
) -> Option<Sighting> {
    let packet = Frame::parse(captured.frame)?.packet()?;
    let carried = packet.vxlan(VXLAN_PORT).and_then(|(vni, inner)| {
        let (source, destination) = packet.sockets()?;
        let outer = Outer { source, destination, vni: vni.0, inner_mac: inner.dst };
        Some((outer, inner.packet()?))
    });
    let (outer, packet) = match carried {
        Some((outer, inner)) => (Some(outer), inner),
        None => (None, packet),
    };
    let packet = addresses(&packet)?;
    belongs(&packet).then(|| Sighting::Frame {
        at,
        dev: dev.clone(),
        direction: match captured.direction {
            Direction::In => Way::In,
            Direction::Out => Way::Out,
        },
        packet,
        outer,
    })
}

pub fn addresses(packet: &Packet<'_>) -> Option<Seen> {
    let bytes = u32::try_from(packet.length).unwrap_or(u32::MAX);
    if let Some((request, id)) = packet.echo() {
        let [from, to] = if request { [id, 0] } else { [0, id] };
        let (source, destination) = (SocketAddr::new(packet.src, from), SocketAddr::new(packet.dst, to));
        return Some(Seen { protocol: Protocol::Icmp, source, destination, bytes });
    }
    let (source, destination) = packet.sockets()?;
    Some(Seen { protocol: Protocol::from_number(packet.protocol())?, source, destination, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_masquerade_gave_another_port_is_the_flows_too() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for [pod, frontend, node, endpoint, other] in [
            [
                "10.244.1.4:41224",
                "203.0.113.50:80",
                "10.244.1.0:13624",
                "10.244.2.7:8080",
                "10.244.1.0:13625",
            ],
            ["[fd00::4]:41224", "[2001:db8::50]:80", "[fd00::]:13624", "[fd00:2::7]:8080", "[fd00::]:13625"],
        ] {
            let flow = Flow { protocol: Protocol::Tcp, source: at(pod), destination: at(frontend) };
            let ends = [at(node), at(endpoint)];
            let seen = |source: &str, destination: &str, protocol| {
                let packet = Seen { protocol, source: at(source), destination: at(destination), bytes: 60 };
                (has_port(&packet, flow), is_between(&packet, flow, ends))
            };
            assert_eq!(seen(pod, frontend, Protocol::Tcp), (true, false));
            assert_eq!(seen(node, endpoint, Protocol::Tcp), (false, true));
            assert_eq!(seen(endpoint, node, Protocol::Tcp), (false, true));
            assert_eq!(seen(other, endpoint, Protocol::Tcp), (false, false), "another flow of the node's");
            assert_eq!(seen(node, endpoint, Protocol::Udp), (false, false));
        }
    }
}
