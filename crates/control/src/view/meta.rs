//! Metadata, selectors and conditions: the parts that every kind shares.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use types::selector::{Operator, Requirement};
use types::{Labels, ObjectName, Selector};

use crate::kind::Kind;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub creation_timestamp: Option<Timestamp>,
    pub deletion_timestamp: Option<Timestamp>,
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    pub finalizers: Vec<String>,
    pub owner_references: Vec<OwnerReference>,
}

impl Meta {
    pub fn key(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }

    pub fn terminating(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// The one owner that manages this object.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|o| o.controller)
    }

    pub fn controlled_by(&self, uid: &str) -> bool {
        self.controller().is_some_and(|o| o.uid == uid)
    }

    /// Versions of one cluster compare as numbers (KEP-5504).
    pub fn version(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

impl OwnerReference {
    /// The reference by which `owner` manages what bears it.
    pub fn controller(kind: Kind, owner: &Meta) -> Self {
        Self {
            api_version: kind.api_version().into(),
            kind: kind.name().into(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            controller: true,
            block_owner_deletion: true,
        }
    }
}

/// `metav1.Condition` and its older cousins; a time a kind does not have stays absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl Condition {
    pub fn holds(&self) -> bool {
        self.status == "True"
    }
}

/// The condition of that type, if there is one.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.kind == kind)
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Vec<SelectorRequirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SelectorRequirement {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}

impl LabelSelector {
    /// The selector of a workload; None when it cannot be read, or when it requires nothing: a workload that
    /// selects everything is an error in the API, too.
    pub fn selector(&self) -> Option<Selector> {
        self.read().filter(|s| !s.requirements.is_empty())
    }

    /// The selector as one value; None when an operator is unknown, which the API refuses.
    pub fn read(&self) -> Option<Selector> {
        let mut selector = Selector::from_labels(&self.match_labels);
        for r in &self.match_expressions {
            let operator = match r.operator.as_str() {
                "In" => Operator::In(r.values.clone()),
                "NotIn" => Operator::NotIn(r.values.clone()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            selector.requirements.push(Requirement { key: r.key.clone(), operator });
        }
        Some(selector)
    }
}
