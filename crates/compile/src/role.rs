//! What a chain or set of the tables is for, by its name: which part of a packet's way meets it.
//!
//! A name is all that a difference, a traced rule or `nft list` has of an object, so it says the role. Whoever adds a chain or
//! a set gives its name a role here; `trace/tests/scenarios.rs` holds every object that is compiled to that.
//!
//! ```text
//!   bridge: Sender ─> raw: Links ─> Sender | Stranger ─> nat: Translation ─> Frontend ─> SourceRange, Endpoint | HostPort
//!           ─> forward: Flow ─> Policy ─> Peers ─> postrouting: Source, Hairpin | Astray ─> raw_output: Outer
//! ```

use crate::fabric;
use crate::guard::cause::{Cause, KnownBy};
use crate::guard::further::{FURTHER, FURTHER_ARP};
use crate::guard::{links, ports};
use crate::layout::{self, forward};
use crate::policy::nftables::{self, prefix};
use crate::service::nftables as services;
use semantics::policy::resolve::Direction;

/// The part that an object has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Which sources may come by a pod's port and by the pods' bridge, and how a pod finds its gateway.
    Sender,
    /// Which sources may come by the tunnel and the node's own links.
    Stranger,
    /// Leads what comes by each link to who may send there.
    Links,
    /// What comes out of the tunnel.
    Unwrapped,
    /// What is sent into the tunnel.
    Outer,
    /// What the node itself takes.
    Input,
    /// Who answers the cluster's DNS address.
    Resolver,
    /// The hook where new connections are translated, before any address is looked at.
    Translation,
    /// Which addresses and ports are a Service's, and what refuses at them.
    Frontend,
    /// Which chain the number leads to that a frontend has.
    Lead,
    /// To which endpoint a connection goes.
    Endpoint,
    /// Whom a Service's source ranges let in.
    SourceRange,
    /// Which ports of the node are a pod's.
    HostPort,
    /// Whether a packet is judged by policies at all.
    Flow,
    /// The policies of isolated pods.
    Policy(Direction),
    /// Whom policies of either direction let pass.
    Peers,
    /// Under which source a packet leaves the node.
    Source,
    /// Pods that call themselves through a Service.
    Hairpin,
    /// By which links what is for pods leaves.
    Astray,
    /// Who sent what was dropped. It decides nothing.
    Count,
    /// What the node sends or refuses for itself. No packet of a pod meets it.
    Own,
}

impl Role {
    pub fn of_chain(name: &str) -> Option<Self> {
        Some(match name {
            ports::FRAMES | ports::IPV4_FRAMES | ports::IPV6_FRAMES | ports::ARP_FRAMES => Self::Sender,
            ports::DISCOVERY | ports::ADVERTS | ports::TARGETS => Self::Sender,
            ports::MISPLACED => Self::Own,
            layout::RAW => Self::Links,
            links::FROM_PODS | links::NO_POD | links::ONWARD => Self::Sender,
            links::FROM_WIRE => Self::Stranger,
            layout::RAW_OUTPUT => Self::Outer,
            layout::INPUT => Self::Input,
            layout::DNS => Self::Resolver,
            layout::PREROUTING | layout::SERVICES => Self::Translation,
            layout::NODE => Self::HostPort,
            layout::REJECT | layout::UNREACHABLE => Self::Frontend,
            layout::PINNED_CHAIN | layout::PINNED_OUTSIDE_CHAIN => Self::Endpoint,
            layout::FORWARD | forward::UNUSUAL => Self::Flow,
            layout::POSTROUTING => Self::Source,
            layout::ASTRAY => Self::Astray,
            layout::OUTPUT | layout::REDIRECTS => Self::Own,
            links::FROM_PORT | links::UNEXPECTED => Self::Own,
            _ => return Self::of_fabrics_chain(name).or_else(|| Self::of_numbered_chain(name)),
        })
    }

    fn of_fabrics_chain(name: &str) -> Option<Self> {
        let mut chains = fabric::all().flat_map(|fabric| fabric.chains());
        chains.find(|chain| chain.name == name).map(|chain| chain.role)
    }

    fn of_numbered_chain(name: &str) -> Option<Self> {
        let policy = |direction: &Direction| begins(name, prefix(*direction));
        if let Some(direction) = Direction::ALL.into_iter().find(policy) {
            return Some(Self::Policy(direction));
        }
        let further = FURTHER.into_iter().chain([FURTHER_ARP]).any(|map| begins(name, map));
        Some(match name {
            _ if further => Self::Sender,
            _ if begins(name, services::GUARD) => Self::SourceRange,
            _ if begins(name, services::AFFINITY) || layout::Draw::is_chain(name) => Self::Endpoint,
            _ => return None,
        })
    }

    pub fn of_set(name: &str) -> Option<Self> {
        let counts = |cause: &&Cause| cause.known_by() != KnownBy::Unknown && cause.word() == name;
        if Cause::ALL.iter().any(|cause| counts(&cause)) {
            return Some(Self::Count);
        }
        let further = |direction: &Direction| begins(name, &policy_map(*direction));
        if let Some(direction) = Direction::ALL.into_iter().find(further) {
            return Some(Self::Policy(direction));
        }
        Some(match name {
            layout::FRONTENDS | layout::OUTSIDE | layout::CLUSTER_IPS => Self::Frontend,
            layout::LEADS => Self::Lead,
            layout::ENDPOINTS | layout::PINNED | layout::PINNED_OUTSIDE => Self::Endpoint,
            layout::GUARDS => Self::SourceRange,
            layout::HOST_PORTS | layout::HOST_PORTS_AT => Self::HostPort,
            layout::HAIRPIN => Self::Hairpin,
            layout::DNS_PEERS => Self::Resolver,
            layout::IN_ISOLATED => Self::Policy(Direction::Ingress),
            layout::OUT_ISOLATED => Self::Policy(Direction::Egress),
            links::LINKS => Self::Links,
            links::PODS | ports::PORTS | ports::LINK6 => Self::Sender,
            links::NODES => Self::Stranger,
            _ if ports::SENDERS.contains(&name) => Self::Sender,
            _ if FURTHER.into_iter().chain([FURTHER_ARP]).any(|map| name == map || begins(name, map)) => {
                Self::Sender
            }
            _ if begins(name, services::AFFINITY) => Self::Endpoint,
            _ if nftables::PEERS.iter().any(|kind| begins(name, kind)) => Self::Peers,
            _ => return fabric::all().find_map(|fabric| fabric.set_role(name)),
        })
    }

    /// Whether packets between nodes meet it, whatever is in them: they may be of the other family than what they bring.
    pub fn is_of_tunnels(self) -> bool {
        matches!(self, Self::Links | Self::Stranger | Self::Outer | Self::Input)
    }
}

/// The map that leads further sources of isolated pods to their policies, without its hash.
fn policy_map(direction: Direction) -> String {
    format!("{}_{}", crate::policy::further::FURTHER, prefix(direction))
}

/// `in_…`: names that go on with what tells them apart.
fn begins(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_go_on_are_told_apart() {
        let role = |name: &str| (Role::of_chain(name), Role::of_set(name));
        assert_eq!(role("in_0f_shop.db").0, Some(Role::Policy(Direction::Ingress)));
        assert_eq!(role("input").0, Some(Role::Input));
        assert_eq!(role("inside4_24"), (None, Some(Role::Stranger)));
        assert_eq!(role("further_out_0f").1, Some(Role::Policy(Direction::Egress)));
        assert_eq!(role("further4_0f"), (Some(Role::Sender), Some(Role::Sender)));
        assert_eq!(role("pods").1, Some(Role::Sender));
        assert_eq!(role("pods_0f").1, Some(Role::Peers));
        assert_eq!(role("ports").1, Some(Role::Sender));
        assert_eq!(role("ports_0f").1, Some(Role::Peers));
        assert_eq!(role("guard"), (None, Some(Role::SourceRange)));
        assert_eq!(role("guard_0f").0, Some(Role::SourceRange));
        assert_eq!(role("lm12").0, Some(Role::Endpoint));
        assert_eq!(role("pod_to_tunnel"), (Some(Role::Sender), Some(Role::Count)));
        assert_eq!(role("lost+found"), (None, None));
    }
}
