//! A cluster of the tests: the embedded API in memory, the controllers, and kubelets that only tell statuses.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use apiserver::{Api, Config, NoNodes, Store};
use futures::StreamExt;
use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api as Resource, Client};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(20);

/// Everything that runs ends with this value.
pub struct Cluster {
    pub client: Client,
    tasks: JoinSet<()>,
}

impl Cluster {
    /// An API with controllers and two ready nodes, without kubelets.
    pub async fn start() -> Self {
        // RUST_LOG=controllers=debug shows what the controllers do.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let config = Config {
            advertised: ([192, 168, 1, 2], 6443).into(),
            families: Default::default(),
            nodes: Arc::new(NoNodes),
            credentials: None,
        };
        let api = Api::new(Store::in_memory(), config).expect("seeds");
        let client = Client::new(api, "default");
        let mut cluster = Self { client, tasks: JoinSet::new() };
        cluster.run_controllers();
        for name in ["node1", "node2"] {
            cluster.post("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
            let now = jiff::Timestamp::now().to_string();
            let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": now, "lastTransitionTime": now});
            cluster
                .patch(&format!("/api/v1/nodes/{name}/status"), json!({"status": {"conditions": [ready]}}))
                .await;
        }
        cluster.post("/api/v1/namespaces", json!({"metadata": {"name": "shop"}})).await;
        cluster
    }

    pub fn run_controllers(&mut self) {
        let running = controllers::run(self.client.clone(), controllers::Settings::default());
        self.tasks.spawn(async move {
            running.await;
        });
    }

    /// Ends controllers and kubelets; the API stays.
    pub fn stop(&mut self) {
        self.tasks.abort_all();
    }

    /// From now on bound pods become ready at once, and pods that are deleted end at once.
    pub fn run_kubelets(&mut self) {
        let client = self.client.clone();
        self.tasks.spawn(async move {
            let pods: Resource<Pod> = Resource::all(client.clone());
            let mut events = watcher(pods, watcher::Config::default()).boxed();
            while let Some(event) = events.next().await {
                if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
                    play(&client, &pod).await;
                }
            }
        });
    }

    pub async fn request(&self, method: Method, path: &str, body: Value) -> Result<Value, kube::Error> {
        request(&self.client, method, path, body).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.request(Method::GET, path, Value::Null).await.expect("get")
    }

    pub async fn gone(&self, path: &str) -> bool {
        matches!(self.request(Method::GET, path, Value::Null).await, Err(kube::Error::Api(s)) if s.code == 404)
    }

    pub async fn items(&self, path: &str) -> Vec<Value> {
        self.get(path).await["items"].as_array().cloned().unwrap_or_default()
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.request(Method::POST, path, body).await.expect("post")
    }

    pub async fn patch(&self, path: &str, body: Value) -> Value {
        self.request(Method::PATCH, path, body).await.expect("patch")
    }

    pub async fn delete(&self, path: &str, propagation: &str) {
        let options = json!({"propagationPolicy": propagation});
        self.request(Method::DELETE, path, options).await.expect("delete");
    }

    /// Asks until the answer is `Ok`; panics with the last `Err` at the deadline.
    pub async fn until<T, E: Debug>(&self, what: &str, ask: impl AsyncFn() -> Result<T, E>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut turns = tokio::time::interval(Duration::from_millis(2));
        loop {
            turns.tick().await;
            match ask().await {
                Ok(answer) => return answer,
                Err(why) if Instant::now() > deadline => panic!("{what}: {why:#?}"),
                Err(_) => {}
            }
        }
    }
}

async fn request(client: &Client, method: Method, path: &str, body: Value) -> Result<Value, kube::Error> {
    let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", media).body(body);
    client.request(request.expect("a request")).await
}

/// One kubelet's reaction to a pod. A pod that vanished in between is no failure.
async fn play(client: &Client, pod: &Pod) {
    let meta = &pod.metadata;
    let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return };
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    if meta.deletion_timestamp.is_some() {
        let _ = request(client, Method::DELETE, &path, json!({"gracePeriodSeconds": 0})).await;
        return;
    }
    let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    if !bound || pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some()) {
        return;
    }
    // No address is used twice, whichever kubelet gives it.
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let number = GIVEN.fetch_add(1, Ordering::Relaxed);
    let ip = format!("10.244.{}.{}", number / 250, number % 250 + 2);
    let now = jiff::Timestamp::now().to_string();
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]}});
    let _ = request(client, Method::PATCH, &format!("{path}/status"), status).await;
}
