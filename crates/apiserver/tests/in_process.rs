//! The service in process, as the controllers use it: kube-rs against a store in memory.

use std::sync::Arc;

use apiserver::{Api, Config, NoNodes, Store};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::api::{
    Api as Resource, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;

fn client() -> kube::Client {
    let config = Config {
        advertised: ([192, 168, 1, 2], 6443).into(),
        nodes: Arc::new(NoNodes),
        credentials: None,
        families: types::Families::Dual,
    };
    let api = Api::new(Store::in_memory(), config).expect("seeds");
    kube::Client::new(api, "default")
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "host", "command": ["true"]}]}}))
    .expect("a pod")
}

#[tokio::test]
async fn what_every_cluster_has_is_there() {
    let client = client();
    let namespaces: Resource<Namespace> = Resource::all(client.clone());
    let names: Vec<_> = namespaces
        .list(&ListParams::default())
        .await
        .expect("list")
        .into_iter()
        .filter_map(|n| n.metadata.name)
        .collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    let services: Resource<Service> = Resource::all(client);
    let addresses: Vec<_> = services
        .list(&ListParams::default())
        .await
        .expect("list")
        .into_iter()
        .filter_map(|s| s.spec?.cluster_ip)
        .collect();
    assert_eq!(addresses, ["10.96.0.1", "10.96.0.10"]);
}

#[tokio::test]
async fn a_watch_sees_what_is_written() {
    let pods: Resource<Pod> = Resource::default_namespaced(client());
    let listed = pods.list(&ListParams::default()).await.expect("list");
    let from = listed.metadata.resource_version.expect("a revision");
    let params = WatchParams::default().labels("app=web").timeout(20);
    let mut events = pods.watch(&params, &from).await.expect("watch").boxed();
    pods.create(&PostParams::default(), &pod("web")).await.expect("create");
    pods.create(&PostParams::default(), &pod("other")).await.expect("create");
    let label = json!({"metadata": {"labels": {"app": "gone"}}});
    pods.patch("web", &PatchParams::default(), &Patch::Merge(&label)).await.expect("patch");
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await.expect("event") {
        seen.push(match event {
            WatchEvent::Added(pod) => format!("added {}", pod.metadata.name.unwrap_or_default()),
            WatchEvent::Deleted(pod) => {
                let label = pod.metadata.labels.unwrap_or_default();
                format!("deleted with app={}", label.get("app").cloned().unwrap_or_default())
            }
            other => format!("{other:?}"),
        });
        if seen.len() == 2 {
            break;
        }
    }
    assert_eq!(seen, ["added web", "deleted with app=web"]);
}

#[tokio::test]
async fn objects_live_and_die() {
    let client = client();
    let maps: Resource<ConfigMap> = Resource::default_namespaced(client.clone());
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"generateName": "m-"}, "data": {"a": "1"}}))
            .expect("a map");
    let made = maps.create(&PostParams::default(), &map).await.expect("create");
    let name = made.metadata.name.clone().expect("a name");
    assert!(name.len() == 7 && name.starts_with("m-"), "{name}");
    let mut changed = made.clone();
    changed.data = Some([("a".to_owned(), "2".to_owned())].into());
    maps.replace(&name, &PostParams::default(), &changed).await.expect("replace");
    let stale = maps.replace(&name, &PostParams::default(), &made).await.expect_err("stale");
    assert!(matches!(stale, kube::Error::Api(status) if status.code == 409));
    maps.delete(&name, &DeleteParams::default()).await.expect("delete");
    assert_eq!(maps.get_opt(&name).await.expect("get"), None);

    let pods: Resource<Pod> = Resource::default_namespaced(client);
    let mut bound = pod("web");
    bound.spec.as_mut().expect("spec").node_name = Some("node1".to_owned());
    pods.create(&PostParams::default(), &bound).await.expect("create");
    pods.delete("web", &DeleteParams::default()).await.expect("delete");
    let dying = pods.get("web").await.expect("it waits for the kubelet");
    assert_eq!(dying.metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("web", &DeleteParams::default().grace_period(0)).await.expect("the kubelet's delete");
    assert_eq!(pods.get_opt("web").await.expect("get"), None);
}

#[tokio::test]
async fn an_event_written_in_the_new_group_is_read_in_the_old_one() {
    use k8s_openapi::api::core::v1::Event as Old;
    use k8s_openapi::api::events::v1::Event as New;
    let client = client();
    let new: Resource<New> = Resource::default_namespaced(client.clone());
    let event: New = serde_json::from_value(json!({"metadata": {"generateName": "web."}, "note": "Started",
        "reason": "Started", "type": "Normal", "action": "Start", "reportingController": "plumb.dev/kubelet",
        "reportingInstance": "node1", "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"kind": "Pod", "name": "web", "namespace": "default"}}))
    .expect("an event");
    let made = new.create(&PostParams::default(), &event).await.expect("create");
    assert_eq!(made.note.as_deref(), Some("Started"));
    let old: Resource<Old> = Resource::default_namespaced(client);
    let about = ListParams::default().fields("involvedObject.name=web,involvedObject.kind=Pod");
    let read = old.list(&about).await.expect("list");
    let messages: Vec<_> = read.iter().filter_map(|e| e.message.as_deref()).collect();
    assert_eq!(messages, ["Started"]);
    let name = made.metadata.name.expect("a name");
    let patch = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:05.000000Z"}});
    let again = new.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("patch");
    assert_eq!((again.note.as_deref(), again.series.map(|s| s.count)), (Some("Started"), Some(2)));
}

#[tokio::test]
async fn a_pod_is_bound_once_and_its_status_has_a_door_of_its_own() {
    let pods: Resource<Pod> = Resource::default_namespaced(client());
    pods.create(&PostParams::default(), &pod("web")).await.expect("create");
    let binding = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "node1"}});
    let params = PostParams::default();
    let bind = || pods.create_subresource::<_, serde_json::Value>("binding", "web", &params, &binding);
    bind().await.expect("bound");
    assert!(matches!(bind().await.expect_err("once"), kube::Error::Api(status) if status.code == 409));
    let status =
        json!({"spec": {"nodeName": "other"}, "status": {"phase": "Running", "podIP": "10.244.1.2"}});
    pods.patch_status("web", &PatchParams::default(), &Patch::Merge(&status)).await.expect("status");
    let plain = json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"a": "b"}}});
    pods.patch("web", &PatchParams::default(), &Patch::Merge(&plain)).await.expect("patch");
    let read = pods.get("web").await.expect("get");
    assert_eq!(read.spec.and_then(|s| s.node_name).as_deref(), Some("node1"));
    assert_eq!(read.status.and_then(|s| s.phase).as_deref(), Some("Running"));
}

async fn made(services: &Resource<Service>, name: &str, spec: serde_json::Value) -> Result<Service, String> {
    let service =
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a service");
    services.create(&PostParams::default(), &service).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn node_ports_are_numbered_kept_and_refused_as_users_know_it() {
    let services: Resource<Service> = Resource::default_namespaced(client());
    let spec = json!({"type": "NodePort", "ports": [
        {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053},
        {"name": "tcp", "port": 53, "nodePort": 30053}, {"name": "web", "port": 80}]});
    let first = made(&services, "first", spec).await.expect("one number for two protocols of one Service");
    let ports = first.spec.and_then(|s| s.ports).expect("ports");
    assert!(ports[2].node_port.is_some_and(|n| (30_000..=32_767).contains(&n)), "{ports:?}");
    for (number, protocol, words) in [
        (30_053, "SCTP", "spec.ports[0].nodePort: Invalid value: 30053: provided port is already allocated"),
        (
            80,
            "TCP",
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of \
                     valid ports is 30000-32767",
        ),
    ] {
        let ports = json!([{"port": 80, "nodePort": number, "protocol": protocol}]);
        let error = made(&services, "second", json!({"type": "NodePort", "ports": ports}))
            .await
            .expect_err("refused");
        assert!(error.contains(words), "{error}");
    }
    let twice =
        json!([{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30080}]);
    let error =
        made(&services, "second", json!({"type": "NodePort", "ports": twice})).await.expect_err("refused");
    assert!(error.contains("spec.ports[1].nodePort: Duplicate value: 30080"), "{error}");
    // N-04
    let none =
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
    let none = made(&services, "third", none).await.expect("made").spec.and_then(|s| s.ports).expect("ports");
    assert_eq!(none[0].node_port, None);
}

/// SVC-07: what belongs to the former type alone goes with it, and the rest stays.
#[tokio::test]
async fn a_service_changes_its_type_by_a_patch_of_the_type() {
    let services: Resource<Service> = Resource::default_namespaced(client());
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let spec = made(&services, "web", spec).await.expect("made").spec.expect("a spec");
    let (address, number) = (spec.cluster_ip.clone(), spec.ports.expect("ports")[0].node_port);
    assert!(spec.health_check_node_port.is_some_and(|n| (30_000..=32_767).contains(&n) && Some(n) != number));
    let patch = async |spec: serde_json::Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        services.patch("web", &PatchParams::default(), &patch).await.expect("patch").spec.expect("a spec")
    };
    let node = patch(json!({"type": "NodePort"})).await;
    assert_eq!((node.cluster_ip, node.external_traffic_policy.as_deref()), (address.clone(), Some("Local")));
    assert_eq!((node.ports.expect("ports")[0].node_port, node.health_check_node_port), (number, None));
    let plain = patch(json!({"type": "ClusterIP"})).await;
    assert_eq!((plain.cluster_ip, plain.external_traffic_policy), (address, None));
    assert_eq!(plain.ports.expect("ports")[0].node_port, None);
    let external = patch(json!({"type": "ExternalName", "externalName": "example.com"})).await;
    assert_eq!((external.cluster_ip, external.ip_families), (None, None));
    let again = patch(json!({"type": "ClusterIP", "externalName": null})).await;
    assert!(again.cluster_ip.is_some_and(|ip| ip.starts_with("10.")));
}
