//! Runs CNI plugins as libcni does (containernetworking/cni libcni/api.go and conf.go).
//!
//! - the first file in name order among `*.conflist`, `*.conf`, `*.json` of /etc/cni/net.d is the network;
//! - each plugin gets its own part of the list with `name`, `cniVersion`, `prevResult` and `runtimeConfig` put in, and
//!   without `capabilities`;
//! - ADD and CHECK go through the plugins in order, DEL in reverse, GC to all; CHECK and DEL get ADD's final result.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::record::Sandbox;

/// Where configurations and plugins are.
#[derive(Clone, Debug)]
pub struct Cni {
    pub configs: PathBuf,
    pub plugins: PathBuf,
}

const INTERFACE: &str = "eth0";
/// From which version on the verbs exist (SPEC.md, "CNI operations").
const CHECK_SINCE: (u32, u32) = (0, 4);
const GC_SINCE: (u32, u32) = (1, 1);

/// A network configuration list.
#[derive(Clone, Debug, PartialEq)]
pub struct Network(Value);

impl Cni {
    /// The network of this node; `None` while there is no configuration.
    pub fn network(&self) -> Result<Option<Network>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&self.configs)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                ["conflist", "conf", "json"].iter().any(|known| path.extension() == Some(known.as_ref()))
            })
            .collect();
        paths.sort();
        let Some(path) = paths.first() else { return Ok(None) };
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let value =
            serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        Network::parse(value).with_context(|| format!("{}", path.display())).map(Some)
    }

    /// ADD through all plugins; what was added before a failure is taken back by the caller's DEL.
    pub async fn add(&self, network: &Network, sandbox: &Sandbox) -> Result<Value> {
        let mut result = None;
        for plugin in network.plugins() {
            let config = network.config_for(plugin, result.as_ref(), &sandbox.ports);
            let output = self.execute("ADD", plugin, &config, Some(sandbox)).await?;
            result = Some(output);
        }
        result.context("the network configuration has no plugins")
    }

    /// DEL in reverse order; every plugin is asked even when one fails.
    pub async fn del(&self, network: &Network, sandbox: &Sandbox) -> Result<()> {
        let mut failure = None;
        for plugin in network.plugins().rev() {
            let config = network.config_for(plugin, sandbox.result.as_ref(), &sandbox.ports);
            if let Err(error) = self.execute("DEL", plugin, &config, Some(sandbox)).await {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// CHECK in order, where the version has it.
    pub async fn check(&self, network: &Network, sandbox: &Sandbox) -> Result<()> {
        if network.version() < CHECK_SINCE || network.0.get("disableCheck") == Some(&json!(true)) {
            return Ok(());
        }
        for plugin in network.plugins() {
            let config = network.config_for(plugin, sandbox.result.as_ref(), &sandbox.ports);
            self.execute("CHECK", plugin, &config, Some(sandbox)).await?;
        }
        Ok(())
    }

    /// GC: everything that is not one of `valid` is to go.
    pub async fn gc(&self, network: &Network, valid: &[Sandbox]) -> Result<()> {
        if network.version() < GC_SINCE || network.0.get("disableGC") == Some(&json!(true)) {
            return Ok(());
        }
        let valid: Vec<Value> =
            valid.iter().map(|sandbox| json!({"containerID": sandbox.id(), "ifname": INTERFACE})).collect();
        let mut failure = None;
        for plugin in network.plugins() {
            let mut config = network.config_for(plugin, None, &[]);
            // libcni sends both keys (cni#1101).
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                config.insert(key.into(), json!(valid));
            }
            if let Err(error) = self.execute("GC", plugin, &config, None).await {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn execute(
        &self,
        verb: &str,
        plugin: &Map<String, Value>,
        config: &Map<String, Value>,
        sandbox: Option<&Sandbox>,
    ) -> Result<Value> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind.is_empty() || kind.contains('/') {
            bail!("CNI {verb}: plugin type {kind:?} is not a file name");
        }
        let path = self.plugins.join(kind);
        let mut command = Command::new(&path);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.plugins);
        if let Some(sandbox) = sandbox {
            command
                .env("CNI_CONTAINERID", sandbox.id())
                .env("CNI_IFNAME", INTERFACE)
                .env("CNI_ARGS", args(sandbox));
            // DEL of a sandbox whose namespace is gone: the variable is empty, as runtimes send it.
            let netns = sandbox.netns();
            command.env("CNI_NETNS", if netns.exists() { netns } else { PathBuf::new() });
        }
        let failed = || format!("CNI {verb} by {}", path.display());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its stdin says why in its answer.
            let _ = stdin.write_all(&serde_json::to_vec(config)?).await;
        }
        let output = child.wait_with_output().await.with_context(failed)?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            return Ok(answer);
        }
        Err(plugin_error(&answer, &output.stderr)).with_context(failed)
    }
}

/// `{"code", "msg", "details"}`; a plugin that crashed has only said something on stderr.
fn plugin_error(answer: &Value, stderr: &[u8]) -> anyhow::Error {
    let text = |key: &str| answer.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (text("msg"), text("details")) {
        (Some(message), Some(details)) => anyhow!("{message}: {details}"),
        (Some(message), None) => anyhow!("{message}"),
        _ => anyhow!("it failed without a CNI error: {}", String::from_utf8_lossy(stderr).trim()),
    }
}

/// As containerd and CRI-O send it.
fn args(sandbox: &Sandbox) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        sandbox.namespace,
        sandbox.name,
        sandbox.id(),
        sandbox.uid
    )
}

impl Network {
    /// A list, or a single plugin's configuration, which is a list of one.
    pub fn parse(value: Value) -> Result<Self> {
        let mut list = match value.get("plugins") {
            Some(_) => value,
            None => json!({
                "name": value.get("name"), "cniVersion": value.get("cniVersion"), "plugins": [value]
            }),
        };
        if list.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
            bail!("the network configuration has no name");
        }
        if list.get("plugins").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            bail!("the network configuration has no plugins");
        }
        // SPEC 1.1.0, "cniVersions": the runtime takes the newest that it speaks.
        if let Some(newest) = newest(list.get("cniVersions")) {
            list["cniVersion"] = newest.into();
        }
        Ok(Self(list))
    }

    pub fn into_value(self) -> Value {
        self.0
    }

    fn plugins(&self) -> impl DoubleEndedIterator<Item = &Map<String, Value>> {
        self.0.get("plugins").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
    }

    fn version(&self) -> (u32, u32) {
        numbers(self.0.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0"))
    }

    /// What one plugin reads on stdin (libcni `buildOneConfig` and `injectRuntimeConfig`): host ports, where it says
    /// that it takes them and the pod has some.
    fn config_for(
        &self,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        ports: &[Value],
    ) -> Map<String, Value> {
        let mut config = plugin.clone();
        let capabilities = config.remove("capabilities").unwrap_or_default();
        if capabilities.get("portMappings") == Some(&json!(true)) && !ports.is_empty() {
            config.insert("runtimeConfig".into(), json!({ "portMappings": ports }));
        }
        for key in ["name", "cniVersion"] {
            if let Some(value) = self.0.get(key).filter(|value| !value.is_null()) {
                config.insert(key.into(), value.clone());
            }
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        config
    }
}

fn numbers(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The newest version of a list that this kubelet speaks.
fn newest(versions: Option<&Value>) -> Option<String> {
    let texts = versions?.as_array()?.iter().filter_map(Value::as_str);
    texts.filter(|text| numbers(text) <= GC_SINCE).max_by_key(|text| numbers(text)).map(str::to_owned)
}

/// The addresses in a result, without prefix.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let texts = ips.filter_map(|ip| ip.get("address").and_then(Value::as_str));
    texts.map(|text| text.split('/').next().unwrap_or(text).to_owned()).collect()
}

/// Whether the directory exists and can be listed; for messages.
pub fn describe(path: &Path) -> String {
    format!("no network configuration in {}: is the agent running?", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network::parse(json!({
            "cniVersion": "1.1.0", "name": "plumb",
            "plugins": [{"type": "a", "capabilities": {"portMappings": true}, "x": 1}, {"type": "b"}],
        }))
        .expect("valid")
    }

    #[test]
    fn a_plugin_gets_its_part_with_name_version_and_previous_result() {
        let network = network();
        let plugin = network.plugins().next().expect("one");
        let config = network.config_for(plugin, Some(&json!({"ips": []})), &[]);
        assert_eq!(
            Value::Object(config),
            json!({"type": "a", "x": 1, "name": "plumb", "cniVersion": "1.1.0", "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn host_ports_go_to_the_plugin_that_takes_them() {
        let network = Network::parse(json!({
            "cniVersion": "1.0.0", "name": "n",
            "plugins": [{"type": "a", "capabilities": {"portMappings": true}}, {"type": "b"}],
        }))
        .expect("valid");
        let ports = [json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""})];
        let mut configs = network.plugins().map(|plugin| network.config_for(plugin, None, &ports));
        assert_eq!(configs.next().expect("a")["runtimeConfig"], json!({ "portMappings": ports }));
        assert_eq!(configs.next().expect("b").get("runtimeConfig"), None);
    }

    #[test]
    fn a_single_configuration_is_a_list_of_one() {
        let network =
            Network::parse(json!({"cniVersion": "0.4.0", "name": "n", "type": "t"})).expect("valid");
        let of_many = json!({"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0", "9.0.0"],
            "name": "n", "plugins": [{"type": "t"}]});
        assert_eq!(Network::parse(of_many).expect("valid").version(), (1, 1));
        assert_eq!(network.plugins().count(), 1);
        assert_eq!(network.version(), (0, 4));
        assert!(Network::parse(json!({"name": "n", "plugins": []})).is_err());
        assert!(Network::parse(json!({"plugins": [{"type": "t"}]})).is_err());
    }

    #[test]
    fn results_give_addresses() {
        assert_eq!(addresses(&json!({"ips": [{"address": "10.244.1.4/32"}]})), ["10.244.1.4"]);
        assert!(addresses(&json!({})).is_empty());
    }

    #[tokio::test]
    async fn plugins_run_in_order_and_back_with_the_environment_of_the_spec() {
        let dir = std::env::temp_dir().join(format!("plumb-cni-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("dir");
        let log = dir.join("log");
        for name in ["a", "b"] {
            let script = format!(
                "#!/bin/sh\nread config\necho {name} $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME \"$CNI_ARGS\" \"$config\" >> {}\necho '{{\"ips\":[{{\"address\":\"10.0.0.1/32\"}}],\"by\":\"{name}\"}}'\n",
                log.display()
            );
            let path = dir.join(name);
            std::fs::write(&path, script).expect("write");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .expect("chmod");
        }
        let cni = Cni { configs: dir.clone(), plugins: dir.clone() };
        let mut sandbox =
            Sandbox { uid: "u".into(), namespace: "shop".into(), name: "web".into(), ..Sandbox::default() };
        let result = cni.add(&network(), &sandbox).await.expect("add");
        sandbox.result = Some(result.clone());
        cni.check(&network(), &sandbox).await.expect("check");
        cni.del(&network(), &sandbox).await.expect("del");
        cni.gc(&network(), std::slice::from_ref(&sandbox)).await.expect("gc");
        let text = std::fs::read_to_string(&log).expect("log");
        std::fs::remove_dir_all(&dir).expect("clean");
        assert_eq!(result["by"], "b");
        let verbs: Vec<String> =
            text.lines().map(|l| l.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(verbs, ["a ADD", "b ADD", "a CHECK", "b CHECK", "b DEL", "a DEL", "a GC", "b GC"]);
        let second = text.lines().nth(1).expect("line");
        assert!(
            second.contains("u-0 eth0 IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;"),
            "{second}"
        );
        assert!(second.contains("\"prevResult\":{\"by\":\"a\""), "{second}");
        assert!(
            text.lines()
                .last()
                .expect("gc")
                .contains("\"cni.dev/valid-attachments\":[{\"containerID\":\"u-0\"")
        );
    }
}
