//! Pods.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use types::Labels;

use super::meta::{Condition, LabelSelector, Meta, condition};
use crate::world::Clock;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub node_selector: Labels,
    pub scheduler_name: String,
    pub hostname: String,
    pub subdomain: String,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub tolerations: Vec<Toleration>,
    pub affinity: Affinity,
    pub topology_spread_constraints: Vec<SpreadConstraint>,
    /// Kept only to be refused by name: this scheduler does not read it.
    pub scheduling_gates: Vec<Value>,
}

/// The rules that must hold; preferences do not bind anyone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// These two are kept only to be refused by name.
    pub node_affinity: Value,
    pub pod_affinity: Value,
    pub pod_anti_affinity: AntiAffinity,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AntiAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Vec<AntiAffinityTerm>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AntiAffinityTerm {
    pub label_selector: Option<LabelSelector>,
    pub topology_key: String,
    pub namespaces: Vec<String>,
    /// Kept only to be refused by name.
    pub namespace_selector: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: String,
    pub when_unsatisfiable: String,
    pub label_selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub ports: Vec<ContainerPort>,
    /// `Always` on an init container makes it a sidecar, whose ports count (KEP-753).
    pub restart_policy: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u16,
    pub host_port: u16,
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    pub protocol: types::Protocol,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    pub conditions: Vec<Condition>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PodIp {
    pub ip: IpAddr,
}

impl Pod {
    /// Succeeded or Failed: it will never run again and holds nothing.
    pub fn finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Counts towards a ReplicaSet's replicas.
    pub fn active(&self) -> bool {
        !self.finished() && !self.metadata.terminating()
    }

    pub fn ready(&self) -> bool {
        condition(&self.status.conditions, "Ready").is_some_and(Condition::holds)
    }

    /// When the Ready condition last turned.
    pub fn ready_since(&self) -> Option<Timestamp> {
        condition(&self.status.conditions, "Ready").and_then(|c| c.last_transition_time)
    }

    /// Ready for at least `min_ready` seconds; otherwise how many seconds are missing, None when not ready.
    pub fn available(&self, min_ready: i64, clock: Clock) -> Result<(), Option<i64>> {
        if !self.ready() {
            return Err(None);
        }
        let since = self.ready_since().unwrap_or(clock.now);
        match min_ready.saturating_sub(clock.since(since)) {
            missing if min_ready > 0 && missing > 0 => Err(Some(missing)),
            _ => Ok(()),
        }
    }

    /// Every address, the primary first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.status.pod_ip.into_iter().collect();
        all.extend(self.status.pod_ips.iter().map(|p| p.ip).filter(|ip| Some(*ip) != self.status.pod_ip));
        all
    }

    /// The containers that run as long as the pod does.
    pub fn running_containers(&self) -> impl Iterator<Item = &Container> {
        let sidecars = self.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        self.spec.containers.iter().chain(sidecars)
    }
}
