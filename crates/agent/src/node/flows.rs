//! UDP flows that lead to endpoints which are gone. A UDP client that keeps its port (a resolver, SIP, QUIC) would
//! talk to a dead address for as long as it talks: conntrack remembers the first choice (C-01). TCP connections
//! end by themselves and are never touched (C-02).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use compile::fabric;
use compile::service::host_port::{self, HostFront};
use compile::service::plan::plan;
use model::{Cluster, Key, Kind};
use types::{Family, ObjectName, Protocol};

use super::Node;

/// Which UDP frontends each Service, and each attachment with host ports, had in the last round: of a deleted one the
/// flows must go, too.
#[derive(Debug, Default)]
pub struct Frontends {
    services: BTreeMap<ObjectName, BTreeSet<SocketAddr>>,
    host_ports: BTreeMap<String, BTreeSet<SocketAddr>>,
}

/// Frontend → who may answer for it.
type Answerers = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

impl Node {
    /// After the rules lead elsewhere. `first`: every Service, since nobody knows what happened before us.
    pub(super) fn forget_stale_flows(&mut self, keys: &[Key], first: bool) {
        // Node ports move with the node's address.
        let moved = |key: &Key| key.kind == Kind::Node && key.name.name == self.base.settings.node;
        let changed: BTreeSet<ObjectName> = match first || keys.iter().any(moved) {
            true => self.cluster.services.keys().cloned().collect(),
            false => {
                keys.iter().filter(|key| key.kind == Kind::Service).map(|key| key.name.clone()).collect()
            }
        };
        let mut concerned = Answerers::new();
        let Some(compiler) = &self.compiler else { return };
        for name in changed {
            let mut now = answerers(&self.cluster, compiler.settings(), &name);
            now.retain(|frontend, _| !self.base.settings.args.dns_ips.contains(&frontend.ip()));
            for gone in self.frontends.services.remove(&name).unwrap_or_default() {
                concerned.entry(gone).or_default();
            }
            if !now.is_empty() {
                self.frontends.services.insert(name, now.keys().copied().collect());
            }
            for (frontend, endpoints) in now {
                concerned.entry(frontend).or_default().extend(endpoints);
            }
        }
        // A host port that came or went: who kept its port towards it talks to nobody, or to the pod before.
        let wired: BTreeSet<String> = match first || keys.iter().any(moved) {
            true => self.cluster.attachments.keys().cloned().collect(),
            false => {
                let rows = keys.iter().filter(|key| key.kind == Kind::Attachment);
                rows.map(|key| key.name.name.clone()).collect()
            }
        };
        for handle in wired {
            let now = host_ports(&self.cluster, compiler.settings(), &handle);
            for gone in self.frontends.host_ports.remove(&handle).unwrap_or_default() {
                concerned.entry(gone).or_default();
            }
            if !now.is_empty() {
                self.frontends.host_ports.insert(handle, now.keys().copied().collect());
            }
            for (frontend, endpoints) in now {
                concerned.entry(frontend).or_default().extend(endpoints);
            }
        }
        if concerned.is_empty() {
            return;
        }
        let stale = |from: SocketAddr, to: SocketAddr| concerned.get(&to).is_some_and(|a| !a.contains(&from));
        match self.base.datapath.forget_udp(stale) {
            Ok(0) => {}
            Ok(count) => {
                self.base.metrics.flows_forgotten(count);
                tracing::info!(count, "UDP flows to endpoints that are gone were forgotten");
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "UDP flows may lead to endpoints that are gone")
            }
        }
    }
}

/// Every address that leads to the Service, its node ports included. A terminating endpoint that still serves keeps
/// its flows (C-05), although it gets no new ones.
fn answerers(cluster: &Cluster, settings: &compile::Settings, name: &ObjectName) -> Answerers {
    let mut found = Answerers::new();
    let plans = settings.families().filter_map(|family| plan(cluster, settings, name, family));
    for port in plans.flat_map(|plan| plan.ports).filter(|port| port.protocol == Protocol::Udp) {
        let mut endpoints = BTreeSet::new();
        for slice in cluster.slices_of(name) {
            let numbers = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == Protocol::Udp);
            for number in numbers.filter_map(|p| p.port) {
                let serving = slice.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.serving);
                endpoints.extend(serving.map(|endpoint| SocketAddr::new(endpoint.address, number)));
            }
        }
        for front in &port.fronts {
            found.insert(SocketAddr::new(front.address, front.port), endpoints.clone());
        }
    }
    found
}

/// UDP host ports of an attachment, at every address of the node that its object or we gave it. At others (a VPN's)
/// an unanswered flow from before the pod ends by itself, 30 s after the client fell silent.
fn host_ports(cluster: &Cluster, settings: &compile::Settings, handle: &str) -> Answerers {
    let Some(attachment) = cluster.attachments.get(handle) else { return Answerers::new() };
    let node = cluster.nodes.get(&settings.node);
    let of_node = node.into_iter().flat_map(|node| node.addresses.iter().copied());
    let gateways = node.into_iter().flat_map(fabric::pod_subnets).map(|subnet| subnet.gateway);
    let own: Vec<IpAddr> = of_node.chain(gateways).chain([Ipv4Addr::LOCALHOST.into()]).collect();
    let fronts = settings.families().flat_map(|family| {
        let udp = |front: &HostFront| front.protocol == Protocol::Udp;
        host_port::fronts(attachment, family).into_iter().filter(udp).map(move |front| (family, front))
    });
    let mut found = Answerers::new();
    for (family, front) in fronts {
        let everywhere = own.iter().copied().filter(|ip| Family::of(*ip) == family);
        let addresses = front.address.map_or_else(|| everywhere.collect(), |one| vec![one]);
        found.extend(addresses.into_iter().map(|ip| (SocketAddr::new(ip, front.port), [front.pod].into())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Endpoint, EndpointSlice, Event, Node, Row, Service, ServicePort, ServiceType, SlicePort};

    #[test]
    fn c_05_who_serves_may_answer_even_while_terminating() {
        let name = ObjectName::new("shop", "sip");
        let endpoint = |last: u8, ready, serving| Endpoint {
            address: [10, 244, 1, last].into(),
            node: None,
            hostname: None,
            ready,
            serving,
            terminating: !ready,
            pod: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        };
        let port = ServicePort {
            protocol: Protocol::Udp,
            port: 5060,
            node_port: Some(30060),
            ..ServicePort::default()
        };
        let service = Service {
            key: name.clone(),
            kind: ServiceType::NodePort,
            cluster_ips: vec![[10, 96, 1, 1].into()],
            ports: vec![port.clone(), ServicePort { protocol: Protocol::Tcp, ..port }],
            ..Service::default()
        };
        let slice = EndpointSlice {
            key: ObjectName::new("shop", "sip-1"),
            service: "sip".into(),
            ports: vec![SlicePort { name: String::new(), protocol: Protocol::Udp, port: Some(5061) }],
            endpoints: vec![endpoint(2, true, true), endpoint(3, false, true), endpoint(4, false, false)],
        };
        let mut cluster = Cluster::default();
        cluster.apply(Event::Upsert(Row::Service(Box::new(service))));
        cluster.apply(Event::Upsert(Row::EndpointSlice(slice)));
        let node =
            Node { name: "node1".into(), addresses: vec![[192, 168, 1, 10].into()], ..Node::default() };
        cluster.apply(Event::Upsert(Row::Node(node)));
        let settings = compile::Settings {
            node: "node1".into(),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidrs: Vec::new(),
            dns_ips: Vec::new(),
            mtu: 1450,
        };
        let found = answerers(&cluster, &settings, &name);
        let endpoints =
            BTreeSet::from(["10.244.1.2:5061", "10.244.1.3:5061"].map(|text| text.parse().unwrap()));
        let fronts = ["10.96.1.1:5060", "192.168.1.10:30060"].map(|text| text.parse().unwrap());
        assert_eq!(found, Answerers::from(fronts.map(|front| (front, endpoints.clone()))));
    }
}
