//! A cluster made of API objects, as the watch would tell them.

use model::{Cluster, Event, Kind, Row, from_k8s};
use serde_json::Value;

/// One object; `None` for what is no object of ours. Reads it exactly as the watch does.
fn row(object: &Value) -> Option<Row> {
    fn read<T: serde::de::DeserializeOwned>(object: &Value) -> Option<T> {
        serde_json::from_value(object.clone()).ok()
    }
    Some(match object.get("kind")?.as_str()? {
        "Node" => Row::Node(from_k8s::node(&read(object)?).row),
        "Namespace" => Row::Namespace(from_k8s::namespace(&read(object)?).row),
        "Pod" => Row::Pod(Box::new(from_k8s::pod(&read(object)?).row)),
        "Service" => Row::Service(Box::new(from_k8s::service(&read(object)?).row)),
        "EndpointSlice" => Row::EndpointSlice(from_k8s::endpoint_slice(&read(object)?).row?),
        "NetworkPolicy" => Row::Policy(Box::new(from_k8s::policy(&read(object)?).row)),
        _ => return None,
    })
}

/// The rows of a list of objects.
pub fn rows(objects: &Value) -> impl Iterator<Item = Row> + '_ {
    objects.as_array().into_iter().flatten().filter_map(row)
}

/// A cluster of which every list has ended.
pub fn listed(rows: impl IntoIterator<Item = Row>) -> Cluster {
    let mut cluster = Cluster::default();
    for kind in Kind::ALL {
        cluster.apply(Event::Start(kind));
    }
    for row in rows {
        cluster.apply(Event::Upsert(row));
    }
    for kind in Kind::ALL {
        cluster.apply(Event::Done(kind));
    }
    cluster
}
