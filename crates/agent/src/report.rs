//! What a person asks a node: `GET /v1/node/status` for `plumb status`, `GET /v1/node/dump` for `plumb sysdump`.
//! Both stand behind the token of a trace: an agent tells strangers nothing but its health and its metrics.

mod dump;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use types::IpNet;

use crate::fault::Fault;
use crate::inbox::Outbox;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::snapshot::Question;
use crate::trace::{Views, answer};

pub use dump::Dump;

/// A loop that is busy for longer is itself what is wrong.
const PATIENCE: Duration = Duration::from_secs(3);

/// One agent, as it sees itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: String,
    pub version: String,
    /// `uname -r`.
    pub kernel: String,
    /// Seconds since the agent's start.
    pub up: u64,
    pub datapath: Datapath,
    /// Why the node cannot wire pods or has not the datapath that it should have.
    pub trouble: Option<Fault>,
    /// Other nodes that packets of this one cannot reach.
    #[serde(default)]
    pub out_of_reach: Vec<Fault>,
    /// What the node needs of its machine and has not: addresses, links, ways to the outside.
    #[serde(default)]
    pub lacks: Vec<Fault>,
    /// Routes and rules of others that take what is for pods.
    #[serde(default)]
    pub detours: Vec<Fault>,
    /// Packets that its links are too small for.
    #[serde(default)]
    pub too_large: Vec<Fault>,
    /// Drift is told and not mended.
    pub paused: bool,
    pub pods: usize,
    /// Where pods' addresses come from, and how many it has.
    pub pod_cidrs: Vec<IpNet>,
    pub pod_addresses: u64,
    /// Why each address is held that no pod has.
    #[serde(default)]
    pub held: Vec<String>,
    /// Addresses that were released and rest until others may have them.
    #[serde(default)]
    pub resting: Resting,
    pub services: usize,
    pub policies: usize,
    /// Seconds since the kernel was last made, or found, what it should be.
    pub last_sync: Option<u64>,
    /// A whole comparison takes place at least this often (seconds).
    pub refresh: u64,
    pub drift: Vec<Drift>,
    /// What the kernel refuses: it differs there until it takes it.
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// Watches of the API that are broken now.
    pub watches: Vec<BrokenWatch>,
    pub dns: Dns,
    /// What is wrong with objects, as their Events say.
    pub findings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Datapath {
    /// `nftables`.
    pub kind: String,
    /// Our tables, as `ip plumb`.
    pub tables: Vec<String>,
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// `nft` or `net`.
    pub subsystem: String,
    pub fault: Fault,
}

/// What differs from what it should be, and stays so because nobody mends it or the kernel refuses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drift {
    /// `nft` or `net`.
    pub subsystem: String,
    pub steps: usize,
    /// The first few differences, in words; those of older agents are the steps that would mend them.
    pub first: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Resting {
    pub addresses: Vec<IpAddr>,
    /// Seconds until the last of them may be given out again.
    pub last: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BrokenWatch {
    pub kind: String,
    pub error: String,
    /// What a person does about it; older agents leave it in `error`.
    #[serde(default)]
    pub next: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dns {
    /// Where it serves; empty when it does not.
    pub addresses: Vec<String>,
    pub error: Option<String>,
    pub names: usize,
}

/// What the routes share.
#[derive(Clone)]
pub struct Reports {
    views: Views,
    outbox: Outbox,
    metrics: Arc<Metrics>,
    started: Instant,
}

impl Reports {
    pub fn new(views: Views, outbox: Outbox, metrics: Arc<Metrics>) -> Self {
        Self { views, outbox, metrics, started: Instant::now() }
    }

    /// The routes, to be nested under `/v1/node` behind a token.
    pub fn router(self) -> Router {
        Router::new()
            .route("/status", get(Self::get_status))
            .route("/dump", get(Self::get_dump))
            .with_state(self)
    }

    async fn get_status(State(this): State<Self>) -> Response {
        answer(this.status().await)
    }

    async fn get_dump(State(this): State<Self>) -> Response {
        answer(this.dump().await)
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T> {
        self.outbox.ask(PATIENCE, question).await.with_context(|| {
            let node = self.views.node();
            format!("the loop of {node}'s agent has not answered for {PATIENCE:?}; its log says what it does")
        })
    }

    async fn status(&self) -> Result<NodeStatus> {
        let mut status = self.ask(Question::Status).await?;
        status.up = self.started.elapsed().as_secs();
        status.dns = match self.metrics.dns.serving() {
            Ok(addresses) => {
                Dns { addresses: addresses.iter().map(ToString::to_string).collect(), error: None, names: 0 }
            }
            Err(error) => Dns { addresses: Vec::new(), error: Some(error), names: 0 },
        };
        status.dns.names = self.views.names();
        Ok(status)
    }
}

/// What the loop knows. Time and DNS are filled in by who asks.
pub fn of_node(node: &Node) -> NodeStatus {
    let (standing, cluster) = (node.standing(), node.cluster());
    let pools = node.pools();
    let addresses = pools.iter().map(ipam::Pool::size).min();
    let uname = rustix::system::uname();
    NodeStatus {
        node: node.settings().node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        up: 0,
        datapath: datapath(node),
        trouble: node.trouble(),
        out_of_reach: node.out_of_reach(),
        lacks: node.lacks(),
        detours: node.detours(),
        too_large: node.too_large(),
        paused: node.is_paused(),
        pods: node.records().count(),
        pod_cidrs: pools.iter().map(ipam::Pool::cidr).collect(),
        pod_addresses: addresses.map_or(0, |size| u64::try_from(size).unwrap_or(u64::MAX)),
        held: node.held(),
        resting: node.resting(),
        services: cluster.services.len(),
        policies: cluster.policies.len(),
        last_sync: node.since_right().map(|age| age.as_secs()),
        refresh: node.settings().args.refresh,
        drift: node
            .differing()
            .map(|(subsystem, steps)| Drift {
                subsystem: subsystem.to_owned(),
                steps: steps.count,
                first: steps.told().to_vec(),
            })
            .collect(),
        refused: node
            .refused_now()
            .map(|(subsystem, fault)| Refused { subsystem: subsystem.name().to_owned(), fault })
            .collect(),
        watches: standing
            .broken_watches()
            .map(|(kind, fault)| BrokenWatch {
                kind: format!("{kind:?}"),
                error: fault.what.clone(),
                next: Some(fault.next.clone()),
            })
            .collect(),
        dns: Dns { addresses: Vec::new(), error: None, names: 0 },
        findings: node.findings(),
    }
}

fn datapath(node: &Node) -> Datapath {
    let made = node.tables();
    let tables = made.tables.keys().filter(|_| node.compiler().is_some());
    let of_pods = |compiler: &compile::Compiler| {
        let made = !compiler.net().links.is_empty();
        made.then_some(compiler.settings().mtu)
    };
    Datapath {
        kind: node.settings().backend.to_string(),
        tables: tables.map(ToString::to_string).collect(),
        mtu: node.compiler().and_then(of_pods),
    }
}
