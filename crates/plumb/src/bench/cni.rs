//! `plumb bench cni`: ADD and DEL by executing the plugin, as a runtime does.
//!
//! ```text
//!   per round, one fresh namespace each:   plumb-cni ── agent (policies of the pod in the kernel before ADD returns)
//!                                          bridge + host-local, ipMasq (containernetworking/plugins)
//!                                          plumb-cni VERSION + kernel::veth::create here: process and kernel alone
//! ```
//! The clock runs from before fork of the plugin until it has exited and its answer is read.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kernel::{Netns, Rtnl};
use serde_json::{Value, json};
use types::Families;

use super::figures::{Figure, Line, Table, median};
use super::floor::{Bare, ROOM};
use super::rig::{Directory, Rig, beside_us};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Pods of each variant
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Pods that are wired and then deleted at the same time, in the last step
    #[arg(long, default_value_t = 20)]
    burst: u32,
    /// Connections that the node knows all the while, of each family
    #[arg(long, default_value_t = 0)]
    flows: u32,
    /// Families of our pods' addresses: ipv4 or dual
    #[arg(long, default_value = "ipv4")]
    families: Families,
    /// The program that is our agent, to compare versions [default: this one]
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Our CNI executable [default: plumb-cni beside this program]
    #[arg(long)]
    cni: Option<PathBuf>,
    /// Directory with the reference plugins `bridge` and `host-local` [default: /opt/cni/bin, if they are there]
    #[arg(long)]
    reference: Option<PathBuf>,
    /// How the reference masquerades; it calls the programs of the same name
    #[arg(long, value_enum, default_value_t = Masquerade::Iptables)]
    reference_masquerade: Masquerade,
}

/// The backends of the reference plugin `bridge` (ipMasqBackend).
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Masquerade {
    Iptables,
    Nftables,
}

impl Masquerade {
    fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// What it runs.
    fn program(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nft",
        }
    }
}

/// Where container runtimes look for plugins.
const USUAL: &str = "/opt/cni/bin";
const PLUGINS: [&str; 2] = ["bridge", "host-local"];

/// Everything that can be wrong with the input, before anything is measured.
pub fn check(args: &Args) -> Result<()> {
    let pods = args.rounds.saturating_add(args.burst);
    ensure!(
        args.rounds > 0 && pods <= ROOM,
        watch::Misused(format!("--rounds and --burst are at least 1 and {ROOM} pods together"))
    );
    if let (Some(directory), Err(why)) = (&args.reference, plugins(args)) {
        bail!("--reference {}: {why}", directory.display());
    }
    beside_us(args.cni.as_deref(), "plumb-cni").map(drop)
}

/// The directory of the reference plugins, or what they lack.
fn plugins(args: &Args) -> Result<PathBuf, String> {
    let directory = args.reference.clone().unwrap_or_else(|| USUAL.into());
    if let Some(path) = PLUGINS.iter().map(|name| directory.join(name)).find(|path| !path.is_file()) {
        return Err(format!("there is no {}; {INSTALL} makes them, --reference says where", path.display()));
    }
    let program = args.reference_masquerade.program();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|place| place.join(program).is_file()) {
        return Err(format!(
            "bridge masquerades by {program}, which is not on the PATH; install it (apt-get install iptables nftables), \
             or choose the other by --reference-masquerade"
        ));
    }
    Ok(directory)
}

const INSTALL: &str =
    "go install github.com/containernetworking/plugins/plugins/{main/bridge,ipam/host-local}@v1.9.1";

pub fn run(args: &Args) -> Result<Table> {
    check(args)?;
    let pods = args.rounds + args.burst;
    let rig = rig(pods, args)?;
    if args.flows > 0 {
        rig.know_flows(args.flows)?;
    }
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
    let reference = plugins(args).map(|directory| reference(args, directory, &leases));
    let (reference, left_out) = match reference {
        Ok(made) => (Some(made?), None),
        Err(why) => (None, Some(why)),
    };
    let mut bare = Bare::new(Netns::fresh()?)?;
    let mut times = Times::default();
    let sandboxes = |from: u32, to: u32| (from..to).map(Sandbox::new).collect::<Result<Vec<_>>>();
    let (singles, others) = (sandboxes(0, args.rounds)?, sandboxes(0, args.rounds)?);
    let bares = sandboxes(0, args.rounds)?;
    for ((single, other), sandbox) in singles.iter().zip(&others).zip(&bares) {
        times.add[0].push(ours.run("ADD", single)?);
        if let Some(reference) = &reference {
            times.add[1].push(reference.run("ADD", other)?);
        }
        // The least that a plugin which is a process can cost: it starts, reads, answers; the kernel makes the pair.
        let process = ours.run("VERSION", sandbox)?;
        times.add[2].push(process + bare.create(sandbox.number, &sandbox.netns)?);
    }
    for ((single, other), sandbox) in singles.iter().zip(&others).zip(&bares) {
        times.del[0].push(ours.run("DEL", single)?);
        if let Some(reference) = &reference {
            times.del[1].push(reference.run("DEL", other)?);
        }
        let process = ours.run("VERSION", sandbox)?;
        times.del[2].push(process + bare.delete(sandbox.number)?);
    }
    let burst = sandboxes(args.rounds, pods)?;
    times.burst[0] = ours.burst(&burst)?;
    if let Some(reference) = &reference {
        times.burst[1] = reference.burst(&burst)?;
    }
    Ok(table(args, &times, left_out))
}

/// Ours, the reference, the kernel alone.
#[derive(Default)]
struct Times {
    add: [Vec<Duration>; 3],
    del: [Vec<Duration>; 3],
    burst: [Burst; 2],
}

/// Of pods at the same time.
#[derive(Default)]
struct Burst {
    add: Vec<Duration>,
    del: Vec<Duration>,
}

fn table(args: &Args, times: &Times, left_out: Option<String>) -> Table {
    let flows =
        if args.flows > 0 { format!(", {} connections of each family", args.flows) } else { String::new() };
    let mut table = Table::new(format!("{} pods, one after the other{flows}", args.rounds));
    let exec = "before fork of the plugin → it has exited, answer read";
    let floors = [
        "a process that answers VERSION, and veth::create: pair, port, address, routes",
        "a process that answers VERSION, and veth::delete (waits for RCU)",
    ];
    let against = |table: &mut Table, verb: &str, [ours, theirs, _]: &[Vec<Duration>; 3], target: &str| {
        let ratio = median(theirs)?.as_secs_f64() / median(ours)?.as_secs_f64();
        table.note(format!("medians: {verb} {ratio:.1} times faster than the reference"));
        let mut figure = Figure::of(&format!("CNI {verb} beside the reference"), ours, theirs, target);
        figure.floor = format!("bridge + host-local {}: **{ratio:.1} times faster**", figure.floor);
        table.figure(figure);
        Some(())
    };
    for (verb, times, floor) in [("ADD", &times.add, floors[0]), ("DEL", &times.del, floors[1])] {
        let [ours, theirs, bare] = times;
        table.measure(&format!("CNI {verb}"), (exec, ours), (floor, bare), "–");
        table.add(Line::new(format!("{verb}, bridge + host-local"), exec, theirs));
        // None: there is no reference here, which the last note says.
        let _ = against(&mut table, verb, times, if verb == "ADD" { "≥ 6 times faster" } else { "–" });
    }
    let each = "as above, each of the plugins that run at the same time";
    let [ours, theirs] = &times.burst;
    for (whose, burst) in [("plumb-cni", ours), ("bridge", theirs)] {
        for (verb, times) in [("ADD", &burst.add), ("DEL", &burst.del)] {
            table.add(Line::new(format!("{verb} of {} together, {whose}", args.burst), each, times));
        }
    }
    if let Some(why) = left_out {
        table.note(format!("the reference is left out: {why}"));
    }
    table
}

/// Every pod exists and is isolated by a policy before the agent starts, so ADD has rules to put in place.
fn rig(pods: u32, args: &Args) -> Result<Rig> {
    let mut rig = Rig::new(args.families)?;
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
    rig.start_agent(args.agent.as_deref())?;
    Ok(rig)
}

fn reference(args: &Args, directory: PathBuf, leases: &Directory) -> Result<Plugin> {
    let netns = Netns::fresh()?;
    Rtnl::open_in(&netns)?.set_up(1)?;
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipMasq": true, "ipMasqBackend": args.reference_masquerade.name(),
        "ipam": {
            "type": "host-local", "dataDir": leases.0, "routes": [{ "dst": "0.0.0.0/0" }],
            "ranges": [[{ "subnet": "10.244.1.0/24" }]],
        },
    });
    Ok(Plugin { path: directory.join("bridge"), search: directory, config, netns })
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

    /// ADD of all at the same time, then DEL of all: a node that begins, and one that is drained.
    fn burst(&self, sandboxes: &[Sandbox]) -> Result<Burst> {
        Ok(Burst { add: self.together("ADD", sandboxes)?, del: self.together("DEL", sandboxes)? })
    }

    fn together(&self, verb: &str, sandboxes: &[Sandbox]) -> Result<Vec<Duration>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                sandboxes.iter().map(|sandbox| scope.spawn(|| self.run(verb, sandbox))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
                .collect()
        })
    }
}
