//! Parts of a policy that are valid and can never match, said to whoever wrote them.

use model::{Attachment, Cluster, IntOrName, Key, Kind, Peer, PolicyRule};
use types::IpNet;

use super::network_policy::{Isolation, isolation};
use super::resolve::Direction;
use crate::diagnostic::{Diagnostic, Severity};

/// About the policies that isolate this pod for egress.
pub fn notes(cluster: &Cluster, service_cidrs: &[IpNet], attachment: &Attachment) -> Vec<Diagnostic> {
    let Isolation::Policies(names) = isolation(cluster, attachment, Direction::Egress) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for policy in names.iter().filter_map(|name| cluster.policies.get(name)) {
        for (at, rule) in policy.egress.iter().flatten().enumerate() {
            let mut note = |field: String, message: String, next_step: &str| {
                found.push(Diagnostic {
                    object: Key::new(Kind::Policy, policy.key.clone()),
                    field,
                    severity: Severity::Note,
                    message,
                    next_step: next_step.to_owned(),
                });
            };
            for cidr in services(rule, service_cidrs) {
                note(
                    format!("spec.egress[{at}].to"),
                    format!(
                        "{cidr} lies in the Services' range and never matches: egress is judged by the endpoint"
                    ),
                    "select the Service's pods by their labels",
                );
            }
            if let Some(name) = name_on_blocks(rule) {
                note(
                    format!("spec.egress[{at}].ports"),
                    format!(
                        "the named port {name:?} matches nothing: an ipBlock knows no pods whose port it could be"
                    ),
                    "write the port's number",
                );
            }
        }
    }
    found
}

/// NP-50: what the sender calls a Service's address is an endpoint's by the time policies see it.
fn services<'a>(rule: &'a PolicyRule, ranges: &'a [IpNet]) -> impl Iterator<Item = &'a IpNet> {
    rule.peers.iter().filter_map(|peer| match peer {
        Peer::Block { cidr, .. } => {
            Some(cidr).filter(|cidr| ranges.iter().any(|range| range.contains(*cidr)))
        }
        Peer::Pods { .. } => None,
    })
}

fn name_on_blocks(rule: &PolicyRule) -> Option<&str> {
    let only_blocks =
        !rule.peers.is_empty() && rule.peers.iter().all(|peer| matches!(peer, Peer::Block { .. }));
    rule.ports.iter().filter(|_| only_blocks).find_map(|port| match &port.port {
        Some(IntOrName::Name(name)) => Some(name.as_str()),
        _ => None,
    })
}
