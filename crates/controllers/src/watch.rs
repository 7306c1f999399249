//! One watch per kind, all into one channel: the world has one writer.

use control::{Kind, Row};
use futures::StreamExt;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::mpsc;
use types::ObjectName;

/// What a watch saw.
#[derive(Debug)]
pub(crate) enum Seen {
    Applied(Kind, Box<Row>),
    Deleted(Kind, ObjectName, String),
    /// The whole kind as it is now, at the start and whenever the watch had to begin anew.
    Listed(Kind, Vec<Row>),
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version: kind.api_version().into(),
        kind: kind.name().into(),
        plural: kind.plural().into(),
    }
}

/// Watches a kind until nobody listens any more. A broken watch begins anew, with growing pauses.
pub(crate) async fn watch(client: kube::Client, kind: Kind, out: mpsc::Sender<Seen>) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource(kind));
    let mut stream = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut listing: Vec<Row> = Vec::new();
    while let Some(event) = stream.next().await {
        let seen = match event {
            Ok(watcher::Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listing.extend(row(kind, &object));
                continue;
            }
            Ok(watcher::Event::InitDone) => Seen::Listed(kind, std::mem::take(&mut listing)),
            Ok(watcher::Event::Apply(object)) => match row(kind, &object) {
                Some(row) => Seen::Applied(kind, Box::new(row)),
                // Better unknown than outdated.
                None => deleted(kind, object),
            },
            Ok(watcher::Event::Delete(object)) => deleted(kind, object),
            Err(error) => {
                tracing::warn!(%kind, %error, "controllers: watch broke off and begins anew");
                continue;
            }
        };
        if out.send(seen).await.is_err() {
            return;
        }
    }
}

fn deleted(kind: Kind, object: DynamicObject) -> Seen {
    let meta = object.metadata;
    let name = ObjectName::new(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    Seen::Deleted(kind, name, meta.uid.unwrap_or_default())
}

fn row(kind: Kind, object: &DynamicObject) -> Option<Row> {
    let value = serde_json::to_value(object).unwrap_or(Value::Null);
    Row::parse(kind, &value).inspect_err(|error| tracing::warn!(%error, "controllers: object left out")).ok()
}
