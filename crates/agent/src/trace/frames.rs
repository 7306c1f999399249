//! The flow's frames on every interface of the node, as captures show them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use kernel::Rtnl;
use kernel::capture::{Capture, Captured, Direction, Filter};
use netlink::packet::{Frame, Packet};
use trace::Sighting;
use trace::exchange::Flow;
use trace::observed::{Outer, Seen, Way};
use types::wire::VXLAN_PORT;
use types::{IfName, Protocol};

/// Frames that one trace reports at most: a connection's first packets are what is asked for.
const MOST: usize = 256;

#[derive(Debug)]
pub struct Frames {
    flow: Flow,
    capture: Capture,
}

impl Frames {
    /// Everything of the flow by its client's port, whatever its addresses become on the way.
    pub fn open(flow: Flow) -> Result<Self> {
        let IpAddr::V4(_) = flow.source.ip() else { bail!("captures of a trace are IPv4 only") };
        let filter = Filter {
            addresses: Vec::<Ipv4Addr>::new(),
            ports: vec![flow.source.port()],
            protocol: Some(flow.protocol.number()),
            tunnel: Some(VXLAN_PORT),
        };
        Ok(Self { flow, capture: Capture::open(None, &filter)? })
    }

    /// What has been captured so far.
    pub fn take(&mut self) -> Result<Vec<Sighting>> {
        let names: BTreeMap<u32, IfName> =
            Rtnl::open()?.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let mut seen = Vec::new();
        while let Some(captured) = self.capture.receive()? {
            if seen.len() < MOST
                && let Some(dev) = names.get(&captured.interface)
            {
                seen.extend(sighting(&self.flow, dev, &captured));
            }
        }
        Ok(seen)
    }
}

fn sighting(flow: &Flow, dev: &IfName, captured: &Captured<'_>) -> Option<Sighting> {
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
    belongs(flow, &packet).then(|| Sighting::Frame {
        at: super::watch::nanos(captured.at),
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
    let (source, destination) = packet.sockets()?;
    let bytes = u32::try_from(packet.length).unwrap_or(u32::MAX);
    Some(Seen { protocol: Protocol::from_number(packet.protocol())?, source, destination, bytes })
}

/// The client's end is the flow's, or its port behind another address after masquerade (which keeps the port
/// unless it is taken).
fn belongs(flow: &Flow, packet: &Seen) -> bool {
    let client = |end: SocketAddr| end == flow.source || end.port() == flow.source.port();
    packet.protocol == flow.protocol && (client(packet.source) || client(packet.destination))
}
