//! Objects of any kind: applied, looked for, deleted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::connect::explain;
use crate::manifest::{LABEL, NAME};

/// `plumb install` owns the fields that it sets, and takes them from whoever set them before.
const MANAGER: &str = "plumb-install";

const ASK: Duration = Duration::from_millis(300);
/// Nothing but a finalizer of somebody's holds an object back so long.
const GOING: Duration = Duration::from_secs(60);

/// `daemonset/plumb`, as kubectl names it.
pub fn name_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    format!("{kind}/{}", object["metadata"]["name"].as_str().unwrap_or_default())
}

fn api(client: &Client, object: &Value) -> Result<(Api<DynamicObject>, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let plural = plural(&kind);
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &kind), &plural);
    let name = text(&object["metadata"]["name"]);
    let api = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    Ok((api, name))
}

/// All kinds of an installation have regular plurals.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

/// Whether it is there, and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Absent,
    Ours,
    Foreign,
}

pub async fn presence(client: &Client, object: &Value) -> Result<Presence> {
    let (api, name) = api(client, object)?;
    let found = match api.get(&name).await {
        Ok(found) => Some(found),
        // Of the object, or of its kind, which somebody's operator may not have brought.
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        Err(error) => return Err(explain(error, &name_of(object))),
    };
    Ok(match found {
        None => Presence::Absent,
        Some(found) if found.labels().get(LABEL).is_some_and(|value| value == NAME) => Presence::Ours,
        Some(_) => Presence::Foreign,
    })
}

pub async fn apply(client: &Client, object: &Value) -> Result<()> {
    let (api, name) = api(client, object)?;
    let params = PatchParams::apply(MANAGER).force();
    let applied = api.patch(&name, &params, &Patch::Apply(object)).await;
    applied.map(drop).map_err(|error| explain(error, &name_of(object)))
}

/// Deletes it and waits until it is gone. What it owns goes later: a pod of a node that is away only with the Node.
pub async fn delete(client: &Client, object: &Value) -> Result<()> {
    let (api, name) = api(client, object)?;
    let said = |error| explain(error, &name_of(object));
    match api.delete(&name, &DeleteParams::background()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        done => drop(done.map_err(said).context("it is still there")?),
    }
    let until = Instant::now() + GOING;
    loop {
        let Some(left) = api.get_opt(&name).await.map_err(said)? else { return Ok(()) };
        if Instant::now() >= until {
            bail!(
                "{}: it is deleted and does not go; its finalizers wait for somebody: {}",
                name_of(object),
                left.finalizers().join(", ")
            );
        }
        tokio::time::sleep(ASK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_asked_for_by_their_plurals() {
        for (kind, wanted) in [
            ("DaemonSet", "daemonsets"),
            ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
            ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
        ] {
            assert_eq!(plural(kind), wanted);
        }
    }
}
