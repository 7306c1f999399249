//! The kubelet's HTTP on a unix socket: logs, exec and port-forward, as [`types::wire::KUBELET_SOCKET`] says.

mod exec;
mod forward;
mod line;
mod logs;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path as FilePath;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use tokio::net::UnixListener;
use types::wire::{AGENT_NAMESPACE, LAB_VARIABLE};

use crate::record::{ContainerRecord, PodRecord, Records};

/// Serves for ever.
pub async fn serve(socket: &FilePath, records: Records) -> Result<()> {
    let what = || format!("listen on {}", socket.display());
    // What a killed kubelet left.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(what)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).with_context(what)?;
    let router = Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", post(container_exec).get(container_exec))
        .route("/portForward/{namespace}/{pod}/{port}", post(pod_port))
        .with_state(Arc::new(records));
    axum::serve(listener, router).await.with_context(what)
}

type Target = Path<(String, String, String)>;

async fn container_logs(
    State(records): State<Arc<Records>>,
    Path(target): Target,
    RawQuery(query): RawQuery,
) -> Response {
    let query = Query::parse(query.as_deref().unwrap_or_default());
    match find(&records, &target, query.flag("previous")) {
        Ok(run) => logs::respond(run, &query),
        // pkg/kubelet answers so when there was no earlier run.
        Err(why) if query.flag("previous") => (StatusCode::BAD_REQUEST, why).into_response(),
        Err(why) => (StatusCode::NOT_FOUND, why).into_response(),
    }
}

async fn container_exec(
    State(records): State<Arc<Records>>,
    Path(target): Target,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let query = Query::parse(query.as_deref().unwrap_or_default());
    let running = find(&records, &target, false).and_then(|run| match run.process() {
        Some(process) => Ok((run, process)),
        None => Err(not_running(&run, &target)),
    });
    match running {
        Ok((run, process)) => exec::respond(run, process, &query, request),
        Err(why) => (StatusCode::NOT_FOUND, why).into_response(),
    }
}

async fn pod_port(
    State(records): State<Arc<Records>>,
    Path((namespace, pod, port)): Path<(String, String, u16)>,
    request: Request,
) -> Response {
    match of_pod(&records, &namespace, &pod) {
        Ok(record) => forward::respond(&record, &format!("{namespace}/{pod}"), port, request).await,
        Err(why) => (StatusCode::NOT_FOUND, why).into_response(),
    }
}

/// What this node keeps of a pod.
fn of_pod(records: &Records, namespace: &str, pod: &str) -> Result<PodRecord, String> {
    let mut all = records.uids().into_iter().map(|uid| records.pod(&uid));
    let found = all.find(|record| {
        record.sandbox().is_some_and(|sandbox| sandbox.namespace == namespace && sandbox.name == pod)
    });
    found.ok_or_else(|| match pod.strip_prefix("plumb-").filter(|_| namespace == AGENT_NAMESPACE) {
        Some(node) => {
            let name = std::env::var(LAB_VARIABLE).map(|name| format!(" --name {name}")).unwrap_or_default();
            format!(
                "pod {namespace}/{pod} stands for the agent of {node}, a process of the lab without a container; plumb lab \
                 logs{name} {node} agent shows what it has said"
            )
        }
        None => format!("pod {namespace}/{pod} does not run on this node"),
    })
}

fn not_running(run: &ContainerRecord, (namespace, pod, container): &(String, String, String)) -> String {
    let how = run.exit().map(|exit| format!("; it ended with exit code {}", exit.code)).unwrap_or_default();
    format!(
        "container {container:?} of pod {namespace}/{pod} is not running{how}: `kubectl -n {namespace} describe pod \
         {pod}` and `kubectl -n {namespace} logs {pod} -c {container} --previous` say why"
    )
}

/// The newest run of the container, or the one before.
fn find(
    records: &Records,
    (namespace, pod, container): &(String, String, String),
    previous: bool,
) -> Result<ContainerRecord, String> {
    let refuse = Err;
    let record = of_pod(records, namespace, pod)?;
    // The name becomes part of a path.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let known = container.chars().all(plain).then(|| record.last_attempt(container)).flatten();
    let Some(attempt) = known else {
        return refuse(format!("container {container:?} in pod {pod:?} has not been started"));
    };
    match (previous, attempt.checked_sub(1)) {
        (false, _) => Ok(record.container(container, attempt)),
        (true, Some(before)) => Ok(record.container(container, before)),
        (true, None) => {
            refuse(format!("previous terminated container {container:?} in pod {pod:?} not found"))
        }
    }
}

/// A query string, whose keys may repeat (`command=a&command=b`).
#[derive(Debug, Default)]
pub(crate) struct Query(HashMap<String, Vec<String>>);

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.0.entry(decode(key)).or_default().push(decode(value));
        }
        query
    }

    pub(crate) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.all(key).first().is_some_and(|value| matches!(value.as_str(), "true" | "1"))
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.all(key).first()?.parse().ok()
    }
}

/// `%41` and `+`, as HTML forms encode.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = || u8::from_str_radix(std::str::from_utf8(tail.get(..2)?).ok()?, 16).ok();
        rest = tail;
        match (first, if first == b'%' { hex() } else { None }) {
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', None) => bytes.push(b' '),
            (byte, None) => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_keep_repeated_keys() {
        let query = Query::parse("command=sh&command=-c&command=echo+%41%2fb&stdout=true&tail=7&bad=%zz");
        assert_eq!(query.all("command"), ["sh", "-c", "echo A/b"]);
        assert!(query.flag("stdout") && !query.flag("stdin"));
        assert_eq!(
            (query.number("tail"), query.all("bad").first().map(String::as_str)),
            (Some(7), Some("%zz"))
        );
    }
}
