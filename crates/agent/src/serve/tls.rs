//! TLS on a port that also speaks plain HTTP: the first byte tells which. So health, traces and metrics have one port, as
//! before there was TLS, and the kubelet's probe and the API server's proxy go on as they are.
//!
//! ```text
//!   first byte ─┬─ 22, a handshake (RFC 8446 §5.1; no method of HTTP begins so) ─> TLS ─> HTTP, marked Encrypted
//!               └─ another ─────────────────────────────────────────────────────────────> HTTP
//! ```
//! The certificate is that of a directory, which may be another tomorrow, or one that the agent makes for itself.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Chain, Join, ReadHalf, WriteHalf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::HEAD;

const HANDSHAKE: u8 = 22;
/// How often the directory is looked at, at most: a kubelet brings a changed Secret within a minute or two.
const LOOK: Duration = Duration::from_secs(10);
/// What a Secret of type kubernetes.io/tls has.
const FILES: [&str; 2] = ["tls.crt", "tls.key"];

/// Of a request that came through TLS.
#[derive(Clone, Copy, Debug)]
pub struct Encrypted;

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Opened<I> {
    Plain(Begun<I>),
    Encrypted(Box<TlsStream<Begun<I>>>),
}

/// With the byte that was read of it.
pub type Begun<I> = Join<Chain<Cursor<[u8; 1]>, ReadHalf<I>>, WriteHalf<I>>;

/// Clones are of one.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Shared>);

struct Shared {
    directory: PathBuf,
    state: Mutex<State>,
}

struct State {
    acceptor: TlsAcceptor,
    /// Of the files that the acceptor has, or that could not be read; none: the agent's own certificate.
    stamp: Option<Stamp>,
    looked: Instant,
}

/// When the files were changed. They are replaced by rename, so no half of one is seen.
type Stamp = [(SystemTime, u64); 2];

impl Tls {
    /// What the directory has. Where that is nothing, or cannot be read, a certificate for `name` that nobody has signed:
    /// an agent does not end for want of it, and its metrics are not told in the clear.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let stamp = stamp(directory);
        let read = stamp.map(|_| read(directory)).transpose().unwrap_or_else(|error| {
            tracing::error!("{error:#}; metrics are served with a certificate of the agent's own");
            None
        });
        let acceptor = match read {
            Some(acceptor) => acceptor,
            None => own(name).context("make a certificate for metrics")?,
        };
        let state = Mutex::new(State { acceptor, stamp, looked: Instant::now() });
        Ok(Self(Arc::new(Shared { directory: directory.to_owned(), state })))
    }

    /// Reads the first byte, and shakes hands if that is asked for; `None`: nothing came of it in time.
    pub async fn open<I: AsyncRead + AsyncWrite + Unpin>(&self, mut io: I) -> Option<Opened<I>> {
        let opened = async {
            let first = io.read_u8().await?;
            let (read, write) = tokio::io::split(io);
            let io = tokio::io::join(Cursor::new([first]).chain(read), write);
            if first != HANDSHAKE {
                return Ok(Opened::Plain(io));
            }
            Ok::<_, std::io::Error>(Opened::Encrypted(Box::new(self.acceptor().accept(io).await?)))
        };
        match tokio::time::timeout(HEAD, opened).await {
            Ok(Ok(opened)) => Some(opened),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake ended");
                None
            }
            Err(_) => None,
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let Shared { directory, state } = &*self.0;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.look(directory);
        }
        state.acceptor.clone()
    }
}

impl State {
    /// What cannot be read is said once; the certificate of before stays.
    fn look(&mut self, directory: &Path) {
        self.looked = Instant::now();
        let stamp = stamp(directory);
        if stamp.is_none() || stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        match read(directory) {
            Ok(acceptor) => {
                self.acceptor = acceptor;
                tracing::info!(directory = %directory.display(), "the certificate of metrics was read again");
            }
            Err(error) => tracing::error!("{error:#}; the certificate of before is used on"),
        }
    }
}

fn stamp(directory: &Path) -> Option<Stamp> {
    let of = |name| {
        let about = std::fs::metadata(directory.join(name)).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    Some([of(FILES[0])?, of(FILES[1])?])
}

fn read(directory: &Path) -> Result<TlsAcceptor> {
    let [cert, key] = FILES.map(|name| directory.join(name));
    let what = |path: &Path| format!("read {} (--metrics-cert-dir), which must be PEM", path.display());
    let chain =
        CertificateDer::pem_file_iter(&cert).and_then(Iterator::collect).with_context(|| what(&cert))?;
    let private = PrivateKeyDer::from_pem_file(&key).with_context(|| what(&key))?;
    acceptor(chain, private)
        .with_context(|| format!("{} and {} do not belong together", cert.display(), key.display()))
}

fn own(name: &str) -> Result<TlsAcceptor> {
    let mut wanted = CertificateParams::new([name.to_owned()])?;
    wanted.distinguished_name.push(DnType::CommonName, name);
    wanted.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    let key = KeyPair::generate()?;
    let cert = wanted.self_signed(&key)?;
    acceptor(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

fn acceptor(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("directory", &self.directory).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::tests::{name, trusting};

    /// The certificate that a client is shown, and what it hears after its question.
    async fn shown(tls: &Tls) -> CertificateDer<'static> {
        let (client, server) = tokio::io::duplex(1 << 14);
        let serving = tls.clone();
        let serve = tokio::spawn(async move { serving.open(server).await });
        let stream = trusting().connect(name(), client).await;
        let stream = stream.expect("a handshake");
        assert!(matches!(serve.await.expect("it ends"), Some(Opened::Encrypted(_))));
        let (_, session) = stream.get_ref();
        session.peer_certificates().expect("certificates")[0].clone()
    }

    fn write(directory: &Path, host: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new([host.to_owned()]).unwrap().self_signed(&key).unwrap();
        for (file, text) in [("tls.crt", cert.pem()), ("tls.key", key.serialize_pem())] {
            std::fs::write(directory.join(file), text).unwrap();
        }
        cert.der().clone()
    }

    #[tokio::test]
    async fn the_certificate_is_the_directorys_and_follows_it() {
        let directory = std::env::temp_dir().join(format!("plumb-tls-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let own = Tls::new(&directory, "node1").unwrap();
        let made = shown(&own).await;
        assert_ne!(made, shown(&Tls::new(&directory, "node1").unwrap()).await, "each agent makes its own");

        std::fs::create_dir_all(&directory).unwrap();
        let first = write(&directory, "plumb-metrics.kube-system.svc");
        let tls = Tls::new(&directory, "node1").unwrap();
        assert_eq!(shown(&tls).await, first);
        let look = |tls: &Tls| tls.0.state.lock().unwrap().look(&directory);
        look(&own);
        assert_eq!(shown(&own).await, first, "a Secret that came later");

        // Of another length, so that a coarse clock of the file system does not hide it.
        let second = write(&directory, "plumb-metrics.another-longer-name.svc");
        look(&tls);
        assert_eq!(shown(&tls).await, second);
        std::fs::write(directory.join("tls.key"), "no key").unwrap();
        look(&tls);
        assert_eq!(shown(&tls).await, second, "what cannot be read changes nothing");
        shown(&Tls::new(&directory, "node1").unwrap()).await;
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
