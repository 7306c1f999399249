//! Group networking.k8s.io v1: NetworkPolicy.
//!
//! Elsewhere an unknown field is skipped. Here skipping one could open what a newer API means to close, so
//! `unknown` keeps the names of fields that these structs do not have.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use types::Labels;

use crate::meta::{Meta, null_is_default, object};

/// Names of fields that are not ours to understand.
pub type Unknown = BTreeMap<String, IgnoredAny>;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    pub metadata: Meta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: NetworkPolicySpec,
}
object!(NetworkPolicy, "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies");

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    #[serde(deserialize_with = "null_is_default")]
    pub pod_selector: LabelSelector,
    #[serde(deserialize_with = "null_is_default")]
    pub ingress: Vec<IngressRule>,
    #[serde(deserialize_with = "null_is_default")]
    pub egress: Vec<EgressRule>,
    /// Absent and empty are the same (NP-02).
    #[serde(deserialize_with = "null_is_default")]
    pub policy_types: Vec<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    #[serde(deserialize_with = "null_is_default")]
    pub from: Vec<Peer>,
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<PolicyPort>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    #[serde(deserialize_with = "null_is_default")]
    pub to: Vec<Peer>,
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<PolicyPort>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    pub pod_selector: Option<LabelSelector>,
    pub namespace_selector: Option<LabelSelector>,
    pub ip_block: Option<IpBlock>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    pub cidr: String,
    #[serde(deserialize_with = "null_is_default")]
    pub except: Vec<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    pub protocol: Option<String>,
    pub port: Option<IntOrString>,
    pub end_port: Option<i64>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i64),
    String(String),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(deserialize_with = "null_is_default")]
    pub match_labels: Labels,
    #[serde(deserialize_with = "null_is_default")]
    pub match_expressions: Vec<Requirement>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    #[serde(deserialize_with = "null_is_default")]
    pub values: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_of_a_rule_are_named() {
        let json = r#"{"spec":{"podSelector":{},"ingress":[{"from":[{"moonPhase":"full"}],"extra":1}]}}"#;
        let policy: NetworkPolicy = serde_json::from_str(json).unwrap();
        let rule = &policy.spec.ingress[0];
        assert_eq!(rule.unknown.keys().collect::<Vec<_>>(), ["extra"]);
        assert_eq!(rule.from[0].unknown.keys().collect::<Vec<_>>(), ["moonPhase"]);
        assert!(policy.spec.unknown.is_empty());
    }

    #[test]
    fn a_port_is_a_number_or_a_name() {
        let ports: Vec<PolicyPort> =
            serde_json::from_str(r#"[{"port":80},{"port":"http"},{"protocol":"UDP"}]"#).unwrap();
        assert_eq!(ports[0].port, Some(IntOrString::Int(80)));
        assert_eq!(ports[1].port, Some(IntOrString::String("http".into())));
        assert_eq!(ports[2].port, None);
    }
}
