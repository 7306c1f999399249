//! Deployments and ReplicaSets.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::meta::{Condition, LabelSelector, Meta};

/// These fields are `omitempty`: in a merge patch zero has to be `null`, or kubectl would show what it hides.
fn null_if_zero<S: Serializer>(n: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    if *n == 0 { serializer.serialize_none() } else { serializer.serialize_i64(*n) }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Deployment {
    pub metadata: Meta,
    pub spec: DeploymentSpec,
    pub status: DeploymentStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    pub replicas: Option<i64>,
    pub selector: LabelSelector,
    /// Copied into each ReplicaSet as it is.
    pub template: Value,
    pub strategy: Strategy,
    pub min_ready_seconds: i64,
    pub revision_history_limit: Option<i64>,
    pub paused: bool,
    pub progress_deadline_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    #[serde(rename = "type")]
    pub kind: String,
    pub rolling_update: RollingUpdate,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub max_surge: Option<IntOrPercent>,
    pub max_unavailable: Option<IntOrPercent>,
}

/// `3` or `"25%"`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum IntOrPercent {
    Int(i64),
    Percent(String),
}

impl IntOrPercent {
    /// The number of `total`; a surge rounds up, an outage rounds down, so that both never stall at once.
    pub fn of(&self, total: i64, round_up: bool) -> i64 {
        match self {
            Self::Int(n) => *n,
            Self::Percent(text) => {
                let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
                let scaled = percent.saturating_mul(total);
                if round_up { scaled.saturating_add(99) / 100 } else { scaled / 100 }
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    #[serde(serialize_with = "null_if_zero")]
    pub observed_generation: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub replicas: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub updated_replicas: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub ready_replicas: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub available_replicas: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub unavailable_replicas: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    pub metadata: Meta,
    pub spec: ReplicaSetSpec,
    pub status: ReplicaSetStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    pub replicas: Option<i64>,
    pub selector: LabelSelector,
    pub template: Value,
    pub min_ready_seconds: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    #[serde(serialize_with = "null_if_zero")]
    pub observed_generation: i64,
    pub replicas: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub fully_labeled_replicas: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub ready_replicas: i64,
    #[serde(serialize_with = "null_if_zero")]
    pub available_replicas: i64,
}

impl ReplicaSet {
    /// An absent number means one (apps/v1 defaulting).
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }
}
