//! A cluster of very many Nodes and Pods, two of which are real: what it costs each node to know the others.
//!
//! The others are API objects with what both stacks look for in them. Who would judge, renumber or collect them is
//! off; so nobody numbers the real ones either, and this does it.
//!
//! ```text
//!   pods 10.0.0.0/11 (services have 10.96.0.0/12): node K of the others 10.(K/256).(K%256).0/24, real ones 10.31.N.0/24
//! ```

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kernel::net::{Changes, Scope};
use kernel::{Netns, Rtnl};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use types::{Family, Mac};

use super::peers::{self, Peers};
use super::stage::Stage;
use super::usage::Usage;
use super::{Args, OURS, PATIENCE, megabytes, start_agent, tell};
use crate::bench::figures::Figure;
use crate::bench::lab::pods;

const PODS: &str = "10.0.0.0/11";
const CONTROLLERS: &str = "*,-node-ipam-controller,-node-lifecycle-controller,-taint-eviction-controller,\
                           -garbage-collector-controller,-pod-garbage-collector-controller";
const NAMESPACE: &str = "wide";
const TOGETHER: usize = 48;
/// While thousands of routes come: how exact the last one's time is.
const LOOK: Duration = Duration::from_millis(100);

pub async fn run(args: &Args, plumb: &Path) -> Result<Vec<Figure>> {
    ensure!(
        args.wide_nodes + args.joins < 31 * 256,
        watch::Misused(format!("--wide-nodes: {PODS} has room for 7,900"))
    );
    let began = Instant::now();
    tell(began, "a cluster whose controllers leave nodes alone");
    let stage = Stage::up(&args.tools, "wide", &["--controllers", CONTROLLERS])?;
    let beside = Peers::find(&stage)?;
    let api = Objects::new(&stage).await?;
    tell(began, &format!("writing {} Nodes and {} Pods", args.wide_nodes, args.wide_pods));
    api.fill(args).await?;
    tell(began, "starts among many Nodes");
    let want = args.wide_nodes as usize;
    let mut start = [Vec::new(), Vec::new()];
    start[0].push(timed(&stage, OURS, want, || start_agent(&stage, plumb, PODS))?);
    if beside.has("flannel") {
        let all = || beside.start_all(&stage, PODS, &mut Vec::new());
        start[1].push(timed(&stage, peers::NODE, want, all)?);
    }
    let usage = [Usage::of(&[stage.pid(OURS, "plumb")?])?, Usage::of(&beside.pids(&stage)?)?];
    tell(began, "joins");
    let mut joins = [Vec::new(), Vec::new()];
    for number in 1..=args.joins {
        api.join(&stage, args.wide_nodes + number, beside.has("flannel"), &mut joins).await?;
    }
    tell(began, "done with Nodes");
    let load = format!("{} Nodes, {} Pods", args.wide_nodes, args.wide_pods);
    let cpu = usage.map(|used| [used.cpu]);
    Ok(vec![
        Figure::of(&format!("start → every route, {load}; flannel"), &start[0], &start[1], "–"),
        Figure::of(&format!("the same, CPU of all processes, {load}"), &cpu[0], &cpu[1], "–"),
        megabytes(format!("RSS after it, {load}"), usage.map(|used| used.rss)),
        Figure::of(&format!("a node joins, API → route, {load}; flannel"), &joins[0], &joins[1], "–"),
    ])
}

/// From before a process is started until the node has a route to each of the others.
fn timed(stage: &Stage, node: &str, want: usize, start: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let mut rtnl = Rtnl::open_in(&stage.netns(node)?)?;
    let began = Instant::now();
    start()?;
    while began.elapsed() < PATIENCE {
        let there =
            rtnl.all_routes(Family::V4)?.iter().filter(|row| is_anothers(&row.key.dst.to_string())).count();
        if there >= want {
            return Ok(began.elapsed());
        }
        std::thread::sleep(LOOK);
    }
    let log = std::fs::read_to_string(stage.directory().join(node).join("log/plumb")).unwrap_or_default();
    Err(anyhow!(
        "{node} has not {want} routes within {PATIENCE:?}; {}",
        log.lines().last().unwrap_or_default()
    ))
}

/// One of the others' networks.
fn is_anothers(network: &str) -> bool {
    network.ends_with(".0/24") && network.starts_with("10.") && !network.starts_with("10.31.")
}

/// When the node's route to a network comes. It listens once this returns.
fn hears(netns: Netns, network: String) -> Result<JoinHandle<Result<Instant>>> {
    let (tell, listening) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        netns.run(|| {
            let mut changes = Changes::listen(Scope::default())?;
            let mut rtnl = Rtnl::open()?;
            tell.send(())?;
            let nap = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            let began = Instant::now();
            while began.elapsed() < PATIENCE {
                poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&nap))?;
                let at = Instant::now();
                while changes.hear()?.is_some() {}
                if rtnl.all_routes(Family::V4)?.iter().any(|row| row.key.dst.to_string() == network) {
                    return Ok(at);
                }
            }
            Err(anyhow!("no route to {network} within {PATIENCE:?}"))
        })?
    });
    // One that has ended says why when it is joined.
    let _ = listening.recv();
    Ok(thread)
}

struct Objects {
    client: Client,
}

impl Objects {
    async fn new(stage: &Stage) -> Result<Self> {
        let client = pods::client(&stage.kubeconfig).await?;
        let objects = Self { client };
        for (number, node) in [OURS, peers::NODE].into_iter().enumerate() {
            objects.number(node, &format!("10.31.{}.0/24", number + 1)).await?;
        }
        let namespace = json!({ "metadata": { "name": NAMESPACE } });
        let namespaces: Api<Namespace> = Api::all(objects.client.clone());
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(objects.client.clone(), NAMESPACE);
        let there = kube::runtime::wait::await_condition(accounts, "default", |it: Option<&_>| it.is_some());
        tokio::time::timeout(PATIENCE, there).await.context("the namespace has no ServiceAccount")??;
        Ok(objects)
    }

    /// Gives a real node its pods' network, once it is there.
    async fn number(&self, node: &str, network: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let there = kube::runtime::wait::await_condition(nodes.clone(), node, |it: Option<&_>| it.is_some());
        tokio::time::timeout(PATIENCE, there)
            .await
            .with_context(|| format!("{node} does not register"))??;
        let patch = json!({ "spec": { "podCIDR": network, "podCIDRs": [network] } });
        nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn fill(&self, args: &Args) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let post = PostParams::default();
        let all = futures::stream::iter((1..=args.wide_nodes).map(Ok::<u32, anyhow::Error>));
        all.try_for_each_concurrent(TOGETHER, |number| {
            let (nodes, post) = (&nodes, &post);
            async move {
                nodes.create(post, &serde_json::from_value(node(number))?).await?;
                Ok(())
            }
        })
        .await?;
        let all = futures::stream::iter((0..args.wide_pods).map(Ok::<u32, anyhow::Error>));
        all.try_for_each_concurrent(TOGETHER, |number| {
            let (pods, post) = (&pods, &post);
            let of = 1 + number % args.wide_nodes;
            async move {
                let (name, object, status) = pod(number, of, number / args.wide_nodes);
                pods.create(post, &serde_json::from_value(object)?).await?;
                pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
                Ok(())
            }
        })
        .await
    }

    /// From before the request to each kernel.
    async fn join(
        &self,
        stage: &Stage,
        number: u32,
        both: bool,
        times: &mut [Vec<Duration>; 2],
    ) -> Result<()> {
        let mut ears = vec![hears(stage.netns(OURS)?, network(number))?];
        if both {
            ears.push(hears(stage.netns(peers::NODE)?, network(number))?);
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let began = Instant::now();
        nodes.create(&PostParams::default(), &serde_json::from_value(node(number))?).await?;
        for (ear, times) in ears.into_iter().zip(times) {
            let heard = ear.join().map_err(|_| anyhow!("the listener has ended"))??;
            times.push(heard.saturating_duration_since(began));
        }
        Ok(())
    }
}

fn network(number: u32) -> String {
    format!("10.{}.{}.0/24", number >> 8, number & 255)
}

/// As an agent and a flannel of its own would have told the API.
fn node(number: u32) -> Value {
    let [_, _, high, low] = number.to_be_bytes();
    let mac = Mac([2, 0, 0, 0, high, low]).to_string();
    let address = Ipv4Addr::new(172, 16 + (high >> 4), high, low);
    json!({
        "metadata": {
            "name": format!("wide-{number}"),
            "annotations": {
                types::wire::VTEP_MAC_ANNOTATION: mac,
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": json!({ "VNI": 1, "VtepMAC": mac }).to_string(),
                "flannel.alpha.coreos.com/public-ip": address,
            },
        },
        "spec": { "podCIDR": network(number), "podCIDRs": [network(number)] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// Its name, the object, and what its kubelet would say of it.
fn pod(number: u32, of: u32, nth: u32) -> (String, Value, Value) {
    let name = format!("p{number}");
    let address = Ipv4Addr::new(10, (of >> 8) as u8, (of & 255) as u8, (2 + nth % 250) as u8);
    let object = json!({
        "metadata": { "name": name, "labels": { "app": format!("app{}", number % 100) } },
        "spec": {
            "nodeName": format!("wide-{of}"), "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": "plumb.test/pause:1" }],
        },
    });
    let status = json!({ "status": {
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    }});
    (name, object, status)
}
