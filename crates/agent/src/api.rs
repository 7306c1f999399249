//! The way to the Kubernetes API before the cluster's network works: no Service address, no cluster DNS.
//!
//! ```text
//!   --kubeconfig              its server and credentials
//!   else, in a pod            the pod's own token, and the first of
//!                               --api-servers
//!                               a kubeconfig of the host (its server only: its credentials are not ours)
//!                               KUBERNETES_SERVICE_HOST, which works where something else carries Services
//! ```
//! Several addresses are tried in turn; the one that answered is kept. `connect.rs` sees to it that one that is gone
//! without a word is missed.

mod connect;
mod token;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use tower::service_fn;
use types::wire::HOST_KUBERNETES;

use crate::settings::Args;

/// Kubeconfigs in the directory that tools leave on a node, the kubelet's own first: kubeadm's /etc/kubernetes,
/// /var/lib/rancher/k3s/agent and /var/lib/rancher/rke2/agent, /var/lib/kubelet of hand-made nodes.
const OF_THE_HOST: [&str; 4] = ["kubelet.conf", "kubelet.kubeconfig", "kubeconfig", "admin.conf"];
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API is.
#[derive(Clone, Debug, Default)]
pub struct Api {
    /// In words.
    pub addresses: String,
    /// In numbers: nothing in the cluster may lead packets for these elsewhere. Of a name those that it had when the
    /// agent began; the API's own list (the endpoints of default/kubernetes) says more.
    pub sockets: Vec<SocketAddr>,
}

/// A client for the API at whichever of its addresses answers, and those addresses.
pub async fn client(args: &Args) -> Result<(Client, Api)> {
    let configs = configs(args).await?;
    let mut sockets = Vec::new();
    for config in &configs {
        sockets.extend(sockets_of(&config.cluster_url).await);
    }
    let addresses: Vec<String> = configs
        .iter()
        .map(|config| config.cluster_url.to_string().trim_end_matches('/').to_owned())
        .collect();
    tracing::info!(?addresses, "the Kubernetes API");
    let mut clients = Vec::new();
    for config in configs {
        let at = config.cluster_url.clone();
        clients.push(
            connect::client(config, connect::PATIENCE)
                .with_context(|| format!("a client for the API at {at}"))?,
        );
    }
    let client = match clients.as_slice() {
        [only] => only.clone(),
        _ => failing_over(clients),
    };
    Ok((client, Api { addresses: addresses.join(" or "), sockets }))
}

/// What the resolver of the node takes for a name; it may be slow, or have no answer.
const RESOLVE: Duration = Duration::from_secs(3);

async fn sockets_of(uri: &Uri) -> Vec<SocketAddr> {
    let Some(host) = uri.host().map(|host| host.trim_matches(['[', ']'])) else { return Vec::new() };
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    if let Ok(address) = host.parse::<IpAddr>() {
        return vec![SocketAddr::new(address, port)];
    }
    match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            tracing::warn!(%error, host, "the API's name is not resolved: a Service may take its address");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!(host, waited = ?RESOLVE, "the API's name is not resolved: a Service may take its address");
            Vec::new()
        }
    }
}

async fn configs(args: &Args) -> Result<Vec<Config>> {
    let account = Path::new(ACCOUNT);
    let given = args.api_servers.iter().map(|text| server(text)).collect::<Result<Vec<_>>>()?;
    let (base, own) = if args.kubeconfig.exists() || !account.join("token").exists() {
        let base = of_kubeconfig(&args.kubeconfig).await?;
        let own = base.cluster_url.clone();
        (base, vec![own])
    } else {
        of_account(
            account,
            if given.is_empty() { of_the_host(Path::new(HOST_KUBERNETES)) } else { Vec::new() },
        )?
    };
    let addresses = if given.is_empty() { own } else { given };
    let at = |address| {
        let mut config = base.clone();
        config.cluster_url = address;
        config
    };
    Ok(addresses.into_iter().map(at).collect())
}

async fn of_kubeconfig(path: &Path) -> Result<Config> {
    let at = |why: String| {
        let path = path.display();
        anyhow!(
            "kubeconfig {path}: {why}; give one with --kubeconfig, or run as a pod with a service account"
        )
    };
    let file = watch::kubeconfig(path).map_err(|why| at(why.to_string()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    config.map_err(|why| at(watch::told(&why)))
}

/// The pod's own credentials. The kubelet renews the token's file and kube-rs reads it again.
fn of_account(directory: &Path, mut addresses: Vec<Uri>) -> Result<(Config, Vec<Uri>)> {
    if addresses.is_empty() {
        addresses.extend(of_environment());
    }
    let Some(first) = addresses.first().cloned() else {
        bail!(
            "no address of the Kubernetes API: give --api-servers (PLUMB_API_SERVERS), such as \
             https://192.0.2.10:6443, or the chart's kubernetesDir; {HOST_KUBERNETES} has no kubeconfig ({})",
            OF_THE_HOST.join(", ")
        );
    };
    let mut config = Config::new(first);
    let file = directory.join("ca.crt");
    let pem = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    config.root_cert = Some(certificates(&pem).with_context(|| format!("{}", file.display()))?);
    config.auth_info.token_file = Some(directory.join("token").to_string_lossy().into_owned());
    Ok((config, addresses))
}

fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let all: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(pem)
        .map(|item| item.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()?;
    if all.is_empty() {
        bail!("it holds no certificate");
    }
    Ok(all)
}

/// The servers that kubeconfigs of the host name, each once.
fn of_the_host(directory: &Path) -> Vec<Uri> {
    let mut found: Vec<Uri> = Vec::new();
    for name in OF_THE_HOST {
        let path = directory.join(name);
        let Ok(file) = watch::kubeconfig(&path) else { continue };
        let current = file.current_context.as_deref();
        let context = file.contexts.iter().find(|named| Some(named.name.as_str()) == current);
        let cluster = context.and_then(|named| named.context.as_ref()).map(|context| &context.cluster);
        let named = file.clusters.iter().find(|named| cluster.is_none_or(|cluster| *cluster == named.name));
        let text = named.and_then(|named| named.cluster.as_ref()).and_then(|cluster| cluster.server.clone());
        match text.map(|text| server(&text)) {
            Some(Ok(uri)) if !found.contains(&uri) => found.push(uri),
            Some(Err(error)) => {
                tracing::warn!(path = %path.display(), error = format!("{error:#}"), "not used")
            }
            _ => {}
        }
    }
    found
}

fn of_environment() -> Option<Uri> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".into());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    server(&format!("https://{host}:{port}")).ok()
}

/// `https://HOST[:PORT]`, or `HOST:PORT`.
pub fn server(text: &str) -> Result<Uri> {
    let text = text.trim();
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let wrong =
        || format!("{text:?} is not an address of an API server; expected such as https://192.0.2.10:6443");
    let uri: Uri = whole.parse().with_context(wrong)?;
    // Of a port that is none, the library says that there is none.
    let port = uri.authority().is_some_and(|authority| {
        authority.as_str() == authority.host() || authority.port_u16().is_some_and(|port| port > 0)
    });
    let host = uri.host().is_some_and(|host| !host.is_empty());
    if !host || !port || !matches!(uri.scheme_str(), Some("https" | "http")) {
        bail!(wrong());
    }
    Ok(uri)
}

/// Sends to the server that answered last. One that cannot be reached is left for the next; a request that only reads
/// is said again there at once, one that writes by whoever made it. An answer that breaks off, as a watch does whose
/// server hangs, sends the next request elsewhere too.
fn failing_over(clients: Vec<Client>) -> Client {
    let servers = Servers { clients: clients.into(), current: Arc::default() };
    let service = service_fn(move |request: Request<Body>| {
        let servers = servers.clone();
        async move { servers.send(request).await }
    });
    Client::new(service, "default")
}

#[derive(Clone)]
struct Servers {
    clients: Arc<[Client]>,
    current: Arc<AtomicUsize>,
}

impl Servers {
    async fn send(
        &self,
        request: Request<Body>,
    ) -> kube::Result<Response<impl http_body::Body<Data = Bytes, Error = kube::Error> + Send + use<>>> {
        let mut next = Some(request);
        let mut outcome = None;
        for _ in 0..self.clients.len() {
            let Some(request) = next.take() else { break };
            let at = self.current.load(Ordering::Relaxed);
            let Some(client) = self.clients.get(at) else { break };
            next = again(&request);
            match client.send(request).await {
                Ok(response) => {
                    let servers = self.clone();
                    return Ok(response.map(|body| body.map_err(move |error| servers.leave(at, error))));
                }
                Err(error) => outcome = Some(Err(self.leave(at, error))),
            }
        }
        outcome.unwrap_or_else(|| Err(kube::Error::Service("no API server to send to".into())))
    }

    /// Unless another request has moved on meanwhile.
    fn leave(&self, at: usize, error: kube::Error) -> kube::Error {
        let next = (at + 1) % self.clients.len();
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        tracing::debug!(%error, server = at, "the API at this address does not answer");
        error
    }
}

/// The same once more, if saying it twice does no harm.
fn again(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_safe() {
        return None;
    }
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy.extensions_mut().clone_from(request.extensions());
    Some(copy)
}

#[cfg(test)]
mod tests;
