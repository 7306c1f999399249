//! Manifests are tried on an API that nobody sees before a lab is started for them: what that one refuses the lab's would.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use apiserver::{Api, Config, NoNodes, Store};
use kube::{Client, ResourceExt};
use serde_json::json;
use types::Families;

use super::{Item, apply, refusal};
use crate::plan::API_PORT;

/// What is known of the objects that the lab will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// None but those of every cluster.
    All,
    /// It may have others: a namespace, or the rest of an object.
    Part,
}

/// What is wrong with the manifests as far as that can be known without the lab.
pub async fn rehearse(items: &[Item], families: Families, known: Known) -> Result<Vec<Error>> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let advertised = SocketAddr::from((Ipv4Addr::LOCALHOST, API_PORT));
    let config = Config { advertised, families, nodes: Arc::new(NoNodes), credentials: None };
    let api = Api::new(Store::in_memory(), config).context("look through the manifests")?;
    let client = Client::new(api, "default");
    let mut wrong = Vec::new();
    for item in items {
        if known == Known::Part {
            have_namespace(&client, item).await?;
        }
        match apply(&client, item).await {
            Err(error) if known == Known::All || is_malformed(&error) => {
                wrong.push(error);
            }
            _ => {}
        }
    }
    Ok(wrong)
}

async fn have_namespace(client: &Client, item: &Item) -> Result<()> {
    let Some(name) = item.object.namespace() else { return Ok(()) };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    // One whose name cannot be is told with the object.
    let _ = apply(client, &super::item(namespace, item.origin.clone())?).await;
    Ok(())
}

/// Whether it can be no object of its kind, such as one with a field that does not exist.
fn is_malformed(error: &anyhow::Error) -> bool {
    refusal(error) == Some(400)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(text: &str, known: Known) -> String {
        let tried = super::super::tests::found("x.yaml", text).rehearsed(Families::Ipv4, known).await;
        tried.map_or_else(|error| watch::told(error.as_ref()), |_| String::new())
    }

    #[tokio::test]
    async fn what_the_api_would_refuse_is_refused_before() {
        let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
        let head = "nothing was started or applied: x.yaml, document 2: ";
        for known in [Known::All, Known::Part] {
            assert_eq!(said(good, known).await, "");
            let unknown = said(&format!("{good}---\n{good}dada: {{}}\n"), known).await;
            assert!(unknown.starts_with(head) && unknown.contains("unknown field \"dada\""), "{unknown}");
            let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, x: 1}]}\n";
            let deep = said(&format!("{good}---\n{pod}"), known).await;
            assert!(deep.contains("unknown field \"spec.containers[0].x\""), "{deep}");
        }
    }

    #[tokio::test]
    async fn everything_that_the_api_would_refuse_is_told() {
        let bad = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndada: {}\n";
        let told = said(&format!("{bad}---\n{bad}"), Known::All).await;
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "nothing was started or applied: 2 errors", "{told}");
        for (line, number) in lines[1..].iter().zip(1..) {
            assert!(line.starts_with(&format!("  x.yaml, document {number}: configmap/a: ")), "{told}");
        }
        assert_eq!(lines.len(), 3, "{told}");
        // Beside what cannot even be read.
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n";
        let told = said(&format!("{secret}---\n{bad}"), Known::All).await;
        assert!(told.contains("2 errors") && told.contains("no objects of kind Secret"), "{told}");
        assert!(told.contains("unknown field \"dada\""), "{told}");
    }

    #[tokio::test]
    async fn what_the_lab_may_have_already_is_not_missed() {
        let there = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\n";
        assert_eq!(said(there, Known::Part).await, "");
        let missing = said(there, Known::All).await;
        assert!(missing.contains("shop") && missing.contains("not found"), "{missing}");
        let part = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app: a}}\n";
        assert_eq!(said(part, Known::Part).await, "");
        assert!(said(part, Known::All).await.contains("spec.ports"));
    }
}
