//! `plumb bench cni`: ADD and DEL by executing the plugin, as a runtime does.
//!
//! ```text
//!   per round, one fresh namespace each:   plumb-cni ── agent (policies of the pod in the kernel before ADD returns)
//!                                          bridge + host-local, ipMasq (containernetworking/plugins)
//!                                          kernel::veth::create in this process: what the kernel itself costs
//! ```
//! The clock runs from before fork of the plugin until it has exited and its answer is read.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kernel::veth::{self, PodRoute, PodVeth, Port};
use kernel::{Netns, Rtnl, net};
use kstate::net::{Link, LinkKind, Op, Plan};
use serde_json::{Value, json};
use types::IfName;

use super::figures::{Line, Table, median};
use super::rig::{Directory, Rig, beside_us};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Pods of each variant
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Pods that are deleted at the same time, in the last step
    #[arg(long, default_value_t = 20)]
    burst: u32,
    /// Our CNI executable [default: plumb-cni beside this program]
    #[arg(long)]
    cni: Option<PathBuf>,
    /// Directory with the reference plugins `bridge` and `host-local`
    #[arg(long, default_value = "/opt/cni/bin")]
    reference: PathBuf,
    /// How the reference masquerades: iptables (its default) or nftables
    #[arg(long, default_value = "iptables")]
    reference_masquerade: String,
}

const INSTALL: &str =
    "go install github.com/containernetworking/plugins/plugins/{main/bridge,ipam/host-local}@v1.9.1";
/// Addresses of one /24 less network, gateway and broadcast.
const ROOM: u32 = 253;

pub fn run(args: &Args) -> Result<Table> {
    let pods = args.rounds + args.burst;
    ensure!(args.rounds > 0 && pods <= ROOM, "--rounds and --burst are at least 1 and {ROOM} pods together");
    let rig = rig(pods)?;
    let config = json!({
        "cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni", "agentSocket": rig.path("agent.sock"),
    });
    let ours = Plugin {
        path: beside_us(args.cni.as_deref(), "plumb-cni")?,
        search: PathBuf::new(),
        config,
        netns: rig.netns.try_clone()?,
    };
    let leases = Directory::new("leases")?;
    let reference = reference(args, &leases)?;
    let mut bare = Bare::new()?;
    let mut times = Times::default();
    let sandboxes = |from: u32, to: u32| (from..to).map(Sandbox::new).collect::<Result<Vec<_>>>();
    let (singles, others) = (sandboxes(0, args.rounds)?, sandboxes(0, args.rounds)?);
    let bares = sandboxes(0, args.rounds)?;
    for ((single, other), sandbox) in singles.iter().zip(&others).zip(&bares) {
        times.add[0].push(ours.run("ADD", single)?);
        if let Some(reference) = &reference {
            times.add[1].push(reference.run("ADD", other)?);
        }
        times.add[2].push(bare.create(sandbox)?);
    }
    for ((single, other), sandbox) in singles.iter().zip(&others).zip(&bares) {
        times.del[0].push(ours.run("DEL", single)?);
        if let Some(reference) = &reference {
            times.del[1].push(reference.run("DEL", other)?);
        }
        times.del[2].push(bare.delete(sandbox)?);
    }
    let burst = sandboxes(args.rounds, pods)?;
    times.burst[0] = ours.together(&burst)?;
    if let Some(reference) = &reference {
        times.burst[1] = reference.together(&burst)?;
    }
    Ok(table(args, &times, reference.is_some()))
}

/// Ours, the reference, the kernel alone.
#[derive(Default)]
struct Times {
    add: [Vec<Duration>; 3],
    del: [Vec<Duration>; 3],
    burst: [Vec<Duration>; 2],
}

fn table(args: &Args, times: &Times, reference: bool) -> Table {
    let mut table = Table::new(format!("{} pods, one after the other", args.rounds));
    let exec = "before fork of the plugin → it has exited, answer read";
    let [ours, theirs, bare] = &times.add;
    table.add(Line::new("ADD, plumb-cni", exec, ours).target("6 times faster than the reference"));
    table.add(Line::new("ADD, bridge + host-local", exec, theirs));
    table.add(Line::new(
        "  floor: veth",
        "kernel::veth::create in this process: pair, port, address, routes",
        bare,
    ));
    let ratio = |ours: &[Duration], theirs: &[Duration]| {
        Some(median(theirs)?.as_secs_f64() / median(ours)?.as_secs_f64())
    };
    let adds = ratio(ours, theirs);
    let [ours, theirs, bare] = &times.del;
    table.add(Line::new("DEL, plumb-cni", exec, ours));
    table.add(Line::new("DEL, bridge + host-local", exec, theirs));
    table.add(Line::new("  floor: veth", "kernel::veth::delete in this process (waits for RCU)", bare));
    let dels = ratio(ours, theirs);
    let each = "as above, each of the plugins that run at the same time";
    let [ours, theirs] = &times.burst;
    table.add(Line::new(format!("DEL of {} together, plumb-cni", args.burst), each, ours));
    table.add(Line::new(format!("DEL of {} together, bridge", args.burst), each, theirs));
    if let (Some(adds), Some(dels)) = (adds, dels) {
        table.note(format!("medians: ADD {adds:.1} times faster than the reference, DEL {dels:.1} times"));
    }
    if !reference {
        let at = args.reference.display();
        table.note(format!(
            "the reference is left out: no bridge and host-local in {at}; {INSTALL} and --reference"
        ));
    }
    table
}

/// Every pod exists and is isolated by a policy before the agent starts, so ADD has rules to put in place.
fn rig(pods: u32) -> Result<Rig> {
    let mut rig = Rig::new()?;
    rig.request("POST", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", &json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "from-web" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "bench" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }], "ports": [{ "port": 8080 }] }],
        },
    }))?;
    for number in 0..pods {
        rig.request("POST", "/api/v1/namespaces/default/pods", &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("bench-{number}"), "labels": { "app": "bench" } },
            "spec": { "nodeName": "node1", "containers": [{ "name": "c", "image": "host", "command": ["/bin/true"] }] },
        }))?;
    }
    rig.start_agent()?;
    Ok(rig)
}

fn reference(args: &Args, leases: &Directory) -> Result<Option<Plugin>> {
    let path = args.reference.join("bridge");
    if !path.is_file() || !args.reference.join("host-local").is_file() {
        return Ok(None);
    }
    let netns = Netns::fresh()?;
    Rtnl::open_in(&netns)?.set_up(1)?;
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipMasq": true, "ipMasqBackend": args.reference_masquerade,
        "ipam": {
            "type": "host-local", "dataDir": leases.0, "routes": [{ "dst": "0.0.0.0/0" }],
            "ranges": [[{ "subnet": "10.244.1.0/24" }]],
        },
    });
    Ok(Some(Plugin { path, search: args.reference.clone(), config, netns }))
}

/// A pod's namespace as a runtime makes it.
struct Sandbox {
    number: u32,
    netns: Netns,
}

impl Sandbox {
    fn new(number: u32) -> Result<Self> {
        Ok(Self { number, netns: Netns::fresh()? })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_fd().as_raw_fd())
    }
}

struct Plugin {
    path: PathBuf,
    search: PathBuf,
    config: Value,
    netns: Netns,
}

impl Plugin {
    /// Runs it inside the node's namespace.
    fn run(&self, verb: &str, sandbox: &Sandbox) -> Result<Duration> {
        self.netns.run(|| self.execute(verb, sandbox))?
    }

    fn execute(&self, verb: &str, sandbox: &Sandbox) -> Result<Duration> {
        let number = sandbox.number;
        let mut command = Command::new(&self.path);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("bench{number}"))
            .env("CNI_NETNS", sandbox.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.search)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench-{number}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let config = self.config.to_string();
        let at = || format!("{verb} by {}", self.path.display());
        let began = Instant::now();
        let mut child = command.spawn().with_context(at)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.as_bytes()).with_context(at)?;
        }
        let output = child.wait_with_output().with_context(at)?;
        let took = began.elapsed();
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("{}: {}", at(), String::from_utf8_lossy(&said));
        }
        Ok(took)
    }

    /// ADD of all, then DEL of all at the same time: a node that is drained.
    fn together(&self, sandboxes: &[Sandbox]) -> Result<Vec<Duration>> {
        for sandbox in sandboxes {
            self.run("ADD", sandbox)?;
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                sandboxes.iter().map(|sandbox| scope.spawn(|| self.run("DEL", sandbox))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a DEL panicked"))?)
                .collect()
        })
    }
}

/// The kernel alone: the same pair in the same kind of bridge.
struct Bare {
    rtnl: Rtnl,
    bridge: IfName,
    _netns: Netns,
}

impl Bare {
    fn new() -> Result<Self> {
        let netns = Netns::fresh()?;
        let mut rtnl = Rtnl::open_in(&netns)?;
        let bridge = IfName::new("cni0")?;
        let link = Link { kind: LinkKind::Bridge, mac: None, mtu: Some(1450), up: true, port: None };
        let plan = Plan { grow: vec![Op::AddLink { name: bridge.clone(), link }], shrink: Vec::new() };
        let failures = net::apply(&mut rtnl, &plan)?;
        ensure!(failures.is_empty(), "{failures:?}");
        Ok(Self { rtnl, bridge, _netns: netns })
    }

    fn host(number: u32) -> Result<IfName> {
        Ok(IfName::new(&format!("veth{number}"))?)
    }

    fn create(&mut self, sandbox: &Sandbox) -> Result<Duration> {
        let (host, eth0) = (Self::host(sandbox.number)?, IfName::new("eth0")?);
        let address = format!("10.244.1.{}/32", sandbox.number % ROOM + 2).parse()?;
        let gateway: std::net::IpAddr = "10.244.1.1".parse()?;
        let routes = [
            PodRoute { dst: gateway.into(), via: None },
            PodRoute { dst: "0.0.0.0/0".parse()?, via: Some(gateway) },
        ];
        let began = Instant::now();
        let pair = PodVeth {
            host: &host,
            host_mac: None,
            netns: &sandbox.netns,
            interface: &eth0,
            mac: None,
            mtu: Some(1450),
            addresses: &[address],
            routes: &routes,
            bridge: Some(Port { bridge: &self.bridge, isolated: true }),
            loopback: false,
        };
        veth::create(&mut self.rtnl, &pair)?;
        Ok(began.elapsed())
    }

    fn delete(&mut self, sandbox: &Sandbox) -> Result<Duration> {
        let began = Instant::now();
        veth::delete(&mut self.rtnl, &[Self::host(sandbox.number)?])?;
        Ok(began.elapsed())
    }
}
