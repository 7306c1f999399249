//! The unix socket: `POST /cni` for the executable, `POST /v1/pause` and `/healthz` for local tools.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use cni::{Call, Code, Error, Reply, Request};
use kube::Client;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use types::ObjectName;

use crate::Names;
use crate::clock;
use crate::http;
use crate::inbox::{CniInput, Input, Outbox};
use crate::metrics::Metrics;
use crate::report::NodeStatus;
use crate::serve::{self, Door};
use crate::snapshot::Question;

/// A loop that has much to do takes a pause later.
const PATIENCE: Duration = Duration::from_secs(8);

/// What every request gets.
#[derive(Clone)]
pub struct Served {
    pub outbox: Outbox,
    pub client: Client,
    pub metrics: Arc<Metrics>,
    /// What is to become of the node's DNS.
    pub dns: watch::Sender<Names>,
}

/// Binds the socket: only root may connect. A socket that a process before left behind is replaced.
pub fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("bind the socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect the socket {}", path.display()))?;
    Ok(listener)
}

pub async fn serve(listener: UnixListener, served: Served) -> Result<()> {
    let router = Router::new()
        .route("/cni", post(cni))
        .route("/v1/pause", post(pause))
        .route("/healthz", get(http::healthz))
        .route("/v1/node/status", get(status))
        .with_state(served);
    let door = Door::of_root();
    serve::serve(listener, router, move |_| door.admit_root(), std::future::pending()).await;
    Ok(())
}

/// Observe only: what others change is told and left. With `dns: false` the agent's DNS sockets are closed too,
/// until it is resumed; pods' queries then go to other nodes.
#[derive(Deserialize)]
struct Pause {
    paused: bool,
    #[serde(default = "yes")]
    dns: bool,
}

fn yes() -> bool {
    true
}

/// Answers once it holds: whoever breaks something next must not be mended any more.
async fn pause(
    State(served): State<Served>,
    Json(asked): Json<Pause>,
) -> Result<Json<serde_json::Value>, (StatusCode, &'static str)> {
    let Pause { paused, dns } = asked;
    let dns = dns || !paused;
    served.outbox.send(Input::Pause(paused)).await;
    served.dns.send_if_modified(|now| pause_names(now, dns));
    match served.outbox.ask(PATIENCE, Question::Health).await {
        Some(now) => Ok(Json(serde_json::json!({ "paused": now.paused, "dns": dns }))),
        None => Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent's loop is busy and will take it later; ask again",
        )),
    }
}

/// What the loop knows of the node; its DNS is not asked.
async fn status(State(served): State<Served>) -> Result<Json<NodeStatus>, (StatusCode, &'static str)> {
    let said = served.outbox.ask(PATIENCE, Question::Status).await;
    said.map(Json).ok_or((StatusCode::SERVICE_UNAVAILABLE, "the agent's loop is busy; ask again"))
}

/// Whether that changes anything. An agent that ends does not serve again.
fn pause_names(now: &mut Names, served: bool) -> bool {
    let wanted = if served { Names::Served } else { Names::Paused };
    let changes = *now != Names::Ended && *now != wanted;
    if changes {
        *now = wanted;
    }
    changes
}

async fn cni(State(served): State<Served>, Json(call): Json<Call>) -> Json<Reply> {
    let (began, received) = (Instant::now(), clock::since_boot());
    let command = call.env.get("CNI_COMMAND").cloned().unwrap_or_default();
    let (version, result) = match Request::parse(&call.env, call.stdin.as_bytes()) {
        Ok(request) => (request.version(), perform(&served, request, received).await),
        Err((error, version)) => (version, Err(error)),
    };
    served.metrics.cni(&command, began.elapsed(), result.as_ref().err().map(|error| error.code));
    Json(match result {
        Ok(stdout) => Reply { exit: 0, stdout },
        Err(error) => Reply { exit: 1, stdout: error.render(version) },
    })
}

/// At most two rounds: the loop may ask for the pod once.
async fn perform(served: &Served, request: Request, received: Duration) -> Result<String, Error> {
    let mut pod = None;
    loop {
        let asked = pod.is_some();
        let (reply, verdict) = oneshot::channel();
        let input = CniInput { request: request.clone(), pod: pod.take(), received, reply };
        let sent = served.outbox.send(Input::Cni(Box::new(input))).await;
        match verdict.await {
            Ok(node::Reply::Done(result)) => return result,
            Ok(node::Reply::NeedPod(name)) if !asked => pod = Some(get_pod(served, &name).await?),
            Ok(node::Reply::NeedPod(name)) => {
                let msg = format!("pod {name} is another one by now");
                return Err(Error::new(Code::TryAgainLater, msg, "the runtime will notice"));
            }
            Err(_) => {
                let msg = if sent { "the agent dropped the request" } else { "the agent is ending" };
                return Err(Error::new(Code::TryAgainLater, msg, "the runtime will try again"));
            }
        }
    }
}

/// Without its labels nobody knows the pod's policies: it is not wired.
async fn get_pod(served: &Served, name: &ObjectName) -> Result<model::Pod, Error> {
    match ::watch::get_pod(&served.client, name).await {
        Ok(Some(pod)) => Ok(pod),
        Ok(None) => {
            let msg = format!("the API has no pod {name}");
            Err(Error::new(Code::TryAgainLater, msg, "it was deleted meanwhile; the runtime will notice"))
        }
        Err(error) => {
            let msg = format!("the labels of pod {name} are not known, so neither are its policies: {error}");
            Err(Error::new(Code::TryAgainLater, msg, "see that the API answers; the runtime will try again"))
        }
    }
}
