//! kube-proxy (nftables), flannel (VXLAN) and CoreDNS as processes of one node: what Plumb's agent is there instead of.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::ear::Ear;
use super::stage::Stage;
use super::usage::Usage;
use super::{PATIENCE, QUIET, until};

pub const NODE: &str = "node2";
const ALL: [&str; 3] = ["kube-proxy", "flannel", "coredns"];
const SUBNET: &str = "/run/flannel/subnet.env";
/// What the runtime calls for a pod; flannel says which addresses are the node's.
const CHAIN: [&str; 4] = ["bridge", "host-local", "portmap", "loopback"];

pub struct Peers {
    directory: PathBuf,
    there: Vec<&'static str>,
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing: Vec<&str> = ALL.into_iter().filter(|name| !self.has(name)).collect();
        match missing.is_empty() {
            true => write!(f, "{}", ALL.join(" + ")),
            false => write!(
                f,
                "{} only; tools/peers.sh {} builds the others",
                if self.there.is_empty() { "nothing".to_owned() } else { self.there.join(" + ") },
                missing.join(" ")
            ),
        }
    }
}

impl Peers {
    pub fn find(stage: &Stage) -> Result<Self> {
        let directory = stage.peers()?;
        let there = ALL.into_iter().filter(|name| directory.join(name).exists()).collect();
        Ok(Self { directory, there })
    }

    pub fn has(&self, name: &str) -> bool {
        self.there.contains(&name)
    }

    fn program(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// The reference plugins on the node, for flannel's addresses; whether there are any.
    pub fn wire(&self, stage: &Stage) -> Result<bool> {
        if !self.has("flannel") || !CHAIN.iter().all(|name| self.directory.join(name).exists()) {
            return Ok(false);
        }
        for name in CHAIN {
            stage.put(NODE, &format!("/opt/cni/bin/{name}"), &std::fs::read(self.directory.join(name))?)?;
        }
        let path = stage.path(NODE, SUBNET)?;
        let said = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let subnet = said.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        let subnet = subnet.with_context(|| format!("{} names no subnet: {said}", path.display()))?;
        // The bridge's address, which flannel writes, becomes that of its network.
        let subnet = subnet.replace(".1/", ".0/");
        let conflist = json!({ "cniVersion": "1.0.0", "name": "reference", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1450,
              "ipam": { "type": "host-local", "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ]});
        stage.put(NODE, "/etc/cni/net.d/10-reference.conflist", conflist.to_string().as_bytes())?;
        Ok(true)
    }

    /// flannel's time until its CNI plugin can work is the one to compare with.
    pub fn start_all(&self, stage: &Stage, network: &str, usable: &mut Vec<Duration>) -> Result<()> {
        let kubeconfig = stage.inner_kubeconfig();
        if self.has("flannel") {
            let file = stage.directory().join("flannel.json");
            let settings = json!({ "Network": network, "Backend": { "Type": "vxlan" } });
            std::fs::write(&file, settings.to_string())?;
            let subnet = stage.path(NODE, SUBNET)?;
            let began = Instant::now();
            let (program, config) =
                (self.program("flannel"), format!("--net-config-path={}", file.display()));
            let kubeconfig = format!("--kubeconfig-file={kubeconfig}");
            let name = format!("NODE_NAME={NODE}");
            let words = [
                "env",
                &name,
                &program,
                "--kube-subnet-mgr",
                "--iface=eth0",
                "--ip-masq",
                &kubeconfig,
                &config,
            ];
            stage.start(NODE, "flannel", &words)?;
            until("flannel's subnet file", || Ok(subnet.exists().then_some(())))?;
            usable.push(began.elapsed());
        }
        if self.has("coredns") {
            let file = stage.directory().join("Corefile");
            std::fs::write(&file, corefile(&kubeconfig))?;
            stage.start(
                NODE,
                "coredns",
                &[&self.program("coredns"), "-conf", &file.display().to_string()],
            )?;
        }
        if self.has("kube-proxy") {
            let file = stage.directory().join("kube-proxy.yaml");
            std::fs::write(&file, proxy_settings(&kubeconfig, network))?;
            self.start_proxy(stage)?;
        }
        Ok(())
    }

    fn start_proxy(&self, stage: &Stage) -> Result<()> {
        let config = format!("--config={}", stage.directory().join("kube-proxy.yaml").display());
        stage.start(NODE, "kube-proxy", &[&self.program("kube-proxy"), &config])
    }

    /// Those that are there, by this machine's numbers.
    pub fn pids(&self, stage: &Stage) -> Result<Vec<u32>> {
        self.there.iter().map(|name| stage.pid(NODE, name)).collect()
    }

    /// kube-proxy, with nothing of it in the kernel, until every Service is there and its ruleset is quiet.
    pub fn full_start(&self, stage: &Stage, services: u32) -> Result<(Duration, Usage)> {
        stage.kill(NODE, "kube-proxy")?;
        for family in ["ip", "ip6"] {
            // One that is not there is fine.
            let _ = stage.inside(NODE, &["nft", "delete", "table", family, "kube-proxy"]);
        }
        let ear = Ear::open(&stage.netns(NODE)?, "nft")?;
        let began = Instant::now();
        self.start_proxy(stage)?;
        let mut last = ear.last(QUIET, PATIENCE)?;
        until("every Service in kube-proxy's table", || {
            let said = stage.inside(NODE, &["nft", "list", "map", "ip", "kube-proxy", "service-ips"]);
            let whole = said.is_ok_and(|said| said.matches("goto ").count() >= services as usize);
            if !whole {
                last = ear.last(QUIET, PATIENCE)?;
            }
            Ok(whole.then_some(()))
        })?;
        Ok((last - began, Usage::of(&[stage.pid(NODE, "kube-proxy")?])?))
    }
}

fn corefile(kubeconfig: &str) -> String {
    format!(
        ".:53 {{\n  errors\n  kubernetes cluster.local in-addr.arpa ip6.arpa {{\n    kubeconfig {kubeconfig}\n    \
         pods insecure\n    ttl 30\n  }}\n  cache 30\n  loadbalance\n}}\n"
    )
}

fn proxy_settings(kubeconfig: &str, network: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nclusterCIDR: \
         {network}\nhostnameOverride: {NODE}\nbindAddress: 0.0.0.0\nclientConnection: {{kubeconfig: {kubeconfig}, \
         qps: 100, burst: 200}}\nconntrack: {{maxPerCore: 0}}\n"
    )
}
