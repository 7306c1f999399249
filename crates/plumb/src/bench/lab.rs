//! `plumb bench lab`: a lab of two nodes, as a person at a shell sees it, and what its processes weigh.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::lab::inside::Inside;
use ::lab::rundir::RunDir;
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::figures::{Line, Table};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Labs that are started and ended, one after the other
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Pods that are applied one after the other, of each kind
    #[arg(long, default_value_t = 20)]
    pods: u32,
    /// Pods that run when the API process is weighed
    #[arg(long, default_value_t = 100)]
    weight: u32,
    /// Traces
    #[arg(long, default_value_t = 10)]
    traces: u32,
}

/// So long a pod may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this much quiet a process is idle.
const QUIET: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Times {
    up: Vec<Duration>,
    down: Vec<Duration>,
    unprobed: Vec<Duration>,
    probed: Vec<Duration>,
    trace: Vec<Duration>,
    notes: Vec<String>,
}

pub fn run(args: &Args) -> Result<Table> {
    ensure!(args.rounds > 0, "nothing to measure: --rounds must be above 0");
    let mut times = Times::default();
    for round in 0..args.rounds {
        let lab = Lab::up(&mut times.up)?;
        if round + 1 == args.rounds {
            inside(args, &lab, &mut times)?;
        }
        lab.down(&mut times.down)?;
    }
    Ok(table(&times))
}

fn inside(args: &Args, lab: &Lab, times: &mut Times) -> Result<()> {
    std::thread::sleep(QUIET);
    for process in ["agent-node1", "agent-node2"] {
        times
            .notes
            .push(format!("{process}, idle, no pods: {}  (target: RSS ≤ 30 MB)", lab.weight(process)?));
    }
    times.notes.push(format!("api, no pods: {}", lab.weight("api")?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pods = Pods::new(lab).await?;
        for number in 0..args.pods {
            pods.ready(&mut times.unprobed, &format!("unprobed-{number}"), false).await?;
            pods.ready(&mut times.probed, &format!("probed-{number}"), true).await?;
        }
        pods.service().await?;
        Ok::<(), anyhow::Error>(())
    })?;
    for _ in 0..args.traces {
        times.trace.push(lab.command(&["trace", "default/unprobed-0", "http://bench:8080"])?);
    }
    runtime.block_on(async { Pods::new(lab).await?.fill(2 * args.pods, args.weight).await })?;
    std::thread::sleep(QUIET);
    let count = args.weight;
    times
        .notes
        .push(format!("api, {count} pods Ready: {}  (target: RSS ≤ 60 MB with 100)", lab.weight("api")?));
    for process in ["agent-node1", "kubelet-node1"] {
        times.notes.push(format!("{process}, {count} pods on two nodes: {}", lab.weight(process)?));
    }
    Ok(())
}

fn table(times: &Times) -> Table {
    let mut table = Table::new("two nodes");
    let exec = "before exec of the command → it has ended";
    table.add(Line::new("lab up", exec, &times.up).target("≤ 5 s"));
    table.add(Line::new("lab down", exec, &times.down));
    let ready = "the API has answered the POST → our watch shows Ready";
    table.add(Line::new("pod, no probe", ready, &times.unprobed).target("≤ 0.5 s"));
    table.add(Line::new("pod, httpGet readiness", ready, &times.probed).target("≤ 0.5 s"));
    table.add(Line::new("trace through a Service", exec, &times.trace).target("≤ 1 s"));
    for note in &times.notes {
        table.note(note);
    }
    table
}

/// A running lab; it goes with the value, also after an error.
struct Lab {
    name: String,
    program: PathBuf,
    kubeconfig: PathBuf,
    gone: bool,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.gone && self.command(&["lab", "down", "--name", &self.name]).is_err() {
            eprintln!("plumb: lab {} could not be ended; plumb lab down --name {}", self.name, self.name);
        }
    }
}

impl Lab {
    fn up(times: &mut Vec<Duration>) -> Result<Self> {
        let name = format!("bench-{}", std::process::id());
        let kubeconfig = RunDir::of(&name)?.kubeconfig();
        let lab = Self { name, program: std::env::current_exe()?, kubeconfig, gone: false };
        times.push(lab.command(&["lab", "up", "--name", &lab.name])?);
        Ok(lab)
    }

    fn down(mut self, times: &mut Vec<Duration>) -> Result<()> {
        times.push(self.command(&["lab", "down", "--name", &self.name])?);
        self.gone = true;
        Ok(())
    }

    /// Runs this program.
    fn command(&self, words: &[&str]) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command.args(words).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        let began = Instant::now();
        let output = command.output()?;
        let took = began.elapsed();
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("plumb {}: {}", words.join(" "), String::from_utf8_lossy(&said));
        }
        Ok(took)
    }

    /// Resident memory, and the part of it that no file backs.
    fn weight(&self, process: &str) -> Result<String> {
        let inside = Inside::find(&self.name)?;
        let pid = inside.living(process).with_context(|| format!("{process} does not run"))?;
        let status = std::fs::read_to_string(inside.proc(pid).join("status"))?;
        let megabytes = |field: &str| -> Option<f64> {
            let kib: f64 = status
                .lines()
                .find_map(|l| l.strip_prefix(field))?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse()
                .ok()?;
            Some(kib / 1024.0)
        };
        let [rss, anonymous] = ["VmRSS:", "RssAnon:"].map(|field| megabytes(field).unwrap_or(f64::NAN));
        Ok(format!("RSS {rss:.1} MB, of which anonymous {anonymous:.1} MB"))
    }
}

/// What `kubectl apply` would do, with the clock running.
struct Pods {
    api: Api<Pod>,
    client: Client,
}

type Events = BoxStream<'static, Result<Event<Pod>, watcher::Error>>;

impl Pods {
    async fn new(lab: &Lab) -> Result<Self> {
        let client = client(&lab.kubeconfig).await?;
        Ok(Self { api: Api::default_namespaced(client.clone()), client })
    }

    /// One pod, from the answer to the POST until a watch shows it Ready.
    async fn ready(&self, times: &mut Vec<Duration>, name: &str, probed: bool) -> Result<()> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher(self.api.clone(), config).boxed();
        while !matches!(next(&mut events).await?, Event::InitDone) {}
        self.api.create(&PostParams::default(), &serde_json::from_value(pod(name, probed))?).await?;
        let began = Instant::now();
        loop {
            if let Event::Apply(pod) = next(&mut events).await?
                && is_ready(&pod)
            {
                times.push(began.elapsed());
                return Ok(());
            }
        }
    }

    /// In front of all probed pods.
    async fn service(&self) -> Result<()> {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "bench" },
            "spec": { "selector": { "probed": "true" }, "ports": [{ "port": 8080 }] },
        });
        let services: Api<k8s_openapi::api::core::v1::Service> = Api::default_namespaced(self.client.clone());
        services.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// More pods of the second kind until there are so many, and waits until all are Ready.
    async fn fill(&self, have: u32, want: u32) -> Result<()> {
        for number in have..want {
            let object = pod(&format!("more-{number}"), true);
            self.api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        }
        for number in want..have {
            let kind = if number % 2 == 0 { "unprobed" } else { "probed" };
            self.api.delete(&format!("{kind}-{}", number / 2), &DeleteParams::default()).await?;
        }
        let mut events = watcher(self.api.clone(), watcher::Config::default()).boxed();
        let mut ready = std::collections::BTreeSet::new();
        while ready.len() != want as usize {
            match next(&mut events).await? {
                Event::Apply(pod) | Event::InitApply(pod)
                    if is_ready(&pod) && pod.metadata.deletion_timestamp.is_none() =>
                {
                    ready.insert(pod.name_any());
                }
                Event::Apply(pod) | Event::Delete(pod) | Event::InitApply(pod) => {
                    ready.remove(&pod.name_any());
                }
                Event::Init | Event::InitDone => {}
            }
        }
        Ok(())
    }
}

async fn next(events: &mut Events) -> Result<Event<Pod>> {
    let next = tokio::time::timeout(PATIENCE, events.next()).await;
    let event = next.with_context(|| format!("no pod became Ready within {PATIENCE:?}"))?;
    Ok(event.context("the watch ended")??)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn pod(name: &str, probed: bool) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "probed": probed.to_string() } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "demo", "image": "plumb.local/demo", "args": ["serve", "--http", "8080"],
                "ports": [{ "name": "http", "containerPort": 8080 }],
            }],
        },
    });
    if probed {
        object["spec"]["containers"][0]["readinessProbe"] =
            json!({ "httpGet": { "path": "/readyz", "port": "http" }, "periodSeconds": 5 });
    }
    object
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    // Environment proxies are for the way out, never for the loopback.
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}
