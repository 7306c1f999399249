//! What a step can know beside its input and its state: this and nothing more, so that it can be recorded.

use std::time::Duration;

use model::{Cluster, HostPort};
use semantics::node::PodSubnet;
use semantics::service::reserved;
use semantics::{Settings, node};
use serde::{Deserialize, Serialize};
use types::{ObjectName, Wiring};

/// Who answers a step's questions.
pub trait Facts {
    fn situation(&self) -> &Situation;

    /// With which rows that are output now come to the kernel.
    fn generation(&self) -> u64;

    /// A pod as the watch shows it; `None`: not at all.
    fn pod(&self, name: &ObjectName) -> Option<Shown>;

    /// What a port of the node is kept for.
    fn reserved(&self, port: &HostPort) -> Option<String>;
}

/// How the node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Situation {
    /// `None` before everything was listed and its rules are on their way.
    pub network: Option<Network>,
    /// Pods are listed, and their watch is not broken.
    pub hears_pods: bool,
    /// Nothing is mended: whoever looks into a node wants it left as it is.
    pub paused: bool,
    /// How long an attachment that nobody owns is left alone.
    pub orphan_grace: Duration,
}

/// How pods are attached here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub wiring: Wiring,
    pub mtu: u32,
    /// Of the node's pod CIDRs.
    pub subnets: Vec<PodSubnet>,
}

impl Network {
    pub fn new(cluster: &Cluster, settings: &Settings) -> Self {
        let own = cluster.nodes.get(&settings.node);
        let subnets = own.into_iter().flat_map(node::pod_subnets).collect();
        Self { wiring: settings.wiring, mtu: settings.mtu, subnets }
    }
}

/// What of a pod its attachment depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub uid: String,
    /// Seconds that its containers may take to end.
    pub grace: u32,
}

/// As the cluster has them.
#[derive(Clone, Debug)]
pub struct Live<'a> {
    pub cluster: &'a Cluster,
    /// As long as [`Situation::network`] is.
    pub settings: Option<&'a Settings>,
    pub situation: Situation,
    pub generation: u64,
}

impl Facts for Live<'_> {
    fn situation(&self) -> &Situation {
        &self.situation
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn pod(&self, name: &ObjectName) -> Option<Shown> {
        let pod = self.cluster.pods.get(name)?;
        Some(Shown { uid: pod.uid.clone(), grace: pod.grace })
    }

    fn reserved(&self, port: &HostPort) -> Option<String> {
        reserved::host_port((self.cluster, self.settings?), port).map(str::to_owned)
    }
}
