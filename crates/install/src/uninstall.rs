//! `plumb uninstall`: agents first, then what they made on each node, then what let them.
//!
//! ```text
//!   DaemonSet's node selector matches no node ─ agents end ─ a short pod cleans each node ─ objects go, DaemonSet last
//!      (it stays to tell the next run         │             │
//!       what the agents were told)            └─────────────┴ a node does not answer: named, the objects stay
//! ```

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use model::Announced;
use serde_json::json;
use watch::Misused;

use crate::connect::explain;
use crate::given;
use crate::install::Target;
use crate::jobs::{self, Job, Outcome};
use crate::manifest::{self, LABEL, NAME, NAMESPACE};
use crate::objects::{self, Presence};
use crate::progress;
use crate::settings::Settings;

/// `plumb uninstall`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Nodes that will never come back: nothing is done on them
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
}

pub async fn uninstall(args: &Args) -> Result<ExitCode> {
    given::image(&args.target).map_err(Misused::of)?;
    let (client, server) = args.target.reach.connect_to_cluster().await?;
    println!("Cluster {server}");
    let mut settings = of_cluster(&client).await?;
    args.target.image(&mut settings)?;
    let objects = manifest::objects(&settings);
    let (agents, rest): (Vec<_>, Vec<_>) = objects.iter().partition(|object| object["kind"] == "DaemonSet");
    for object in &agents {
        if objects::presence(&client, object).await? == Presence::Ours {
            send_away(&client).await?;
            println!("{} matches no node any more: agents end", objects::name_of(object));
        }
    }
    clean(&client, &settings, args).await?;
    for object in rest.into_iter().rev().chain(agents) {
        match objects::presence(&client, object).await? {
            Presence::Ours => {
                objects::delete(&client, object).await?;
                println!("Deleted {}", objects::name_of(object));
            }
            Presence::Foreign => println!("Left {}: it is not Plumb's", objects::name_of(object)),
            Presence::Absent => {}
        }
    }
    println!(
        "Nothing of Plumb is left{}. Pods keep addresses that lead nowhere until another network restarts them.",
        if args.without.is_empty() { "" } else { " but on the nodes that were given up" }
    );
    Ok(ExitCode::SUCCESS)
}

/// No node has this label. `plumb install` sets the selector anew.
const NOWHERE: &str = "plumb.dev/uninstalled";

/// Has the agents end. Their DaemonSet stays, since it is what tells how to clean up after them.
async fn send_away(client: &Client) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let selector = json!({ "spec": { "template": { "spec": { "nodeSelector": { NOWHERE: "yes" } } } } });
    let done = sets.patch(NAME, &PatchParams::default(), &Patch::Merge(selector)).await;
    done.map(drop).map_err(|error| explain(error, "DaemonSet kube-system/plumb"))
}

/// What the agents were told, so that they are cleaned up after with the same directories, addresses and image.
async fn of_cluster(client: &Client) -> Result<Settings> {
    // What was made or not, as was chosen, is looked for.
    let mut settings = Settings { service_monitor: "true".into(), ..Settings::default() };
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let set = sets.get_opt(NAME).await.map_err(|error| explain(error, "DaemonSet kube-system/plumb"))?;
    let set = set.filter(|set| set.labels().get(LABEL).is_some_and(|value| value == NAME));
    let Some(spec) = set.and_then(|set| set.spec?.template.spec) else { return Ok(settings) };
    for volume in spec.volumes.into_iter().flatten() {
        let path = volume.host_path.map(|host| host.path).unwrap_or_default();
        match volume.name.as_str() {
            "cni-bin" => settings.cni_bin_dir = path,
            "cni-conf" => settings.cni_conf_dir = path,
            "kubernetes" => settings.kubernetes_dir = path,
            _ => {}
        }
    }
    let Some(container) = spec.containers.into_iter().next() else { return Ok(settings) };
    settings.image = container.image.unwrap_or(settings.image);
    settings.image_pull_policy = container.image_pull_policy.unwrap_or(settings.image_pull_policy);
    for variable in container.env.into_iter().flatten() {
        let value = variable.value.unwrap_or_default();
        match variable.name.as_str() {
            "PLUMB_DNS_IP" => settings.dns_ip = value,
            "PLUMB_CLUSTER_CIDR" => settings.cluster_cidr = value,
            "PLUMB_SERVICE_CIDR" => settings.service_cidr = value,
            "PLUMB_SECURE_METRICS" => settings.secure_metrics = value,
            _ => {}
        }
    }
    Ok(settings)
}

/// Every node but those that were given up.
async fn clean(client: &Client, settings: &Settings, args: &Args) -> Result<()> {
    let patience = args.target.patience();
    let nodes: Api<Node> = Api::all(client.clone());
    let mut left = agents_end(client, &nodes, args, patience).await?;
    let listed = nodes.list(&ListParams::default()).await.map_err(|error| explain(error, "list nodes"))?;
    let names: Vec<String> = listed
        .iter()
        .map(ResourceExt::name_any)
        .filter(|name| !args.without.contains(name) && !left.contains_key(name))
        .collect();
    println!("Cleaning {} nodes, each by a short pod", names.len());
    let job = Job {
        word: "cleanup",
        command: vec!["/bin/plumb".into(), "node-cleanup".into()],
        env: manifest::environment(settings),
        mounts: manifest::agent_mounts(settings),
        host_pid: false,
    };
    let outcomes = jobs::run(client, settings, &job, &names, patience).await?;
    for name in names {
        let why = match outcomes.get(&name) {
            Some(Outcome::Done(_)) => {
                forget(&nodes, &name).await?;
                println!("  {name}: clean");
                continue;
            }
            Some(Outcome::Failed(said)) => said.trim_end().to_owned(),
            Some(Outcome::Stuck(why)) => why.clone(),
            None => "its kubelet has not taken the pod".into(),
        };
        left.insert(name, why);
    }
    if left.is_empty() {
        return Ok(());
    }
    let by_hand = by_hand(settings);
    let list: String = left
        .iter()
        .map(|(name, why)| {
            format!(
                "\n  {name}: {why}\n    mend it and run this again; or, where the machine runs and its kubelet does not, run \
                 `{by_hand}` on it, and give --without {name} here; or, if it never comes back, --without {name} alone"
            )
        })
        .collect();
    bail!("these nodes are not clean, and the objects of the installation stay until they are:{list}")
}

/// What does on a machine what the short pod does there.
fn by_hand(settings: &Settings) -> String {
    let usual = Settings::default();
    let mut command = format!("plumb node-cleanup --cni-bin-dir {}", settings.cni_bin_dir);
    for (flag, value, usual) in [
        ("--cni-conf-dir", &settings.cni_conf_dir, &usual.cni_conf_dir),
        ("--dns-ip", &settings.dns_ip, &usual.dns_ip),
    ] {
        if value != usual {
            command.push_str(&format!(" {flag} {value}"));
        }
    }
    command
}

const ASK: Duration = Duration::from_millis(500);

/// Waits until no agent runs. Nodes that cannot be cleaned, and why: those whose kubelet is silent, which nothing on
/// them hears of, and those whose agent has not ended in time.
async fn agents_end(
    client: &Client,
    nodes: &Api<Node>,
    args: &Args,
    patience: Duration,
) -> Result<BTreeMap<String, String>> {
    let until = Instant::now() + patience;
    loop {
        let listed =
            nodes.list(&ListParams::default()).await.map_err(|error| explain(error, "list nodes"))?;
        let agents = progress::agents(client).await?;
        let mut away = BTreeMap::new();
        let mut run = BTreeMap::new();
        for node in listed.iter().filter(|node| !args.without.contains(&node.name_any())) {
            let name = node.name_any();
            if progress::readiness(node).is_some_and(|ready| ready.status == "Unknown") {
                away.insert(name, "its kubelet does not answer".to_owned());
            } else if agents.iter().any(|(of, _)| *of == name) {
                run.insert(name, "its agent has not ended".to_owned());
            }
        }
        if run.is_empty() || Instant::now() >= until {
            away.extend(run);
            return Ok(away);
        }
        tokio::time::sleep(ASK).await;
    }
}

/// What its agent said of it on the Node.
async fn forget(nodes: &Api<Node>, name: &str) -> Result<()> {
    let nothing: BTreeMap<_, _> = Announced::default().annotations().into();
    let patch = Patch::Merge(json!({ "metadata": { "annotations": nothing } }));
    let done = nodes.patch_metadata(name, &PatchParams::default(), &patch).await;
    done.map(drop).map_err(|error| explain(error, &format!("node {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_cleaned_by_hand_with_what_its_agent_was_told() {
        assert_eq!(by_hand(&Settings::default()), "plumb node-cleanup --cni-bin-dir /opt/cni/bin");
        let k3s = Settings {
            cni_bin_dir: "/k3s/bin".into(),
            cni_conf_dir: "/k3s/net.d".into(),
            dns_ip: "10.43.0.10".into(),
            ..Settings::default()
        };
        let said = by_hand(&k3s);
        let right = "plumb node-cleanup --cni-bin-dir /k3s/bin --cni-conf-dir /k3s/net.d --dns-ip 10.43.0.10";
        assert_eq!(said, right);
    }
}
