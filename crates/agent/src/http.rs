//! HTTP on the node's address: health, metrics, and with a token traces and reports.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::node::Node;
use crate::server::Served;

/// A loop that does not answer for so long is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

/// `guarded`: what asks for a token.
pub fn router(served: Served, guarded: Router) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(served)
        .merge(guarded)
}

/// 200 when this node wires pods and has the datapath it should have; else 503 and why.
pub async fn healthz(State(served): State<Served>) -> (StatusCode, String) {
    match served.outbox.inspect(PATIENCE, Node::trouble).await {
        Some(None) => (StatusCode::OK, "ok\n".into()),
        Some(Some(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        None => {
            let why = format!("the node's loop has not answered for {} s\n", PATIENCE.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

async fn metrics(State(served): State<Served>) -> ([(&'static str, &'static str); 1], String) {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([("content-type", kind)], served.metrics.render())
}
