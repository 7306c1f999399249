//! The controllers against the embedded API, in one process, with kubelets played by the tests.

mod cluster;

use std::collections::BTreeMap;
use std::time::Instant;

use http::Method;
use serde_json::{Value, json};

use cluster::Cluster;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/shop/deployments";
const SETS: &str = "/apis/apps/v1/namespaces/shop/replicasets";
const PODS: &str = "/api/v1/namespaces/shop/pods";
const SERVICES: &str = "/api/v1/namespaces/shop/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const EVENTS: &str = "/api/v1/namespaces/shop/events";

fn deployment(name: &str, replicas: u32, version: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [
            {"name": "main", "image": "plumb.local/demo", "command": ["demo", version],
             "ports": [{"name": "http", "containerPort": 8080}]}]}}}})
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
}

/// What `kubectl rollout status` waits for.
fn rolled_out(deployment: &Value) -> Result<(), Value> {
    let status = &deployment["status"];
    let count = |key: &str| status[key].as_i64().unwrap_or(0);
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let done = count("observedGeneration") >= deployment["metadata"]["generation"].as_i64().unwrap_or(0)
        && count("updatedReplicas") >= wanted
        && count("replicas") <= count("updatedReplicas")
        && count("availableReplicas") >= count("updatedReplicas");
    if done { Ok(()) } else { Err(status.clone()) }
}

async fn wait_rolled_out(cluster: &Cluster, name: &str) {
    let path = format!("{DEPLOYMENTS}/{name}");
    cluster.until("rolled out", async || rolled_out(&cluster.get(&path).await)).await;
}

fn ready_addresses(slices: &[Value]) -> Vec<String> {
    let endpoints = slices.iter().filter_map(|s| s["endpoints"].as_array()).flatten();
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
    ready.filter_map(|e| e["addresses"][0].as_str().map(str::to_owned)).collect()
}

async fn wait_ready_addresses(cluster: &Cluster, n: usize) -> Vec<String> {
    cluster
        .until("ready endpoints", async || {
            let slices = cluster.items(SLICES).await;
            let ready = ready_addresses(&slices);
            if ready.len() == n { Ok(ready) } else { Err(slices) }
        })
        .await
}

#[tokio::test]
async fn a_deployment_becomes_pods_on_both_nodes_and_endpoints() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    cluster.post(SERVICES, service("pay")).await;
    cluster.post(DEPLOYMENTS, deployment("pay", 4, "v1")).await;
    wait_rolled_out(&cluster, "pay").await;
    let addresses = wait_ready_addresses(&cluster, 4).await;
    let pods = cluster.items(PODS).await;
    let mut per_node = BTreeMap::new();
    for pod in &pods {
        *per_node.entry(pod["spec"]["nodeName"].to_string()).or_insert(0) += 1;
        assert!(addresses.contains(&pod["status"]["podIP"].as_str().unwrap().to_owned()));
    }
    assert_eq!(per_node, BTreeMap::from([("\"node1\"".to_owned(), 2), ("\"node2\"".to_owned(), 2)]));
    let slices = cluster.items(SLICES).await;
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0]["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
    let found = cluster.get(&format!("{DEPLOYMENTS}/pay")).await;
    assert_eq!(found["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let reasons: Vec<Value> = cluster.items(EVENTS).await.iter().map(|e| e["reason"].clone()).collect();
    for reason in ["ScalingReplicaSet", "SuccessfulCreate", "Scheduled"] {
        assert!(reasons.contains(&json!(reason)), "{reason} in {reasons:?}");
    }
}

#[tokio::test]
async fn nodes_get_their_numbered_prefix() {
    let cluster = Cluster::start().await;
    for (node, cidr) in [("node1", "10.244.1.0/24"), ("node2", "10.244.2.0/24")] {
        let path = format!("/api/v1/nodes/{node}");
        let spec = cluster
            .until("a pod CIDR", async || {
                let spec = cluster.get(&path).await["spec"].clone();
                if spec["podCIDR"].is_string() { Ok(spec) } else { Err(spec) }
            })
            .await;
        assert_eq!(spec["podCIDRs"], json!([cidr]));
    }
}

#[tokio::test]
async fn an_update_rolls_scales_and_rolls_back() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    let path = format!("{DEPLOYMENTS}/pay");
    cluster.post(DEPLOYMENTS, deployment("pay", 3, "v1")).await;
    wait_rolled_out(&cluster, "pay").await;
    let v1 = cluster.items(SETS).await[0].clone();
    let template =
        |version: &str| json!({"spec": {"template": deployment("pay", 3, version)["spec"]["template"]}});
    cluster.patch(&path, template("v2")).await;
    wait_rolled_out(&cluster, "pay").await;
    assert_eq!(cluster.items(SETS).await.len(), 2);
    cluster.patch(&format!("{path}/scale"), json!({"spec": {"replicas": 5}})).await;
    wait_rolled_out(&cluster, "pay").await;
    assert_eq!(cluster.items(PODS).await.len(), 5);
    cluster.patch(&path, template("v1")).await;
    wait_rolled_out(&cluster, "pay").await;
    let revived = cluster.get(&format!("{SETS}/{}", v1["metadata"]["name"].as_str().unwrap())).await;
    assert_eq!(revived["spec"]["replicas"], 5);
    assert_eq!(revived["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    let found = cluster.get(&path).await;
    let progressing =
        found["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Progressing");
    assert_eq!(progressing.unwrap()["reason"], "NewReplicaSetAvailable");
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why() {
    let cluster = Cluster::start().await;
    let pod = json!({"metadata": {"name": "lone"}, "spec": {"nodeSelector": {"disk": "ssd"},
        "containers": [{"name": "main", "image": "host", "command": ["true"]}]}});
    cluster.post(PODS, pod).await;
    let condition = cluster
        .until("a condition", async || {
            let status = cluster.get(&format!("{PODS}/lone")).await["status"].clone();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            conditions.into_iter().find(|c| c["type"] == "PodScheduled").ok_or(status)
        })
        .await;
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Unschedulable")));
    let message = condition["message"].as_str().unwrap();
    assert!(message.starts_with("0/2 nodes are available"), "{message}");
    cluster.patch("/api/v1/nodes/node2", json!({"metadata": {"labels": {"disk": "ssd"}}})).await;
    cluster
        .until("bound", async || {
            let pod = cluster.get(&format!("{PODS}/lone")).await;
            if pod["spec"]["nodeName"] == "node2" { Ok(()) } else { Err(pod) }
        })
        .await;
}

#[tokio::test]
async fn readiness_comes_and_goes_in_the_slices() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    cluster.post(SERVICES, service("pay")).await;
    cluster.post(DEPLOYMENTS, deployment("pay", 2, "v1")).await;
    wait_ready_addresses(&cluster, 2).await;
    let pod = cluster.items(PODS).await[0].clone();
    let status = format!("{PODS}/{}/status", pod["metadata"]["name"].as_str().unwrap());
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster.patch(&status, unready).await;
    let left = wait_ready_addresses(&cluster, 1).await;
    assert_ne!(json!(left[0]), pod["status"]["podIP"]);
    // A Service that goes takes its slices along.
    cluster.delete(&format!("{SERVICES}/pay"), "Background").await;
    cluster
        .until("no slices", async || {
            let slices = cluster.items(SLICES).await;
            if slices.is_empty() { Ok(()) } else { Err(slices) }
        })
        .await;
}

#[tokio::test]
async fn a_namespace_goes_with_everything_in_it() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    cluster.post(SERVICES, service("pay")).await;
    cluster.post(DEPLOYMENTS, deployment("pay", 2, "v1")).await;
    cluster.post("/api/v1/namespaces/shop/configmaps", json!({"metadata": {"name": "c"}})).await;
    wait_ready_addresses(&cluster, 2).await;
    cluster.delete("/api/v1/namespaces/shop", "Background").await;
    cluster
        .until("the namespace gone", async || {
            if cluster.gone("/api/v1/namespaces/shop").await {
                return Ok(());
            }
            Err((cluster.get("/api/v1/namespaces/shop").await, cluster.items(PODS).await))
        })
        .await;
    for path in [PODS, DEPLOYMENTS, SETS, SERVICES, SLICES, EVENTS] {
        assert_eq!(cluster.items(path).await, Vec::<Value>::new(), "{path}");
    }
    // The name is free again.
    cluster.post("/api/v1/namespaces", json!({"metadata": {"name": "shop"}})).await;
}

async fn wait_empty(cluster: &Cluster, path: &str) {
    cluster
        .until("nothing left", async || {
            let left = cluster.items(path).await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
}

#[tokio::test]
async fn deleting_a_deployment_collects_its_tree_in_all_three_ways() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    let path = format!("{DEPLOYMENTS}/pay");
    for propagation in ["Background", "Foreground"] {
        cluster.post(DEPLOYMENTS, deployment("pay", 2, "v1")).await;
        wait_rolled_out(&cluster, "pay").await;
        cluster.delete(&path, propagation).await;
        for left in [DEPLOYMENTS, SETS, PODS] {
            wait_empty(&cluster, left).await;
        }
    }
    cluster.post(DEPLOYMENTS, deployment("pay", 2, "v1")).await;
    wait_rolled_out(&cluster, "pay").await;
    cluster.delete(&path, "Orphan").await;
    wait_empty(&cluster, DEPLOYMENTS).await;
    let set = cluster.items(SETS).await[0].clone();
    assert!(set["metadata"].get("ownerReferences").is_none_or(|o| *o == json!([])), "{set}");
    assert_eq!(cluster.items(PODS).await.len(), 2);
    // The next Deployment of that selector adopts what was left.
    cluster.post(DEPLOYMENTS, deployment("pay", 2, "v1")).await;
    wait_rolled_out(&cluster, "pay").await;
    let sets = cluster.items(SETS).await;
    assert_eq!((sets.len(), &sets[0]["metadata"]["uid"]), (1, &set["metadata"]["uid"]));
}

#[tokio::test]
async fn controllers_that_come_later_find_their_work() {
    let mut cluster = Cluster::start().await;
    cluster.post(SERVICES, service("pay")).await;
    cluster.post(DEPLOYMENTS, deployment("pay", 2, "v1")).await;
    cluster.run_kubelets();
    wait_ready_addresses(&cluster, 2).await;
    cluster.stop();
    let pods = cluster.items(PODS).await;
    for pod in &pods {
        let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap());
        let now = json!({"gracePeriodSeconds": 0});
        cluster.request(Method::DELETE, &path, now).await.expect("delete");
    }
    cluster.run_controllers();
    cluster.run_kubelets();
    wait_rolled_out(&cluster, "pay").await;
    let addresses = wait_ready_addresses(&cluster, 2).await;
    let old: Vec<&str> = pods.iter().filter_map(|p| p["status"]["podIP"].as_str()).collect();
    assert!(addresses.iter().all(|a| !old.contains(&a.as_str())), "{addresses:?} after {old:?}");
}

/// The share that controllers have in "apply returned to pod Ready": generous here, because tests share
/// their machine; the benchmark measures it.
#[tokio::test]
async fn from_apply_to_endpoints_takes_well_under_a_second() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    cluster.post(SERVICES, service("warm")).await;
    cluster.post(DEPLOYMENTS, deployment("warm", 1, "v1")).await;
    wait_ready_addresses(&cluster, 1).await;
    cluster.post(SERVICES, service("pay")).await;
    cluster.post(DEPLOYMENTS, deployment("pay", 3, "v1")).await;
    let applied = Instant::now();
    wait_ready_addresses(&cluster, 4).await;
    let took = applied.elapsed();
    println!("deployment of 3 applied to 3 endpoints in the slice: {took:?}");
}
