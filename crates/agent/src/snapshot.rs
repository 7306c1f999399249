//! What the loop hands out of what it knows: values. What is made of them (traces, differences, archives) is made on the thread
//! of whoever asks. The cluster is shared: nothing of it is copied unless it changes while somebody has it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kstate::net::NetState;
use kstate::nft::Ruleset;
use model::Cluster;
use node::Record;
use tokio::sync::oneshot;
use types::{Family, ObjectName};

use crate::datapath::Subsystem;
use crate::fault::Fault;
use crate::node::Ground;
use crate::report::NodeStatus;
use crate::settings::Settings;

/// What is asked of the loop, and where its answer goes.
pub enum Question {
    Health(oneshot::Sender<Health>),
    Status(oneshot::Sender<NodeStatus>),
    Snapshot(oneshot::Sender<Snapshot>),
    Endpoints { service: ObjectName, family: Family, answer: oneshot::Sender<Endpoints> },
}

/// Whether the node serves.
#[derive(Clone, Debug)]
pub struct Health {
    /// Why it is not ready.
    pub trouble: Option<Fault>,
    pub paused: bool,
    /// Of which families there are Services here.
    pub families: Vec<Family>,
    /// How long ago the kernel was what it should be; `None`: never.
    pub since_right: Option<Duration>,
    /// A whole comparison takes place at least this often.
    pub refresh: Duration,
    /// The node is to stay: new connections may come here.
    pub eligible: bool,
}

/// Of a Service on this node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endpoints {
    pub count: usize,
    /// Whether the node has the datapath that leads to them.
    pub served: bool,
}

/// All that a trace or an archive is made of, of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub settings: Arc<Settings>,
    pub cluster: Arc<Cluster>,
    /// `None` before everything was listed.
    pub desired: Option<Desired>,
    /// The interfaces that are wired here.
    pub records: Vec<Record>,
    pub paused: bool,
    /// Where the API is, in numbers.
    pub api: Vec<SocketAddr>,
    pub ground: Ground,
    /// What is wrong with objects, each in a sentence.
    pub findings: Vec<String>,
    /// The last inputs of attachments, for `plumb replay`.
    pub recording: String,
    /// What the kernel refuses.
    pub refused: BTreeMap<Subsystem, Fault>,
}

/// What the kernel should hold.
#[derive(Clone, Debug)]
pub struct Desired {
    pub nft: Arc<Ruleset>,
    pub net: Arc<NetState>,
}

impl Snapshot {
    /// That a packet should be masqueraded as an address that this machine has lost.
    pub fn lost(&self, address: IpAddr) -> Option<String> {
        let node = &self.settings.node;
        let own = self.cluster.nodes.get(node)?.addresses.contains(&address);
        self.ground.lost(node, address).filter(|_| own)
    }
}
