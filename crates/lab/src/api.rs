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

use crate::plan::{API, API_PORT, Plan};
use crate::rundir::RunDir;
use crate::{Internal, adopt};

/// Serves until it is killed.
pub fn run(internal: &Internal) -> Result<ExitCode> {
    let run = RunDir::at(&internal.run);
    let plan = Plan::read(&run)?;
    let underlay = underlay(&run)?;
    let loopback = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, plan.api_port)))?;
    let inner = underlay.run(|| listen(SocketAddr::from((API, API_PORT))))??;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the API's runtime")?
        .block_on(serve(
            &run,
            &plan,
            Nodes { run: run.clone(), underlay: Arc::new(underlay) },
            [loopback, inner],
        ))?;
    Ok(ExitCode::SUCCESS)
}

fn underlay(run: &RunDir) -> Result<Netns> {
    let holder = adopt::living(&run.pid_file("hold-underlay"))?.context("the underlay has no holder")?;
    Ok(Netns::of_pid(holder.pid())?)
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).with_context(|| {
        format!("listen on {address} for the API: is the port taken? (ss -ltnp shows by whom; `plumb lab down` and `up` choose another)")
    })?;
    listener.set_nonblocking(true).with_context(|| format!("listen on {address}"))?;
    Ok(listener)
}

async fn serve(run: &RunDir, plan: &Plan, nodes: Nodes, listeners: [std::net::TcpListener; 2]) -> Result<()> {
    let credentials = Credentials::open(&run.file("credentials"))?;
    let store = Store::open(&plan.data)?;
    let config = Config {
        advertised: SocketAddr::from((API, API_PORT)),
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
    tasks.spawn(async move { match controllers::run(client, controllers::Settings::default()).await {} });
    match tasks.join_next().await {
        Some(Ok(error)) => Err(error).context("the API ended"),
        Some(Err(error)) => Err(error).context("the API ended"),
        None => Ok(()),
    }
}

/// The way to the nodes: kubelets by unix socket, agents by TCP inside the underlay.
#[derive(Clone, Debug)]
struct Nodes {
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
        Box::pin(async move {
            let socket = underlay.run(TcpSocket::new_v4).map_err(io::Error::other)??;
            Ok(Box::new(socket.connect(to).await?) as Stream)
        })
    }
}
