//! Real requests over TCP and TLS, in a namespace of the test's own, to an API server that knows two tokens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::Names;
use crate::dns::tests::inside;
use crate::metrics::Metrics;
use crate::serve::tests::{name, trusting};
use crate::serve::{Door, Speaker, Tls, serve};
use crate::server::Served;
use crate::{http as site, inbox};

const HERE: &str = "192.168.1.10:9475";
const PROMETHEUS: &str = "system:serviceaccount:monitoring:prometheus";

/// Knows the tokens of Prometheus, who may read metrics, and of somebody who may not. About that of nobody it says
/// nothing.
fn answer(asked: &Value) -> Value {
    match asked["kind"].as_str() {
        Some("TokenReview") => match asked["spec"]["token"].as_str() {
            Some("prometheus") => {
                json!({ "authenticated": true, "user": { "username": PROMETHEUS, "groups": ["g"] } })
            }
            Some("somebody") => json!({ "authenticated": true, "user": { "username": "somebody" } }),
            _ => json!({ "authenticated": false }),
        },
        _ => {
            let spec = &asked["spec"];
            let path = json!({ "path": "/metrics", "verb": "get" });
            let allowed = spec["user"] == PROMETHEUS
                && spec["groups"] == json!(["g"])
                && spec["nonResourceAttributes"] == path;
            json!({ "allowed": allowed })
        }
    }
}

/// Its client, and how often it was asked.
fn api() -> (kube::Client, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let bytes = request.into_body().collect_bytes().await.expect("a review");
            let mut review: Value = serde_json::from_slice(&bytes).expect("JSON");
            review["status"] = answer(&review);
            let mut response = http::Response::new(Body::from(review.to_string().into_bytes()));
            if review["spec"]["token"] == "nobody" {
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    (kube::Client::new(service, "default"), asked)
}

/// An agent's port as `--secure-metrics` has it; the number of questions to the API server.
async fn agent() -> Arc<AtomicU64> {
    let (client, asked) = api();
    let served = Served {
        outbox: inbox::new().0,
        client: client.clone(),
        metrics: Arc::new(Metrics::default()),
        dns: tokio::sync::watch::Sender::new(Names::Served),
    };
    let readers = Readers::new(client, served.metrics.tokens_refused());
    let tls = Tls::new(std::path::Path::new("/nonexistent"), "node1").unwrap();
    let speaker = Speaker { router: site::router(served, Router::new(), Some(readers)), tls: Some(tls) };
    let listener = TcpListener::bind(HERE).await.unwrap();
    let (door, here) = (Door::new(Counter::default()), HERE.parse::<SocketAddr>().unwrap());
    let admit = move |from: SocketAddr| door.admit(from.ip(), here.ip());
    tokio::spawn(serve(listener, speaker, admit, std::future::pending()));
    asked
}

/// The whole answer.
async fn ask(encrypted: bool, path: &str, authorization: &str) -> String {
    let mut stream = TcpStream::connect(HERE).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n{authorization}\r\n").into_bytes();
    let mut said = String::new();
    if encrypted {
        let mut stream = trusting().connect(name(), stream).await.expect("a handshake");
        stream.write_all(&request).await.unwrap();
        stream.read_to_string(&mut said).await.unwrap();
    } else {
        stream.write_all(&request).await.unwrap();
        stream.read_to_string(&mut said).await.unwrap();
    }
    said
}

fn without_date(answer: &str) -> String {
    answer.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
}

fn bearing(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn metrics_are_for_those_who_may_read_them_and_come_by_tls() {
    inside(async || {
        let asked = agent().await;
        for (encrypted, authorization, code, words) in [
            (false, String::new(), 403, "by TLS alone"),
            (false, bearing("prometheus"), 403, "ask https, at the same port"),
            (true, String::new(), 401, "www-authenticate: Bearer"),
            (true, bearing(""), 401, "show a token"),
            (true, bearing("guessed"), 401, "does not confirm the token"),
            (true, bearing("somebody"), 403, "somebody may not get /metrics: bind it to a ClusterRole"),
            (true, bearing("nobody"), 503, "ask the API server about the token"),
            (true, bearing("prometheus"), 200, "plumb_build_info{"),
        ] {
            let said = ask(encrypted, "/metrics", &authorization).await;
            assert!(said.starts_with(&format!("HTTP/1.1 {code} ")), "{encrypted} {authorization:?}: {said}");
            assert!(said.contains(words), "{encrypted} {authorization:?}: {said}");
            assert_eq!(said.contains("plumb_synced"), code == 200, "{said}");
        }
        let before = asked.load(Ordering::Relaxed);
        assert!(ask(true, "/metrics", &bearing("prometheus")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(asked.load(Ordering::Relaxed), before, "who may is remembered");
        for token in ["guessed", "somebody"] {
            let first = without_date(&ask(true, "/metrics", &bearing(token)).await);
            let code = if token == "somebody" { 403 } else { 401 };
            assert!(first.starts_with(&format!("HTTP/1.1 {code} ")), "who may not is remembered: {first}");
            assert!(first.contains("this answer holds for"), "{first}");
            assert_eq!(without_date(&ask(true, "/metrics", &bearing(token)).await), first, "and as what");
        }
        // The kubelet's probe has no token and no TLS; nobody runs the loop that it asks for.
        for encrypted in [false, true] {
            let said = ask(encrypted, "/healthz", "").await;
            assert!(said.starts_with("HTTP/1.1 503") && said.contains("loop"), "{said}");
        }
    });
}

#[test]
fn a_handshake_that_never_ends_costs_its_place() {
    inside(async || {
        agent().await;
        let mut stream = TcpStream::connect(HERE).await.unwrap();
        // The head of a record whose rest does not come.
        stream.write_all(&[22, 3, 1, 1, 0]).await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "it is still open");
    });
}
