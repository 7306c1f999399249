//! In which form the client wants objects: whole, only their metadata, or as a table for a terminal.

use http::HeaderMap;
use serde_json::{Value, json};

use crate::events;
use crate::kind::{Kind, NEW_EVENT};
use crate::query::Query;
use crate::status::Failure;
use crate::store::Stored;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Whole,
    Metadata,
    /// `includeObject=Object` carries whole objects in the rows; otherwise their metadata.
    Table {
        whole_objects: bool,
    },
}

impl Form {
    /// The first form of `Accept` that is had here.
    pub(crate) fn of(headers: &HeaderMap, query: &Query) -> Result<Self, Failure> {
        let accept = headers.get_all(http::header::ACCEPT);
        let accept: Vec<_> = accept.iter().filter_map(|value| value.to_str().ok()).collect();
        let accept = accept.join(",");
        if accept.trim().is_empty() {
            return Ok(Self::Whole);
        }
        for choice in accept.split(',') {
            let mut words = choice.split(';').map(str::trim);
            let media = words.next().unwrap_or_default();
            if !matches!(media, "application/json" | "application/*" | "*/*" | "text/plain") {
                continue;
            }
            match words.find_map(|word| word.strip_prefix("as=")) {
                None => return Ok(Self::Whole),
                Some("Table") => {
                    return Ok(Self::Table { whole_objects: query.get("includeObject") == "Object" });
                }
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Self::Metadata),
                Some(_) => {}
            }
        }
        Err(Failure::new(
            406,
            "NotAcceptable",
            format!("the lab's API answers in application/json only, not in {accept:?}"),
        ))
    }
}

/// The object as its kind's version shows it: Events are stored in one version and read in two.
pub(crate) fn shown(kind: &Kind, stored: &Stored) -> Result<Value, Failure> {
    let object = stored.value()?;
    Ok(if kind.group == NEW_EVENT.group { events::to_new(object) } else { object })
}

/// Stored bytes can be sent as they are.
pub(crate) fn is_stored_form(kind: &Kind) -> bool {
    kind.group != NEW_EVENT.group
}

/// Only the metadata of an object.
pub(crate) fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}
