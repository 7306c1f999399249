//! HTTP on the node's address: health, metrics, and with a token traces and reports.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Router, middleware};

use crate::scrape::{self, Readers};
use crate::server::Served;
use crate::snapshot::Question;

/// A loop that does not answer for so long is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

/// `guarded`: what asks for a token. `readers`: who may read metrics; none: everybody.
pub fn router(served: Served, guarded: Router, readers: Option<Readers>) -> Router {
    let mut scraped = Router::new().route(scrape::PATH, get(metrics));
    if let Some(readers) = readers {
        scraped = scraped
            .layer(middleware::from_fn(move |request, next| scrape::check(readers.clone(), request, next)));
    }
    Router::new().route("/healthz", get(healthz)).merge(scraped).with_state(served).merge(guarded)
}

/// 200 when this node wires pods and has the datapath it should have; else 503 and why.
pub async fn healthz(State(served): State<Served>) -> (StatusCode, String) {
    let health = served.outbox.ask(PATIENCE, Question::Health).await;
    match health.map(|health| health.trouble) {
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
    // Counters are asked of the kernel, and CNI and DNS live on this runtime's few threads.
    let text = tokio::task::spawn_blocking(move || served.metrics.render()).await;
    ([("content-type", kind)], text.unwrap_or_default())
}
