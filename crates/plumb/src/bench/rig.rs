//! One node with a real agent process and an API of our own; everything ends with the value.
//!
//! ```text
//!   this process: embedded API ── TLS, 127.0.0.1:6443 inside ──┐
//!   node netns:   `plumb agent` ────────────────────────────────┘   plumb-cni ── agent.sock
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use apiserver::{Api, Config, Credentials, Identity, NoNodes, Store};
use kernel::process::{Namespaces, Process, Signal, Spawn};
use kernel::{Netns, Rtnl, net};
use kstate::net::{Op, Plan};
use serde_json::{Value, json};
use types::wire::{DNS_IPS, POD_CIDRS, SERVICE_CIDRS};
use types::{Families, IfName};

const ADDRESS: &str = "192.168.1.10";
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Rig {
    pub netns: Netns,
    pub directory: Directory,
    agent: Option<Process>,
    client: kube::Client,
    runtime: tokio::runtime::Runtime,
    families: Families,
}

/// A temporary directory that ends with the value.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(what: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("plumb-bench-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left of it is in the temporary directory and says whose it was.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            let _ = agent.signal(Signal::KILL);
            let _ = agent.wait();
        }
    }
}

impl Rig {
    /// Objects can be made before the agent lists them. `families`: of the pods' addresses.
    pub fn new(families: Families) -> Result<Self> {
        let netns = namespace()?;
        let directory = Directory::new("node")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let address: SocketAddr = "127.0.0.1:6443".parse()?;
        let credentials = Credentials::open(&directory.0.join("credentials"))?;
        let listener = netns.run(|| TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let client = {
            let _guard = runtime.enter();
            let nodes = Arc::new(NoNodes);
            let config =
                Config { advertised: address, families, nodes, credentials: Some(credentials.clone()) };
            let api = Api::new(Store::in_memory(), config)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            runtime.spawn(apiserver::serve(api.clone(), listener, credentials.clone()));
            kube::Client::new(api, "default")
        };
        let identity = Identity::Agent("node1".into());
        credentials.write_kubeconfig(
            &directory.0.join("kubeconfig"),
            "bench",
            "https://127.0.0.1:6443",
            &identity,
        )?;
        let pods: Vec<&str> =
            families.list().iter().map(|f| f.pick(["10.244.1.0/24", "fd00:10:244:1::/64"])).collect();
        let rig = Self { netns, directory, agent: None, client, runtime, families };
        rig.request(
            "POST",
            "/api/v1/nodes",
            &json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" },
                "spec": { "podCIDR": pods[..1].concat(), "podCIDRs": pods },
            }),
        )?;
        let status = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": ADDRESS }] } });
        rig.request("PATCH", "/api/v1/nodes/node1/status", &status)?;
        Ok(rig)
    }

    pub fn request(&self, method: &str, path: &str, object: &Value) -> Result<Value> {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", media);
        let request = request.body(object.to_string().into_bytes())?;
        self.runtime.block_on(self.client.request(request)).with_context(|| format!("{method} {path}"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    /// Starts the agent, of this program or another one, and waits until it wires pods.
    pub fn start_agent(&mut self, program: Option<&Path>) -> Result<()> {
        let program = program.map_or_else(std::env::current_exe, |path| Ok(path.to_owned()))?;
        let path = |name: &str| self.path(name).display().to_string();
        let flags = [
            ("--node", "node1".to_owned()),
            ("--kubeconfig", path("kubeconfig")),
            ("--data", path("data")),
            ("--cni-conf-dir", path("net.d")),
            ("--socket", path("agent.sock")),
            ("--mtu", "1450".into()),
        ];
        let of_families = |all: [&'static str; 2]| {
            self.families.list().iter().map(|family| family.pick(all)).collect::<Vec<_>>().join(",")
        };
        let ranges =
            [("--cluster-cidr", POD_CIDRS), ("--service-cidr", SERVICE_CIDRS), ("--dns-ip", DNS_IPS)];
        let agent = Spawn::program(&program)
            .arg("agent")
            .args(flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]))
            .args(ranges.iter().flat_map(|(flag, all)| [(*flag).to_owned(), of_families(*all)]))
            .join(Namespaces::NET, &self.netns)?
            .output_to(self.path("agent.log"))?
            .start()?;
        let deadline = Instant::now() + PATIENCE;
        while !self.path("net.d/10-plumb.conflist").exists()
            || UnixStream::connect(self.path("agent.sock")).is_err()
        {
            if !agent.alive() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.path("agent.log")).unwrap_or_default();
                let _ = agent.signal(Signal::KILL);
                bail!("the agent does not serve:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.agent = Some(agent);
        Ok(())
    }
}

impl Rig {
    /// Has the node know so many connections of each family, for as long as it measures: of datagrams to nobody.
    pub fn know_flows(&self, count: u32) -> Result<()> {
        self.netns.run(|| {
            let timeout = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
            std::fs::write(timeout, "86400").with_context(|| format!("write {timeout}"))?;
            for family in self.families.list() {
                let to: IpAddr = family.pick([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
                let mut socket = UdpSocket::bind((to, 0))?;
                for number in 0..count {
                    if number % PORTS == 0 {
                        socket = UdpSocket::bind((to, 0))?;
                    }
                    socket.send_to(b"x", (to, (FIRST_PORT + number % PORTS) as u16))?;
                }
            }
            let known = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
            let (known, wanted): (usize, usize) =
                (known.trim().parse()?, count as usize * self.families.list().len());
            ensure!(
                known >= wanted,
                "conntrack holds {known} connections of {wanted}: see net.netfilter.nf_conntrack_max"
            );
            Ok(())
        })?
    }
}

/// Ports that one socket sends to.
const FIRST_PORT: u32 = 12_000;
const PORTS: u32 = 50_000;

/// With `lo` up and the node's address on it.
fn namespace() -> Result<Netns> {
    const LOOPBACK: u32 = 1;
    let netns = Netns::fresh()?;
    let mut rtnl = Rtnl::open_in(&netns)?;
    rtnl.set_up(LOOPBACK)?;
    let address = Op::AddAddress { link: IfName::new("lo")?, address: format!("{ADDRESS}/32").parse()? };
    let failures = net::apply(&mut rtnl, &Plan { grow: vec![address], shrink: Vec::new() })?;
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(netns)
}

/// The file beside this program, unless another one is given.
pub fn beside_us(given: Option<&Path>, name: &str) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name(name),
    };
    ensure!(path.is_file(), "there is no {}; build it (cargo build --release -p cni-plugin)", path.display());
    Ok(path)
}
