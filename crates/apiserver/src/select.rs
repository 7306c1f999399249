//! `labelSelector` and `fieldSelector`: which objects a list or watch is about.

use serde_json::Value;
use types::Selector;

use crate::kind::Kind;
use crate::status::Failure;
use crate::store::{Key, Stored};

/// What one list or watch wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: Selector,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug)]
struct FieldTerm {
    field: String,
    value: String,
    equal: bool,
}

impl Selection {
    pub(crate) fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = Selector::parse(labels)
            .map_err(|e| Failure::bad_request(format!("unable to parse requirement: {e}")))?;
        let fields = fields
            .split(',')
            .filter(|term| !term.is_empty())
            .map(|term| parse_term(kind, term))
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.requirements.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, key: &Key, stored: &Stored) -> bool {
        self.labels.matches(&stored.labels)
            && self.fields.iter().all(|term| {
                let value = match term.field.as_str() {
                    "metadata.name" => key.name.as_str(),
                    "metadata.namespace" => key.namespace.as_str(),
                    field => stored.fields.iter().find(|(f, _)| *f == field).map_or("", |(_, v)| v.as_str()),
                };
                (value == term.value) == term.equal
            })
    }
}

fn parse_term(kind: &Kind, term: &str) -> Result<FieldTerm, Failure> {
    let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
        (field, value, false)
    } else if let Some((field, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (field, value, true)
    } else {
        return Err(Failure::bad_request(format!(
            "invalid field selector: {term:?}; can't understand '{term}'"
        )));
    };
    let known = ["metadata.name", "metadata.namespace"];
    let is_for_us = field == crate::clusterip::ADDRESSES;
    if is_for_us || !known.contains(&field) && !kind.fields.contains(&field) {
        let message = format!("field label not supported: {field}");
        return Err(Failure::bad_request(message));
    }
    Ok(FieldTerm { field: field.to_owned(), value: value.to_owned(), equal })
}

/// A selectable field's value as text; absent is what the type's zero value prints as.
pub(crate) fn field_text(object: &Value, path: &str) -> String {
    let value = path.split('.').try_fold(object, |value, step| value.get(step));
    match (value, path) {
        (Some(Value::String(text)), _) => text.clone(),
        (Some(Value::Object(source)), "source") => {
            source.get("component").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        (Some(other), _) => other.to_string(),
        (None, "spec.hostNetwork" | "spec.unschedulable") => "false".to_owned(),
        (None, "status.replicas") => "0".to_owned(),
        (None, _) => String::new(),
    }
}
