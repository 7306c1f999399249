//! A lab of its own for each test: up, asked, and down again whatever happens to the test.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::said::kubectl_of;
pub use crate::said::{Kubectl, Said, kubectl_binary, plumb, repository, run, wait_for};

/// Checks by name, for areas that share one lab: all of them run, and what failed is said together at the end.
#[derive(Default)]
pub struct Checks {
    /// Says which area it is, where several run side by side.
    of: String,
    failed: Vec<String>,
}

impl Checks {
    pub fn of(area: &impl std::fmt::Display) -> Self {
        Self { of: format!("{area}: "), failed: Vec::new() }
    }

    pub fn check(&mut self, name: &str, check: impl FnOnce()) {
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(check));
        let took = start.elapsed().as_secs_f64();
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("{word:>7} {took:>6.2} s  {}{name}", self.of);
        if outcome.is_err() {
            self.failed.push(name.to_owned());
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        if !self.failed.is_empty() && !std::thread::panicking() {
            panic!("failed: {}", self.failed.join("; "));
        }
    }
}

/// A name that no other test uses.
pub fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A running lab. Dropping it runs `lab down`, also when the test panics.
pub struct Lab {
    pub name: String,
    pub kubeconfig: PathBuf,
}

impl Lab {
    pub fn up(nodes: u32) -> Self {
        Self::up_with(nodes, &[])
    }

    /// With more arguments of `lab up`.
    pub fn up_with(nodes: u32, more: &[&str]) -> Self {
        let lab = Self { name: fresh_name(), kubeconfig: PathBuf::new() };
        let said = lab.lab(&[&["up", "--nodes", &nodes.to_string()], more].concat());
        assert!(said.ok, "lab up: {said:?}");
        lab.adopt(&said)
    }

    /// After `lab up`, whose last line is `export KUBECONFIG=…`.
    pub fn adopt(mut self, said: &Said) -> Self {
        let path = said.out.lines().find_map(|line| line.strip_prefix("export KUBECONFIG="));
        self.kubeconfig = path.unwrap_or_else(|| panic!("no kubeconfig is named: {said:?}")).into();
        assert!(self.kubeconfig.exists(), "{said:?}");
        self
    }

    /// The lab's directory.
    pub fn directory(&self) -> &Path {
        self.kubeconfig.parent().expect("the kubeconfig lies in the lab's directory")
    }

    /// `plumb lab VERB --name … ARGS`; the verb may be of two words.
    pub fn lab(&self, args: &[&str]) -> Said {
        let verb = if args.first() == Some(&"agent") { 2 } else { 1 };
        let (verb, rest) = args.split_at(verb);
        run(Command::new(plumb()).arg("lab").args(verb).args(["--name", &self.name]).args(rest))
    }

    #[track_caller]
    pub fn lab_ok(&self, args: &[&str]) -> String {
        let said = self.lab(args);
        assert!(said.ok, "plumb lab {args:?}: {said:?}");
        said.out
    }

    /// `kubectl VERB… -f -` with the manifest on its standard input.
    pub fn feed(&self, verb: &[&str], manifest: &str) -> Said {
        self.kubectl_fed(&[verb, &["-f", "-"]].concat(), manifest)
    }

    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let said = self.feed(&["apply"], manifest);
        assert!(said.ok, "kubectl apply: {said:?}\n{manifest}");
        said.out
    }

    #[track_caller]
    pub fn wait_ready(&self, namespace: &str) {
        let said = self.kubectl(&[
            "-n",
            namespace,
            "wait",
            "--for=condition=Ready",
            "pod",
            "--all",
            "--timeout=60s",
        ]);
        if !said.ok {
            let pods = self.kubectl(&["-n", namespace, "describe", "pods"]).out;
            panic!("not Ready: {said:?}\n{pods}");
        }
    }

    /// A command in a node's own namespaces.
    pub fn node(&self, node: &str, command: &[&str]) -> Said {
        run(self.node_command(node).args(command))
    }

    pub fn node_command(&self, node: &str) -> Command {
        let mut to = Command::new(plumb());
        to.args(["lab", "exec", "--name", &self.name, node, "--"]);
        to
    }

    #[track_caller]
    pub fn node_ok(&self, node: &str, command: &[&str]) -> String {
        let said = self.node(node, command);
        assert!(said.ok, "{node}: {command:?}: {said:?}");
        said.out
    }

    /// `plumb demo …` in a node's own network.
    pub fn node_demo(&self, node: &str, args: &[&str]) -> Said {
        run(self.node_command(node).arg(plumb()).arg("demo").args(args))
    }

    /// A command in a container.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Said {
        let args: Vec<&str> = ["-n", namespace, "exec", pod, "--"].iter().chain(command).copied().collect();
        self.kubectl(&args)
    }

    /// `plumb demo …` in a container.
    pub fn demo(&self, namespace: &str, pod: &str, args: &[&str]) -> Said {
        let command: Vec<&str> = ["plumb", "demo"].iter().chain(args).copied().collect();
        self.exec(namespace, pod, &command)
    }

    #[track_caller]
    pub fn demo_ok(&self, namespace: &str, pod: &str, args: &[&str]) -> String {
        let said = self.demo(namespace, pod, args);
        assert!(said.ok, "{namespace}/{pod}: {args:?}: {said:?}");
        said.out
    }

    /// The address of a pod.
    #[track_caller]
    pub fn pod_ip(&self, namespace: &str, pod: &str) -> String {
        let pod = self.get(&["-n", namespace, "pod", pod]);
        pod["status"]["podIP"].as_str().unwrap_or_else(|| panic!("no address yet: {pod}")).to_owned()
    }

    /// A pod of our own image, with the label `app` of its name without the number.
    pub fn pod(namespace: &str, name: &str, place: &str, args: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}, \
             pod: {name}}}}}\nspec:\n  {place}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
             image: plumb.local/demo\n    args: [{args}]\n",
            app = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-'),
        )
    }
}

impl Kubectl for Lab {
    fn kubectl_command(&self) -> Command {
        kubectl_of(&self.kubeconfig)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let said = self.lab(&["down"]);
        if !said.ok && !std::thread::panicking() {
            panic!("lab down: {said:?}");
        }
    }
}
