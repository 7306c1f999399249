//! Which UDP flows lead to endpoints that are gone. A UDP client that keeps its port (a resolver, SIP, QUIC) would
//! talk to a dead address for as long as it talks: connection tracking remembers the first choice (C-01). TCP
//! connections end by themselves and are never touched (C-02).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::{Cluster, Key, Kind, Node};
use types::wire::NODE_PORTS;
use types::{Family, ObjectName, Protocol};

use super::host_port::{self, HostFront};
use super::plan::{plan, serves};
use crate::{Settings, node};

/// Frontend → who may answer for it.
type Answerers = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

/// The UDP frontends that each Service, and each attachment with host ports, had in the last round: of a deleted one
/// the flows must go, too.
#[derive(Debug, Default)]
pub struct Frontends {
    started: bool,
    services: BTreeMap<ObjectName, BTreeSet<SocketAddr>>,
    host_ports: BTreeMap<String, BTreeSet<SocketAddr>>,
}

/// The frontends that a round of changes concerns; one that is gone has nobody who may answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turned(Answerers);

impl Turned {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a flow to a frontend is answered by somebody who no longer may.
    pub fn is_stale(&self, frontend: SocketAddr, answerer: SocketAddr) -> bool {
        self.0.get(&frontend).is_some_and(|answerers| !answerers.contains(&answerer))
    }

    /// What nodes answer themselves, the tunnel before all: a flow that an earlier version let a Service or a pod take
    /// would go on for as long as there are packets.
    fn keep_own(&mut self, cluster: &Cluster) {
        let ports =
            NODE_PORTS.iter().filter(|(protocol, ..)| *protocol == Protocol::Udp).map(|(_, port, _)| *port);
        for address in cluster.nodes.values().flat_map(Node::every_address) {
            for port in ports.clone() {
                let own = SocketAddr::new(address, port);
                self.0.entry(own).or_default().insert(own);
            }
        }
    }

    /// `before`: its frontends of the last round, which become those of this one.
    fn turn<K: Ord>(&mut self, before: &mut BTreeMap<K, BTreeSet<SocketAddr>>, key: K, now: Answerers) {
        for gone in before.remove(&key).unwrap_or_default() {
            self.0.entry(gone).or_default();
        }
        if !now.is_empty() {
            before.insert(key, now.keys().copied().collect());
        }
        for (frontend, endpoints) in now {
            self.0.entry(frontend).or_default().extend(endpoints);
        }
    }
}

impl Frontends {
    /// Takes the keys that [`Cluster::apply`] named. The first call concerns everything: nobody knows what happened
    /// before.
    pub fn update(&mut self, cluster: &Cluster, settings: &Settings, changed: &[Key]) -> Turned {
        // Node ports and host ports move with the node's addresses.
        let own = |key: &Key| key.kind == Kind::Node && *key.name.name == *settings.node;
        let all = !std::mem::replace(&mut self.started, true) || changed.iter().any(own);
        let of = |kind| changed.iter().filter(move |key| key.kind == kind).map(|key| &key.name);
        let services: BTreeSet<ObjectName> = match all {
            true => cluster.services.keys().chain(self.services.keys()).cloned().collect(),
            false => of(Kind::Service).cloned().collect(),
        };
        let attachments: BTreeSet<String> = match all {
            true => cluster.attachments.keys().chain(self.host_ports.keys()).cloned().collect(),
            false => of(Kind::Attachment).map(|name| name.name.to_string()).collect(),
        };
        let mut turned = Turned::default();
        for name in services {
            let now = of_service(cluster, settings, &name);
            turned.turn(&mut self.services, name, now);
        }
        if all {
            turned.keep_own(cluster);
        }
        // Who kept its port towards a host port that came or went talks to nobody, or to the pod before.
        for container in attachments {
            let now = of_attachment(cluster, settings, &container);
            turned.turn(&mut self.host_ports, container, now);
        }
        turned
    }
}

/// Every address that leads to the Service, its node ports included. A terminating endpoint that still serves keeps its flows (C-05), although it gets no new ones.
fn of_service(cluster: &Cluster, settings: &Settings, name: &ObjectName) -> Answerers {
    let mut found = Answerers::new();
    let plans = settings.families().filter_map(|family| plan(cluster, settings, name, family));
    for port in plans.flat_map(|plan| plan.ports).filter(|port| port.protocol == Protocol::Udp) {
        let mut endpoints = BTreeSet::new();
        for slice in cluster.served_slices_of(name) {
            let numbers = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == Protocol::Udp);
            for number in numbers.filter_map(|p| p.port) {
                let serving = slice
                    .endpoints
                    .iter()
                    .filter(|endpoint| (endpoint.ready || endpoint.serving) && serves(endpoint));
                endpoints.extend(serving.map(|endpoint| SocketAddr::new(endpoint.address, number)));
            }
        }
        for front in port.fronts {
            found.insert(SocketAddr::new(front.address, front.port), endpoints.clone());
        }
    }
    found
}

/// UDP host ports of an attachment, at every address of the node that its object or we gave it. At others (a VPN's)
/// an unanswered flow from before the pod ends by itself, 30 s after the client fell silent.
fn of_attachment(cluster: &Cluster, settings: &Settings, container: &str) -> Answerers {
    let Some(attachment) = cluster.attachments.get(container) else { return Answerers::new() };
    let node = cluster.nodes.get(&settings.node);
    let of_node = node.into_iter().flat_map(Node::every_address);
    let gateways = node.into_iter().flat_map(node::pod_subnets).map(|subnet| subnet.gateway);
    let own: Vec<IpAddr> = of_node.chain(gateways).chain([Ipv4Addr::LOCALHOST.into()]).collect();
    let fronts = settings.families().flat_map(|family| {
        let udp = |front: &HostFront| front.protocol == Protocol::Udp;
        host_port::fronts((cluster, settings), attachment, family)
            .into_iter()
            .filter(udp)
            .map(move |front| (family, front))
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
    use model::{
        Attachment, Endpoint, EndpointSlice, Event, HostPort, Row, Service, ServicePort, ServiceType,
        SlicePort,
    };
    use types::{IfName, Mac};

    fn settings() -> Settings {
        Settings {
            dns_ips: vec!["10.96.0.10".parse().unwrap()],
            ..Settings::new("node1", vec!["10.244.0.0/16".parse().unwrap()], 1450)
        }
    }

    fn own_node(address: &str) -> Event {
        let addresses = vec![address.parse().unwrap()];
        Event::Upsert(Row::Node(Node { name: "node1".into(), addresses, ..Node::default() }))
    }

    fn sip(cluster_ip: &str) -> Event {
        at_port(cluster_ip, 5060)
    }

    fn at_port(cluster_ip: &str, port: u16) -> Event {
        let port =
            ServicePort { protocol: Protocol::Udp, port, node_port: Some(30060), ..ServicePort::default() };
        Event::Upsert(Row::Service(Box::new(Service {
            key: ObjectName::new("shop", "sip"),
            kind: ServiceType::NodePort,
            cluster_ips: vec![cluster_ip.parse().unwrap()],
            ports: vec![port.clone(), ServicePort { protocol: Protocol::Tcp, ..port }],
            ..Service::default()
        })))
    }

    /// A Service of one ready endpoint (.2), one that still serves (.3) and one that is gone (.4).
    fn shop() -> Cluster {
        let endpoint = |last: u8, ready, serving| Endpoint {
            ready,
            serving,
            terminating: !ready,
            ..Endpoint::ready([10, 244, 1, last])
        };
        let slice = EndpointSlice {
            key: ObjectName::new("shop", "sip-1"),
            service: "sip".into(),
            ports: vec![SlicePort { name: String::new(), protocol: Protocol::Udp, port: Some(5061) }],
            endpoints: vec![endpoint(2, true, true), endpoint(3, false, true), endpoint(4, false, false)],
            ..EndpointSlice::default()
        };
        let mut cluster = Cluster::default();
        let slice = Event::Upsert(Row::EndpointSlice(slice));
        for event in [sip("10.96.1.1"), slice, own_node("192.168.1.10")] {
            cluster.apply(event);
        }
        cluster
    }

    fn turned<const F: usize>(expected: [(&str, &[&str]); F]) -> Turned {
        let at = |text: &str| text.parse().unwrap();
        let answerers = |texts: &[&str]| texts.iter().map(|text| at(text)).collect();
        Turned(expected.into_iter().map(|(front, texts)| (at(front), answerers(texts))).collect())
    }

    /// And the tunnel and DNS between nodes, which a node answers itself.
    fn with_own(mut turned: Turned, node: &str) -> Turned {
        for port in [8472, 9476] {
            let own = SocketAddr::new(node.parse().unwrap(), port);
            turned.0.insert(own, [own].into());
        }
        turned
    }

    const SERVING: &[&str] = &["10.244.1.2:5061", "10.244.1.3:5061"];

    #[test]
    fn c_05_who_serves_may_answer_even_while_terminating() {
        let found = Frontends::default().update(&shop(), &settings(), &[]);
        let served = [("10.96.1.1:5060", SERVING), ("192.168.1.10:30060", SERVING)];
        assert_eq!(found, with_own(turned(served), "192.168.1.10"));
        assert!(found.is_stale("192.168.1.10:8472".parse().unwrap(), "10.244.1.4:9000".parse().unwrap()));
        let stale = |from: &str| found.is_stale("10.96.1.1:5060".parse().unwrap(), from.parse().unwrap());
        assert!(!stale("10.244.1.3:5061") && stale("10.244.1.4:5061"));
        assert!(!found.is_stale("10.96.1.2:53".parse().unwrap(), "10.244.1.4:53".parse().unwrap()));
    }

    #[test]
    fn nobody_may_answer_for_what_is_gone_whatever_else_changed_with_it() {
        let (mut cluster, settings) = (shop(), settings());
        let mut frontends = Frontends::default();
        frontends.update(&cluster, &settings, &[]);
        assert!(frontends.update(&cluster, &settings, &[]).is_empty());
        let mut keys = cluster.apply(own_node("192.168.1.20"));
        let moved = frontends.update(&cluster, &settings, &keys);
        let now = [("10.96.1.1:5060", SERVING), ("192.168.1.20:30060", SERVING)];
        let gone = ("192.168.1.10:30060", &[][..]);
        assert_eq!(moved, with_own(turned([now[0], now[1], gone]), "192.168.1.20"));
        keys = cluster.apply(Event::Delete(Key::new(Kind::Service, ObjectName::new("shop", "sip"))));
        keys.extend(cluster.apply(own_node("192.168.1.10")));
        let gone = frontends.update(&cluster, &settings, &keys);
        let expected = turned([("10.96.1.1:5060", &[]), ("192.168.1.20:30060", &[])]);
        assert_eq!(gone, with_own(expected, "192.168.1.10"));
    }

    /// The node answers queries at the cluster's DNS address, and nothing else there.
    #[test]
    fn a_service_at_the_dns_address_has_its_other_ports() {
        let mut cluster = shop();
        cluster.apply(sip("10.96.0.10"));
        let at_nodes = ("192.168.1.10:30060", SERVING);
        let found = Frontends::default().update(&cluster, &settings(), &[]);
        assert_eq!(found, with_own(turned([("10.96.0.10:5060", SERVING), at_nodes]), "192.168.1.10"));
        cluster.apply(at_port("10.96.0.10", crate::dns::PORT));
        let found = Frontends::default().update(&cluster, &settings(), &[]);
        assert_eq!(found, with_own(turned([at_nodes]), "192.168.1.10"));
    }

    #[test]
    fn a_host_port_is_answered_by_its_pod_until_that_is_gone() {
        let (mut cluster, settings) = (shop(), settings());
        let mut frontends = Frontends::default();
        frontends.update(&cluster, &settings, &[]);
        let port = HostPort { protocol: Protocol::Udp, port: 7000, container_port: 70, host_ip: None };
        let attachment = Attachment {
            wiring: types::Wiring::default(),
            container: "c/eth0".into(),
            pod: ObjectName::new("shop", "web"),
            uid: String::new(),
            ips: vec!["10.244.1.9".parse().unwrap()],
            host_if: IfName::new("veth1").unwrap(),
            mac: Mac::default(),
            host_ports: vec![port],
            withheld: Vec::new(),
        };
        let keys = cluster.apply(Event::Upsert(Row::Attachment(Box::new(attachment))));
        let pod: &[&str] = &["10.244.1.9:70"];
        let came = frontends.update(&cluster, &settings, &keys);
        assert_eq!(came, turned([("127.0.0.1:7000", pod), ("192.168.1.10:7000", pod)]));
        let keys = cluster.apply(Event::Delete(Key::new(Kind::Attachment, ObjectName::cluster("c/eth0"))));
        let gone = frontends.update(&cluster, &settings, &keys);
        assert_eq!(gone, turned([("127.0.0.1:7000", &[]), ("192.168.1.10:7000", &[])]));
    }
}
