//! The plan of a lab: what `up` decided once, and every later process reads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use types::{Families, Family};

use crate::rundir::{RunDir, write_whole};
use crate::share::Share;

/// The underlay: 192.168.1.0/24, and where the lab has IPv6 fd00:192:168:1::/64 with the same last numbers.
///
/// ```text
///  outside netns          underlay netns                  node netns
///  lo 203.0.113.10/32     br0 192.168.1.2/24 (API)
///  eth0 192.168.1.1/24 ───── outside ┐
///                                    br0 ┬ node1 ───────── eth0 192.168.1.10/24
///                                        └ node2 ───────── eth0 192.168.1.11/24
/// ```
pub const PREFIXES: [u8; 2] = [24, 64];
pub const API_PORT: u16 = 6443;
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];
/// Node N has 192.168.1.(9+N); beyond this the last byte would end.
pub const MAX_NODES: u8 = 100;

/// Marks every process that belongs to a node (agent, kubelet, pause, shim): they go when the node goes.
pub use types::wire::NODE_VARIABLE;

/// What the whole lab agrees on.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    pub nodes: u8,
    /// Of which families nodes, pods and Services have addresses.
    #[serde(default)]
    pub families: Families,
    /// The agents' `--allow-sources`; empty: none.
    #[serde(default)]
    pub allow_sources: String,
    /// The length of the IPv4 prefixes that nodes give their pods addresses from.
    #[serde(default = "usual_mask_size")]
    pub node_cidr_mask_size: u8,
    /// Directories of the machine that nodes and pods have at a path of their own.
    #[serde(default)]
    pub mounts: Vec<Share>,
    /// The API's port on the caller's loopback, kept over restarts so that kubeconfigs stay valid.
    pub api_port: u16,
    /// The API's database.
    pub data: PathBuf,
    /// The CNI executable that every node gets.
    pub cni: PathBuf,
}

/// Which lets addresses tell where a pod runs: those of node7 are 10.244.7.0/24.
pub fn usual_mask_size() -> u8 {
    24
}

impl Plan {
    pub fn read(run: &RunDir) -> Result<Self> {
        let path = run.file("lab.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| {
            let (path, name) = (path.display(), run.name());
            anyhow!("the lab's plan {path} is damaged: {error}; plumb lab down --name {name} removes the lab, up makes another")
        })
    }

    pub fn write(&self, run: &RunDir) -> Result<()> {
        write_whole(&run.file("lab.json"), &serde_json::to_string_pretty(self)?)
    }

    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(node_name).collect()
    }
}

pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// An address of the underlay; on IPv6 its number is written with the same digits.
fn underlay(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 1, number).into(),
        Family::V6 => {
            let alike = u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
            Ipv6Addr::new(0xfd00, 0x192, 0x168, 1, 0, 0, 0, alike).into()
        }
    }
}

/// 192.168.1.10 for node 1, fd00:192:168:1::10 on IPv6.
pub fn node_address(number: u8, family: Family) -> IpAddr {
    underlay(family, number.saturating_add(9))
}

pub fn gateway(family: Family) -> IpAddr {
    underlay(family, 1)
}

/// The API in the underlay.
pub fn api(family: Family) -> IpAddr {
    underlay(family, 2)
}

/// A host beyond the gateway.
pub fn outside(family: Family) -> IpAddr {
    family.pick(OUTSIDE)
}

/// The number in `node7`.
pub fn node_number(name: &str) -> Option<u8> {
    name.strip_prefix("node")?.parse().ok().filter(|number| (1..=MAX_NODES).contains(number))
}
