//! Pods as `kubectl apply` makes them, with the clock running.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::ready;

/// So long a pod may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Pods {
    api: Api<Pod>,
    client: Client,
}

type Events = BoxStream<'static, Result<Event<Pod>, watcher::Error>>;

impl Pods {
    pub async fn new(kubeconfig: &Path) -> Result<Self> {
        let client = client(kubeconfig).await?;
        Ok(Self { api: Api::default_namespaced(client.clone()), client })
    }

    /// One pod, from the answer to the POST until a watch shows it Ready.
    pub async fn ready(&self, times: &mut Vec<Duration>, name: &str, probed: bool) -> Result<()> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher(self.api.clone(), config).boxed();
        while !matches!(next(&mut events).await?, Event::InitDone) {}
        self.api.create(&PostParams::default(), &serde_json::from_value(pod(name, probed))?).await?;
        let began = Instant::now();
        loop {
            if let Event::Apply(pod) = next(&mut events).await?
                && ready::pod(&pod)
            {
                times.push(began.elapsed());
                return Ok(());
            }
        }
    }

    /// One request over the connection that stands: what any word with the API costs.
    pub async fn round_trip(&self) -> Result<Duration> {
        let services: Api<k8s_openapi::api::core::v1::Service> = Api::default_namespaced(self.client.clone());
        let began = Instant::now();
        services.get("kubernetes").await?;
        Ok(began.elapsed())
    }

    /// The pod's node, address, and the name that its kept network namespace has there (in the first sandbox).
    pub async fn place(&self, name: &str) -> Result<(String, String, String)> {
        let pod = self.api.get(name).await?;
        let uid = pod.uid().context("a pod has a uid")?;
        let node = pod.spec.and_then(|spec| spec.node_name).context("a Ready pod has a node")?;
        let address = pod.status.and_then(|status| status.pod_ip).context("a Ready pod has an address")?;
        Ok((node, address, format!("plumb-{uid}-0")))
    }

    /// In front of all probed pods.
    pub async fn service(&self) -> Result<()> {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "bench" },
            "spec": { "selector": { "probed": "true" }, "ports": [{ "port": 8080 }] },
        });
        let services: Api<k8s_openapi::api::core::v1::Service> = Api::default_namespaced(self.client.clone());
        services.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// More pods of the second kind until there are so many, and waits until all are Ready.
    pub async fn fill(&self, have: u32, want: u32) -> Result<()> {
        for number in have..want {
            let object = pod(&format!("more-{number}"), true);
            self.api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        }
        for number in want..have {
            let kind = if number % 2 == 0 { "unprobed" } else { "probed" };
            self.api.delete(&format!("{kind}-{}", number / 2), &DeleteParams::default()).await?;
        }
        let mut events = watcher(self.api.clone(), watcher::Config::default()).boxed();
        let mut ready = std::collections::BTreeSet::new();
        while ready.len() != want as usize {
            match next(&mut events).await? {
                Event::Apply(pod) | Event::InitApply(pod)
                    if ready::pod(&pod) && pod.metadata.deletion_timestamp.is_none() =>
                {
                    ready.insert(pod.name_any());
                }
                Event::Apply(pod) | Event::Delete(pod) | Event::InitApply(pod) => {
                    ready.remove(&pod.name_any());
                }
                Event::Init | Event::InitDone => {}
            }
        }
        Ok(())
    }
}

async fn next(events: &mut Events) -> Result<Event<Pod>> {
    let next = tokio::time::timeout(PATIENCE, events.next()).await;
    let event = next.with_context(|| format!("no pod became Ready within {PATIENCE:?}"))?;
    Ok(event.context("the watch ended")??)
}

fn pod(name: &str, probed: bool) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "probed": probed.to_string() } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "demo", "image": "plumb.local/demo", "args": ["serve", "--http", "8080"],
                "ports": [{ "name": "http", "containerPort": 8080 }],
            }],
        },
    });
    if probed {
        object["spec"]["containers"][0]["readinessProbe"] =
            json!({ "httpGet": { "path": "/readyz", "port": "http" }, "periodSeconds": 5 });
    }
    object
}

pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let at = || format!("the kubeconfig {}", kubeconfig.display());
    let file = watch::kubeconfig(kubeconfig).with_context(at)?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    // Environment proxies are for the way out, never for the loopback.
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}
