//! `plumb install`: look, say, apply, follow; nothing half done.
//!
//! ```text
//!   connect ─ cluster ─ nodes (a short pod each) ─ refuse? ─ say ─ apply ─ follow ─ every node works
//!      nothing is changed up to here ──────────────┘         │        └ a node does not: named, with its remedy
//!                                                            └ failed before any agent ran: taken back
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use kube::Client;
use model::ranges::joined;
use serde_json::Value;
use watch::Misused;

use crate::cluster::{self, Found, Wanted};
use crate::connect::{Reach, explain};
use crate::findings::Finding;
use crate::jobs::{self, Job, Outcome};
use crate::manifest::{self, NAMESPACE};
use crate::objects::{self, Presence};
use crate::settings::{Settings, is_on};
use crate::{files, given, progress};

/// `plumb install`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    pub target: Target,
    /// Print the objects with these settings, ask no cluster
    #[arg(long)]
    pub print: bool,
    /// Look and say what would be done, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Go on after an installation that stopped: no checks of nodes, apply and follow
    #[arg(long)]
    pub resume: bool,
    /// Go on in spite of what was found; the words are given with the findings
    #[arg(long, value_delimiter = ',')]
    pub accept: Vec<String>,
    #[command(flatten)]
    pub wanted: Wanted,
    /// MTU of pods [default: that of the node's interface, less the tunnel's headers]
    #[arg(long, value_parser = types::range::mtu)]
    pub mtu: Option<u32>,
    /// Addresses and prefixes that pods may send from beside their own, where their annotation
    /// plumb.dev/allowed-sources asks for it, with commas between [default: none]
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub allow_sources: String,
    /// Serve metrics by TLS alone, to those whose token may get /metrics
    #[arg(long)]
    pub secure_metrics: bool,
    /// Secret in kube-system with the certificate for that: tls.crt and tls.key, and ca.crt for Prometheus
    /// [default: each agent makes one for itself]
    #[arg(long, value_name = "SECRET", requires = "secure_metrics")]
    pub metrics_cert_secret: Option<String>,
    /// A Service and a ServiceMonitor as well, for a Prometheus operator
    #[arg(long)]
    pub service_monitor: bool,
    /// Where the container runtime looks for CNI executables
    #[arg(long, default_value = "/opt/cni/bin")]
    pub cni_bin_dir: String,
    /// Where the container runtime looks for CNI configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: String,
    /// Where nodes keep the kubelet's kubeconfig
    #[arg(long, default_value = "/etc/kubernetes")]
    pub kubernetes_dir: String,
    /// Write plumb.yaml and the chart into this directory
    #[arg(long, hide = true)]
    pub write_files: Option<PathBuf>,
}

/// What `install` and `uninstall` both ask for.
#[derive(Clone, Debug, ClapArgs)]
pub struct Target {
    #[command(flatten)]
    pub reach: Reach,
    /// The agents' image: a name, or an archive that was imported on every node (ctr -n k8s.io image import FILE)
    #[arg(long)]
    pub image: Option<String>,
    /// Seconds to wait for nodes [default: 120]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: Option<u64>,
}

impl Target {
    /// How long to wait for nodes.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(120))
    }

    /// An archive is on the nodes already, or nowhere: nobody is asked for it.
    pub fn image(&self, settings: &mut Settings) -> Result<()> {
        let Some(image) = &self.image else { return Ok(()) };
        let path = std::path::Path::new(image);
        if path.is_file() || image.ends_with(".tar") {
            settings.image = crate::image::name_of(path)?;
            settings.image_pull_policy = "Never".into();
        } else {
            settings.image.clone_from(image);
        }
        Ok(())
    }
}

pub async fn install(args: &Args) -> Result<ExitCode> {
    given::check(args).map_err(Misused::of)?;
    let mut settings = chosen(args)?;
    if args.print {
        given::fit(&settings).and_then(|()| given::plain(&mut settings)).map_err(Misused::of)?;
        print!("{}", files::yaml(&settings)?);
        return Ok(ExitCode::SUCCESS);
    }
    let (client, server) = args.target.reach.connect_to_cluster().await?;
    println!("Cluster {server}");
    let found = cluster::find(&client, &args.wanted).await?;
    fill(&mut settings, &found);
    given::apart(&settings)?;
    describe(&found, &settings);
    let objects = wanted_objects(&settings, &found);
    let mut findings = found.findings.clone();
    findings.extend(foreign(&client, &objects).await?);
    findings.extend(unknown_kind(&client, &settings).await?);
    // A cluster that cannot be is not worth pods on its nodes.
    let hopeless = findings.iter().any(|finding| !finding.is_accepted(&args.accept));
    if !hopeless && !args.resume {
        println!("Checking {} nodes, each by a short pod", found.nodes.len());
        findings.extend(check_nodes(&client, &settings, &found, args).await?);
    }
    refuse(&findings, &args.accept)?;
    for note in &found.notes {
        println!("Note: {note}");
    }
    println!("To apply: {}", joined(&objects.iter().map(objects::name_of).collect::<Vec<_>>()));
    if args.dry_run {
        println!("Nothing was changed (--dry-run)");
        return Ok(ExitCode::SUCCESS);
    }
    let made = apply_all(&client, &objects).await?;
    println!("Applied; each node's agent starts");
    finish(&client, &settings, args, &made).await
}

/// What the command line says; the rest comes from the cluster.
fn chosen(args: &Args) -> Result<Settings> {
    let mut settings = Settings {
        cni_bin_dir: args.cni_bin_dir.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
        kubernetes_dir: args.kubernetes_dir.clone(),
        mtu: args.mtu.unwrap_or(0).to_string(),
        allow_sources: given::list(&args.allow_sources),
        secure_metrics: args.secure_metrics.to_string(),
        metrics_cert_secret: args.metrics_cert_secret.clone().unwrap_or_default(),
        service_monitor: args.service_monitor.to_string(),
        ..Settings::default()
    };
    args.target.image(&mut settings)?;
    let wanted = &args.wanted;
    for (value, field) in [
        (&wanted.cluster_cidr, &mut settings.cluster_cidr),
        (&wanted.service_cidr, &mut settings.service_cidr),
        (&wanted.dns_ip, &mut settings.dns_ip),
        (&wanted.cluster_domain, &mut settings.cluster_domain),
        (&wanted.api_servers, &mut settings.api_servers),
    ] {
        if let Some(value) = value {
            field.clone_from(value);
        }
    }
    settings.api_servers = given::list(&settings.api_servers);
    Ok(settings)
}

fn fill(settings: &mut Settings, found: &Found) {
    settings.cluster_cidr = joined(&found.cluster_cidrs);
    settings.service_cidr = joined(&found.service_cidrs);
    settings.dns_ip = joined(&found.dns_ips);
    settings.cluster_domain.clone_from(&found.cluster_domain);
    settings.api_servers = joined(&found.api_servers);
}

fn describe(found: &Found, settings: &Settings) {
    let doing =
        if found.installed { "Plumb is installed and will be brought up to date" } else { "no Plumb yet" };
    println!("  Kubernetes {}, {} nodes, {doing}", found.version, found.nodes.len());
    println!("  pods {}, Services {}", settings.cluster_cidr, settings.service_cidr);
    println!(
        "  names at {} in {}, API at {}",
        settings.dns_ip, settings.cluster_domain, settings.api_servers
    );
    println!("  image {} ({})", settings.image, settings.image_pull_policy);
}

fn wanted_objects(settings: &Settings, found: &Found) -> Vec<Value> {
    let mut objects = manifest::objects(settings);
    objects.retain(|object| !(found.foreign_dns && files::is_dns_service(object)));
    objects
}

/// Applying would make others' objects ours, and `plumb uninstall` would delete them.
async fn foreign(client: &Client, objects: &[Value]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for object in objects {
        if objects::presence(client, object).await? == Presence::Foreign {
            let name = objects::name_of(object);
            findings.push(Finding::fatal(
                name.clone(),
                "it is there and not Plumb's, which needs this name",
                format!(
                    "kubectl -n {NAMESPACE} get {name} -o yaml shows whose it is; delete it if nobody needs it, or, if \
                     it is Plumb's: kubectl -n {NAMESPACE} label {name} {}={}",
                    manifest::LABEL,
                    manifest::NAME
                ),
            ));
        }
    }
    Ok(findings)
}

/// A kind that somebody's operator brings.
async fn unknown_kind(client: &Client, settings: &Settings) -> Result<Option<Finding>> {
    if !is_on(&settings.service_monitor) {
        return Ok(None);
    }
    let known = match client.list_api_group_resources(manifest::MONITORING).await {
        Ok(listed) => listed.resources.iter().any(|resource| resource.kind == "ServiceMonitor"),
        Err(kube::Error::Api(status)) if status.code == 404 => false,
        Err(error) => return Err(explain(error, manifest::MONITORING)),
    };
    Ok((!known).then(|| {
        Finding::fatal(
            "servicemonitor/plumb",
            "the cluster has no such kind: the CustomResourceDefinitions of the Prometheus operator are not there",
            "install the operator first, or leave out --service-monitor",
        )
    }))
}

async fn check_nodes(
    client: &Client,
    settings: &Settings,
    found: &Found,
    args: &Args,
) -> Result<Vec<Finding>> {
    let text = |word: &str| word.to_owned();
    let message = "/dev/termination-log";
    let directory = format!("/host{}", settings.cni_conf_dir);
    let command =
        ["/bin/plumb", "node-check", "--message", message, "--cni-conf-dir", &directory, "--cluster-cidr"];
    let job = Job {
        word: "check",
        command: command.map(text).into_iter().chain([settings.cluster_cidr.clone()]).collect(),
        env: vec![manifest::node_name()],
        mounts: vec![manifest::readable_parent(&settings.cni_conf_dir), manifest::sysctls()],
        host_pid: true,
    };
    let patience = args.target.patience();
    let nodes = found.node_names();
    let outcomes = jobs::run(client, settings, &job, &nodes, patience).await?;
    let mut findings = Vec::new();
    for node in nodes {
        match outcomes.get(&node) {
            Some(Outcome::Done(said)) => {
                let of_node: Vec<Finding> = serde_json::from_str(said).with_context(|| {
                    format!("node {node}: its check said {said:?}; is {} another version?", settings.image)
                })?;
                println!("  {node}: {}", if of_node.is_empty() { "fit" } else { "see below" });
                findings.extend(of_node);
            }
            Some(Outcome::Failed(said)) => findings.push(Finding::fatal(
                format!("node {node}"),
                format!("its check failed: {said}"),
                "see that its container runtime runs the image, then again",
            )),
            Some(Outcome::Stuck(why)) => findings.push(stuck(&node, why, settings)),
            None => findings.push(stuck(&node, "its kubelet has not taken the pod", settings)),
        }
    }
    Ok(findings)
}

fn stuck(node: &str, why: &str, settings: &Settings) -> Finding {
    let next = if why.contains("Image") {
        format!(
            "push {} to where {node} can pull it, or import it there (ctr -n k8s.io image import plumb.tar) and give \
             --image plumb.tar",
            settings.image
        )
    } else {
        format!(
            "kubectl describe node {node}; bring it up, or delete the Node until it is (kubectl delete node {node})"
        )
    };
    Finding::fatal(format!("node {node}"), format!("its check did not run: {why}"), next)
}

fn refuse(findings: &[Finding], accepted: &[String]) -> Result<()> {
    let (accepted, left): (Vec<&Finding>, Vec<&Finding>) =
        findings.iter().partition(|finding| finding.is_accepted(accepted));
    for finding in accepted {
        println!("Accepted: {}: {}", finding.object, finding.cause);
    }
    if left.is_empty() {
        return Ok(());
    }
    let list: String = left.iter().map(|finding| format!("\n  {finding}")).collect();
    bail!("nothing was changed, because:{list}")
}

/// The objects that were not there before. Whatever fails, these are taken back.
async fn apply_all(client: &Client, objects: &[Value]) -> Result<Vec<Value>> {
    let mut made = Vec::new();
    for object in objects {
        let done = async {
            let before = objects::presence(client, object).await?;
            objects::apply(client, object).await.map(|()| before)
        };
        match done.await {
            Ok(Presence::Absent) => made.push(object.clone()),
            Ok(Presence::Ours | Presence::Foreign) => {}
            Err(error) => return Err(error.context(taken_back(client, &made).await)),
        }
    }
    Ok(made)
}

/// In words: what is wrong then is the reason for taking back, and not what went wrong with that.
async fn taken_back(client: &Client, made: &[Value]) -> String {
    match take_back(client, made).await {
        Ok(()) => "the installation was taken back".into(),
        Err(error) => format!(
            "the installation could not be taken back ({error:#}): `plumb uninstall` does it once that is mended"
        ),
    }
}

async fn take_back(client: &Client, made: &[Value]) -> Result<()> {
    for object in made.iter().rev() {
        objects::delete(client, object).await?;
    }
    Ok(())
}

async fn finish(client: &Client, settings: &Settings, args: &Args, made: &[Value]) -> Result<ExitCode> {
    let patience = args.target.patience();
    let ended = progress::follow(client, &settings.image, patience).await?;
    if ended.all_work() {
        let flags = args.target.reach.flags();
        println!("Every node works. Next: plumb status{flags}, plumb connectivity test{flags}");
        return Ok(ExitCode::SUCCESS);
    }
    let not_working = || ended.steps.iter().filter(|(_, step)| **step != progress::Step::Works);
    let list: String = not_working()
        .map(|(node, step)| {
            format!("\n  {node}: {step}\n    {}", progress::remedy(node, step, &settings.image))
        })
        .collect();
    let everything = made.iter().any(|object| object["kind"] == "DaemonSet");
    if everything && !ended.changed() {
        let back = taken_back(client, made).await;
        bail!("no agent has started within {} s; {back}:{list}", patience.as_secs());
    }
    let flags = args.target.reach.flags();
    bail!(
        "{} of {} nodes do not work after {} s:{list}\nThen `plumb install --resume{flags}` goes on, and `plumb \
         uninstall{flags}` takes everything back (namespace {NAMESPACE})",
        not_working().count(),
        ended.steps.len(),
        patience.as_secs()
    )
}
