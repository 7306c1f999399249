//! Real sockets in a namespace of the test's own: thousands of half-open connections of one address.

use std::net::SocketAddr;

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::dns::tests::inside;

const HERE: &str = "192.168.1.10:9475";

async fn open(from: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0))?;
    socket.connect(HERE.parse().unwrap()).await
}

/// `None`: closed without an answer.
async fn ask(from: &str) -> Option<String> {
    let mut stream = open(from).await.ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await.ok()?;
    (!said.is_empty()).then_some(said)
}

fn site() -> (Door, Counter, impl Future<Output = ()>) {
    let refused = Counter::default();
    let door = Door::new(refused.clone());
    let at_door = door.clone();
    let served = async move {
        let listener = TcpListener::bind(HERE).await.unwrap();
        let here: SocketAddr = HERE.parse().unwrap();
        let router = Router::new().route("/healthz", get(async || "ok\n"));
        let admit = move |from: SocketAddr| at_door.admit(from.ip(), here.ip());
        serve(listener, router, admit, std::future::pending()).await;
    };
    (door, refused, served)
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[test]
fn thousands_of_half_open_connections_cost_others_nothing() {
    inside(async || {
        raise_file_limit();
        let (door, refused, served) = site();
        tokio::spawn(served);
        until("it listens", || std::net::TcpStream::connect(HERE).is_ok()).await;
        let mut flood = Vec::new();
        for _ in 0..2_000 {
            let mut stream = open("203.0.113.10").await.unwrap();
            // Some are closed already.
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await;
            flood.push(stream);
        }
        // On a slow machine the first ones have run out of time by now, and later ones got their places.
        until("the flood is counted", || refused.get() > 0).await;
        assert!(door.strangers.taken() <= 64, "{}", door.strangers.taken());
        for other in ["10.244.2.7", "192.168.1.11", "192.168.1.10"] {
            let said = ask(other).await.unwrap_or_default();
            assert!(said.ends_with("ok\n"), "{other}: {said}");
        }
        // Their heads never come: their places are free again though nobody closes.
        until("the flood's places are free", || door.strangers.taken() == 0).await;
        assert!(ask("203.0.113.10").await.is_some());
        drop(flood);
    });
}

#[test]
fn strangers_who_have_all_places_leave_the_node_its_own() {
    let door = Door::new(Counter::default());
    let here: IpAddr = "192.168.1.10".parse().unwrap();
    let hosts = (0..=255).map(|n| IpAddr::from([203, 0, 113, n]));
    let taken: Vec<_> = hosts
        .flat_map(|host| std::iter::from_fn(|| door.admit(host, here)).take(64).collect::<Vec<_>>())
        .collect();
    assert_eq!(taken.len(), STRANGERS.0);
    assert!(door.admit("10.244.2.7".parse().unwrap(), here).is_none());
    assert!(door.admit(here, here).is_some());
    assert!(door.admit("127.0.0.1".parse().unwrap(), here).is_some());
    // The same address, as a listener of both families sees it.
    drop(taken);
    let mapped: IpAddr = "::ffff:203.0.113.1".parse().unwrap();
    let one: Vec<_> = std::iter::from_fn(|| door.admit(mapped, here)).collect();
    assert_eq!(one.len(), STRANGERS.1);
    assert!(door.admit("203.0.113.1".parse().unwrap(), here).is_none());
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    inside(async || {
        let (_, _, served) = site();
        tokio::spawn(served);
        until("it listens", || std::net::TcpStream::connect(HERE).is_ok()).await;
        let mut stream = open("203.0.113.10").await.unwrap();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n").await;
        let line = format!("X: {}\r\n", "a".repeat(1000));
        // It closes long before the end.
        for _ in 0..1_000 {
            if stream.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        assert!(!String::from_utf8_lossy(&said).contains("200 OK"));
        assert!(ask("203.0.113.10").await.is_some());
    });
}
