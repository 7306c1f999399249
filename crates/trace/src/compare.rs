//! Expected beside observed, hop by hop, in the order of the way. The first hop where they differ is the answer;
//! what comes after it is its consequence and is not judged.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use types::IfName;

use crate::hop::{Fact, Hop, Stage};
use crate::observed::{Decision, Observed, Outer, Seen, Sighting, SocketEnd, Way};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopResult {
    pub hop: Hop,
    pub outcome: Outcome,
    /// When it was first seen there, nanoseconds on that node's clock.
    pub at: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    Agree { seen: String },
    Disagree { why: String },
    NotReached,
}

/// `Ok`: as expected, and what was seen. `Err`: why not.
type Judged = Result<String, String>;

/// The table that our rules are in; a drop in any other is a stranger's.
const OUR_TABLE: &str = types::wire::TABLE;

pub fn compare(expected: &[Hop], observed: &[Observed]) -> Vec<HopResult> {
    let evidence = Evidence::new(expected, observed);
    let mut over = false;
    expected
        .iter()
        .map(|hop| {
            let at = evidence.first_seen(hop);
            if over {
                return HopResult { hop: hop.clone(), outcome: Outcome::NotReached, at: None };
            }
            let outcome = match evidence.judge(hop) {
                Ok(seen) => Outcome::Agree { seen },
                Err(why) => {
                    over = true;
                    Outcome::Disagree { why }
                }
            };
            HopResult { hop: hop.clone(), outcome, at }
        })
        .collect()
}

/// A captured packet.
struct Frame<'a> {
    at: u64,
    dev: &'a IfName,
    way: Way,
    packet: &'a Seen,
    outer: Option<&'a Outer>,
}

/// The sightings by node, and what the whole way is about.
struct Evidence<'a> {
    nodes: BTreeMap<&'a str, &'a [Sighting]>,
    /// What the pod sent to, and where that was to be translated to.
    frontend: Option<SocketAddr>,
    endpoint: Option<SocketAddr>,
}

impl<'a> Evidence<'a> {
    fn new(expected: &[Hop], observed: &'a [Observed]) -> Self {
        let nodes = observed.iter().map(|o| (o.node.as_str(), o.sightings.as_slice())).collect();
        let frontend = expected.iter().find_map(|hop| match &hop.fact {
            Fact::Socket { destination, .. } => Some(*destination),
            _ => None,
        });
        let endpoint = expected.iter().find_map(|hop| match &hop.fact {
            Fact::Service { endpoint, .. } => Some(*endpoint),
            _ => None,
        });
        Self { nodes, frontend, endpoint: endpoint.or(frontend) }
    }

    fn sightings(&self, node: &str) -> &'a [Sighting] {
        self.nodes.get(node).copied().unwrap_or_default()
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
    fn forth(&self, node: &str) -> impl Iterator<Item = Frame<'a>> + use<'a> {
        let (frontend, endpoint) = (self.frontend, self.endpoint);
        self.frames(node).filter(move |f| [frontend, endpoint].contains(&Some(f.packet.destination)))
    }

    fn decisions(&self, node: &str) -> impl Iterator<Item = (u64, &'a Decision)> + use<'a> {
        self.sightings(node).iter().filter_map(|sighting| match sighting {
            Sighting::Nft { at, rule } => Some((*at, rule)),
            _ => None,
        })
    }

    /// What became of the pod's socket.
    fn end(&self) -> Option<&'a SocketEnd> {
        self.nodes.values().flat_map(|sightings| sightings.iter()).find_map(|sighting| match sighting {
            Sighting::Sent { end, .. } => Some(end),
            _ => None,
        })
    }

    fn answered(&self) -> bool {
        matches!(self.end(), Some(SocketEnd::Answered { .. }))
    }

    fn first_seen(&self, hop: &Hop) -> Option<u64> {
        let frame = |dev: &IfName| self.forth(&hop.node).filter(|f| f.dev == dev).map(|f| f.at).min();
        let decision = |hook: &str| {
            self.decisions(&hop.node).filter(|(_, rule)| rule.hook == hook).map(|(at, _)| at).min()
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
            Fact::Veth { host_if, .. } => frame(host_if),
            Fact::Service { .. } | Fact::Direct { .. } | Fact::Refused { .. } => decision("prerouting"),
            Fact::Route { .. } | Fact::Policy { .. } => decision("forward"),
            Fact::LocalRoute { .. } => decision("input"),
            Fact::Masq { .. } => decision("postrouting"),
            Fact::Tunnel { .. } => self.forth(&hop.node).filter(|f| f.outer.is_some()).map(|f| f.at).min(),
            Fact::Node { from, host_if, .. } => frame(from.as_ref().unwrap_or(host_if)),
            Fact::Pod { .. } => self.forth(&hop.node).filter(|f| f.way == Way::Out).map(|f| f.at).max(),
            Fact::Return { .. } => None,
        }
    }

    fn judge(&self, hop: &Hop) -> Judged {
        let drift = self.sightings(&hop.node).iter().find_map(|sighting| match sighting {
            Sighting::Drift { stage, text } if *stage == hop.stage => Some(text.clone()),
            _ => None,
        });
        if let Some(text) = drift {
            return Err(text);
        }
        if let Some(rule) = self.dropped_at(hop) {
            return judge_drop(hop, rule);
        }
        match &hop.fact {
            Fact::Resolve { addresses, .. } => self.resolve(&hop.node, addresses),
            Fact::Socket { source, .. } => self.socket(&hop.node, *source),
            Fact::Veth { host_if, bridge, .. } => self.veth(&hop.node, host_if, bridge),
            Fact::Direct { destination } => self.translation(&hop.node, &[*destination]),
            Fact::Service { choices, .. } => self.translation(&hop.node, choices),
            Fact::Refused { rejected, .. } => self.refused(*rejected),
            Fact::Route { dev, .. } => self.route(&hop.node, dev.as_ref()),
            Fact::LocalRoute { .. } => self.local(&hop.node),
            Fact::Policy { allowed, .. } => self.policy(hop, *allowed),
            Fact::Masq { source, masquerade, .. } => self.masq(&hop.node, *source, *masquerade),
            Fact::Tunnel { .. } => self.tunnel(hop),
            Fact::Node { from, host_if, .. } => self.node(&hop.node, from.as_ref(), host_if),
            Fact::Pod { .. } => self.pod(),
            Fact::Return { .. } => self.way_back(),
        }
    }

    /// A drop or reject whose hook belongs to this hop's stage.
    fn dropped_at(&self, hop: &Hop) -> Option<&'a Decision> {
        self.decisions(&hop.node).map(|(_, rule)| rule).find(|rule| {
            let ended = rule.verdict.starts_with("drop") || rule.verdict.starts_with("reject");
            let inward = rule.table == OUR_TABLE && rule.chain.starts_with("in_");
            let stages: &[Stage] = match rule.hook.as_str() {
                "prerouting" | "output" => &[Stage::Service],
                "forward" if inward => &[Stage::Ingress],
                "forward" if self.is_source(&hop.node) => &[Stage::Egress],
                "forward" => &[Stage::Ingress],
                "postrouting" => &[Stage::Masq],
                "input" => &[Stage::Route, Stage::Node],
                _ => &[],
            };
            ended && stages.contains(&hop.stage)
        })
    }

    fn is_source(&self, node: &str) -> bool {
        self.sightings(node).iter().any(|sighting| matches!(sighting, Sighting::Sent { .. }))
    }

    fn resolve(&self, node: &str, expected: &[std::net::IpAddr]) -> Judged {
        for sighting in self.sightings(node) {
            if let Sighting::Resolved { full_name, addresses, error, .. } = sighting {
                return match error {
                    Some(error) => Err(error.clone()),
                    None if addresses.iter().any(|a| expected.contains(a)) => {
                        Ok(format!("{full_name} answered"))
                    }
                    None => Err(format!("{full_name} was answered with {addresses:?}")),
                };
            }
        }
        Err("no answer from the resolver".to_owned())
    }

    fn socket(&self, node: &str, expected: std::net::IpAddr) -> Judged {
        for sighting in self.sightings(node) {
            if let Sighting::Sent { source, destination, .. } = sighting {
                return if source.ip() == expected {
                    Ok(format!("{source} → {destination}"))
                } else {
                    Err(format!("the pod sent from {}, and its address is {expected}", source.ip()))
                };
            }
        }
        Err("the pod sent nothing".to_owned())
    }

    fn veth(&self, node: &str, host_if: &IfName, bridge: &IfName) -> Judged {
        let came = |dev: &IfName| self.forth(node).any(|f| f.dev == dev && f.way == Way::In);
        match (came(host_if), came(bridge)) {
            (_, true) => Ok(format!("{host_if} → {bridge}")),
            (true, false) => Err(format!("seen on {host_if}, and not on {bridge}: it is no port of it")),
            (false, false) => Err(format!("nothing came out of {host_if}")),
        }
    }

    /// Where the packet went after prerouting.
    fn translation(&self, node: &str, right: &[SocketAddr]) -> Judged {
        let frontend = self.frontend;
        let tracked = self.sightings(node).iter().find_map(|sighting| match sighting {
            Sighting::Conntrack { original, reply } if Some(original.destination) == frontend => {
                Some(reply.source)
            }
            _ => None,
        });
        let later = ["forward", "postrouting", "input"];
        let ruled = || {
            let mut rules = self.decisions(node).filter(|(_, rule)| later.contains(&rule.hook.as_str()));
            rules.find_map(|(_, rule)| rule.packet.map(|packet| packet.destination))
        };
        let left = || self.forth(node).find(|f| f.way == Way::Out).map(|f| f.packet.destination);
        match tracked.or_else(ruled).or_else(left) {
            Some(to) if right.contains(&to) => Ok(to.to_string()),
            Some(to) if Some(to) == frontend => Err(format!("{to} was not translated")),
            Some(to) => Err(format!("translated to {to}, which is none of its endpoints")),
            None if self.answered() => Ok("answered".to_owned()),
            None => Err("not seen after prerouting".to_owned()),
        }
    }

    fn refused(&self, rejected: bool) -> Judged {
        match (self.end(), rejected) {
            (Some(SocketEnd::Refused), true) => Ok("refused at once".to_owned()),
            (Some(SocketEnd::Silent), false) => Ok("no answer".to_owned()),
            (Some(end), _) => Err(format!("the connection ended otherwise: {}", describe(end))),
            (None, _) => Err("the pod sent nothing".to_owned()),
        }
    }

    fn route(&self, node: &str, expected: Option<&IfName>) -> Judged {
        let ruled = self.decisions(node).find_map(|(_, rule)| rule.oif.as_ref());
        let left = || {
            let endpoint = self.endpoint;
            let mut out = self.forth(node).filter(|f| f.way == Way::Out && f.outer.is_none());
            out.find(|f| Some(f.packet.destination) == endpoint).map(|f| f.dev)
        };
        match (ruled.or_else(left), expected) {
            (Some(dev), Some(expected)) if dev == expected => Ok(format!("dev {dev}")),
            (Some(dev), Some(expected)) => Err(format!("routed to {dev} instead of {expected}")),
            (Some(dev), None) if is_ours(dev) => Err(format!("routed to {dev}, inside the cluster")),
            (Some(dev), None) => Ok(format!("dev {dev}")),
            (None, _) => {
                Err("not seen after the routing decision: no route, or no way to its next hop".to_owned())
            }
        }
    }

    fn local(&self, node: &str) -> Judged {
        let input = self.decisions(node).any(|(_, rule)| rule.hook == "input");
        if input || self.answered() || self.end() == Some(&SocketEnd::Refused) {
            Ok("taken by the node".to_owned())
        } else {
            Err("the node did not take it".to_owned())
        }
    }

    fn policy(&self, hop: &Hop, allowed: bool) -> Judged {
        let passed = match hop.stage {
            Stage::Ingress => self.answered() || self.end() == Some(&SocketEnd::Refused),
            _ => self.decisions(&hop.node).any(|(_, rule)| rule.hook == "postrouting"),
        };
        match (allowed, passed) {
            (true, _) => Ok("allowed".to_owned()),
            (false, false) => Ok("denied".to_owned()),
            (false, true) => Err("it passed, although no rule allows it".to_owned()),
        }
    }

    fn masq(&self, node: &str, expected: Option<std::net::IpAddr>, masquerade: bool) -> Judged {
        let endpoint = self.endpoint;
        let mut out =
            self.forth(node).filter(|f| f.way == Way::Out && Some(f.packet.destination) == endpoint);
        let Some(frame) = out.next() else {
            return Err("it never left the node's rules: not seen on any device".to_owned());
        };
        let source = frame.packet.source.ip();
        match expected {
            Some(expected) if expected == source => Ok(format!("source {source}")),
            None if masquerade => Ok(format!("source {source}")),
            _ if masquerade => Err(format!("it left with source {source}, not masqueraded")),
            _ => Err(format!("it left with source {source}, although it should keep its own")),
        }
    }

    fn tunnel(&self, hop: &Hop) -> Judged {
        let Fact::Tunnel { dev, vni, outer_destination, outer_port, inner_mac, .. } = &hop.fact else {
            return Err("no tunnel".to_owned());
        };
        let Some(outer) = self.forth(&hop.node).find_map(|f| f.outer.filter(|_| f.way == Way::Out)) else {
            return Err(format!(
                "it entered {dev} and did not leave the node: no forwarding entry or neighbour"
            ));
        };
        if outer.destination.ip() != *outer_destination {
            return Err(format!("sent to {} instead of {outer_destination}", outer.destination.ip()));
        }
        if outer.vni != *vni || outer.destination.port() != *outer_port {
            return Err(format!("sent in VXLAN {} to port {}", outer.vni, outer.destination.port()));
        }
        match inner_mac {
            Some(mac) if *mac != outer.inner_mac => {
                Err(format!("addressed to {} inside, and the peer's VTEP is {mac}", outer.inner_mac))
            }
            _ => Ok(format!("{} → {}", outer.source, outer.destination)),
        }
    }

    fn node(&self, node: &str, from: Option<&IfName>, host_if: &IfName) -> Judged {
        if let Some(from) = from
            && !self.forth(node).any(|f| f.dev == from && f.way == Way::In)
        {
            return Err(format!("nothing came out of {from}"));
        }
        let dropped = self.decisions(node).any(|(_, rule)| rule.verdict.starts_with("drop"));
        let out = self.forth(node).any(|f| f.dev == host_if && f.way == Way::Out);
        match (out, dropped) {
            (true, _) => Ok(format!("→ {host_if}")),
            (false, true) => Ok("arrived".to_owned()),
            (false, false) => Err(format!("it arrived, and did not go out by {host_if}")),
        }
    }

    fn pod(&self) -> Judged {
        match self.end() {
            Some(end @ SocketEnd::Answered { .. }) => Ok(describe(end)),
            Some(SocketEnd::Refused) => Err("reached, and nobody listens on the port there".to_owned()),
            Some(end) => Err(describe(end)),
            None => Err("the pod sent nothing".to_owned()),
        }
    }

    fn way_back(&self) -> Judged {
        if self.answered() { Ok("the same way".to_owned()) } else { Err("no answer came back".to_owned()) }
    }
}

fn judge_drop(hop: &Hop, rule: &Decision) -> Judged {
    let expected = match &hop.fact {
        Fact::Policy { allowed, .. } => !allowed,
        Fact::Refused { .. } => true,
        _ => false,
    };
    let Decision { family, table, chain, verdict, comment, .. } = rule;
    let told = if comment.is_empty() { String::new() } else { format!(" ({comment})") };
    if expected && table == OUR_TABLE {
        Ok(format!("{verdict} in {table}/{chain}{told}"))
    } else {
        Err(format!("{verdict} in chain {chain} of table {family} {table}{told}"))
    }
}

fn is_ours(dev: &IfName) -> bool {
    [types::wire::BRIDGE, types::wire::VXLAN_DEVICE].contains(&dev.as_str())
}

fn describe(end: &SocketEnd) -> String {
    match end {
        SocketEnd::Answered { text, micros } => format!("{text} after {micros} µs"),
        SocketEnd::Refused => "refused".to_owned(),
        SocketEnd::Unreachable => "unreachable".to_owned(),
        SocketEnd::Silent => "no answer in time".to_owned(),
        SocketEnd::TooBig => "connected, and a full-size packet did not pass".to_owned(),
    }
}
