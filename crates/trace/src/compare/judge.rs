//! One judge for each kind of hop.

use std::net::{IpAddr, SocketAddr};

use types::IfName;

use super::evidence::{Evidence, is_end};
use super::leaves::is_astray;
use super::there::shrunk;
use super::{Judged, Wrong};
use crate::expect::own;
use crate::fabric;
use crate::hop::{Fact, Hop, Stage, shown};
use crate::observed::{COUNTED, Decision, SERVFAIL, Sighting, SocketEnd, Way};
use crate::wiring;

/// The table that our rules are in; a drop in any other is a stranger's.
pub(super) const OUR_TABLE: &str = types::wire::TABLE;
/// How the comment of the rule begins that refuses what is for a pod that is not there.
const NO_SUCH_POD: &str = "no_such_pod:";

impl<'a> Evidence<'a> {
    /// Of the hop's own node, but for the way back, which is that of others as well.
    pub fn judge(&self, hop: &Hop) -> Result<String, Wrong> {
        match hop.stage {
            Stage::Return => self.way_back(hop),
            _ => self.at_its_node(hop).map_err(|why| Wrong { on: hop.node.clone(), why }),
        }
    }

    fn at_its_node(&self, hop: &Hop) -> Judged {
        let dropped = self.dropped_at(hop);
        if let Some(text) = self.drift(hop) {
            // What the node lacks shows in what it does instead.
            if let Some(seen) = self.other_source(hop) {
                return Err(format!("{seen}: {text}"));
            }
            return Err(match (dropped, self.end()) {
                (Some(rule), _) => format!("{text}; it met: {}", told(rule)),
                (None, Some(end @ SocketEnd::Stalled)) => format!("{text}; {}", describe(end)),
                (None, _) => text,
            });
        }
        if let Some(rule) = dropped {
            return judge_drop(hop, rule);
        }
        if let Some(seen) = self.other_source(hop) {
            return Err(seen);
        }
        match &hop.fact {
            Fact::Resolve { .. } => self.resolve(hop),
            Fact::Socket { source, .. } => self.socket(&hop.node, *source),
            Fact::Veth { host_if, bridge, .. } => self.veth(&hop.node, host_if, bridge.as_ref()),
            Fact::Own { host_if, .. } => self.own(&hop.node, host_if),
            Fact::Direct { destination, .. } => self.translation(&hop.node, &[*destination]),
            Fact::Service { choices, .. } if hop.stage == Stage::Node => self.door(&hop.node, choices),
            Fact::Service { choices, .. } => self.translation(&hop.node, choices),
            Fact::Refused { leaves: true, .. } => self.left(),
            Fact::Refused { rejected, .. } => self.refused(*rejected),
            Fact::Route { dev, .. } => self.route(&hop.node, dev.as_ref()),
            Fact::LocalRoute { .. } if hop.stage == Stage::Node => self.own_address(&hop.node),
            Fact::LocalRoute { .. } => self.local(&hop.node),
            Fact::Policy { allowed, .. } => self.policy(hop, *allowed),
            Fact::Masq { source, masquerade, .. } => self.masq(&hop.node, *source, *masquerade),
            Fact::Tunnel { .. } => self.tunnel(hop),
            Fact::Node { from, host_if, .. } => self.node(&hop.node, from.as_ref(), host_if),
            Fact::Unasked { why } => self.unasked(&hop.node, why),
            Fact::Pod { .. } => self.pod(),
            Fact::Return { .. } => Err("not on its way back".to_owned()),
        }
    }

    /// Whether what is wrong at a hop that the packet came to follows from nothing before: state, whatever the destination
    /// itself answers, and all of it where the packet got through.
    pub fn is_wrong_itself(&self, hop: &Hop) -> bool {
        self.answered()
            || matches!(hop.fact, Fact::Pod { .. })
            || self.drift(hop).is_some()
            || self.drift_back(hop).is_some()
    }

    /// What is not as it should be.
    fn drift(&self, hop: &Hop) -> Option<String> {
        self.sightings(&hop.node).iter().find_map(|sighting| drifted(sighting, hop.stage)).map(str::to_owned)
    }

    /// A drop or reject whose hook belongs to this hop's stage.
    fn dropped_at(&self, hop: &Hop) -> Option<&'a Decision> {
        self.decisions(&hop.node).find(|rule| {
            let inward = rule.table == OUR_TABLE && rule.chain.starts_with("in_");
            let guard = rule.table == OUR_TABLE && rule.of_guard();
            let stages: &[Stage] = match rule.hook.as_str() {
                COUNTED => self.lost_at(&hop.node, rule),
                "prerouting" | "input" if !self.is_source(&hop.node) => &[Stage::Node],
                "prerouting" | "output" => &[Stage::Service],
                "forward" if guard && rule.comment.starts_with(NO_SUCH_POD) => &[Stage::Node],
                "forward" if inward => &[Stage::Ingress],
                "forward" if self.is_source(&hop.node) => &[Stage::Egress],
                "forward" => &[Stage::Ingress],
                "postrouting" if is_astray(rule) => &[Stage::Node],
                "postrouting" if self.is_source(&hop.node) => &[Stage::Masq],
                "postrouting" => &[Stage::Ingress],
                "input" => &[Stage::Route],
                _ => &[],
            };
            // What the model knows to end, a guard may end sooner or later on the way.
            let refused = guard && rule.hook != COUNTED && matches!(hop.fact, Fact::Refused { .. });
            is_end(rule) && (refused || stages.contains(&hop.stage))
        })
    }

    /// A guard dropped something meanwhile: this packet, if it was lost just there.
    fn lost_at(&self, node: &str, rule: &Decision) -> &'static [Stage] {
        let came = |dev: &str| self.forth(node).any(|f| f.dev.as_str() == dev && f.way == Way::In);
        match rule.family.as_str() {
            "bridge" if !wiring::links().any(came) => &[Stage::Veth],
            "bridge" => &[],
            _ if self.came_by_tunnel(node).is_some() && !fabric::devices().any(came) => &[Stage::Node],
            _ => &[],
        }
    }

    fn resolve(&self, hop: &Hop) -> Judged {
        let Fact::Resolve { addresses: expected, upstream, lacks, alias, fails, .. } = &hop.fact else {
            return Err("no name".to_owned());
        };
        let (upstream, lacks, leads) = (*upstream, lacks.is_some(), alias.is_some());
        for sighting in self.sightings(&hop.node) {
            let Sighting::Resolved { full_name, addresses, error, .. } = sighting else { continue };
            let right = addresses.iter().any(|address| expected.contains(address));
            return match error {
                Some(error) if fails.is_some() && error.ends_with(SERVFAIL) => {
                    Ok("the resolver fails".to_owned())
                }
                Some(error) => Err(error.clone()),
                None if addresses.is_empty() && expected.is_empty() && lacks => Ok(String::new()),
                None if addresses.is_empty() && leads => {
                    Ok("of which the node's resolvers know no address".to_owned())
                }
                None if leads && expected.is_empty() => {
                    Ok(format!("of which the node's resolvers know {}", list(addresses)))
                }
                None if addresses.is_empty() && expected.is_empty() && upstream => {
                    Ok("and an upstream resolver knows none".to_owned())
                }
                None if addresses.is_empty() && expected.is_empty() => Ok("and of nobody else".to_owned()),
                None if right => Ok(full_name.clone()),
                None if upstream && expected.is_empty() => {
                    Ok(format!("{full_name}, A {}, by an upstream resolver", list(addresses)))
                }
                None if addresses.is_empty() => Err(format!("{full_name}: the resolver knows no such name")),
                None => Err(format!("{full_name} was answered with {}", list(addresses))),
            };
        }
        Err("no answer from the resolver".to_owned())
    }

    fn socket(&self, node: &str, expected: IpAddr) -> Judged {
        for sighting in self.sightings(node) {
            if let Sighting::Sent { source, destination, .. } = sighting {
                return if source.ip() == expected {
                    Ok(format!("{source} → {}", shown(destination)))
                } else {
                    Err(format!("the pod sent from {}, and its address is {expected}", source.ip()))
                };
            }
        }
        Err("the pod sent nothing".to_owned())
    }

    fn veth(&self, node: &str, host_if: &IfName, bridge: Option<&IfName>) -> Judged {
        let came = |dev: &IfName| self.forth(node).any(|f| f.dev == dev && f.way == Way::In);
        match (came(host_if), bridge) {
            (_, Some(bridge)) if came(bridge) => Ok(format!("{host_if} → {bridge}")),
            (true, Some(bridge)) => Err(format!("it came out of {host_if} and not into {bridge}")),
            (true, None) => Ok(host_if.to_string()),
            // What is of the link needs no route.
            (false, _) if self.frontend.is_some_and(|to| own::is_of_link(to.ip())) => {
                Err(format!("nothing came out of {host_if}: is the pod's eth0 up?"))
            }
            (false, _) => Err(format!(
                "nothing came out of {host_if}: has the pod a default route, and is its eth0 up?"
            )),
        }
    }

    fn own(&self, node: &str, host_if: &IfName) -> Judged {
        match self.forth(node).find(|frame| frame.dev == host_if) {
            Some(frame) => Err(format!("it left the pod, for {}", frame.packet.destination)),
            None => Ok("nothing left the pod".to_owned()),
        }
    }

    /// Where the packet went after prerouting.
    pub(super) fn translation(&self, node: &str, right: &[SocketAddr]) -> Judged {
        let frontend = self.frontend;
        let tracked = self.sightings(node).iter().find_map(|sighting| match sighting {
            Sighting::Conntrack { original, reply } if Some(original.destination) == frontend => {
                Some(reply.source)
            }
            _ => None,
        });
        let later = ["forward", "postrouting", "input"];
        let ruled = || {
            let mut rules = self.decisions(node).filter(|rule| later.contains(&rule.hook.as_str()));
            rules.find_map(|rule| rule.packet.map(|packet| packet.destination))
        };
        let left = || self.forth(node).find(|f| f.way == Way::Out).map(|f| f.packet.destination);
        match tracked.or_else(ruled).or_else(left) {
            Some(to) if right.contains(&to) => Ok(to.to_string()),
            Some(to) if Some(to) == frontend => Err(format!("{to} was not translated")),
            Some(to) => Err(format!("it was sent to {to}, which is none of its endpoints")),
            None if self.answered() => Ok("answered".to_owned()),
            // A translation is told of when the packet has passed the routing decision, which is the next hop's.
            None if self.accepted(node) => Ok("not seen any more after it".to_owned()),
            None => Err("not seen any more after prerouting".to_owned()),
        }
    }

    /// The last that is known of the packet: our own rules before routing let it pass.
    fn accepted(&self, node: &str) -> bool {
        let last = self.decisions(node).filter(|rule| rule.hook == "prerouting").last();
        last.is_some_and(|rule| {
            rule.table == OUR_TABLE && rule.verdict.split(' ').any(|word| word == "accept")
        })
    }

    fn refused(&self, rejected: bool) -> Judged {
        match (self.end(), rejected) {
            (Some(SocketEnd::Refused), true) => Ok("refused at once".to_owned()),
            (Some(SocketEnd::Unreachable), true) => Ok("unreachable, told at once".to_owned()),
            (Some(SocketEnd::Silent | SocketEnd::Unreachable), false) => Ok("no answer".to_owned()),
            // Among them the pod itself.
            (Some(SocketEnd::Answered { .. }), false)
                if self.frontend.is_some_and(|to| own::is_of_many(to.ip())) =>
            {
                Ok("answered by who listens".to_owned())
            }
            (Some(end), _) => Err(format!("the connection ended otherwise: {}", describe(end))),
            (None, _) => Err("the pod sent nothing".to_owned()),
        }
    }

    /// Whatever comes of it outside.
    fn left(&self) -> Judged {
        self.end()
            .map(|end| format!("outside: {}", describe(end)))
            .ok_or_else(|| "the pod sent nothing".to_owned())
    }

    fn route(&self, node: &str, expected: Option<&IfName>) -> Judged {
        let ruled = self.decisions(node).find_map(|rule| rule.oif.as_ref());
        let left = || {
            let endpoint = self.endpoint;
            let mut out = self.forth(node).filter(|f| f.way == Way::Out && f.outer.is_none());
            out.find(|f| Some(f.packet.destination) == endpoint).map(|f| f.dev)
        };
        match (ruled.or_else(left), expected) {
            (Some(dev), Some(expected)) if dev == expected => Ok(format!("dev {dev}")),
            (Some(dev), Some(expected)) => Err(format!("it was routed to {dev} instead of {expected}")),
            (Some(dev), None) if is_ours(dev) => Err(format!("it was routed to {dev}, inside the cluster")),
            (Some(dev), None) => Ok(format!("dev {dev}")),
            // It was forwarded; what it needs to leave by the device is another hop's.
            (None, Some(expected)) if self.forwarded(node) => Ok(format!("forwarded to {expected}")),
            (None, _) => {
                let to = self.endpoint.map(|to| format!(" {}", to.ip())).unwrap_or_default();
                Err(format!(
                    "not seen any more after the routing decision: no route, or no way to its next hop (`ip route get{to}` on \
                     the node tells, unless it was put right meanwhile: Events of the node say so)"
                ))
            }
        }
    }

    fn forwarded(&self, node: &str) -> bool {
        self.decisions(node).any(|rule| ["forward", "postrouting"].contains(&rule.hook.as_str()))
    }

    pub(super) fn local(&self, node: &str) -> Judged {
        let input = self.decisions(node).any(|rule| rule.hook == "input");
        if input || self.answered() || self.end() == Some(&SocketEnd::Refused) {
            Ok("taken by the node".to_owned())
        } else {
            Err("the node did not take it".to_owned())
        }
    }

    fn policy(&self, hop: &Hop, allowed: bool) -> Judged {
        let passed = match hop.stage {
            Stage::Ingress => self.answered() || self.end() == Some(&SocketEnd::Refused),
            _ => self.decisions(&hop.node).any(|rule| rule.hook == "postrouting"),
        };
        match (allowed, passed) {
            (true, _) => Ok("allowed".to_owned()),
            (false, false) => Ok("denied".to_owned()),
            (false, true) => Err("it passed, although no rule allows it".to_owned()),
        }
    }

    fn tunnel(&self, hop: &Hop) -> Judged {
        let Fact::Tunnel { dev, vni, outer_destination, outer_port, inner_mac, .. } = &hop.fact else {
            return Err("no tunnel".to_owned());
        };
        let wrapped = || self.forth(&hop.node).filter(|f| f.way == Way::Out && f.outer.is_some());
        let Some(outer) = wrapped().find_map(|f| f.outer) else {
            return Err(format!(
                "it went into {dev} and did not leave the node: no forwarding entry, or no way to {outer_destination}"
            ));
        };
        if outer.destination.ip() != *outer_destination {
            return Err(format!("it was sent to {} instead of {outer_destination}", outer.destination.ip()));
        }
        if outer.vni != *vni || outer.destination.port() != *outer_port {
            return Err(format!("it was sent in VXLAN {} to port {}", outer.vni, outer.destination.port()));
        }
        if let Some(mac) = inner_mac.filter(|mac| *mac != outer.inner_mac) {
            return Err(format!(
                "it is addressed to {} inside, and the peer's tunnel is {mac}",
                outer.inner_mac
            ));
        }
        let entered = self.forth(&hop.node).filter(|f| f.way == Way::In).map(|f| f.packet.bytes).max();
        shrunk(entered, wrapped().map(|f| f.packet.bytes).max(), dev)?;
        Ok(format!("{} → {}", outer.source, outer.destination))
    }

    fn pod(&self) -> Judged {
        match self.end() {
            Some(end @ SocketEnd::Answered { .. }) => Ok(describe(end)),
            // What it says itself: the packet was delivered as it should be.
            Some(SocketEnd::Refused) => Ok("reached, and nobody listens on this port".to_owned()),
            Some(_) if self.answer_dropped().is_some() || self.answer_seen() => Ok("it answered".to_owned()),
            Some(end) => Err(describe(end)),
            None => Err("the pod sent nothing".to_owned()),
        }
    }
}

pub(super) fn drifted(sighting: &Sighting, at: Stage) -> Option<&str> {
    match sighting {
        Sighting::Drift { stage, text } if *stage == at => Some(text),
        _ => None,
    }
}

pub(super) fn told(rule: &Decision) -> String {
    let Decision { family, table, chain, verdict, comment, .. } = rule;
    let comment = if comment.is_empty() { String::new() } else { format!(" ({comment})") };
    format!("{verdict} in chain {chain} of table {family} {table}{comment}")
}

fn judge_drop(hop: &Hop, rule: &Decision) -> Judged {
    let expected = match &hop.fact {
        Fact::Policy { allowed, .. } => !allowed,
        Fact::Refused { .. } => true,
        _ => false,
    };
    if expected && rule.table == OUR_TABLE { Ok(told(rule)) } else { Err(told(rule)) }
}

/// Of no pod alone.
pub(super) fn is_ours(dev: &IfName) -> bool {
    wiring::links().chain(fabric::devices()).any(|link| link == dev.as_str())
}

pub(super) fn describe(end: &SocketEnd) -> String {
    match end {
        SocketEnd::Answered { text, micros } => format!("{text} after {:.1} ms", *micros as f64 / 1e3),
        SocketEnd::Refused => "refused".to_owned(),
        SocketEnd::Unreachable => "a router says that it is unreachable".to_owned(),
        SocketEnd::Silent => "no answer in time".to_owned(),
        SocketEnd::Stalled => "connected, and a full-size request was not answered in time".to_owned(),
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
