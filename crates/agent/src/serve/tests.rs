//! Real sockets in a namespace of the test's own: thousands of half-open connections of one address.

use std::net::SocketAddr;

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::dns::tests::inside;

const HERE: &str = "192.168.1.10:9475";
const HALF: &[u8] = b"GET /healthz HTTP/1.1\r\nHost:";

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

struct Site {
    door: Door,
    refused: Counter,
    /// Whoever asks `/held` is answered when this is true, and has a place until then.
    let_go: watch::Sender<bool>,
}

impl Site {
    async fn serve() -> Self {
        let (refused, (let_go, held)) = (Counter::default(), watch::channel(false));
        let door = Door::new(refused.clone());
        let listener = TcpListener::bind(HERE).await.unwrap();
        let here: SocketAddr = HERE.parse().unwrap();
        let hold = move || {
            let mut held = held.clone();
            async move {
                let _ = held.wait_for(|go| *go).await;
                "held\n"
            }
        };
        let router = Router::new().route("/healthz", get(async || "ok\n")).route("/held", get(hold));
        let at_door = door.clone();
        let admit = move |from: SocketAddr| at_door.admit(from.ip(), here.ip());
        tokio::spawn(serve(listener, router, admit, std::future::pending()));
        Self { door, refused, let_go }
    }
}

/// Whole requests that hold places of this address, or heads that never end.
async fn flood(from: &str, head: &[u8], count: usize) -> Vec<TcpStream> {
    let mut flood = Vec::new();
    for _ in 0..count {
        let mut stream = open(from).await.unwrap();
        // Who has no place is closed by now, perhaps.
        let _ = stream.write_all(head).await;
        flood.push(stream);
    }
    flood
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
        let Site { door, refused, let_go } = Site::serve().await;
        // Requests keep the places for as long as the test wants, on a slow machine too; half of a head would not.
        let request = b"GET /held HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
        let places = flood("203.0.113.10", request, STRANGERS.1).await;
        until("all places are taken", || door.strangers.taken() == STRANGERS.1).await;
        let half = flood("203.0.113.10", HALF, 2_000).await;
        until("every one of the flood is refused", || refused.get() == 2_000).await;
        for other in ["10.244.2.7", "192.168.1.11", "192.168.1.10"] {
            let said = ask(other).await.unwrap_or_default();
            assert!(said.ends_with("ok\n"), "{other}: {said}");
        }
        assert_eq!((refused.get(), door.strangers.taken()), (2_000, STRANGERS.1));
        let_go.send_replace(true);
        for mut stream in places {
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            assert!(said.ends_with("held\n"), "{said}");
        }
        until("the places are free", || door.strangers.taken() == 0).await;
        drop(half);
    });
}

#[test]
fn a_head_that_never_ends_costs_its_place() {
    inside(async || {
        let Site { door, refused, .. } = Site::serve().await;
        for mut stream in flood("203.0.113.10", HALF, STRANGERS.1).await {
            // It is closed from there, though nobody closes here.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        assert_eq!(refused.get(), 0, "each of them had a place");
        until("the places are free", || door.strangers.taken() == 0).await;
        assert!(ask("203.0.113.10").await.is_some());
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
        let _site = Site::serve().await;
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

/// Whom clients of these tests ask for.
pub(crate) fn name() -> rustls::pki_types::ServerName<'static> {
    "node1".try_into().expect("a name")
}

/// Believes every certificate, as a Prometheus with `insecureSkipVerify`.
pub(crate) fn trusting() -> tokio_rustls::TlsConnector {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    struct Trusting(rustls::crypto::CryptoProvider);

    impl ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let of = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, cert, signed, of)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let of = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, signed, of)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }

    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.clone().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(Trusting(provider)))
        .with_no_client_auth();
    std::sync::Arc::new(config).into()
}
