//! Services with endpoints as API objects, and changes of them.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::bench::lab::pods;

const NAMESPACE: &str = "bench";
/// Requests under way at the same time while objects are made.
const TOGETHER: usize = 24;
const RATE: u32 = 10;

pub struct Load {
    client: Client,
    endpoints: u32,
    have: u32,
    changes: u32,
}

impl Load {
    pub async fn new(kubeconfig: &Path, endpoints: u32) -> Result<Self> {
        let client = pods::client(kubeconfig).await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = json!({ "metadata": { "name": NAMESPACE } });
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
        let dns = json!({
            "metadata": { "name": "kube-dns" },
            "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 53, "protocol": "UDP" }] },
        });
        services.create(&PostParams::default(), &serde_json::from_value(dns)?).await?;
        Ok(Self { client, endpoints, have: 0, changes: 0 })
    }

    fn slices(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// More Services until there are so many. They have no selector: no controller has a word in their endpoints.
    pub async fn fill(&mut self, want: u32) -> Result<()> {
        let (services, slices) = (Api::<Service>::namespaced(self.client.clone(), NAMESPACE), self.slices());
        let make = |number: u32| {
            let (services, slices, endpoints) = (services.clone(), slices.clone(), self.endpoints);
            async move {
                let post = PostParams::default();
                services.create(&post, &serde_json::from_value(service(number))?).await?;
                let slice = slice(number, &(0..endpoints).collect::<Vec<_>>());
                slices.create(&post, &serde_json::from_value(slice)?).await?;
                anyhow::Ok(())
            }
        };
        let all = futures::stream::iter(self.have..want).map(make).buffer_unordered(TOGETHER);
        all.try_collect::<()>().await?;
        self.have = want.max(self.have);
        Ok(())
    }

    /// One endpoint of another Service each time has another address. The time is that before the request.
    pub async fn change(&mut self) -> Result<Instant> {
        // Any spread over Services will do, as long as it is the same in every run.
        let of = self.changes.wrapping_mul(7919) % self.have.max(1);
        let mut addresses: Vec<u32> = (0..self.endpoints).collect();
        if let Some(first) = addresses.first_mut() {
            *first = FRESH + self.changes;
        }
        self.changes += 1;
        let endpoints = json!({ "endpoints": slice(of, &addresses)["endpoints"] });
        let began = Instant::now();
        let name = format!("s{of}-x7k2p");
        self.slices().patch(&name, &PatchParams::default(), &Patch::Merge(endpoints)).await?;
        Ok(began)
    }

    /// Ten changes a second for so long.
    pub async fn change_for(&mut self, time: Duration) -> Result<()> {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
        let end = Instant::now() + time;
        while Instant::now() < end {
            tick.tick().await;
            self.change().await?;
        }
        Ok(())
    }

    /// A pod of nothing but cluster.sh's own image, on this node.
    pub async fn pod(&self, name: &str, node: &str, host_network: bool) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        // The controller makes the ServiceAccount a moment after the namespace.
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(self.client.clone(), NAMESPACE);
        let end = Instant::now() + super::PATIENCE;
        while accounts.get_opt("default").await?.is_none() && Instant::now() < end {
            tokio::time::sleep(super::LOOK).await;
        }
        let pod = json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": node, "hostNetwork": host_network, "terminationGracePeriodSeconds": 0,
                "tolerations": [{ "operator": "Exists" }], "automountServiceAccountToken": false,
                "containers": [{ "name": "pause", "image": "plumb.test/pause:1", "imagePullPolicy": "Never" }],
            },
        });
        api.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        Ok(())
    }

    /// Takes a pod away, and waits until its object is gone.
    pub async fn end(&self, name: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pod = api.get(name).await?;
        let uid = pod.metadata.uid.context("a pod has a uid")?;
        api.delete(name, &DeleteParams::default()).await?;
        let wait = kube::runtime::wait::await_condition(
            api,
            name,
            kube::runtime::wait::conditions::is_deleted(&uid),
        );
        let found = tokio::time::timeout(super::PATIENCE, wait).await;
        found.with_context(|| format!("pod {name} is not gone within {:?}", super::PATIENCE))??;
        Ok(())
    }

    /// When a pod was seen to be Ready.
    pub async fn ready(&self, name: &str) -> Result<Instant> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let wait = kube::runtime::wait::await_condition(
            api,
            name,
            kube::runtime::wait::conditions::is_pod_running(),
        );
        let found = tokio::time::timeout(super::PATIENCE, wait).await;
        found.with_context(|| format!("pod {name} does not run within {:?}", super::PATIENCE))??;
        Ok(Instant::now())
    }

    /// The node is registered, and has its pod CIDR.
    pub async fn node(&self, name: &str) -> Result<()> {
        let api: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        let registered = |node: Option<&k8s_openapi::api::core::v1::Node>| {
            node.is_some_and(|node| node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some()))
        };
        let wait = kube::runtime::wait::await_condition(api, name, registered);
        let found = tokio::time::timeout(super::PATIENCE, wait).await;
        found.with_context(|| format!("node {name} is not registered within {:?}", super::PATIENCE))??;
        Ok(())
    }
}

/// Numbers of addresses that nobody has at the start.
const FRESH: u32 = 0x8000;

fn service(number: u32) -> Value {
    json!({
        "metadata": { "name": format!("s{number}") },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

/// Endpoints whose address nobody has: no packet is ever sent to them here.
fn slice(number: u32, addresses: &[u32]) -> Value {
    let endpoint = |address: &u32| {
        let base = Ipv4Addr::new(10, 244, 0, 0).to_bits();
        let ip = Ipv4Addr::from_bits(base + ((number * 13 + address) & 0xffff));
        json!({ "addresses": [ip], "conditions": { "ready": true }, "nodeName": "node2" })
    };
    json!({
        "metadata": {
            "name": format!("s{number}-x7k2p"),
            "labels": { "kubernetes.io/service-name": format!("s{number}") },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
    })
}
