//! Clusters with Plumb on their nodes: those that tests share, and those of one test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

pub use crate::said::{Kubectl, Said, plumb, repository, run, wait_for};
use crate::said::{feed, kubectl_of};

/// For everything that a test waits for: it ends when it is so, and 30 s are never reached on a healthy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The image of [`server`]: this program, busybox, nothing else.
pub const IMAGE: &str = "plumb.local/demo:test";

/// Which addresses pods, Services and nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// IPv4.
    Single,
    /// IPv4 and IPv6.
    Dual,
}

impl Stack {
    /// What an agent, and `plumb install`, has to be told of the cluster.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Single => &[],
            Self::Dual => &[
                "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
                "--service-cidr=10.96.0.0/12,fd00:10:96::/112",
                "--dns-ip=10.96.0.10,fd00:10:96::a",
            ],
        }
    }
}

/// The IPv4 cluster that tests share: nodes `node1` and `node2`.
pub fn single() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::shared("single", Stack::Single))
}

/// The dual-stack cluster that tests share: nodes `node1` and `node2`.
pub fn dual() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::shared("dual", Stack::Dual))
}

/// A running cluster. Dropping it takes it down; the shared ones end with the process.
pub struct Cluster {
    pub name: String,
    pub stack: Stack,
    pub kubeconfig: PathBuf,
    pub nodes: Vec<String>,
    keep: bool,
}

impl Cluster {
    fn shared(word: &str, stack: Stack) -> Self {
        let Some(kept) = std::env::var("PLUMB_TEST_CLUSTER").ok() else {
            return Self::up(&format!("t{}-{word}", std::process::id()), stack, 2, false);
        };
        let name = format!("{kept}-{word}");
        let found = run(&mut tool(&["kubeconfig", &name]));
        if found.ok {
            return Self::of(&name, stack, 2, found.out.trim().into(), true);
        }
        Self::up(&name, stack, 2, true)
    }

    /// For a test that breaks things. Prefer the shared ones: this takes 20 s and 1 GB.
    pub fn own(stack: Stack, nodes: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::up(&format!("t{}-own{number}", std::process::id()), stack, nodes, false)
    }

    /// One without a network: for tests of how Plumb gets in.
    pub fn bare(stack: Stack, nodes: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-bare{number}", std::process::id());
        let cluster = Self::without_network(&name, stack, nodes, false);
        for node in &cluster.nodes {
            cluster.wait_for(&format!("pod CIDR of {node}"), || {
                let asked = ["get", "node", node, "-o", "jsonpath={.spec.podCIDRs[*]}"];
                let said = cluster.kubectl(&asked);
                if said.ok && !said.out.trim().is_empty() { Ok(()) } else { Err(format!("{said:?}")) }
            });
        }
        cluster
    }

    fn of(name: &str, stack: Stack, nodes: u32, kubeconfig: PathBuf, keep: bool) -> Self {
        let nodes = (1..=nodes).map(|number| format!("node{number}")).collect();
        Self { name: name.to_owned(), stack, kubeconfig, nodes, keep }
    }

    fn without_network(name: &str, stack: Stack, nodes: u32, keep: bool) -> Self {
        let (count, owner) = (nodes.to_string(), std::process::id().to_string());
        let mut command = tool(&["up", name, "--nodes", &count]);
        if !keep {
            command.args(["--owner", &owner]);
        }
        if stack == Stack::Dual {
            command.arg("--dual");
        }
        let said = run(&mut command);
        assert!(said.ok, "tools/cluster.sh up: {said:?}");
        let kubeconfig = said.out.lines().find_map(|line| line.strip_prefix("export KUBECONFIG="));
        let kubeconfig = kubeconfig.unwrap_or_else(|| panic!("no kubeconfig is named: {said:?}")).into();
        Self::of(name, stack, nodes, kubeconfig, keep)
    }

    fn up(name: &str, stack: Stack, nodes: u32, keep: bool) -> Self {
        let cluster = Self::without_network(name, stack, nodes, keep);
        cluster.load_image();
        if std::env::var("PLUMB_TEST_NETWORK").is_ok_and(|network| network == "reference") {
            let said = run(&mut script("tools/reference.sh", &[name]));
            assert!(said.ok, "tools/reference.sh: {said:?}");
        } else {
            cluster.install();
        }
        cluster.tool_ok(&["routes"]);
        cluster
    }

    /// The image of [`server`] on every node.
    pub fn load_image(&self) {
        let (file, small) = (self.directory().join("demo.tar"), self.directory().join("plumb"));
        let stripped = run(Command::new("strip").arg("-o").arg(&small).arg(plumb()));
        assert!(stripped.ok, "strip: {stripped:?}");
        let of_plumb = format!("{}:/bin/plumb", small.display());
        let config = r#"{"Entrypoint": ["/bin/plumb", "demo"]}"#;
        let mut make = Command::new(repository("tools/image.py"));
        let made = run(make.arg(IMAGE).arg(&file).args([&of_plumb, "/bin/busybox:/bin/busybox", config]));
        assert!(made.ok, "tools/image.py: {made:?}");
        self.tool_ok(&["image", &file.to_string_lossy()]);
    }

    /// Plumb on every node as a process of the node, with the rights of its ServiceAccount and no others.
    fn install(&self) {
        self.apply(&self.objects_but_agents());
        for node in &self.nodes {
            self.wait_for(&format!("Node {node}"), || self.kubectl(&["get", "node", node]).or_missing());
            // As a pod's token is: an agent changes its own Node alone.
            let config = self.agent_kubeconfig(&self.agent_token(Some(node)));
            self.node_file(node, "/etc/plumb/kubeconfig", config.as_bytes());
            let executable = std::fs::read(plumb().with_file_name("plumb-cni")).expect("plumb-cni is built");
            for name in ["plumb-cni", "loopback"] {
                self.node_file(node, &format!("/opt/cni/bin/{name}"), &executable);
            }
            self.start_agent(node, self.stack.flags());
        }
        let all = ["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"];
        let said = self.kubectl(&all);
        assert!(said.ok, "nodes are not Ready: {said:?}\n{}", self.logs("plumb"));
    }

    /// The agent as a unit `plumb` of the node. It goes on when the test ends with the cluster.
    pub fn start_agent(&self, node: &str, flags: &[&str]) {
        let program = plumb();
        let program = program.to_string_lossy();
        let start = ["start", node, "plumb", &program, "agent", "--node", node];
        self.tool_ok(&[&start, flags].concat());
    }

    /// What `plumb install` applies, as a list; agents are processes here.
    fn objects_but_agents(&self) -> String {
        let printed = run(Command::new(plumb()).args(["install", "--print"]).args(self.stack.flags()));
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(&printed.out).expect("YAML");
        objects.retain(|object| object["kind"] != "DaemonSet");
        assert!(objects.iter().any(|object| object["kind"] == "ClusterRole"), "{printed:?}");
        serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
    }

    /// A token of the agents' account, bound to a Node or to nothing.
    pub fn agent_token(&self, node: Option<&str>) -> String {
        let bound =
            node.map(|node| ["--bound-object-kind=Node".to_owned(), format!("--bound-object-name={node}")]);
        let mut args = vec!["-n", "kube-system", "create", "token", "plumb", "--duration=24h"];
        args.extend(bound.iter().flatten().map(String::as_str));
        self.kubectl_ok(&args).trim().to_owned()
    }

    pub fn agent_kubeconfig(&self, token: &str) -> String {
        let admin = self.kubectl_ok(&["config", "view", "--raw", "-o", "json"]);
        let admin: Value = serde_json::from_str(&admin).expect("a kubeconfig");
        let authority = &admin["clusters"][0]["cluster"]["certificate-authority-data"];
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "plumb",
            "clusters": [{"name": "plumb", "cluster": {
                "server": "https://192.168.1.2:6443", "certificate-authority-data": authority }}],
            "users": [{"name": "plumb", "user": { "token": token }}],
            "contexts": [{"name": "plumb", "context": { "cluster": "plumb", "user": "plumb" }}],
        })
        .to_string()
    }

    /// The cluster's directory: `<node>/log/<unit>` is what a process said.
    pub fn directory(&self) -> &Path {
        self.kubeconfig.parent().expect("the kubeconfig lies in the cluster's directory")
    }

    /// `tools/cluster.sh VERB NAME …`
    pub fn tool(&self, args: &[&str]) -> Said {
        let (verb, rest) = args.split_at(1);
        run(&mut tool(&[verb, &[&self.name], rest].concat()))
    }

    #[track_caller]
    pub fn tool_ok(&self, args: &[&str]) -> String {
        let said = self.tool(args);
        assert!(said.ok, "tools/cluster.sh {args:?}: {said:?}");
        said.out
    }

    /// A command in a node's own namespaces (`cp`: the control plane, `out`: the world outside).
    pub fn node(&self, node: &str, command: &[&str]) -> Said {
        self.tool(&[&["in", node], command].concat())
    }

    #[track_caller]
    pub fn node_ok(&self, node: &str, command: &[&str]) -> String {
        self.tool_ok(&[&["in", node], command].concat())
    }

    /// Writes a file in the node by rename.
    pub fn node_file(&self, node: &str, path: &str, content: &[u8]) {
        let script = r#"mkdir -p "${1%/*}" && cat >"$1.new" && chmod 755 "$1.new" && mv "$1.new" "$1""#;
        let mut command = tool(&["in", &self.name, node, "sh", "-c", script, "_", path]);
        let said = feed(&mut command, content);
        assert!(said.ok, "write {path} on {node}: {said:?}");
    }

    /// The last lines of a unit on every node.
    pub fn logs(&self, unit: &str) -> String {
        let of = |node: &String| {
            let log = std::fs::read_to_string(self.directory().join(node).join("log").join(unit));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("--- {node} {unit}\n{}\n", lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        self.nodes.iter().map(of).collect()
    }

    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        let said = self.kubectl_fed(&["apply", "-f", "-"], manifest);
        assert!(said.ok, "kubectl apply: {said:?}\n{manifest}");
    }

    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
        wait_for(what, PATIENCE, probe)
    }

    /// A new namespace with a name that begins with the word, and its default ServiceAccount.
    pub fn namespace(&self, word: &str) -> Namespace<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{word}-{}-{number}", std::process::id());
        self.kubectl_ok(&["create", "namespace", &name]);
        let namespace = Namespace { cluster: self, name };
        // Pods are refused before the controller has made it.
        self.wait_for("the namespace's ServiceAccount", || {
            namespace.kubectl(&["get", "serviceaccount", "default"]).or_missing()
        });
        namespace
    }
}

impl Kubectl for Cluster {
    fn kubectl_command(&self) -> Command {
        kubectl_of(&self.kubeconfig)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep {
            let said = self.tool(&["down"]);
            assert!(said.ok || std::thread::panicking(), "tools/cluster.sh down: {said:?}");
        }
    }
}

/// A namespace of one test.
pub struct Namespace<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

impl Kubectl for Namespace<'_> {
    fn kubectl_command(&self) -> Command {
        let mut command = self.cluster.kubectl_command();
        command.args(["-n", &self.name]);
        command
    }
}

impl Namespace<'_> {
    /// Manifests without a namespace of their own.
    #[track_caller]
    pub fn apply(&self, manifests: &[&str]) {
        let manifest = manifests.join("\n---\n");
        let said = self.kubectl_fed(&["apply", "-f", "-"], &manifest);
        assert!(said.ok, "kubectl apply: {said:?}\n{manifest}");
    }

    /// All pods of the namespace are Ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        let said = self.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"]);
        if !said.ok {
            let pods = self.kubectl(&["describe", "pods"]).out;
            panic!("not Ready: {said:?}\n{pods}\n{}", self.cluster.logs("plumb"));
        }
    }

    /// One pod is Ready.
    #[track_caller]
    pub fn wait_ready_of(&self, pod: &str) {
        let said = self.kubectl(&["wait", "--for=condition=Ready", "pod", pod, "--timeout=90s"]);
        assert!(said.ok, "{pod} is not Ready: {said:?}\n{}", self.cluster.logs("plumb"));
    }

    /// The addresses of a pod, IPv4 first in these clusters.
    #[track_caller]
    pub fn pod_ips(&self, pod: &str) -> Vec<String> {
        let object = self.get(&["pod", pod]);
        let ips = object["status"]["podIPs"].as_array();
        let ips = ips.unwrap_or_else(|| panic!("no address yet: {object}"));
        ips.iter().filter_map(|ip| ip["ip"].as_str()).map(str::to_owned).collect()
    }

    #[track_caller]
    pub fn pod_ip(&self, pod: &str) -> String {
        self.pod_ips(pod).swap_remove(0)
    }

    /// A command in a container.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Said {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// `plumb demo …` in a container.
    pub fn demo(&self, pod: &str, args: &[&str]) -> Said {
        self.exec(pod, &[&["plumb", "demo"], args].concat())
    }

    #[track_caller]
    pub fn demo_ok(&self, pod: &str, args: &[&str]) -> String {
        let said = self.demo(pod, args);
        assert!(said.ok, "{}/{pod}: {args:?}: {said:?}", self.name);
        said.out
    }

    /// Waits until `plumb demo …` in a pod succeeds: for what follows a change of the API.
    #[track_caller]
    pub fn until_demo(&self, pod: &str, args: &[&str]) -> String {
        let what = format!("{}/{pod}: {args:?}", self.name);
        self.cluster.wait_for(&what, || self.demo(pod, args).or_missing())
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // A test that failed keeps a kept cluster as it was.
        if !(self.cluster.keep && std::thread::panicking()) {
            self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}

/// A pod of our own image that serves HTTP on 8080, TCP on 9000 and UDP on 9001, with the labels `app` (its name
/// without the number) and `pod`.
pub fn server(name: &str, node: &str) -> String {
    pod(name, &format!("nodeName: {node}"), r#"serve, --http, "8080", --tcp, "9000", --udp, "9001""#)
}

/// A pod of our own image: more of its spec (`nodeName: node1`, several lines by two spaces), arguments.
pub fn pod(name: &str, spec: &str, args: &str) -> String {
    let app = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}, pod: {name}}}}}\nspec:\n  {spec}\n  \
         terminationGracePeriodSeconds: 1\n  automountServiceAccountToken: false\n  containers:\n  - name: main\n    \
         image: {IMAGE}\n    imagePullPolicy: IfNotPresent\n    args: [{args}]\n"
    )
}

fn tool(args: &[&str]) -> Command {
    script("tools/cluster.sh", args)
}

fn script(path: &str, args: &[&str]) -> Command {
    let script = repository(path);
    // kubelet and containerd want root; ./run test has asked for it before.
    let mut command = if kernel::own::is_root() {
        Command::new(script)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("--non-interactive").arg("--preserve-env").arg(script);
        sudo
    };
    command.args(args);
    command
}
