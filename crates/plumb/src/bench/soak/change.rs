//! One change after the other, each of the next kind; so many objects of each kind live at any time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::ready;

const NAMESPACE: &str = "soak";
/// Objects of each kind that live at the same time; a pod lives for as many seconds.
const LIVING: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(60);
const CALLER: &str = "caller";

pub struct Changer {
    client: Client,
    image: String,
    steps: u32,
    changes: u32,
}

impl Changer {
    /// The traffic runs when it is made.
    pub async fn new(client: Client, image: &str) -> Result<Self> {
        let changer = Self { client, image: image.to_owned(), steps: 0, changes: 0 };
        let namespaces: Api<Namespace> = Api::all(changer.client.clone());
        let namespace = json!({ "metadata": { "name": NAMESPACE } });
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        changer.wait_account().await?;
        changer.create::<Service>(service("echo", "server")).await?;
        let server = changer.pod("server", "server", &["serve", "--http", "8080"]);
        changer.create::<Pod>(server).await?;
        changer.ready("server").await?;
        let call = ["loop", "http://echo:8080/", "--every", "50", "--timeout", "30"];
        changer.create::<Pod>(changer.pod(CALLER, CALLER, &call)).await?;
        changer.ready(CALLER).await?;
        Ok(changer)
    }

    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// Ten kinds of step, each once a second.
    pub async fn step(&mut self) -> Result<()> {
        let (kind, number) = (self.steps % 10, self.steps / 10);
        self.steps += 1;
        let new = format!("s{number}");
        // Before the first ones are old nothing goes.
        let old = number.checked_sub(LIVING).map(|number| format!("s{number}"));
        match (kind, old) {
            (0, _) => self.create::<Pod>(self.pod(&new, "soak", &["serve", "--http", "8080"])).await?,
            (1, _) => self.create::<Service>(service(&new, "soak")).await?,
            (2, _) => self.create::<NetworkPolicy>(policy(&new)).await?,
            (3, _) => {
                self.merge::<Service>(&new, &json!({ "spec": { "sessionAffinity": "ClientIP" } })).await?
            }
            (4, _) => self.merge::<NetworkPolicy>(&new, &json!({ "spec": { "ingress": [] } })).await?,
            (5, Some(old)) => self.leave(&old).await?,
            (6, Some(old)) => self.delete::<Service>(&old).await?,
            (7, Some(old)) => self.delete::<NetworkPolicy>(&old).await?,
            (8, _) => self.merge::<Service>("echo", &label(number)).await?,
            (9, _) => self.merge::<Pod>(&new, &label(number)).await?,
            (_, None) | (10.., _) => return Ok(()),
        }
        self.changes += 1;
        Ok(())
    }

    /// A pod had as many seconds as there are pods to become Ready; a busy machine is given more.
    async fn leave(&self, name: &str) -> Result<()> {
        let wait = await_condition(self.api::<Pod>(), name, |pod: Option<&Pod>| pod.is_some_and(ready::pod));
        let ready = tokio::time::timeout(PATIENCE, wait).await;
        self.delete::<Pod>(name).await?;
        ready.with_context(|| format!("pod {name} was not Ready when it had to go"))??;
        Ok(())
    }

    /// Calls of the Service that were not answered; the traffic must have run to the end.
    pub async fn failed_calls(&self) -> Result<Vec<String>> {
        let log = self.api::<Pod>().logs(CALLER, &LogParams::default()).await?;
        ensure!(!log.is_empty(), "the caller has made no calls");
        let failed = log.lines().filter(|line| line.split(' ').nth(1) != Some("200"));
        let mut failed: Vec<String> = failed.map(|line| format!("call: {line}")).collect();
        let phase = self.api::<Pod>().get(CALLER).await?.status.and_then(|status| status.phase);
        if phase.as_deref() != Some("Running") {
            failed.push(format!("the caller is {}", phase.unwrap_or_default()));
        }
        Ok(failed)
    }

    pub async fn clean_up(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
        let end = Instant::now() + PATIENCE;
        while namespaces.get_opt(NAMESPACE).await?.is_some() {
            if Instant::now() > end {
                bail!(
                    "namespace {NAMESPACE} is not gone after {PATIENCE:?}; kubectl describe namespace {NAMESPACE}"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// The controller makes it a moment after the namespace; pods are refused before.
    async fn wait_account(&self) -> Result<()> {
        let there = |account: Option<&ServiceAccount>| account.is_some();
        let wait = await_condition(self.api::<ServiceAccount>(), "default", there);
        tokio::time::timeout(PATIENCE, wait).await.context("no default ServiceAccount")??;
        Ok(())
    }

    async fn ready(&self, name: &str) -> Result<()> {
        let wait = await_condition(self.api::<Pod>(), name, conditions::is_pod_running());
        tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("pod {name} does not run"))??;
        Ok(())
    }

    fn pod(&self, name: &str, app: &str, args: &[&str]) -> Value {
        json!({
            "metadata": { "name": name, "labels": { "app": app } },
            "spec": {
                "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent", "args": args,
                }],
            },
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn create<K: Kind>(&self, object: Value) -> Result<()> {
        self.api::<K>().create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    async fn merge<K: Kind>(&self, name: &str, change: &Value) -> Result<()> {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<()> {
        self.api::<K>().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// What is changed here.
trait Kind:
    kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + serde::Serialize
    + serde::de::DeserializeOwned
{
}

impl Kind for Pod {}
impl Kind for Service {}
impl Kind for NetworkPolicy {}

fn label(number: u32) -> Value {
    json!({ "metadata": { "labels": { "turn": format!("t{number}") } } })
}

fn service(name: &str, app: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "selector": { "app": app }, "ports": [{ "port": 8080 }] } })
}

/// Isolates the pods that come and go, never the traffic.
fn policy(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "podSelector": { "matchLabels": { "app": "soak" } },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "turn": "t1" } } }], "ports": [{ "port": 8080 }] }],
        },
    })
}
