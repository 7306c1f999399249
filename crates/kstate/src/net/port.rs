//! A port of a bridge: whose frames it takes, which it sends out, and which it passes on.

use std::fmt;
use std::net::IpAddr;

use types::IfName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgePort {
    pub bridge: IfName,
    pub options: PortOptions,
    /// Options that this kernel does not have. Only what is observed has any: what nobody can have is not missed.
    pub unknown: PortOptions,
}

impl BridgePort {
    pub fn new(bridge: IfName, options: PortOptions) -> Self {
        Self { bridge, options, unknown: PortOptions::default() }
    }

    /// Whether an actual port is as wanted.
    pub fn is_met_by(&self, actual: &Self) -> bool {
        self.bridge == actual.bridge && self.options.without(actual.unknown) == actual.options
    }
}

/// What is on at a port, as `bridge -d link show` names it (IFLA_BRPORT_*, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortOptions(u8);

impl PortOptions {
    /// Isolated ports do not exchange frames: packets between two pods of a node pass the IP hooks.
    pub const ISOLATED: Self = Self(1);
    /// Frames come in from MACs only that have a forwarding entry at this very port (Linux 5.18).
    pub const LOCKED: Self = Self(1 << 1);
    /// Whoever sends gets a forwarding entry.
    pub const LEARNING: Self = Self(1 << 2);
    /// Frames to MACs without a forwarding entry go out here, and those to groups, and broadcasts.
    pub const FLOOD: Self = Self(1 << 3);
    pub const MCAST_FLOOD: Self = Self(1 << 4);
    pub const BCAST_FLOOD: Self = Self(1 << 5);
    /// Frames to the bridge group's own addresses (01:80:c2:00:00:00 to …0f, IEEE 802.1D §7.12.6) are bridged as any
    /// other. Else they come to the port's own link, past the hooks of the bridge and its lock.
    pub const GROUP_FWD: Self = Self(1 << 6);

    /// A program at the port's entrance turns frames away whose checksum would be filled in where they have none
    /// (`kernel::checksums`). No option of bridges, and with a port all the same.
    pub const CHECKSUMS: Self = Self(1 << 7);

    /// What a new port has.
    pub const OF_KERNEL: Self = Self::LEARNING.and(Self::FLOOD).and(Self::MCAST_FLOOD).and(Self::BCAST_FLOOD);

    /// What a pod's port has. The node knows where each pod is, and pods ask nobody but the bridge itself: nothing is to
    /// be learned, and no frame is for everybody.
    pub const OF_POD: Self = Self::ISOLATED.and(Self::LOCKED).and(Self::GROUP_FWD).and(Self::CHECKSUMS);

    pub const NAMES: [(Self, &'static str); 8] = [
        (Self::ISOLATED, "isolated"),
        (Self::LOCKED, "locked"),
        (Self::LEARNING, "learning"),
        (Self::FLOOD, "flood"),
        (Self::MCAST_FLOOD, "mcast_flood"),
        (Self::BCAST_FLOOD, "bcast_flood"),
        (Self::GROUP_FWD, "group_fwd"),
        (Self::CHECKSUMS, "checksums"),
    ];

    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The names of what is on.
impl fmt::Display for PortOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = Self::NAMES.into_iter().filter(|(option, _)| self.has(*option));
        f.write_str(&on.map(|(_, name)| name).collect::<Vec<_>>().join(" "))
    }
}

/// Where a static forwarding entry has frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forward {
    /// Of a VXLAN device: to the node with this address.
    Node(IpAddr),
    /// Of a bridge: out of the port that the entry is on. It goes with the port.
    Port,
}

impl Forward {
    pub fn node(self) -> Option<IpAddr> {
        match self {
            Self::Node(address) => Some(address),
            Self::Port => None,
        }
    }
}

/// As in a list of entries: what comes after the MAC.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(address) => write!(f, "dst {address}"),
            Self::Port => f.write_str("static"),
        }
    }
}
