//! The sightings, as the judges ask for them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use types::{IfName, Protocol};

use super::judge::is_ours;
use crate::hop::{Fact, Glimpse, Hop, Stage};
use crate::observed::{Decision, Observed, Outer, Seen, Sighting, SocketEnd, Way};

/// A captured packet.
pub struct Frame<'a> {
    pub at: u64,
    pub dev: &'a IfName,
    pub way: Way,
    pub packet: &'a Seen,
    pub outer: Option<&'a Outer>,
}

/// The sightings by node, and what the whole way is about.
pub struct Evidence<'a> {
    nodes: BTreeMap<&'a str, &'a [Sighting]>,
    /// What the pod sent to, and where that was to be translated to.
    pub frontend: Option<SocketAddr>,
    pub endpoint: Option<SocketAddr>,
    /// Where another node was to translate it to, whose port was asked for.
    behind: Option<SocketAddr>,
    protocol: Option<Protocol>,
}

impl<'a> Evidence<'a> {
    pub fn new(expected: &[Hop], observed: &'a [Observed]) -> Self {
        let nodes = observed.iter().map(|o| (o.node.as_str(), o.sightings.as_slice())).collect();
        let frontend = expected.iter().find_map(|hop| match &hop.fact {
            Fact::Socket { destination, .. } => Some(*destination),
            _ => None,
        });
        let chosen = |at: Stage| {
            expected.iter().find_map(|hop| match &hop.fact {
                Fact::Service { endpoint, .. } if hop.stage == at => Some(*endpoint),
                _ => None,
            })
        };
        let (endpoint, behind) = (chosen(Stage::Service), chosen(Stage::Node));
        let protocol = expected.iter().find_map(|hop| match &hop.fact {
            Fact::Socket { protocol, .. } => Some(*protocol),
            _ => None,
        });
        Self { nodes, frontend, endpoint: endpoint.or(frontend), behind, protocol }
    }

    /// Who refuses such says so by ICMP.
    pub fn is_datagram(&self) -> bool {
        self.protocol == Some(Protocol::Udp)
    }

    pub fn sightings(&self, node: &str) -> &'a [Sighting] {
        self.nodes.get(node).copied().unwrap_or_default()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &'a str> {
        self.nodes.keys().copied()
    }

    pub fn everywhere(&self) -> impl Iterator<Item = &'a Sighting> + use<'a> {
        self.nodes.values().copied().flatten().collect::<Vec<_>>().into_iter()
    }

    fn frames(&self, node: &str) -> impl Iterator<Item = Frame<'a>> + use<'a> {
        self.sightings(node).iter().filter_map(|sighting| match sighting {
            Sighting::Frame { at, dev, direction, packet, outer } => {
                Some(Frame { at: *at, dev, way: *direction, packet, outer: outer.as_ref() })
            }
            _ => None,
        })
    }

    /// Packets on their way to the destination, before or after translation.
    pub fn forth(&self, node: &str) -> impl Iterator<Item = Frame<'a>> + use<'a> {
        let ends = [self.frontend, self.endpoint, self.behind];
        self.frames(node).filter(move |f| ends.contains(&Some(f.packet.destination)))
    }

    /// Answers, before or after their source is given back.
    pub fn back(&self, node: &str) -> impl Iterator<Item = Frame<'a>> + use<'a> {
        let ends = [self.frontend, self.endpoint, self.behind];
        self.frames(node).filter(move |f| ends.contains(&Some(f.packet.source)))
    }

    pub fn answer_seen(&self) -> bool {
        self.nodes.keys().any(|node| self.back(node).next().is_some())
    }

    /// What nf_tables decided about the first packet.
    pub fn decisions(&self, node: &str) -> impl Iterator<Item = &'a Decision> + use<'a> {
        self.sightings(node).iter().filter_map(|sighting| match sighting {
            Sighting::Nft { rule } if !rule.answer => Some(rule),
            _ => None,
        })
    }

    /// A drop of the first answer, wherever.
    pub fn answer_dropped(&self) -> Option<(&'a str, &'a Decision)> {
        self.nodes.iter().find_map(|(node, sightings)| {
            sightings.iter().find_map(|sighting| match sighting {
                Sighting::Nft { rule } if rule.answer && is_end(rule) => Some((*node, rule)),
                _ => None,
            })
        })
    }

    /// What became of the pod's socket.
    pub fn end(&self) -> Option<&'a SocketEnd> {
        self.everywhere().find_map(|sighting| match sighting {
            Sighting::Sent { end, .. } => Some(end),
            _ => None,
        })
    }

    pub fn answered(&self) -> bool {
        matches!(self.end(), Some(SocketEnd::Answered { .. }))
    }

    /// The last hop that the packet came to, whatever became of it there. What a rule answers in the destination's place
    /// comes in by no device.
    pub fn reach(&self, expected: &[Hop]) -> usize {
        if self.answered() {
            return expected.len();
        }
        let came_back = || self.nodes.keys().any(|node| self.back(node).any(|frame| frame.way == Way::In));
        let reached = expected.iter().enumerate().filter_map(|(at, hop)| match &hop.fact {
            Fact::Return { .. } => None,
            Fact::Pod { .. } if came_back() => Some(at),
            // It went out to the pod.
            Fact::Pod { .. } => self.first_seen(hop).and_then(|_| at.checked_sub(1)),
            _ => self.first_seen(hop).map(|_| at),
        });
        reached.max().unwrap_or_default()
    }

    /// Nobody said anything to the name.
    pub fn unresolved(&self) -> bool {
        self.everywhere().any(|sighting| matches!(sighting, Sighting::Resolved { error: Some(_), .. }))
    }

    pub fn is_source(&self, node: &str) -> bool {
        self.sightings(node).iter().any(|sighting| matches!(sighting, Sighting::Sent { .. }))
    }

    /// When the packet came to a node in the tunnel.
    pub fn came_by_tunnel(&self, node: &str) -> Option<u64> {
        self.forth(node).filter(|f| f.outer.is_some() && f.way == Way::In).map(|f| f.at).min()
    }

    /// When it came out of the tunnel or, for a port of the node's, by whichever link.
    pub fn came_to(&self, node: &str) -> Option<u64> {
        let came = self.forth(node).filter(|f| f.way == Way::In && f.outer.is_none());
        came.map(|f| f.at).min()
    }

    pub fn first_seen(&self, hop: &Hop) -> Option<u64> {
        let forth = |dev: &IfName, way| {
            self.forth(&hop.node)
                .filter(|f| f.dev == dev && f.way == way && f.outer.is_none())
                .map(|f| f.at)
                .min()
        };
        match &hop.fact {
            Fact::Resolve { .. } => self.sightings(&hop.node).iter().find_map(|s| match s {
                Sighting::Resolved { at, .. } => Some(*at),
                _ => None,
            }),
            Fact::Socket { .. } => self.sightings(&hop.node).iter().find_map(|s| match s {
                Sighting::Sent { at, .. } => Some(*at),
                _ => None,
            }),
            Fact::Veth { host_if, .. } => forth(host_if, Way::In),
            // Rules have no clock: what passed all of them leaves by a device.
            Fact::Masq { .. } => {
                let out = self.forth(&hop.node).filter(|f| f.way == Way::Out && f.outer.is_none());
                out.map(|f| f.at).min()
            }
            Fact::Tunnel { .. } => {
                let out = self.forth(&hop.node).filter(|f| f.way == Way::Out && f.outer.is_some());
                out.map(|f| f.at).min()
            }
            Fact::Node { from: Some(from), .. } => forth(from, Way::In),
            Fact::LocalRoute { .. } | Fact::Service { .. } if hop.stage == Stage::Node => {
                self.came_to(&hop.node)
            }
            Fact::Pod { pod: Some(_), on: Some(node), .. } => {
                let out = self.forth(node).filter(|f| f.way == Way::Out && f.outer.is_none());
                out.filter(|f| !is_ours(f.dev)).map(|f| f.at).min()
            }
            _ => None,
        }
    }

    /// Durations that were measured as such.
    pub fn took(&self, hop: &Hop) -> Option<u64> {
        let Fact::Resolve { .. } = &hop.fact else { return None };
        self.sightings(&hop.node).iter().find_map(|s| match s {
            Sighting::Resolved { micros, .. } => Some(micros.saturating_mul(1000)),
            _ => None,
        })
    }

    /// When the answer was at this place.
    pub fn glimpse(&self, node: &str, glimpse: &Glimpse) -> Option<u64> {
        self.back(node)
            .filter(|f| f.way == glimpse.direction && f.packet.source == glimpse.source)
            .filter(|f| match &glimpse.dev {
                Some(dev) => f.dev == dev && f.outer.is_none(),
                None => f.outer.is_some(),
            })
            .map(|f| f.at)
            .min()
    }

    /// How long each step of the way back took on its node.
    pub fn steps(&self, hop: &Hop) -> Vec<Option<u64>> {
        let Fact::Return { steps, .. } = &hop.fact else { return Vec::new() };
        let mut before: Option<(&str, u64)> = None;
        steps
            .iter()
            .map(|step| {
                let seen: Vec<u64> =
                    step.glimpses.iter().filter_map(|g| self.glimpse(&step.node, g)).collect();
                let (first, last) = (*seen.first()?, *seen.last()?);
                let since = before.filter(|(node, _)| *node == step.node).map_or(first, |(_, at)| at);
                before = Some((step.node.as_str(), last));
                last.checked_sub(since).filter(|took| *took > 0)
            })
            .collect()
    }
}

/// Whether the rule, or the chain's policy, ended the packet.
pub fn is_end(rule: &Decision) -> bool {
    ["drop", "reject"].iter().any(|word| rule.verdict.split(' ').any(|part| part == *word))
}
