//! `plumb lab outside`: what a pod meets beyond the cluster, at 203.0.113.10 and at the nodes' gateway.
//!
//! ```text
//! outside netns                          caller's netns (where this process lives)
//!  :80  HTTP: says who asked
//!  :53  DNS ── the same process ───────── the machine's resolvers, from /etc/resolv.conf
//! ```
//! The sockets are made inside the namespace of the outside; the process stays in the caller's, so that it can ask
//! resolvers that only the machine itself reaches (127.0.0.53).

mod dns;
mod http;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, Result};
use kernel::Netns;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use types::Families;

use crate::plan::{self, Plan};
use crate::rundir::RunDir;
use crate::{Internal, adopt};

/// Serves until it is killed.
pub fn run(internal: &Internal) -> Result<ExitCode> {
    let run = RunDir::at(&internal.run);
    let holder = adopt::living(&run.pid_file("hold-outside"))?.context("the outside has no holder")?;
    let outside = Netns::of_pid(holder.pid())?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the outside's runtime")?
        .block_on(serve(&outside, Plan::read(&run)?.families))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(outside: &Netns, families: Families) -> Result<()> {
    let upstream = std::sync::Arc::new(dns::Upstream::of_machine(families));
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for address in families.list().iter().flat_map(|family| [plan::outside(*family), plan::gateway(*family)])
    {
        tasks.spawn(http::serve(tcp(outside, address, 80)?));
        tasks.spawn(dns::serve_tcp(tcp(outside, address, 53)?, upstream.clone()));
        tasks.spawn(dns::serve_udp(udp(outside, address, 53)?, upstream.clone()));
    }
    match tasks.join_next().await {
        Some(ended) => ended.context("a server of the outside ended")?,
        None => Ok(()),
    }
}

fn tcp(outside: &Netns, address: IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let what = || format!("listen on {address} in the outside");
    let listener = outside.run(|| std::net::TcpListener::bind(address))?.with_context(what)?;
    listener.set_nonblocking(true).with_context(what)?;
    TcpListener::from_std(listener).with_context(what)
}

fn udp(outside: &Netns, address: IpAddr, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::new(address, port);
    let what = || format!("listen on {address} in the outside");
    let socket = outside.run(|| std::net::UdpSocket::bind(address))?.with_context(what)?;
    socket.set_nonblocking(true).with_context(what)?;
    UdpSocket::from_std(socket).with_context(what)
}
