//! Deployments, ReplicaSets and ConfigMaps.

use serde_json::Value;
use types::{Labels, Selector};

use super::{metadata, not_negative, one_of, pod};
use crate::invalid::Complaints;
use crate::object::{at, list, text};

pub(super) fn deployment(object: &Value, complaints: &mut Complaints) {
    workload(object, complaints);
    let strategy = at(object, &["spec", "strategy"]);
    if let Some(strategy) = strategy {
        one_of(strategy, "type", &["Recreate", "RollingUpdate"], "spec.strategy.type", complaints);
        let rolling = strategy.get("rollingUpdate");
        if text(strategy, &["type"]) == "Recreate" && rolling.is_some() {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            complaints.forbidden("spec.strategy.rollingUpdate", detail);
        }
        for field in ["maxUnavailable", "maxSurge"] {
            let value = rolling.and_then(|r| r.get(field));
            number_or_percent(value, &format!("spec.strategy.rollingUpdate.{field}"), complaints);
        }
        let is_zero = |field: &str| {
            let value = rolling.and_then(|r| r.get(field));
            value.is_some_and(|v| v.as_i64() == Some(0) || v.as_str() == Some("0%"))
        };
        if is_zero("maxUnavailable") && is_zero("maxSurge") {
            let value = rolling.and_then(|r| r.get("maxUnavailable")).cloned().unwrap_or_default();
            let detail = "may not be 0 when `maxSurge` is 0";
            complaints.invalid("spec.strategy.rollingUpdate.maxUnavailable", &value, detail);
        }
    }
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        not_negative(at(object, &["spec", field]), &format!("spec.{field}"), complaints);
    }
}

fn number_or_percent(value: Option<&Value>, path: &str, complaints: &mut Complaints) {
    match value {
        Some(Value::String(text)) => {
            let number =
                text.strip_suffix('%').filter(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()));
            if number.is_none() {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  \
                              or '93%', regex used for validation is '[0-9]+%')";
                complaints.invalid(path, &text.as_str().into(), detail);
            }
        }
        number => not_negative(number, path, complaints),
    }
}

pub(super) fn replica_set(object: &Value, complaints: &mut Complaints) {
    workload(object, complaints);
}

fn workload(object: &Value, complaints: &mut Complaints) {
    not_negative(at(object, &["spec", "replicas"]), "spec.replicas", complaints);
    let selector = at(object, &["spec", "selector"]);
    let template = at(object, &["spec", "template"]);
    let labels = template.and_then(|t| at(t, &["metadata", "labels"]));
    match selector {
        None => complaints.required("spec.selector", ""),
        Some(selector) => {
            metadata::selector(Some(selector), "spec.selector", complaints);
            let no_terms = selector.as_object().is_none_or(|map| {
                map.values()
                    .all(|v| v.as_object().is_none_or(serde_json::Map::is_empty) && list(v, &[]).is_empty())
            });
            if no_terms {
                let detail = "empty selector is invalid for deployment";
                complaints.invalid("spec.selector", selector, detail);
            } else if !selects(selector, labels) {
                let value = labels.cloned().unwrap_or_default();
                let detail = "`selector` does not match template `labels`";
                complaints.invalid("spec.template.metadata.labels", &value, detail);
            }
        }
    }
    metadata::labels(labels, "spec.template.labels", complaints);
    let spec = template.and_then(|t| t.get("spec"));
    pod::check(spec, "spec.template.spec", complaints);
    let restart = spec.map(|s| text(s, &["restartPolicy"])).unwrap_or_default();
    if matches!(restart, "OnFailure" | "Never") {
        complaints.unsupported("spec.template.spec.restartPolicy", &restart.into(), &["Always"]);
    }
}

/// Does the selector choose these labels?
fn selects(selector: &Value, labels: Option<&Value>) -> bool {
    let text_map = |value: Option<&Value>| -> Labels {
        let map = value.and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect()
    };
    let labels = text_map(labels);
    let expressions = list(selector, &["matchExpressions"]).iter().all(|e| {
        let value = labels.get(text(e, &["key"]));
        let among = || value.is_some_and(|v| list(e, &["values"]).iter().any(|w| w.as_str() == Some(v)));
        match text(e, &["operator"]) {
            "In" => among(),
            "NotIn" => !among(),
            "Exists" => value.is_some(),
            _ => value.is_none(),
        }
    });
    Selector::from_labels(&text_map(selector.get("matchLabels"))).matches(&labels) && expressions
}

pub(super) fn config_map(object: &Value, complaints: &mut Complaints) {
    for field in ["data", "binaryData"] {
        for key in at(object, &[field]).and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if key.is_empty() || key.len() > 253 || !key.chars().all(plain) {
                let detail = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                              'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                              '[-._a-zA-Z0-9]+')";
                complaints.invalid(&format!("{field}[{key}]"), &key.as_str().into(), detail);
            }
        }
    }
}
