//! A real Kubernetes of two nodes by `tools/cluster.sh`; it goes with the value.
//!
//! ```text
//!   node1   plumb agent                              one API, one load,
//!   node2   kube-proxy, flannel, CoreDNS             one clock
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use kernel::Netns;

pub struct Stage {
    name: String,
    tools: PathBuf,
    pub kubeconfig: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.tool("down", &[]).is_err() {
            let tool = self.tools.join("cluster.sh");
            eprintln!("plumb: the cluster could not be ended; {} down {}", tool.display(), self.name);
        }
    }
}

impl Stage {
    /// With more of `cluster.sh up`'s options.
    pub fn up(tools: &Path, word: &str, more: &[&str]) -> Result<Self> {
        let name = format!("bench-{word}-{}", std::process::id());
        ensure!(
            tools.join("cluster.sh").exists(),
            "{} has no cluster.sh; run this in Plumb's repository or give --tools",
            tools.display()
        );
        let mut stage = Self { name, tools: tools.to_owned(), kubeconfig: PathBuf::new() };
        let owner = std::process::id().to_string();
        let said = stage.tool("up", &[&["--nodes", "2", "--owner", &owner], more].concat())?;
        let path = said.lines().find_map(|line| line.strip_prefix("export KUBECONFIG="));
        stage.kubeconfig = path.context("tools/cluster.sh names no kubeconfig")?.into();
        Ok(stage)
    }

    fn tool(&self, verb: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.tools.join("cluster.sh"));
        said(command.args([verb, &self.name]).args(args).stdin(Stdio::null()))
    }

    /// The cluster's directory, which its nodes see at the same path.
    pub fn directory(&self) -> &Path {
        self.kubeconfig.parent().unwrap_or(Path::new("/"))
    }

    /// Where the API is for a process on a node.
    pub fn inner_kubeconfig(&self) -> String {
        self.directory().join("pki/admin.kubeconfig").display().to_string()
    }

    /// The directory with the programs Plumb is measured beside; builds what a cluster itself is made of.
    pub fn peers(&self) -> Result<PathBuf> {
        Ok(said(&mut Command::new(self.tools.join("peers.sh")))?.trim().into())
    }

    pub fn start(&self, node: &str, unit: &str, command: &[&str]) -> Result<()> {
        self.tool("start", &[&[node, unit], command].concat()).map(drop)
    }

    /// Ends it, and waits until it has.
    pub fn kill(&self, node: &str, unit: &str) -> Result<()> {
        let pid = self.pid(node, unit)?;
        self.tool("kill", &[node, unit])?;
        super::until(&format!("the end of {unit}"), || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            let ended = state.is_none_or(|stat| stat.contains(") Z "));
            Ok(ended.then_some(()))
        })
    }

    pub fn inside(&self, node: &str, command: &[&str]) -> Result<String> {
        self.tool("in", &[&[node], command].concat())
    }

    /// Writes an executable in the node.
    pub fn put(&self, node: &str, path: &str, content: &[u8]) -> Result<()> {
        let script = r#"mkdir -p "${1%/*}" && cat >"$1" && chmod 755 "$1""#;
        let mut command = Command::new(self.tools.join("cluster.sh"));
        command.args(["in", &self.name, node, "sh", "-c", script, "_", path]);
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        child.stdin.take().context("its input is a pipe")?.write_all(content)?;
        ensure!(child.wait()?.success(), "write {path} on {node}");
        Ok(())
    }

    /// The process that holds the node, by this machine's numbers.
    fn holder(&self, node: &str) -> Result<u32> {
        let path = self.directory().join(node).join("init");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().parse()?)
    }

    pub fn netns(&self, node: &str) -> Result<Netns> {
        Ok(Netns::of_pid(self.holder(node)?)?)
    }

    /// A path of the node as this machine sees it.
    pub fn path(&self, node: &str, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.holder(node)?)))
    }

    /// A unit's process by this machine's number; its file has the node's own.
    pub fn pid(&self, node: &str, unit: &str) -> Result<u32> {
        let path = self.directory().join(node).join(format!("{unit}.pid"));
        let own = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let home = namespace(self.holder(node)?);
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if namespace(pid) == home && innermost(pid).as_deref() == Some(own.trim()) {
                return Ok(pid);
            }
        }
        let log = std::fs::read_to_string(self.directory().join(node).join("log").join(unit));
        let log = log.unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        bail!("{unit} on {node} has ended; it said last: {}", last.join(" | "))
    }
}

/// A process's number in its own PID namespace.
fn innermost(pid: u32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last().map(str::to_owned)
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
