//! `plumb lab api`: the embedded API and the controllers, in one process.
//!
//! ```text
//! kubectl, caller's netns ── 127.0.0.1:<port> ──┐
//! agents, kubelets ── 192.168.1.2:6443 ─────────┼─ TLS, token ─ Api ─ in process ─ controllers
//!                      (underlay netns)         └── logs, exec ─ unix socket of the node's kubelet
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use apiserver::{Api, Config, Credentials, NodeDial, Store, Stream};
use futures::future::BoxFuture;
use kernel::Netns;
use tokio::net::{TcpListener, TcpSocket, UnixStream};
use tokio::task::JoinSet;
use types::wire::POD_CIDRS;

use crate::plan::{self, API_PORT, Plan};
use crate::rundir::RunDir;
use crate::{Internal, adopt};

/// Serves until it is killed.
pub fn run(internal: &Internal) -> Result<ExitCode> {
    let run = RunDir::at(&internal.run);
    let plan = Plan::read(&run)?;
    let underlay = underlay(&run)?;
    let loopback = listen(&plan.name, SocketAddr::from((Ipv4Addr::LOCALHOST, plan.api_port)))?;
    let mut listeners = vec![loopback];
    for family in plan.families.list() {
        listeners.push(underlay.run(|| listen(&plan.name, SocketAddr::new(plan::api(*family), API_PORT)))??);
    }
    let nodes = Nodes { name: plan.name.clone(), run: run.clone(), underlay: Arc::new(underlay) };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the API's runtime")?
        .block_on(serve(&run, &plan, nodes, listeners))?;
    Ok(ExitCode::SUCCESS)
}

fn underlay(run: &RunDir) -> Result<Netns> {
    let holder = adopt::living(&run.pid_file("hold-underlay"))?.context("the underlay has no holder")?;
    Ok(Netns::of_pid(holder.pid())?)
}

fn listen(lab: &str, address: SocketAddr) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).with_context(|| {
        format!(
            "listen on {address} for the API: is the port taken? ss -ltnp shows by whom; plumb lab down --name {lab}, then \
             up, choose another"
        )
    })?;
    listener.set_nonblocking(true).with_context(|| format!("listen on {address}"))?;
    Ok(listener)
}

async fn serve(run: &RunDir, plan: &Plan, nodes: Nodes, listeners: Vec<std::net::TcpListener>) -> Result<()> {
    let credentials = Credentials::open(&run.file("credentials"))?;
    let store = Store::open(&plan.data)?;
    let config = Config {
        advertised: SocketAddr::new(plan::api(plan.families.primary()), API_PORT),
        families: plan.families,
        nodes: Arc::new(nodes),
        credentials: Some(credentials.clone()),
    };
    let api = Api::new(store, config)?;
    let mut tasks: JoinSet<anyhow::Error> = JoinSet::new();
    for listener in listeners {
        let listener = TcpListener::from_std(listener).context("listen for the API")?;
        let (api, credentials) = (api.clone(), credentials.clone());
        tasks.spawn(async move {
            let Err(error) = apiserver::serve(api, listener, credentials).await;
            error.into()
        });
    }
    // In process: no token, no TLS, and the requests of a rollout take microseconds each.
    let client = kube::Client::new(api, "default");
    let cidrs = plan.families.list().iter().map(|family| family.pick(POD_CIDRS).parse());
    let cluster_cidrs = cidrs.collect::<Result<_, _>>().context("the plan of addresses")?;
    let mut settings = controllers::Settings { cluster_cidrs, ..controllers::Settings::default() };
    settings.node_prefix_lens[0] = plan.node_cidr_mask_size;
    tasks.spawn(async move { match controllers::run(client, settings).await {} });
    match tasks.join_next().await {
        Some(Ok(error)) => Err(error).context("the API ended"),
        Some(Err(error)) => Err(error).context("the API ended"),
        None => Ok(()),
    }
}

/// The way to the nodes: kubelets by unix socket, agents by TCP inside the underlay.
#[derive(Clone, Debug)]
struct Nodes {
    name: String,
    run: RunDir,
    underlay: Arc<Netns>,
}

impl NodeDial for Nodes {
    fn kubelet(&self, node: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let path = self.run.node(node).join("run/kubelet.sock");
        Box::pin(async move {
            // A relative or odd node name cannot leave the directory: names of nodes are DNS labels, but the API
            // stores what it is given.
            if path.as_os_str().as_bytes().windows(2).any(|pair| pair == b"..") {
                return Err(io::Error::new(io::ErrorKind::NotFound, "no such node"));
            }
            let stream = UnixStream::connect(&path).await?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn tcp(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        let underlay = Arc::clone(&self.underlay);
        Box::pin(async move { dial(&underlay, to).await })
    }

    fn look(&self) -> String {
        format!("plumb lab status --name {}", self.name)
    }

    /// Pods' own addresses lead nowhere in the underlay; from its own node no policy keeps anybody from a pod.
    fn pod(&self, node: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        let holder = self.run.pid_file(&format!("hold-{node}"));
        let known = plan::node_number(node).is_some();
        Box::pin(async move {
            let holder = if known { adopt::living(&holder).map_err(io::Error::other)? } else { None };
            let holder =
                holder.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its node does not run"))?;
            dial(&Netns::of_pid(holder.pid()).map_err(io::Error::other)?, to).await
        })
    }
}

/// A connection whose socket is of this namespace.
async fn dial(from: &Netns, to: SocketAddr) -> io::Result<Stream> {
    let new = if to.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
    let socket = from.run(new).map_err(io::Error::other)??;
    Ok(Box::new(socket.connect(to).await?) as Stream)
}
