//! What a trace asks of what the node knows: each question is answered from one snapshot, on a thread that nobody else waits for.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use dns::query::Type;
use dns::{Finding, Hosts, Listed, ResolvConf, Step};
use trace::exchange::{Flow, Masqueraded};
use trace::expect::{Onward, own};
use trace::hop::Stage;
use trace::reference::service::{self, Elsewhere};
use trace::reference::{self, Choice};
use trace::{Expected, Packet, Place, Sighting, Target, View};
use types::{Family, IfName, ObjectName, Protocol};

use super::files::Files;
use super::{drift, lacks, ways};
use crate::dns::SharedZone;
use crate::inbox::Outbox;
use crate::snapshot::{Desired, Question, Snapshot};

/// A loop that is busy for longer has no time for traces.
const PATIENCE: Duration = Duration::from_secs(3);

/// Addresses that one capture looks for: its filter takes a hundred.
pub const CAPTURED: usize = 90;

/// A pod that is wired to this node.
#[derive(Clone, Debug)]
pub struct Wired {
    pub pod: ObjectName,
    pub ips: Vec<IpAddr>,
    pub netns: PathBuf,
    pub host_if: IfName,
}

#[derive(Clone, Debug)]
pub struct Views {
    node: Arc<str>,
    outbox: Outbox,
    zone: SharedZone,
    /// The cluster's DNS addresses with their port, never empty.
    dns: Vec<SocketAddr>,
}

impl Views {
    pub fn new(node: &str, outbox: Outbox, zone: SharedZone, dns: Vec<SocketAddr>) -> Self {
        Self { node: node.into(), outbox, zone, dns }
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Snapshot) -> T + Send + 'static,
    ) -> Result<T> {
        let now = self.outbox.ask(PATIENCE, Question::Snapshot).await.with_context(|| {
            format!("the loop of {}'s agent has not answered for {PATIENCE:?}", self.node)
        })?;
        Ok(tokio::task::spawn_blocking(move || question(&now)).await?)
    }

    /// How the node's pods are attached.
    pub async fn wiring(&self) -> Result<types::Wiring> {
        self.ask(|node| node.settings.wiring).await
    }

    pub async fn wired(&self, pod: &ObjectName) -> Result<Wired> {
        let name = pod.clone();
        let found = self.ask(move |node| {
            let of_node = node.cluster.pods.get(&name).is_some_and(|pod| pod.host_network);
            let Some(record) = node.records.iter().find(|record| record.pod == name) else {
                return Err(of_node);
            };
            let (ips, netns) = (record.ips.clone(), record.netns.clone().into());
            Ok(Wired { pod: name, ips, netns, host_if: record.host_if.clone() })
        });
        found.await?.map_err(|of_node| match of_node {
            true => anyhow!(
                "{pod} uses the network of its node {}, where no trace begins; give a pod with one of its own",
                self.node
            ),
            false => anyhow!(
                "pod {pod} is not wired to node {} yet (`kubectl -n {} describe pod {}` says why)",
                self.node,
                pod.namespace,
                pod.name
            ),
        })
    }

    /// The nodes that the first packet of a flow may come to.
    pub async fn candidates(&self, flow: Flow) -> Result<Vec<String>> {
        self.ask(move |node| {
            let own = &node.settings.node;
            let choices = choices(node, flow);
            let nodes = choices.iter().filter_map(|to| reference::node_of(to.ip(), &node.cluster));
            let mut names: BTreeSet<String> = nodes.map(|node| node.name.clone()).collect();
            names.extend(door(node, flow).map(|door| door.node));
            names.into_iter().filter(|name| name != own).collect()
        })
        .await
    }

    /// Where to the flow may leave under another source: every address of this kind, and what other nodes see of it.
    pub async fn masqueraded(&self, flow: Flow) -> Result<(Vec<IpAddr>, Vec<Masqueraded>)> {
        self.ask(move |node| {
            let (place, packet) = (place(node, true), packet(node, flow));
            let mut to = choices(node, flow);
            to.retain(|to| reference::masquerade(&packet, *to, &node.cluster, &place).is_some());
            let net = node.desired.as_ref().map(|desired| &*desired.net);
            let fabric = trace::fabric::of(place.fabric);
            let own_address = net.and_then(|net| fabric.own_address(net, Family::of(flow.source.ip())));
            let own = &node.settings.node;
            let is_elsewhere = |to: &&SocketAddr| {
                reference::node_of(to.ip(), &node.cluster).is_some_and(|of| of.name != *own)
            };
            let elsewhere = to.iter().filter(is_elsewhere).take(CAPTURED);
            let comes =
                elsewhere.filter_map(|to| Some(Masqueraded { source: own_address?, destination: *to }));
            let mut comes: Vec<_> = comes.collect();
            comes.extend(door(node, flow).and_then(|_| comes_to_door(node, flow)));
            // More endpoints are rare.
            (to.into_iter().take(CAPTURED).map(|to| to.ip()).collect(), comes)
        })
        .await
    }

    /// What the model expects of a flow on its own node, and what of this node's state that concerns it is not as
    /// it should be.
    pub async fn departure(
        &self,
        pod: &ObjectName,
        flow: Flow,
        (endpoint, answers_to): (Option<SocketAddr>, Option<SocketAddr>),
    ) -> Result<(Expected, Vec<Sighting>)> {
        let seen = self.observe(Some(flow)).await?;
        let (name, here, wiring) = (pod.clone(), self.dns_here(flow.source.ip()), self.wiring().await?);
        let of_link = match own::is_of_link(flow.destination.ip()) {
            true => tokio::task::spawn_blocking(move || ways::of_link(wiring)).await??,
            false => Vec::new(),
        };
        let broadcasts = tokio::task::spawn_blocking(ways::broadcasts).await??;
        let target = Target {
            protocol: flow.protocol,
            destination: flow.destination,
            sport: flow.source.port(),
            endpoint,
            answers_to,
        };
        let looked = self.ask(move |node| {
            let Desired { nft, net } = node.desired.as_ref()?;
            let place = Place { of_link, broadcasts, ..place(node, here) };
            let view = View { cluster: &node.cluster, nft, net, place: &place };
            let expected = trace::departure(&view, &name, &target)?;
            let mut found = drift::find(&view, &seen, &expected.hops, None);
            found.extend(drift::stale(&seen.connections, &expected.hops, flow));
            found.extend(drift::lost(&expected.hops, |address| node.lost(address)));
            let legs = ways::departure(&view, &expected.hops);
            Some((expected, found, legs))
        });
        let (expected, mut found, legs) = looked.await?.with_context(|| self.not_yet())?;
        let netns = self.wired(pod).await?.netns;
        let look = move || {
            let first = (netns.as_path(), flow.source.ip(), flow.destination.ip());
            ways::look(&legs, Some(first))
        };
        found.extend(tokio::task::spawn_blocking(look).await??);
        Ok((expected, found))
    }

    fn not_yet(&self) -> String {
        format!("node {} has no whole picture of the cluster yet", self.node)
    }

    /// The same on the node that the packet went on to.
    pub async fn arrival(
        &self,
        onward: Onward,
        endpoint: Option<SocketAddr>,
    ) -> Result<(Expected, Vec<Sighting>)> {
        let seen = self.observe(None).await?;
        let looked = self.ask(move |node| {
            let Desired { nft, net } = node.desired.as_ref()?;
            let place = place(node, true);
            let view = View { cluster: &node.cluster, nft, net, place: &place };
            let expected = trace::arrival(&view, &onward, endpoint);
            let ends = (onward.source.ip(), onward.destination.ip());
            let found = drift::find(&view, &seen, &expected.hops, Some(ends.0));
            let legs = ways::arrival(&view, &expected.hops, ends);
            Some((expected, found, legs))
        });
        let (expected, mut found, legs) = looked.await?.with_context(|| self.not_yet())?;
        found.extend(tokio::task::spawn_blocking(move || ways::look(&legs, None)).await??);
        Ok((expected, found))
    }

    async fn observe(&self, client: Option<Flow>) -> Result<drift::Seen> {
        let scope = self.ask(|node| {
            let scope = crate::actual::scope(&node.desired.as_ref()?.net);
            let words = |subsystem| Some(node.refused.get(&subsystem)?.what.clone());
            Some((scope, drift::Left::because(node.paused, words)))
        });
        let Some((scope, left)) = scope.await? else {
            bail!(self.not_yet());
        };
        tokio::task::spawn_blocking(move || drift::Seen::observe((&scope, left), client)).await?
    }

    /// How many names the zone has.
    pub fn names(&self) -> usize {
        self.zone.read().len()
    }

    /// What the zone says of a name.
    pub fn explain(&self, name: &str, conf: &ResolvConf, family: Family) -> Vec<Step> {
        let kind = family.pick([Type::A, Type::AAAA]);
        self.zone.read().explain(name, conf, kind)
    }

    /// What the first of these names has not that is there, by the Service that it is of: `IPv6 address (ipFamilies: IPv4)`.
    pub async fn lacks(&self, steps: &[Step], family: Family) -> Result<Option<String>> {
        for step in steps {
            let lacks = self.lacks_at(&step.name, &step.finding, family).await?;
            if lacks.is_some() {
                return Ok(lacks);
            }
        }
        Ok(None)
    }

    /// What is to be said of a port of one whole name.
    pub async fn of_port(&self, name: &str, asked: (Protocol, u16)) -> Result<Option<String>> {
        let (domain, name) = (self.domain(), name.to_owned());
        self.ask(move |node| lacks::port(&name, &domain, asked, &node.cluster)).await
    }

    /// The same of one whole name. A headless Service without ready pods has none (NXDOMAIN).
    pub async fn lacks_at(&self, name: &str, finding: &Finding, family: Family) -> Result<Option<String>> {
        if !matches!(finding, Finding::NoData | Finding::NoName) {
            return Ok(None);
        }
        let (domain, name) = (self.domain(), name.trim_end_matches('.').to_owned());
        let why = self.ask(move |node| lacks::why(&name, &domain, &node.cluster));
        Ok(match (why.await?, finding) {
            (Some(why), _) => Some(format!("{family} address ({why})")),
            (None, Finding::NoData) => Some(format!("{family} address")),
            (None, _) => None,
        })
    }

    /// What the zone says of one whole name.
    pub fn finding(&self, name: &str, family: Family) -> Finding {
        self.zone.read().finding(name, family.pick([Type::A, Type::AAAA]))
    }

    pub fn listing(&self) -> Vec<Listed> {
        self.zone.read().listing()
    }

    fn domain(&self) -> String {
        self.zone.read().settings().domain.to_string().trim_end_matches('.').to_owned()
    }

    /// A pod's files as `dnsPolicy: ClusterFirst` and every kubelet have them.
    pub fn usual_files(&self, wired: &Wired) -> Files {
        let (domain, pod) = (self.domain(), &wired.pod);
        let search = vec![format!("{}.svc.{domain}", pod.namespace), format!("svc.{domain}"), domain];
        let conf = ResolvConf { servers: self.dns.iter().map(SocketAddr::ip).collect(), search, ndots: 5 };
        let own = wired.ips.iter().map(|ip| format!("{ip} {}\n", pod.name));
        let own: String = own.collect();
        Files { conf, hosts: Hosts::parse(&format!("127.0.0.1 localhost\n::1 localhost\n{own}")) }
    }

    /// Whether the cluster's DNS has this address.
    pub fn is_dns(&self, address: IpAddr) -> bool {
        self.dns.iter().any(|dns| dns.ip() == address)
    }

    /// Whether this node's own DNS server listens.
    pub fn dns_drift(&self) -> Option<Sighting> {
        let away = self.dns.iter().find(|address| !drift::dns_socket(**address))?;
        Some(Sighting::Drift {
            stage: Stage::Resolve,
            text: format!(
                "no socket on node {} is bound to {away}; other nodes answer its pods' queries",
                self.node
            ),
        })
    }

    /// Whether a client of this family finds the node's own DNS.
    fn dns_here(&self, client: IpAddr) -> bool {
        let of_family = |address: &&SocketAddr| address.is_ipv4() == client.is_ipv4();
        self.dns.iter().find(of_family).is_none_or(|address| drift::dns_socket(*address))
    }
}

/// Where the first packet of a flow may go.
fn choices(node: &Snapshot, flow: Flow) -> Vec<SocketAddr> {
    match reference::choose(&packet(node, flow), &node.cluster, &place(node, true)) {
        Choice::Endpoints { endpoints, .. } => endpoints.into_iter().collect(),
        Choice::NotAService => vec![flow.destination],
        Choice::Reject { .. } | Choice::Drop { .. } => Vec::new(),
    }
}

/// The node whose port of a Service is asked for, if that leads on.
fn door(node: &Snapshot, flow: Flow) -> Option<Elsewhere> {
    let found = service::at_other_node(&packet(node, flow), &node.cluster, &place(node, true))?;
    found.leads_on().then_some(found)
}

/// As what it comes there: this node's own.
fn comes_to_door(node: &Snapshot, flow: Flow) -> Option<Masqueraded> {
    let own = node.cluster.nodes.get(&node.settings.node)?;
    let source = reference::internal_ip(own, Family::of(flow.source.ip()))?;
    Some(Masqueraded { source, destination: flow.destination })
}

fn place(node: &Snapshot, dns_here: bool) -> Place {
    let args = &node.settings.args;
    Place {
        fabric: node.settings.fabric,
        wiring: node.settings.wiring,
        node: node.settings.node.clone(),
        pod_pools: args.cluster_cidrs.clone(),
        unmasqueraded: args.cluster_cidrs.clone(),
        service_cidrs: args.service_cidrs.clone(),
        dns_ips: args.dns_ips.clone(),
        allow_sources: node.settings.allow_sources.clone(),
        api: node.api.clone(),
        dns_here,
        of_link: Vec::new(),
        broadcasts: Vec::new(),
    }
}

fn packet(node: &Snapshot, flow: Flow) -> Packet {
    let wiring = node.settings.wiring;
    let own = || reference::local_pod(flow.source.ip(), &node.cluster).map(|pod| pod.host_if.clone());
    Packet {
        iif: trace::wiring::shared(wiring).or_else(own),
        src: flow.source.ip(),
        dst: flow.destination.ip(),
        protocol: flow.protocol,
        sport: flow.source.port(),
        dport: flow.destination.port(),
        ct: trace::packet::CtState::New,
    }
}
