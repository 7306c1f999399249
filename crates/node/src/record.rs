//! One wired interface of a sandbox.

use std::net::IpAddr;

use model::{Attachment, HostPort};
use serde::{Deserialize, Serialize};
use types::wire::NETWORK;
use types::{IfName, IpNet, Mac, ObjectName, Wiring};

/// What of an attachment outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub container: String,
    pub ifname: IfName,
    /// The name of the network that its runtime asked for: another network's garbage collection is not its own. Files of
    /// older versions have none, and agents have always written this one for runtimes.
    #[serde(default = "usual_network")]
    pub network: String,
    /// Path of the pod's network namespace, as the runtime gave it.
    pub netns: String,
    /// Which namespace that was: device and inode. Another one may lie at the path later. Files of older versions have
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<(u64, u64)>,
    pub pod: ObjectName,
    pub uid: String,
    pub ips: Vec<IpAddr>,
    /// How it was attached. Files of older versions have none: all that they wrote are of a bridge.
    #[serde(default = "usual_wiring")]
    pub wiring: Wiring,
    pub host_if: IfName,
    pub mac: Mac,
    /// Files of older versions have none.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// The pod's own, in seconds.
    #[serde(default)]
    pub grace: u32,
    /// No longer wired: its pod is gone and its veth was deleted, yet its namespace lives, and in it the address.
    /// Stays a record, so that an older agent, to which nothing is wired without a veth, gives the address back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_off: bool,
    /// Where else its pod may send from; files of older versions have none, or also where it could. What it may no
    /// longer, [`Records::lost`](crate::Records::lost) has until the kernel knows no flow from there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<IpNet>,
}

impl Record {
    /// The key in the model and the handle of the address: `container/interface`.
    pub fn handle(&self) -> String {
        format!("{}/{}", self.container, self.ifname)
    }

    pub fn row(&self) -> Attachment {
        Attachment {
            container: self.handle(),
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            ips: self.ips.clone(),
            wiring: self.wiring,
            host_if: self.host_if.clone(),
            mac: self.mac,
            host_ports: self.host_ports.clone(),
            withheld: Vec::new(),
        }
    }
}

fn usual_network() -> String {
    NETWORK.to_owned()
}

fn usual_wiring() -> Wiring {
    Wiring::Bridge
}
