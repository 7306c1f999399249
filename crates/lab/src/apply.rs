//! `-f manifest…`: reads YAML or JSON, and applies it through the API.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::Scope;
use kube::{Client, ResourceExt};

/// One object of a manifest, and where it stands.
#[derive(Clone, Debug)]
pub struct Item {
    pub object: DynamicObject,
    kind: GroupVersionKind,
    origin: String,
}

impl Item {
    pub fn kind(&self) -> &str {
        &self.kind.kind
    }
}

/// `pod/web`, as kubectl names it.
impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, name) = (self.kind.kind.to_lowercase(), self.object.name_any());
        match self.kind.group.as_str() {
            "" => write!(f, "{kind}/{name}"),
            group => write!(f, "{kind}.{group}/{name}"),
        }
    }
}

/// All objects of the files, in order; read before anything is started.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for path in paths {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read the manifest {}", path.display()))?;
        items.extend(parse(path, &text)?);
    }
    Ok(items)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Item>> {
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(text).with_context(|| format!("{} is not valid YAML", path.display()))?;
    let mut items = Vec::new();
    for (number, document) in documents.into_iter().enumerate() {
        let origin = format!("{}, document {}", path.display(), number + 1);
        match document.get("items") {
            Some(serde_json::Value::Array(list)) if document.get("kind") == Some(&"List".into()) => {
                for object in list {
                    items.push(item(object.clone(), origin.clone())?);
                }
            }
            _ if document.is_null() => {}
            _ => items.push(item(document, origin)?),
        }
    }
    Ok(items)
}

fn item(value: serde_json::Value, origin: String) -> Result<Item> {
    let text =
        |pointer: &str| value.pointer(pointer).and_then(|text| text.as_str()).unwrap_or_default().to_owned();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    for (field, value) in [("apiVersion", &version), ("kind", &kind), ("metadata.name", &name)] {
        if value.is_empty() {
            bail!("{origin}: the object has no {field}");
        }
    }
    let kind = match version.split_once('/') {
        Some((group, version)) => GroupVersionKind::gvk(group, version, &kind),
        None => GroupVersionKind::gvk("", &version, &kind),
    };
    let object = serde_json::from_value(value).with_context(|| origin.clone())?;
    Ok(Item { object, kind, origin })
}

/// Creates the object, or merges the manifest into the one that is there; returns a line as kubectl prints it.
pub async fn apply(client: &Client, item: &Item) -> Result<String> {
    let (resource, capabilities) = kube::discovery::oneshot::pinned_kind(client, &item.kind)
        .await
        .with_context(|| format!("{}: kind {} is not served", item.origin, item.kind.kind))?;
    let name = item.object.name_any();
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = item.object.namespace().unwrap_or_else(|| "default".into());
            Api::namespaced_with(client.clone(), &namespace, &resource)
        }
    };
    let what = item.to_string();
    let refused = || format!("{}: {what}", item.origin);
    let Some(existing) = api.get_opt(&name).await.with_context(refused)? else {
        api.create(&PostParams::default(), &item.object).await.with_context(refused)?;
        return Ok(format!("{what} created"));
    };
    let merged =
        api.patch(&name, &PatchParams::default(), &Patch::Merge(&item.object)).await.with_context(refused)?;
    let changed = merged.resource_version() != existing.resource_version();
    Ok(format!("{what} {}", if changed { "configured" } else { "unchanged" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_and_lists_are_read_in_order() {
        let text = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: apps/v1\n  kind: Deployment\n  metadata: {name: b, namespace: a}\n";
        let items = parse(Path::new("x.yaml"), text).expect("valid");
        let kinds: Vec<_> =
            items.iter().map(|item| (item.kind.group.as_str(), item.object.name_any())).collect();
        assert_eq!(kinds, [("", "a".to_owned()), ("apps", "b".to_owned())]);
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        let error =
            parse(Path::new("x.yaml"), "kind: Pod\nmetadata: {name: a}\n").expect_err("no apiVersion");
        assert_eq!(error.to_string(), "x.yaml, document 1: the object has no apiVersion");
        assert!(parse(Path::new("x.yaml"), "a: [").is_err());
    }
}
