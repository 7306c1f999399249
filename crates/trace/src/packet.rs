//! A packet as the layers look at it, and the node on which they do.

use std::net::{IpAddr, SocketAddr};

use types::{Fabric, IfName, IpNet, Protocol, Wiring};

/// The first packet of a connection, as it enters a node's IP hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes in; `None`: a process of the node's own network namespace sends it.
    pub iif: Option<IfName>,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: Protocol,
    pub sport: u16,
    pub dport: u16,
    pub ct: CtState,
}

/// What conntrack says of the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CtState {
    #[default]
    New,
    /// Sent by the client of a connection that is known and answered: no rule of a nat chain sees it.
    Established,
    /// Sent by its server.
    Reply,
    Related,
    Invalid,
}

impl Packet {
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.dst, self.dport)
    }

    /// As the client of its connection sends: an answer turned round, anything else as it is.
    pub fn asked(&self) -> Self {
        let mut asked = self.clone();
        if self.ct == CtState::Reply {
            (asked.src, asked.dst) = (self.dst, self.src);
            (asked.sport, asked.dport) = (self.dport, self.sport);
        }
        asked
    }
}

/// The node on which a packet is looked at, and the plan of addresses around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    /// How packets reach pods of other nodes.
    pub fabric: Fabric,
    /// How pods are attached to their node.
    pub wiring: Wiring,
    /// Where pods have their addresses.
    pub pod_pools: Vec<IpNet>,
    /// Where pods go under these.
    pub unmasqueraded: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    pub dns_ips: Vec<IpAddr>,
    /// Where pods may send from beside their own addresses, if they ask for it.
    pub allow_sources: Vec<IpNet>,
    /// Where the node reaches the API.
    pub api: Vec<SocketAddr>,
    /// Whether the node's agent holds the DNS socket.
    pub dns_here: bool,
    /// The link-local addresses that the node's kernel has on the pods' link.
    pub of_link: Vec<IpAddr>,
    /// Of the networks that the node has addresses in.
    pub broadcasts: Vec<IpAddr>,
}

impl Place {
    pub fn is_pod_address(&self, address: IpAddr) -> bool {
        self.pod_pools.iter().any(|cidr| cidr.contains(&address))
    }

    /// Whether a pod goes there under its own address.
    pub fn is_unmasqueraded(&self, address: IpAddr) -> bool {
        self.unmasqueraded.iter().any(|cidr| cidr.contains(&address))
    }
}
