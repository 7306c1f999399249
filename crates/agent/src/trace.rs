//! One node's side of `plumb trace`: sends a real packet from a pod, and reports what it met beside what the
//! model expects. The exchange is drawn in [`trace::exchange`]; it works the same wherever the API server's node
//! proxy reaches this agent.
//!
//! Nobody is trusted for having reached the port: a pod can do that. Each request carries a token of the service
//! account `kube-system/plumb-trace` with the audience `plumb`, which the API server confirms ([`token`]).

mod drift;
mod files;
mod frames;
mod guards;
mod lacks;
mod mark;
mod names;
mod resolve;
mod send;
mod token;
mod views;
mod watch;
mod ways;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::{Json, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::sync::Mutex;
use trace::exchange::{Arm, Ask, AskNames, Collect, Collected, Flow, Open, Opened, Refusal, Send};
use types::{Family, ObjectName};

use crate::reviews::Refused;
use crate::serve::Caller;

pub use token::Tokens;
pub use views::Views;

/// A trace that nobody collects is forgotten after this long.
const FORGET: Duration = Duration::from_secs(30);
/// Traces that one node runs at once; each costs two sockets that see every packet of the node.
const MOST: usize = 16;

/// What the routes share.
#[derive(Clone, Debug)]
pub struct Traces {
    node: Arc<str>,
    views: Views,
    open: Arc<Mutex<BTreeMap<String, Running>>>,
}

/// A trace that was opened or armed here.
#[derive(Debug)]
struct Running {
    since: Instant,
    flow: Option<Flow>,
    watch: Option<watch::Watch>,
    /// On the pod's node only.
    start: Option<Start>,
}

/// What the pod's node needs to send.
#[derive(Debug)]
struct Start {
    pod: ObjectName,
    ask: Ask,
    /// With where its packet is to go.
    probe: Option<(send::Sender, SocketAddr)>,
}

impl Traces {
    pub fn new(node: &str, views: Views) -> Self {
        Self { node: node.into(), views, open: Arc::default() }
    }

    /// The routes, to be nested under `/v1/trace` behind [`check`].
    pub fn router(self) -> Router {
        Router::new()
            .route("/open", post(Self::post_open))
            .route("/arm", post(Self::post_arm))
            .route("/send", post(Self::post_send))
            .route("/collect", post(Self::post_collect))
            .route("/names", post(Self::post_names))
            .with_state(self)
    }

    async fn post_open(State(this): State<Self>, Json(open): Json<Open>) -> Response {
        answer(this.open(open).await)
    }

    async fn post_arm(State(this): State<Self>, Json(arm): Json<Arm>) -> Response {
        answer(this.arm(arm).await)
    }

    async fn post_send(State(this): State<Self>, Json(send): Json<Send>) -> Response {
        answer(this.send(send).await)
    }

    async fn post_collect(State(this): State<Self>, Json(collect): Json<Collect>) -> Response {
        answer(this.collect(collect).await)
    }

    async fn post_names(State(this): State<Self>, Json(asked): Json<AskNames>) -> Response {
        answer(names::names(&this.views, asked).await)
    }

    /// Resolves in the pod, takes the source port and begins to watch.
    async fn open(&self, open: Open) -> Result<Opened> {
        let Open { pod, ask, source_port } = open;
        let wired = self.views.wired(&pod).await?;
        let resolution = resolve::resolve(&self.views, &wired, &ask).await?;
        let mut probe = None;
        let mut flow = None;
        if let Some(address) = resolution.address {
            let alike = || wired.ips.iter().copied().find(|ip| ip.is_ipv4() == address.is_ipv4());
            let source = trace::expect::own::source(address).or_else(alike).with_context(|| {
                format!(
                    "pod {pod} has no {} address to reach {address}; it has {:?}",
                    Family::of(address),
                    wired.ips
                )
            })?;
            let made =
                send::reserve(&wired, SocketAddr::new(source, source_port.unwrap_or(0)), ask.protocol)?;
            let destination = SocketAddr::new(address, ask.port);
            flow = Some(Flow { protocol: ask.protocol, source: made.source(), destination });
            probe = Some((made, send::scoped(&wired, destination, &ask)?));
        }
        let candidates = match flow {
            Some(flow) => self.views.candidates(flow).await?,
            None => Vec::new(),
        };
        let (addresses, masqueraded) = match flow {
            Some(flow) => self.views.masqueraded(flow).await?,
            None => Default::default(),
        };
        let watch = match flow {
            Some(flow) => Some(watch::Watch::start(flow, addresses, Some(wired.host_if)).await?),
            None => None,
        };
        let id = self.begin((flow, watch), Start { pod, ask, probe }).await?;
        let node = self.node.to_string();
        let (resolve, resolved) = (resolution.expected, resolution.seen);
        Ok(Opened { id, node, resolve, resolved, flow, candidates, masqueraded })
    }

    async fn arm(&self, arm: Arm) -> Result<()> {
        let watch = watch::Watch::await_flow(arm.flow, &arm.masqueraded).await?;
        let running =
            Running { since: Instant::now(), flow: Some(arm.flow), watch: Some(watch), start: None };
        self.keep(arm.id, running).await
    }

    async fn begin(
        &self,
        (flow, watch): (Option<Flow>, Option<watch::Watch>),
        start: Start,
    ) -> Result<String> {
        let id = format!("{:016x}", kernel::udp::random().context("choose the trace's id")?);
        let start = Some(start);
        self.keep(id.clone(), Running { since: Instant::now(), flow, watch, start }).await?;
        Ok(id)
    }

    async fn keep(&self, id: String, running: Running) -> Result<()> {
        let mut open = self.open.lock().await;
        open.retain(|_, running| running.since.elapsed() < FORGET);
        if open.len() >= MOST {
            bail!("node {} runs {MOST} traces already; wait until one has ended", self.node);
        }
        open.insert(id, running);
        Ok(())
    }

    async fn take(&self, id: &str) -> Result<Running> {
        self.open.lock().await.remove(id).with_context(|| {
            format!(
                "node {} knows no trace {id}; traces are forgotten after {FORGET:?}, begin again",
                self.node
            )
        })
    }

    /// Sends the packet and reports this node's part.
    async fn send(&self, send: Send) -> Result<Collected> {
        let running = self.take(&send.id).await?;
        let (Some(flow), Some(watch), Some(start)) = (running.flow, running.watch, running.start) else {
            bail!("trace {} has no address to send to: its name did not resolve", send.id);
        };
        let (probe, to) = start.probe.context("the trace's port is gone")?;
        let timeout = Duration::from_millis(send.timeout_ms.clamp(10, 10_000));
        let sent = send::send(probe, (flow, to), start.ask, timeout).await?;
        let mut sightings = vec![sent];
        let seen = watch.finish(None).await?;
        sightings.extend(seen.sightings);
        let (expected, drift) =
            self.views.departure(&start.pod, flow, (seen.endpoint, seen.answers_to)).await?;
        sightings.extend(drift);
        Ok(self.collected(expected, sightings))
    }

    async fn collect(&self, collect: Collect) -> Result<Option<Collected>> {
        let running = self.take(&collect.id).await?;
        let (Some(watch), Some(onward)) = (running.watch, collect.onward) else { return Ok(None) };
        let came_as = [onward.source, onward.destination];
        let seen = watch.finish(Some(came_as)).await?;
        let mut sightings = seen.sightings;
        let (expected, drift) = self.views.arrival(onward, seen.endpoint).await?;
        sightings.extend(drift);
        Ok(Some(self.collected(expected, sightings)))
    }

    fn collected(&self, expected: trace::Expected, sightings: Vec<trace::Sighting>) -> Collected {
        Collected { expected, observed: trace::Observed { node: self.node.to_string(), sightings } }
    }
}

pub fn answer<T: serde::Serialize>(outcome: Result<T>) -> Response {
    match outcome {
        Ok(value) => Json(value).into_response(),
        Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}")),
    }
}

fn refuse(status: StatusCode, error: String) -> Response {
    (status, Json(Refusal { error })).into_response()
}

/// Lets nobody pass without a token.
pub async fn check(tokens: Tokens, request: Request, next: Next) -> Response {
    let token =
        request.headers().get(token::HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let caller = request.extensions().get().copied().unwrap_or(Caller(None));
    match tokens.check(token, caller).await {
        Ok(()) => next.run(request).await,
        Err(why @ Refused::Unknown(_)) => refuse(StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
        Err(why) => refuse(StatusCode::UNAUTHORIZED, why.to_string()),
    }
}
