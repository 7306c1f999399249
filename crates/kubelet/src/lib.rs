//! Owns: the small kubelet of a lab node: sandboxes, CNI calls, containers, probes, pod status, logs and exec.
//! Never: images, cgroups, volumes: a field it does not carry out is refused by name.
//! In → Out: pods bound to the node → processes in namespaces, and their status in the API.
//! Read first: [`Args`], then [`worker`], then [`shim`].

mod api;
mod cni;
mod container;
mod environment;
mod events;
mod mirror;
mod moment;
mod node;
pub mod pause;
mod pods;
mod probe;
mod record;
mod resolv;
mod root;
mod runtime;
mod sandbox;
mod server;
pub mod shim;
mod status;
pub mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;

/// `plumb kubelet`
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The Node object that this kubelet is
    #[arg(long)]
    pub node: String,
    /// How to reach the Kubernetes API
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// The node's addresses, at most one of each family, with commas between; the first is its own
    #[arg(long = "address", value_delimiter = ',', required = true)]
    pub addresses: Vec<std::net::IpAddr>,
    /// What must outlive the process: which sandboxes and containers there are
    #[arg(long, default_value = "/var/lib/plumb/kubelet")]
    pub data: PathBuf,
    /// Where network configurations are
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are
    #[arg(long, default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// The cluster's DNS servers, for pods
    #[arg(long = "dns-ip", default_value = types::wire::DNS_IPS[0], value_delimiter = ',')]
    pub dns_ips: Vec<std::net::IpAddr>,
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Unix socket for logs and exec
    #[arg(long, default_value = types::wire::KUBELET_SOCKET)]
    pub socket: PathBuf,
}

/// Runs until it is killed; pods go on without it.
pub fn run(args: Args) -> Result<ExitCode> {
    sandbox::check_permission()?;
    root::prepare_dev()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the kubelet's runtime")?
        .block_on(serve(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: Args) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(&args.kubeconfig)
        .with_context(|| format!("read the kubeconfig {}", args.kubeconfig.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use the kubeconfig {}", args.kubeconfig.display()))?;
    config.proxy_url = None;
    let client = api::client(&config, api::PATIENCE).context("make a client of the API")?;
    let records = record::Records::open(&args.data)?;
    let _only = kernel::own::lock_within(&args.data, std::time::Duration::from_secs(2))?
        .with_context(|| format!("another kubelet works on {}; stop that one first", args.data.display()))?;
    let cni = cni::Cni { configs: args.cni_conf_dir.clone(), plugins: args.cni_bin_dir.clone() };
    let addresses: Vec<String> = args.addresses.iter().map(ToString::to_string).collect();
    let (ready, network_ready) = watch::channel(false);
    let runtime = Arc::new(runtime::Runtime {
        node: args.node.clone(),
        addresses: addresses.clone(),
        dns: resolv::ClusterDns {
            servers: args.dns_ips.iter().map(ToString::to_string).collect(),
            zone: args.cluster_domain.clone(),
        },
        cni: cni.clone(),
        records: records.clone(),
        client: client.clone(),
        events: events::Events::start(client.clone(), &args.node),
        network_ready: network_ready.clone(),
    });
    let identity = node::Identity { name: args.node, addresses };
    tokio::spawn(mirror::keep(client.clone(), identity.clone()));
    tokio::spawn(node::keep(client, identity, network_ready));
    tokio::spawn(node::watch_network(cni, records.clone(), Arc::new(ready)));
    tokio::select! {
        served = server::serve(&args.socket, records) => served,
        () = pods::follow(runtime) => anyhow::bail!("the watch of pods ended"),
    }
}
