//! The lab's own way to its API, with the user's kubeconfig.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::config::KubeConfigOptions;

use crate::rundir::RunDir;
use crate::serving;

/// A client with the administrator's token.
pub async fn admin(run: &RunDir) -> Result<Client> {
    let path = run.kubeconfig();
    let kubeconfig = watch::kubeconfig(&path).map_err(|why| {
        let (path, name) = (path.display(), run.name());
        anyhow!("read the lab's kubeconfig {path}: {why}; plumb lab up --name {name} writes it anew")
    })?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use {}", path.display()))?;
    // A lab is on this machine: what does not answer soon does not answer.
    (config.connect_timeout, config.read_timeout) = (Some(Duration::from_secs(2)), Some(serving::ANSWER));
    // What an agent answers that is not in order is an answer (503), which the library would ask for again until there is no
    // time left.
    config.default_retry = false;
    // Environment proxies are for the way out, never for the loopback.
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

/// Whether a pod says that it is Ready.
pub fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why a node is not Ready; `None` when it is.
pub fn not_ready(node: &Node) -> Option<String> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => Some(condition.message.clone().unwrap_or_else(|| "no reason given".into())),
        None => Some("its kubelet has not reported yet".into()),
    }
}
