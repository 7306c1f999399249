//! What the kernel alone costs: the least that anybody pays on this machine, measured in the same run.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kernel::mount::Mount;
use kernel::process::{Namespaces, Process, Signal, Spawn};
use kernel::veth::{self, PodRoute, PodVeth, Port};
use kernel::{Netns, Rtnl, net};
use kstate::net::{Link, LinkKind, Op, Plan, PortOptions};
use types::IfName;

/// Addresses of one /24 less network, gateway and broadcast.
pub const ROOM: u32 = 253;

/// A node of nothing but a bridge.
pub struct Bare {
    rtnl: Rtnl,
    bridge: IfName,
    _netns: Netns,
}

impl Bare {
    pub fn new(netns: Netns) -> Result<Self> {
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

    /// The pair, the port, address and routes of one pod.
    pub fn create(&mut self, number: u32, netns: &Netns) -> Result<Duration> {
        let (host, eth0) = (Self::host(number)?, IfName::new("eth0")?);
        let address = format!("10.244.1.{}/32", number % ROOM + 2).parse()?;
        let gateway: std::net::IpAddr = "10.244.1.1".parse()?;
        let routes = [
            PodRoute { dst: gateway.into(), via: None },
            PodRoute { dst: "0.0.0.0/0".parse()?, via: Some(gateway) },
        ];
        let options = PortOptions::OF_KERNEL.and(PortOptions::ISOLATED);
        let began = Instant::now();
        let pair = PodVeth {
            host: &host,
            host_mac: None,
            netns,
            interface: &eth0,
            mac: None,
            mtu: Some(1450),
            addresses: &[address],
            routes: &routes,
            bridge: Some(Port { bridge: &self.bridge, options }),
            loopback: false,
        };
        veth::create(&mut self.rtnl, &pair)?;
        Ok(began.elapsed())
    }

    pub fn delete(&mut self, number: u32) -> Result<Duration> {
        let began = Instant::now();
        veth::delete(&mut self.rtnl, &[Self::host(number)?])?;
        Ok(began.elapsed())
    }
}

/// Processes that end with the value.
#[derive(Default)]
struct Children(Vec<Process>);

impl Children {
    /// This program again, idle, in new namespaces of these kinds.
    fn start(&mut self, kinds: Namespaces) -> Result<Netns> {
        let mut spawn = Spawn::this_program()?.args(["pause", "floor"]).new_namespaces(kinds);
        if kinds.contains(Namespaces::MOUNT) {
            spawn = spawn.mount(Mount::private("/")?);
        }
        let child = spawn.start()?;
        let netns = Netns::of_pid(child.pid());
        self.0.push(child);
        Ok(netns?)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &self.0 {
            let _ = child.signal(Signal::KILL);
        }
        for child in &self.0 {
            let _ = child.wait();
        }
    }
}

/// What the kernel does for a lab of two nodes, and what it takes back: a process for each of the lab's, the
/// namespaces of underlay, outside and nodes, a bridge and three pairs.
pub fn cluster() -> Result<(Duration, Duration)> {
    let node = Namespaces::NET | Namespaces::MOUNT | Namespaces::UTS;
    let began = Instant::now();
    let mut children = Children::default();
    let mut underlay = Bare::new(children.start(Namespaces::NET)?)?;
    for (number, kinds) in (0..).zip([Namespaces::NET, node, node]) {
        let netns = children.start(kinds)?;
        underlay.create(number, &netns)?;
    }
    // Anchor, supervisor, API, outside, two agents, two kubelets, and the command itself.
    for _ in 0..9 {
        children.start(Namespaces::default())?;
    }
    let up = began.elapsed();
    drop(underlay);
    let began = Instant::now();
    drop(children);
    Ok((up, began.elapsed()))
}

/// What the kernel does for a pod of one container: two processes, the namespaces, a pair.
pub fn pod(node: &mut Bare, number: u32) -> Result<Duration> {
    let kinds = Namespaces::NET | Namespaces::UTS | Namespaces::IPC | Namespaces::PID;
    let began = Instant::now();
    let mut children = Children::default();
    let netns = children.start(kinds)?;
    node.create(number, &netns)?;
    children.start(Namespaces::MOUNT)?;
    let took = began.elapsed();
    node.delete(number)?;
    Ok(took)
}

/// One request from a namespace, by a process that does nothing else: from before the fork until it has ended.
pub fn request(netns: &Path, url: &str) -> Result<Duration> {
    let netns = Netns::open(netns)?;
    let began = Instant::now();
    let spawn = Spawn::this_program()?.args(["demo", "get", url]).join(Namespaces::NET, &netns)?;
    let ended = spawn.output_to("/dev/null")?.start()?.wait()?;
    let took = began.elapsed();
    ensure!(ended.code() == 0, "GET {url} from {} failed", netns.origin().display());
    Ok(took)
}
