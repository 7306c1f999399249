//! Under which source a packet leaves the sender's node.

use std::net::{IpAddr, SocketAddr};

use super::Judged;
use super::evidence::{Evidence, is_end};
use super::judge::OUR_TABLE;
use crate::hop::{Fact, Hop};
use crate::observed::{Decision, Sighting, Way};

/// The chain that stops what is for pods at links without any; of IPv6 alone.
const ASTRAY: &str = "astray";

impl Evidence<'_> {
    /// As what it leaves: a packet that waits for its next hop is on no device yet, and conntrack knows what answers will
    /// be sent to.
    fn leaves_as(&self, node: &str) -> Option<SocketAddr> {
        let mut out =
            self.forth(node).filter(|f| f.way == Way::Out && Some(f.packet.destination) == self.endpoint);
        let tracked = || {
            self.sightings(node).iter().find_map(|sighting| match sighting {
                Sighting::Conntrack { reply, .. } => Some(reply.destination),
                _ => None,
            })
        };
        out.next().map(|frame| frame.packet.source).or_else(tracked)
    }

    /// Masqueraded, and not as the address that is expected.
    pub fn other_source(&self, hop: &Hop) -> Option<String> {
        let Fact::Masq { source: Some(expected), masquerade: true, .. } = &hop.fact else { return None };
        let left = self.leaves_as(&hop.node)?.ip();
        let pods = self
            .everywhere()
            .any(|sighting| matches!(sighting, Sighting::Sent { source: own, .. } if own.ip() == left));
        (left != *expected && !pods).then(|| format!("masqueraded as {left}, which is not {expected}"))
    }

    pub fn masq(&self, node: &str, expected: Option<IpAddr>, masquerade: bool) -> Judged {
        let Some(left) = self.leaves_as(node) else {
            // The receiver's policy, if it is a pod of this node, or that there is no such pod: judged at a later hop.
            return match self.stopped_before(node) {
                true => Ok("stopped before it".to_owned()),
                false => Err("it never left the node's rules: not seen on any device".to_owned()),
            };
        };
        let source = left.ip();
        match expected {
            Some(expected) if expected == source => Ok(format!("source {left}")),
            None if masquerade => Ok(format!("source {left}")),
            _ if masquerade => Err(format!("it left with source {source}, not masqueraded")),
            _ => Err(format!("it left with source {source}, although it should keep its own")),
        }
    }

    /// By rules that no packet meets after its source has changed.
    fn stopped_before(&self, node: &str) -> bool {
        self.decisions(node).any(|rule| is_end(rule) && (rule.hook == "forward" || is_astray(rule)))
    }
}

pub fn is_astray(rule: &Decision) -> bool {
    rule.table == OUR_TABLE && rule.hook == "postrouting" && rule.chain == ASTRAY
}
