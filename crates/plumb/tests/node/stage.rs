//! Namespaces, API and agents of one test; everything ends with it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use apiserver::{Api, Config, Credentials, Identity, NoNodes, Store};
use kernel::process::{Namespaces, Process, Signal, Spawn};
use kernel::veth::{self, PodVeth, Port};
use kernel::{Netns, Rtnl, net};
use kstate::net::{Link, LinkKind, Op, Plan, PortOptions};
use serde_json::{Value, json};
use types::{Families, Family, IfName, IpNet};

pub const PATIENCE: Duration = Duration::from_secs(180);

/// The API has two addresses; agents know the first, unless a test's flags say otherwise.
pub const API: [&str; 2] = ["192.168.1.2:6443", "192.168.1.2:6444"];

/// What an agent has to be told of a cluster of both families.
const DUAL: [&str; 3] = [
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
    "--service-cidr=10.96.0.0/12,fd00:10:96::/112",
    "--dns-ip=10.96.0.10,fd00:10:96::a",
];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Asks until it is so.
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    // An emulated processor is some ten times slower (tools/vm.sh).
    let patience = PATIENCE * if std::env::var_os("PLUMB_TEST_VM").is_some() { 10 } else { 1 };
    within(patience, ask).unwrap_or_else(|| panic!("not within {patience:?}: {what}"))
}

/// Asks until it is so, or for this long.
pub fn within<T>(patience: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let began = Instant::now();
        let answer = ask();
        if answer.is_some() || Instant::now() >= deadline {
            return answer;
        }
        // What is waited for wants the processor, too.
        let pause = began.elapsed() * 2;
        std::thread::sleep(pause.clamp(Duration::from_millis(5), Duration::from_millis(500)));
    }
}

pub fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

pub struct Stage {
    pub dir: PathBuf,
    pub nodes: Vec<Node>,
    families: Families,
    client: kube::Client,
    runtime: tokio::runtime::Runtime,
    /// Between the nodes; whoever calls from here is neither a pod nor a node.
    pub underlay: Netns,
}

pub struct Node {
    pub name: String,
    pub netns: Netns,
    pub dir: PathBuf,
    pub address: String,
    /// Of the agent's next start.
    pub program: PathBuf,
    /// For the agent's next start, beside those that every agent gets.
    pub flags: Vec<String>,
    agent: Option<Process>,
}

/// A namespace that a runtime made for a pod.
pub struct Pod {
    pub name: String,
    pub netns: Netns,
}

impl Stage {
    /// Nodes with running agents that are ready to wire pods, of IPv4.
    pub fn new(nodes: usize) -> Self {
        Self::of(nodes, Families::Ipv4)
    }

    pub fn of(nodes: usize, families: Families) -> Self {
        let unique = format!("plumb-node-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&dir).unwrap();
        let underlay = Netns::fresh().unwrap();
        underlay.run(|| make_bridge(families)).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let credentials = Credentials::open(&dir.join("credentials")).unwrap();
        let api = {
            let _guard = runtime.enter();
            let config = Config {
                advertised: "192.168.1.2:6443".parse().unwrap(),
                families,
                nodes: Arc::new(NoNodes),
                credentials: Some(credentials.clone()),
            };
            let api = Api::new(Store::in_memory(), config).unwrap();
            for address in API {
                let listener = underlay.run(|| TcpListener::bind(address)).unwrap().unwrap();
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                runtime.spawn(apiserver::serve(api.clone(), listener, credentials.clone()));
            }
            api
        };
        let client = {
            let _guard = runtime.enter();
            kube::Client::new(api, "default")
        };
        let mut stage = Self { dir, nodes: Vec::new(), families, client, runtime, underlay };
        for number in 1..=nodes {
            stage.add_node(number, &credentials);
        }
        for node in &stage.nodes {
            node.wait_ready();
        }
        stage
    }

    fn add_node(&mut self, number: usize, credentials: &Credentials) {
        let node = format!("node{number}");
        let address = format!("192.168.1.{}", 9 + number);
        let addresses = on_underlay(self.families, 9 + number);
        let netns = Netns::fresh().unwrap();
        let mut rtnl = Rtnl::open_in(&self.underlay).unwrap();
        let pair = PodVeth {
            host: &name(&node),
            host_mac: None,
            netns: &netns,
            interface: &name("eth0"),
            mac: None,
            mtu: Some(1500),
            addresses: &addresses,
            routes: &[],
            bridge: Some(Port { bridge: &name("br0"), options: PortOptions::OF_KERNEL }),
            loopback: true,
        };
        veth::create(&mut rtnl, &pair).unwrap();
        let dir = self.dir.join(&node);
        std::fs::create_dir_all(&dir).unwrap();
        let identity = Identity::Agent(node.clone());
        let server = format!("https://{}", API[0]);
        credentials.write_kubeconfig(&dir.join("kubeconfig"), "test", &server, &identity).unwrap();
        let pods = |family: &Family| {
            family.pick([format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")])
        };
        let pods: Vec<String> = self.families.list().iter().map(pods).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
            "spec": { "podCIDR": pods[0], "podCIDRs": pods },
        });
        self.create("/api/v1/nodes", &object);
        let of_node = |net: &IpNet| json!({ "type": "InternalIP", "address": net.addr().to_string() });
        let status = json!({ "status": { "addresses": addresses.iter().map(of_node).collect::<Vec<_>>() } });
        self.patch(&format!("/api/v1/nodes/{node}/status"), &status);
        let flags = match self.families {
            Families::Dual => DUAL.map(str::to_owned).to_vec(),
            _ => Vec::new(),
        };
        let mut node =
            Node { name: node, netns, dir, address, program: crate::said::plumb(), flags, agent: None };
        node.start();
        self.nodes.push(node);
    }

    pub fn create(&self, path: &str, object: &Value) -> Value {
        self.request("POST", path, "application/json", object)
    }

    pub fn patch(&self, path: &str, object: &Value) -> Value {
        self.request("PATCH", path, "application/merge-patch+json", object)
    }

    pub fn delete(&self, path: &str) {
        self.request("DELETE", path, "application/json", &Value::Null);
    }

    pub fn get(&self, path: &str) -> Value {
        self.request("GET", path, "application/json", &Value::Null)
    }

    fn request(&self, method: &str, path: &str, kind: &str, object: &Value) -> Value {
        let body = if object.is_null() { Vec::new() } else { object.to_string().into_bytes() };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(body)
            .unwrap();
        match self.runtime.block_on(self.client.request(request)) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    /// A Pod object of this node, with a namespace as a runtime makes it; not wired yet.
    pub fn pod(&self, node: usize, pod: &str) -> Pod {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": pod, "namespace": "default", "labels": { "app": pod } },
            "spec": {
                "nodeName": self.nodes[node].name,
                "containers": [{ "name": "c", "image": "host", "command": ["/bin/true"] }],
            },
        });
        self.create("/api/v1/namespaces/default/pods", &object);
        Pod { name: pod.to_owned(), netns: Netns::fresh().unwrap() }
    }

    /// The pod, wired.
    pub fn wired(&self, node: usize, pod: &str) -> (Pod, IpAddr) {
        let pod = self.pod(node, pod);
        let ip = self.nodes[node].add(&pod).unwrap();
        (pod, ip)
    }

    pub fn events(&self, reason: &str) -> Vec<String> {
        let list = self.get("/api/v1/events");
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let of_reason = items.iter().filter(|event| event["reason"] == reason);
        of_reason.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- what {} dropped\n{}", node.name, node.dropped());
                let log = std::fs::read_to_string(node.dir.join("agent.log")).unwrap_or_default();
                eprintln!("--- log of the agent of {}\n{log}", node.name);
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Addresses of host number so on the underlay.
fn on_underlay(families: Families, host: usize) -> Vec<IpNet> {
    let of = |family: &Family| {
        let text = family.pick([format!("192.168.1.{host}/24"), format!("fd00:192:168:1::{host}/64")]);
        text.parse().unwrap()
    };
    families.list().iter().map(of).collect()
}

fn make_bridge(families: Families) {
    let link = Link { kind: LinkKind::Bridge, mac: None, mtu: None, up: true, port: None };
    let addresses = on_underlay(families, 2);
    let add = |address| Op::AddAddress { link: name("br0"), address };
    let grow = [Op::AddLink { name: name("br0"), link }].into_iter();
    let grow = grow.chain(addresses.into_iter().map(add)).collect();
    let failures = net::apply(&mut Rtnl::open().unwrap(), &Plan { grow, shrink: Vec::new() }).unwrap();
    assert!(failures.is_empty(), "{failures:?}");
}

impl Node {
    pub fn start(&mut self) {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let args = [
            ("--node", self.name.clone()),
            ("--kubeconfig", path("kubeconfig")),
            ("--data", path("data")),
            ("--cni-conf-dir", path("net.d")),
            ("--socket", path("agent.sock")),
            ("--cool-down", "1".into()),
        ];
        let agent = Spawn::program(&self.program)
            .arg("agent")
            .args(args.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]))
            .args(self.flags.iter().cloned())
            .join(Namespaces::NET, &self.netns)
            .unwrap()
            .output_to(self.dir.join("agent.log"))
            .unwrap()
            .start()
            .unwrap();
        self.agent = Some(agent);
    }

    /// kill -9
    pub fn kill(&mut self) {
        if let Some(agent) = self.agent.take() {
            let _ = agent.signal(Signal::KILL);
            let _ = agent.wait();
        }
    }

    pub fn wait_ready(&self) {
        wait_for(&format!("{} serves", self.name), || {
            assert!(self.agent.as_ref().is_some_and(Process::alive), "the agent of {} ended", self.name);
            self.ask("GET", "/healthz", "").ok().filter(|answer| answer.starts_with("HTTP/1.0 200"))
        });
    }

    /// Memory of the agent's process.
    pub fn resident_kib(&self) -> u64 {
        let pid = self.agent.as_ref().expect("an agent runs").pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// One request over the agent's socket.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.dir.join("agent.sock"))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What plumb-cni would send: the result or the error object.
    pub fn cni(&self, command: &str, pod: &Pod, config: &Value) -> Result<Value, Value> {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.name);
        self.call(command, pod, (&args, config))
    }

    /// As somebody calls the plugin by hand.
    pub fn add_outside_kubernetes(&self, pod: &Pod) -> Result<Value, Value> {
        self.call("ADD", pod, ("", &config()))
    }

    fn call(&self, command: &str, pod: &Pod, (args, config): (&str, &Value)) -> Result<Value, Value> {
        let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.netns.as_fd().as_raw_fd());
        let call = json!({
            "env": {
                "CNI_COMMAND": command, "CNI_CONTAINERID": format!("id-{}", pod.name), "CNI_IFNAME": "eth0",
                "CNI_NETNS": netns, "CNI_ARGS": args,
            },
            "stdin": config.to_string(),
        });
        let answer = self.ask("POST", "/cni", &call.to_string()).unwrap();
        let reply: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let stdout = reply["stdout"].as_str().unwrap();
        let value = if stdout.is_empty() { Value::Null } else { serde_json::from_str(stdout).unwrap() };
        if reply["exit"] == 0 { Ok(value) } else { Err(value) }
    }

    /// What Prometheus would read, from inside the node.
    pub fn metrics(&self) -> String {
        wait_for("metrics", || self.http(&self.address, "/metrics").ok())
    }

    /// One request at an address of the node, as the kubelet's probe asks.
    pub fn http(&self, ip: &str, path: &str) -> std::io::Result<String> {
        let address = SocketAddr::new(ip.parse().unwrap(), 9475);
        self.netns.run(|| ask(address, path)).unwrap()
    }

    pub fn add(&self, pod: &Pod) -> Result<IpAddr, Value> {
        let result = self.cni("ADD", pod, &config())?;
        let address = result["ips"][0]["address"].as_str().unwrap();
        Ok(address.split('/').next().unwrap().parse().unwrap())
    }

    pub fn del(&self, pod: &Pod) -> Result<Value, Value> {
        self.cni("DEL", pod, &config())
    }

    /// nft or ip, for looking and for breaking.
    /// The rules that counted anything, each after its chain.
    fn dropped(&self) -> String {
        let rules = self.try_run("nft list ruleset").unwrap_or_else(|error| error);
        let mut chain = "";
        let counted = rules.lines().map(str::trim).filter_map(|line| {
            if line.starts_with("chain ") {
                chain = line.trim_end_matches(" {");
            }
            let (_, count) = line.split_once("counter packets ")?;
            (!count.starts_with("0 ") && line.contains(" drop")).then(|| format!("{chain}: {line}"))
        });
        counted.collect::<Vec<_>>().join("\n")
    }

    pub fn run(&self, command: &str) -> String {
        self.try_run(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub fn try_run(&self, command: &str) -> Result<String, String> {
        let mut words = command.split(' ');
        let program = words.next().unwrap();
        let output =
            self.netns.run(|| std::process::Command::new(program).args(words).output()).unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// What is said to a GET, from here.
pub fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

pub fn config() -> Value {
    json!({ "cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni" })
}

/// Whether a TCP connection from the namespace gets through, on a machine however busy.
pub fn connects(from: &Netns, to: SocketAddr) -> bool {
    from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20)).is_ok()).unwrap()
}

/// Whether it gets through within a moment: where it should not, or to be tried again.
pub fn connects_at_once(from: &Netns, to: SocketAddr) -> bool {
    from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(400)).is_ok()).unwrap()
}

/// A server that accepts and closes, in each family, until the handle is dropped.
pub fn listen(pod: &Pod, port: u16) -> TcpListener {
    pod.netns.run(|| TcpListener::bind(("::", port))).unwrap().unwrap()
}
