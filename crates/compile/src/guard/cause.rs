//! Why a guard drops a packet: one word for metrics, Events, traces and `nft list`, and who is known to have sent it.
//!
//! ```text
//!   … no rule accepts it ─> update @ipv4_source { iifname counter } ─> counter drop "ipv4_source: an IPv4 source …"
//! ```
//!
//! Who sent it is counted in a set of its own, by what nobody can forge there: the port by which a frame came, or a source
//! that is a pod's of this node. So a flood fills no set. A set that is full all the same ends its own rule only, and the
//! next one drops.

use kstate::nft::build::{self, count_by, rule};
use kstate::nft::{Expr, Field, Reg, Rule, Set, SetData, TableFamily, TableId};
use types::Family;

use super::Guard;
use super::links::PODS;
use crate::fragment::{Fragment, Name};

const R0: Reg = Reg(0);
/// Of who has stopped nothing is kept for longer; an agent looks far more often.
const KEPT_MS: u64 = 3_600_000;
/// More ports than a node has, and those of pods that came and went within the hour.
const MOST: u32 = 4096;

/// By what the sender is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownBy {
    /// The port of a pod.
    Port,
    /// The address of a pod of this node.
    Pod,
    /// It came from another node, or from outside.
    Unknown,
}

macro_rules! causes {
    ($($name:ident, $word:literal, $guard:expr, $sender:ident, $text:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $($name,)*
        }

        impl Cause {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The label of metrics.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The packet, in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whose rules drop it. `None`: no rule does, but the program at the node's links.
            pub fn guard(self) -> Option<Guard> {
                match self { $(Self::$name => $guard,)* }
            }

            pub fn known_by(self) -> KnownBy {
                match self { $(Self::$name => KnownBy::$sender,)* }
            }
        }
    };
}

const PORTS: Option<Guard> = Some(Guard::Ports);
const LINKS: Option<Guard> = Some(Guard::Links);
const PROGRAM: Option<Guard> = None;

causes! {
    Ipv4Source, "ipv4_source", PORTS, Port, "an IPv4 source that is not the pod's";
    Ipv6Source, "ipv6_source", PORTS, Port, "an IPv6 source that is not the pod's";
    ArpSender, "arp_sender", PORTS, Port, "an ARP sender that is not the pod's";
    AdvertSource, "advertisement_source", PORTS, Port, "an advertisement's source that is not the pod's";
    AdvertisedAddress, "advertised_address", PORTS, Port, "an advertised address that is not the pod's";
    LinkLocal, "link_local_source", PORTS, Port, "a link-local source, and no neighbour discovery";
    FrameType, "frame_type", PORTS, Port, "neither IPv4, IPv6 nor ARP";
    ChecksumPlace, "checksum_place", PORTS, Port, "a checksum to be written where the packet has none";
    PastBridge, "past_bridge", LINKS, Port, "a pod, past the bridge";
    PodToTunnel, "pod_to_tunnel", LINKS, Pod, "a pod, to a tunnel's port";
    UnknownPod, "unknown_pod", LINKS, Unknown, "by the pods' bridge, and no pod of this node";
    TunnelToTunnel, "tunnel_to_tunnel", LINKS, Unknown, "the tunnel, to a tunnel's port";
    InnerSource, "inner_source", LINKS, Unknown, "inside is no source of the node that sends it";
    StrangerToTunnel, "stranger_to_tunnel", LINKS, Unknown, "no node, to the tunnel's port";
    ServiceToTunnel, "service_to_tunnel", LINKS, Unknown, "a Service, to a tunnel's port";
    PodFromOutside, "pod_from_outside", LINKS, Unknown, "a pod's address, from outside";
    ServiceFromOutside, "service_from_outside", LINKS, Unknown, "a Service's address, from outside";
    ChecksumFromOutside, "checksum_from_outside", PROGRAM, Unknown,
        "a checksum to be written where the packet has none, from outside";
    StraySegment, "stray_segment", LINKS, Unknown, "a segment of no connection";
    NoSuchPod, "no_such_pod", LINKS, Unknown, "no pod has this address";
}

impl Cause {
    /// Whether nobody sends it who sends under his own name. The others happen: a pod is gone, a connection forgotten.
    pub fn is_forged(self) -> bool {
        !matches!(self, Self::StraySegment | Self::NoSuchPod)
    }

    /// Of the rule that drops it.
    pub fn comment(self) -> String {
        format!("{}: {}", self.word(), self.text())
    }

    pub fn of_comment(comment: &str) -> Option<Self> {
        let (word, _) = comment.split_once(": ")?;
        Self::ALL.iter().copied().find(|cause| cause.word() == word)
    }

    /// Those whose rules drop it.
    pub fn tables(self) -> Vec<TableId> {
        self.guard().map(Guard::tables).unwrap_or_default()
    }

    /// The sets that count its senders, one in each table of its guard.
    pub fn sets(self) -> Vec<(TableId, Name)> {
        match self.known_by() {
            KnownBy::Port | KnownBy::Pod => {
                self.tables().into_iter().map(|table| (table, Name::Borrowed(self.word()))).collect()
            }
            KnownBy::Unknown => Vec::new(),
        }
    }

    /// What a sender is known by in a table.
    fn field(self, table: &TableId) -> Option<Field> {
        match (self.known_by(), table.family) {
            (KnownBy::Port, _) => Some(Field::IfName),
            (KnownBy::Pod, TableFamily::Ip6) => Some(Field::Ipv6),
            (KnownBy::Pod, _) => Some(Field::Ipv4),
            (KnownBy::Unknown, _) => None,
        }
    }

    /// What the guard's rules in this table need.
    pub(super) fn add_sets(table: &TableId, fragment: &mut Fragment) {
        for cause in Self::ALL.iter().filter(|cause| cause.tables().contains(table)) {
            let Some(field) = cause.field(table) else { continue };
            let set = Set {
                dynamic: true,
                timeout_ms: Some(KEPT_MS),
                size: Some(MOST),
                ..Set::new([field], SetData::None)
            };
            fragment.sets.insert(cause.word().into(), set);
        }
    }

    /// Drops what these expressions let through.
    pub(crate) fn dropped(self, of: impl IntoIterator<Item = Expr>) -> Rule {
        rule(self.comment(), of.into_iter().chain([build::counter(), build::drop()]))
    }

    /// Drops everything that comes here, by the port that it came by.
    pub(super) fn dropped_by_port(self) -> [Rule; 2] {
        [rule("", [build::iifname(R0), count_by(self.word(), R0, KEPT_MS)]), self.dropped([])]
    }

    /// Drops everything that comes here; pods are counted by their address, which [`PODS`] has.
    pub(crate) fn dropped_by_pod(self, family: Family) -> Vec<Rule> {
        let pod = [build::saddr(family, R0), build::lookup(PODS, R0)];
        let by = count_by(self.word(), R0, KEPT_MS);
        vec![rule("", pod.into_iter().chain([by])), self.dropped([])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_its_cause_and_no_other() {
        for cause in Cause::ALL {
            assert_eq!(Cause::of_comment(&cause.comment()), Some(*cause));
        }
        assert_eq!(Cause::of_comment("ipv4_sources: an IPv4 source that is not the pod's"), None);
        assert_eq!(Cause::of_comment("no pod"), None);
    }
}
