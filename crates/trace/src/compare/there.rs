//! Judges of what another node made of the packet, or could not say.

use std::net::SocketAddr;

use types::IfName;

use super::Judged;
use super::evidence::{Evidence, is_end};
use crate::fabric;
use crate::observed::{COUNTED, SocketEnd, Way};

/// Of what left one node and came to no other.
const LOST: &str = "it did not come to the node: the network between the nodes lost it";

impl Evidence<'_> {
    /// What another node makes of its port, or of its address on the pod network.
    pub fn door(&self, node: &str, choices: &[SocketAddr]) -> Judged {
        if self.did_not_come(node) {
            return Err(LOST.to_owned());
        }
        self.translation(node, choices)
    }

    pub fn own_address(&self, node: &str) -> Judged {
        match (self.did_not_come(node), self.came_by_tunnel(node)) {
            (true, Some(_)) => {
                let link = fabric::devices().collect::<Vec<_>>().join(" or ");
                Err(format!("it came to the node in the tunnel, and not out of {link}: dropped before it"))
            }
            (true, None) => Err(LOST.to_owned()),
            (false, _) => self.local(node),
        }
    }

    fn did_not_come(&self, node: &str) -> bool {
        let met = self.decisions(node).any(|rule| rule.hook != COUNTED);
        let answered = self.answered() || self.end() == Some(&SocketEnd::Refused);
        !met && !answered && self.came_to(node).is_none()
    }

    pub fn node(&self, node: &str, from: Option<&IfName>, host_if: &IfName) -> Judged {
        let came = || self.forth(node).filter(|f| Some(f.dev) == from && f.way == Way::In);
        if let Some(from) = from
            && came().next().is_none()
        {
            return Err(match self.came_by_tunnel(node) {
                Some(_) => {
                    format!("it came to the node in the tunnel, and not out of {from}: dropped before it")
                }
                None => LOST.to_owned(),
            });
        }
        let ended = self.decisions(node).any(|rule| rule.hook != COUNTED && is_end(rule));
        let out = || self.forth(node).filter(|f| f.dev == host_if && f.way == Way::Out);
        if out().next().is_none() {
            return if ended {
                Ok("arrived".to_owned())
            } else {
                Err(format!("it did not go out by {host_if}"))
            };
        }
        // From a pod of the same node it came by the bridge.
        let entered =
            self.forth(node).filter(|f| f.way == Way::In && (from.is_none() || Some(f.dev) == from));
        shrunk(entered.map(|f| f.packet.bytes).max(), out().map(|f| f.packet.bytes).max(), host_if)?;
        Ok(format!("→ {host_if}"))
    }

    /// An answer shows that the packet got through, silence leaves every cause on that node possible.
    pub fn unasked(&self, node: &str, why: &str) -> Judged {
        if self.answered() || self.end() == Some(&SocketEnd::Refused) || self.answer_seen() {
            return Ok(why.to_owned());
        }
        Err(format!("no answer came, and {node} could not be asked what it saw: {why}"))
    }
}

/// Full-size packets are lost where smaller ones pass.
pub fn shrunk(entered: Option<u32>, left: Option<u32>, dev: &IfName) -> Result<(), String> {
    match (entered, left) {
        (Some(entered), Some(left)) if left < entered => Err(format!(
            "a packet of {entered} bytes came and none over {left} passed {dev}: its MTU is too small"
        )),
        _ => Ok(()),
    }
}
