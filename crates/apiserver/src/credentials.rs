//! Who may speak to the API: a CA, a server certificate, and one bearer token per identity.
//!
//! ```text
//! <dir>/ca.crt  tls.crt  tls.key        made once, kept over restarts
//! <dir>/token.key                       signs the tokens of service accounts
//! <dir>/tokens/<identity>               "<identity>.<64 hex digits>", one file each, mode 0600
//! ```
//! Files rather than memory: `lab up`, the API and its successor after a crash read the same ones.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Error;

/// Names and addresses under which the API is reached (docs/lab.md).
pub const SERVER_NAMES: [&str; 10] = [
    "127.0.0.1",
    "192.168.1.2",
    "10.96.0.1",
    "fd00:192:168:1::2",
    "fd00:10:96::1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// Who asks. Everyone with a token may do everything: it is one person's lab.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    Admin,
    Agent(String),
    Kubelet(String),
}

impl Identity {
    fn file_name(&self) -> String {
        match self {
            Self::Admin => "admin".to_owned(),
            Self::Agent(node) => format!("agent-{node}"),
            Self::Kubelet(node) => format!("kubelet-{node}"),
        }
    }

    fn from_file_name(name: &str) -> Option<Self> {
        if name == "admin" {
            return Some(Self::Admin);
        }
        let (role, node) = name.split_once('-')?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match role {
            _ if node.is_empty() || !node.chars().all(plain) => None,
            "agent" => Some(Self::Agent(node.to_owned())),
            "kubelet" => Some(Self::Kubelet(node.to_owned())),
            _ => None,
        }
    }
}

/// The user name that `kubectl auth whoami` shows.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("kubernetes-admin"),
            Self::Agent(_) => f.write_str("system:serviceaccount:kube-system:plumb"),
            Self::Kubelet(node) => write!(f, "system:node:{node}"),
        }
    }
}

/// The credentials directory of one lab.
#[derive(Clone, Debug)]
pub struct Credentials {
    dir: PathBuf,
    ca_pem: String,
}

impl Credentials {
    /// Opens the directory, making it and what is missing in it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::CredentialFile { path, source }
        };
        let tokens = dir.join("tokens");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&tokens).map_err(at(&tokens))?;
        let ca = dir.join("ca.crt");
        // tls.key is written last: its presence means that the set is complete.
        if !dir.join("tls.key").exists() {
            make_certificates(dir)?;
        }
        let ca_pem = std::fs::read_to_string(&ca).map_err(at(&ca))?;
        Ok(Self { dir: dir.to_owned(), ca_pem })
    }

    /// The CA in PEM, for clients.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The identity's token, made at the first ask.
    pub fn token(&self, identity: &Identity) -> Result<String, Error> {
        let name = identity.file_name();
        let path = self.dir.join("tokens").join(&name);
        let fail = |source| Error::CredentialFile { path: path.clone(), source };
        if !path.exists() {
            let token = format!("{name}.{}", random_hex(32).map_err(fail)?);
            match write_private(&path, token.as_bytes()) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.map_err(fail)?,
            }
        }
        std::fs::read_to_string(&path).map_err(fail)
    }

    /// The secret that signs the tokens of service accounts, made at the first ask: they outlive the process.
    pub(crate) fn token_key(&self) -> Result<String, Error> {
        let path = self.dir.join("token.key");
        let fail = |source| Error::CredentialFile { path: path.clone(), source };
        if !path.exists() {
            replace_private(&path, random_hex(32).map_err(fail)?.as_bytes()).map_err(fail)?;
        }
        std::fs::read_to_string(&path).map_err(fail)
    }

    /// Whose token this is; never a service account's, whose tokens are for others to review. The name in front only finds the file; the whole text must be equal.
    pub fn identify(&self, token: &str) -> Option<Identity> {
        let (name, _) = token.rsplit_once('.')?;
        let identity = Identity::from_file_name(name)?;
        let kept = std::fs::read(self.dir.join("tokens").join(name)).ok()?;
        same_bytes(&kept, token.as_bytes()).then_some(identity)
    }

    /// A kubeconfig for the identity, with the CA and the token inside.
    pub fn kubeconfig(&self, cluster: &str, server: &str, identity: &Identity) -> Result<String, Error> {
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca_pem);
        let (user, token) = (identity.file_name(), self.token(identity)?);
        Ok(format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {cluster}\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    token: {token}\ncontexts:\n- \
             name: {cluster}\n  context:\n    cluster: {cluster}\n    user: {user}\ncurrent-context: {cluster}\n"
        ))
    }

    /// Writes [`Self::kubeconfig`] to a file of mode 0600, replacing it whole.
    pub fn write_kubeconfig(
        &self,
        path: &Path,
        cluster: &str,
        server: &str,
        identity: &Identity,
    ) -> Result<(), Error> {
        let text = self.kubeconfig(cluster, server, identity)?;
        replace_private(path, text.as_bytes())
            .map_err(|source| Error::CredentialFile { path: path.to_owned(), source })
    }

    /// The TLS side of [`crate::serve`].
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let unreadable = |path: &Path, cause: rustls::pki_types::pem::Error| Error::CredentialContent {
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        let (cert, key) = (self.dir.join("tls.crt"), self.dir.join("tls.key"));
        let chain = CertificateDer::pem_file_iter(&cert)
            .and_then(Iterator::collect)
            .map_err(|e| unreadable(&cert, e))?;
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|e| unreadable(&key, e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        // Only HTTP/1.1: kubectl's WebSockets need an upgrade, and a lab needs no multiplexing.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn make_certificates(dir: &Path) -> Result<(), Error> {
    let mut authority = CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "plumb-lab-ca");
    let authority_key = KeyPair::generate()?;
    let authority_cert = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);

    let mut server = CertificateParams::new(SERVER_NAMES.map(str::to_owned))?;
    server.distinguished_name.push(DnType::CommonName, "plumb-api");
    server.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let cert = server.signed_by(&key, &issuer)?;

    for (name, text) in
        [("ca.crt", authority_cert.pem()), ("tls.crt", cert.pem()), ("tls.key", key.serialize_pem())]
    {
        let path = dir.join(name);
        replace_private(&path, text.as_bytes()).map_err(|source| Error::CredentialFile { path, source })?;
    }
    Ok(())
}

fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}

/// Writes beside and renames, so that a reader never sees half a file or one that others may read.
fn replace_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&beside);
    write_private(&beside, content)?;
    std::fs::rename(&beside, path)
}

/// Time independent of where the difference is.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

/// Random bytes of the kernel, as hex digits.
pub(crate) fn random_hex(bytes: usize) -> std::io::Result<String> {
    let mut buffer = vec![0; bytes];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut buffer)?;
    Ok(buffer.iter().map(|b| format!("{b:02x}")).collect())
}
