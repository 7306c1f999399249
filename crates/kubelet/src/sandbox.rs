//! Sandboxes: the pause process, the kept network namespace, the CNI attachment.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kernel::mount::Mount;
use kernel::process::{Namespaces, Process, Signal, Spawn};
use kernel::rtnl::Rtnl;
use kernel::{Netns, own};

use crate::cni::{self, Cni};
use crate::record::{self, PodRecord, Sandbox};
use crate::resolv;
use crate::runtime::Runtime;

/// How long a killed process may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name that the pod has for itself (pkg/kubelet/util: `GetPodHostname`), at most 63 bytes as the kernel and DNS
/// want it.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let own =
        spec.and_then(|spec| spec.hostname.as_deref()).or(pod.metadata.name.as_deref()).unwrap_or("pod");
    let cut: String = own.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Host ports of all containers, as runtimes hand them to CNI.
fn port_mappings(spec: &PodSpec) -> Vec<serde_json::Value> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.is_some_and(|number| number != 0))
        .map(|port| {
            serde_json::json!({
                "hostPort": port.host_port, "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.as_deref().unwrap_or_default(),
            })
        })
        .collect()
}

/// Makes a sandbox; after an error [`destroy`] removes what there is.
pub async fn make(
    runtime: &Runtime,
    record: &PodRecord,
    pod: &Pod,
    attempt: u32,
) -> Result<(Sandbox, Process)> {
    let spec = pod.spec.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut sandbox = Sandbox {
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        uid: text(&pod.metadata.uid),
        host_network: spec.host_network.unwrap_or(false),
        attempt,
        ports: port_mappings(&spec),
        ..Sandbox::default()
    };
    record.make()?;
    // Before anything exists: a kubelet that dies in the middle leaves a record to clean up by.
    record.write_sandbox(&sandbox)?;
    let host = if sandbox.host_network { runtime.node.clone() } else { hostname(pod) };
    let node_resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolv = resolv::render_resolv(&spec, &sandbox.namespace, &runtime.dns, &node_resolv);
    record::write_whole(&record.file("resolv.conf"), &resolv)?;
    record::write_whole(&record.file("hostname"), &format!("{host}\n"))?;

    let pause = start_pause(record, &sandbox, &host)?;
    if sandbox.host_network {
        sandbox.addresses = runtime.addresses.clone();
    } else {
        attach(&runtime.cni, record, &mut sandbox, &pause).await?;
    }
    let hosts = resolv::render_hosts(&spec, &host, &sandbox.addresses);
    record::write_whole(&record.file("hosts"), &hosts)?;
    record.write_sandbox(&sandbox)?;
    Ok((sandbox, pause))
}

fn start_pause(record: &PodRecord, sandbox: &Sandbox, host: &str) -> Result<Process> {
    let mut spawn = Spawn::this_program()?
        .argv0("plumb")
        .args(["pause", &sandbox.pod()])
        .new_namespaces(Namespaces::IPC | Namespaces::PID)
        .new_session()
        .directory("/")
        .output_to(record.file("pause.log"))?;
    if !sandbox.host_network {
        spawn = spawn.new_namespaces(Namespaces::NET | Namespaces::UTS).hostname(host);
    }
    // A kubelet that is killed here leaves no process that its successor does not know.
    let noted = spawn.start_noted(|pause| record::note(&record.file("pause"), pause));
    noted.context("start the pause process")
}

async fn attach(cni: &Cni, record: &PodRecord, sandbox: &mut Sandbox, pause: &Process) -> Result<()> {
    let network = cni.network()?.with_context(|| cni::describe(&cni.configs))?;
    keep_netns(&sandbox.netns(), pause)?;
    // Container runtimes bring lo up themselves (containerd by its loopback plugin).
    Rtnl::open_in(&Netns::open(sandbox.netns())?)?.set_up(LOOPBACK)?;
    sandbox.network = Some(network.clone().into_value());
    record.write_sandbox(sandbox)?;
    let result = cni.add(&network, sandbox).await?;
    sandbox.addresses = cni::addresses(&result);
    sandbox.result = Some(result);
    Ok(())
}

const LOOPBACK: u32 = 1;

/// A file that is the namespace, so that DEL finds it even when the pause process is gone.
fn keep_netns(path: &Path, pause: &Process) -> Result<()> {
    let dir = path.parent().context("a namespace file has a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::write(path, "").with_context(|| format!("make {}", path.display()))?;
    Ok(Mount::bind(format!("/proc/{}/ns/net", pause.pid()), path, false)?.apply()?)
}

/// Removes a sandbox: the attachment, the namespace, every process. May be called again after an error.
pub async fn destroy(cni: &Cni, record: &PodRecord) -> Result<()> {
    let Some(sandbox) = record.sandbox() else { return Ok(()) };
    if let Some(network) = sandbox.network.clone() {
        cni.del(&cni::Network::parse(network)?, &sandbox).await?;
    }
    if let Some(pause) = record.pause() {
        pause.signal(Signal::KILL)?;
        tokio::task::spawn_blocking(move || pause.wait_ended(PATIENCE)).await??;
    }
    record::reap(&record.file("pause"));
    let netns = sandbox.netns();
    if netns.exists() {
        // After a restart of the node the file is there and no mount on it.
        let _ = Mount::unmount(&netns)?.apply();
        fs::remove_file(&netns).with_context(|| format!("remove {}", netns.display()))?;
    }
    Ok(())
}

/// Whether this process may make sandboxes at all; asked once at start.
pub fn check_permission() -> Result<()> {
    if own::is_root() {
        return Ok(());
    }
    anyhow::bail!(
        "the kubelet makes namespaces and needs to be root (of the lab's user namespace): use `plumb lab up`"
    )
}
