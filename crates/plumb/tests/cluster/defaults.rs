//! The lab's API fills in what kube-apiserver fills in: the same objects, as either of the two would store them.

use std::sync::Arc;

use apiserver::{Api, Config, NoNodes, Store};
use serde_json::Value;

use crate::cluster::{self, Kubectl};

/// What says little, what says nothing with many words, and what says everything.
const OBJECTS: &str = include_str!("defaults/objects.yaml");

/// What is a decision of controllers or of admission plugins and no default, as JSON pointers: of a pod the priority, the
/// token of its account and two tolerations of the node's ends, of a Service its addresses.
const OTHERS: [&str; 12] = [
    "/metadata",
    "/spec/clusterIP",
    "/spec/clusterIPs",
    "/spec/ipFamilies",
    "/spec/ipFamilyPolicy",
    "/spec/healthCheckNodePort",
    "/spec/ports/0/nodePort",
    "/spec/priority",
    "/spec/preemptionPolicy",
    "/spec/tolerations",
    "/spec/volumes",
    "/spec/containers/0/volumeMounts",
];

fn without_others(mut object: Value) -> Value {
    for pointer in OTHERS {
        let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
        if let Some(Value::Object(map)) = object.pointer_mut(parent) {
            map.remove(field);
        }
    }
    object
}

/// What the lab's API would store.
async fn of_lab(client: &kube::Client, object: &Value, namespace: &str) -> Value {
    let kind = apiserver::kind::KINDS.into_iter().find(|kind| object["kind"] == kind.kind).expect("a kind");
    let group = if kind.group.is_empty() { "api/v1".to_owned() } else { format!("apis/{}/v1", kind.group) };
    let url = format!("/{group}/namespaces/{namespace}/{}?dryRun=All&fieldValidation=Strict", kind.plural);
    let request = http::Request::post(url).header("content-type", "application/json");
    let request = request.body(object.to_string().into_bytes()).expect("a request");
    client.request(request).await.unwrap_or_else(|error| panic!("{object}: {error}"))
}

#[test]
fn the_labs_api_fills_in_what_kube_apiserver_fills_in() {
    let ns = cluster::single().namespace("defaults");
    let config = Config {
        advertised: ([192, 168, 1, 2], 6443).into(),
        families: types::Families::Ipv4,
        nodes: Arc::new(NoNodes),
        credentials: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let objects: Vec<Value> = serde_saphyr::from_multiple(OBJECTS).expect("YAML");
    let mut differences = Vec::new();
    runtime.block_on(async {
        let client = kube::Client::new(Api::new(Store::in_memory(), config).expect("seeds"), "default");
        for object in &objects {
            let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
            let said = ns.kubectl_fed(&create, &object.to_string());
            assert!(said.ok, "{object}: {said:?}");
            let theirs = without_others(said.json());
            let ours = without_others(of_lab(&client, object, "default").await);
            if ours != theirs {
                let name = &object["metadata"]["name"];
                differences.push(format!("{} {name}\n  ours   {ours}\n  theirs {theirs}", object["kind"]));
            }
        }
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
