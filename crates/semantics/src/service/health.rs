//! Health checks of load balancers (`healthCheckNodePort`): whether this node has an endpoint of its own to send
//! connections to, for Services of `externalTrafficPolicy: Local` (L-05).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::{Cluster, Service};
use types::{Family, ObjectName, Protocol};

use super::plan::plan;
use crate::Settings;

/// Where the node answers for a Service: at its address of each family that the Service has, unless somebody else has the
/// port there.
pub fn fronts(cluster: &Cluster, settings: &Settings, name: &ObjectName) -> BTreeSet<SocketAddr> {
    let asked = cluster.services.get(name).is_some_and(|service| service.health_check_port.is_some());
    let families = settings.families().filter(|_| asked);
    families.filter_map(|family| plan(cluster, settings, name, family)?.health).collect()
}

/// Whether a node that has this address answers the Service's health checks at this port of it.
pub fn answers(service: &Service, protocol: Protocol, address: IpAddr, port: u16) -> bool {
    protocol == Protocol::Tcp
        && service.health_check_port == Some(port)
        && service.cluster_ips.iter().any(|ip| Family::of(*ip) == Family::of(address))
}

/// How many pods of this node are ready for the Service in a family: a pod with several ports is one, and one that
/// ends takes nobody new.
pub fn local_endpoints(cluster: &Cluster, node: &str, name: &ObjectName, family: Family) -> usize {
    let endpoints = cluster.served_slices_of(name).flat_map(|slice| &slice.endpoints);
    let here = endpoints.filter(|e| e.ready && e.node.as_deref() == Some(node));
    let addresses = here.map(|e| e.address).filter(|ip| Family::of(*ip) == family);
    addresses.collect::<BTreeSet<IpAddr>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Endpoint, EndpointSlice, Event, Node, Row, ServicePort, ServiceType, SlicePort};

    fn cluster(foreign_proxy: bool) -> Cluster {
        let mut cluster = Cluster::default();
        let mut put = |row| drop(cluster.apply(Event::Upsert(row)));
        put(Row::Node(Node {
            name: "node1".into(),
            addresses: vec!["192.168.1.10".parse().unwrap(), "fd00::10".parse().unwrap()],
            ..Node::default()
        }));
        put(Row::Service(Box::new(Service {
            key: ObjectName::new("shop", "web"),
            kind: ServiceType::LoadBalancer,
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            health_check_port: Some(31000),
            foreign_proxy,
            ..Service::default()
        })));
        let endpoint = |last: u8, node: &str, ready| Endpoint {
            node: Some(node.into()),
            ready,
            terminating: !ready,
            ..Endpoint::ready([10, 244, 1, last])
        };
        for (part, endpoints) in [
            vec![endpoint(2, "node1", true), endpoint(3, "node1", false), endpoint(4, "node2", true)],
            vec![endpoint(2, "node1", true), endpoint(5, "node1", true)],
        ]
        .into_iter()
        .enumerate()
        {
            put(Row::EndpointSlice(EndpointSlice {
                key: ObjectName::new("shop", format!("web-{part}")),
                service: "web".into(),
                ports: vec![SlicePort { port: Some(80), ..SlicePort::default() }],
                endpoints,
                ..EndpointSlice::default()
            }));
        }
        cluster
    }

    #[test]
    fn l_05_only_ready_pods_of_this_node_count_each_once() {
        let count =
            |node, family| local_endpoints(&cluster(false), node, &ObjectName::new("shop", "web"), family);
        assert_eq!(count("node1", Family::V4), 2);
        assert_eq!(count("node2", Family::V4), 1);
        assert_eq!(count("node1", Family::V6), 0);
    }

    #[test]
    fn no_younger_service_takes_the_port_at_which_checks_are_answered() {
        let mut cluster = cluster(false);
        let [first, second] = [("192.168.1.10", 31_000), ("192.168.1.10", 31_001)];
        let mut put = |name: &str, created, (address, port): (&str, u16)| {
            let service = Service {
                key: ObjectName::new("atk", name),
                created,
                cluster_ips: vec!["10.96.0.8".parse().unwrap()],
                external_ips: vec![address.parse().unwrap()],
                ports: vec![ServicePort { port, ..ServicePort::default() }],
                ..Service::default()
            };
            cluster.apply(Event::Upsert(Row::Service(Box::new(service))))
        };
        assert_eq!(put("young", 1, first).len(), 2, "each concerns the other");
        put("beside", 1, second);
        let settings = Settings::new("node1", vec!["10.244.0.0/16".parse().unwrap()], 1450);
        let plan = |name: &str| {
            let name = ObjectName::new("atk", name);
            crate::service::plan::plan(&cluster, &settings, &name, Family::V4).unwrap()
        };
        let found = plan("young").diagnostics;
        assert!(
            found.iter().any(|found| found.message.ends_with("Service shop/web has it and comes first")),
            "{found:?}"
        );
        assert!(plan("beside").diagnostics.is_empty());
    }

    #[test]
    fn the_node_answers_in_the_families_of_the_service() {
        let pods = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10::/32".parse().unwrap()];
        let settings = Settings::new("node1", pods, 1450);
        let at = |foreign| fronts(&cluster(foreign), &settings, &ObjectName::new("shop", "web"));
        assert_eq!(at(false), BTreeSet::from(["192.168.1.10:31000".parse().unwrap()]));
        assert_eq!(at(true), BTreeSet::new());
        let mut cluster = cluster(false);
        let name = ObjectName::new("shop", "web");
        let mut service = cluster.services[&name].clone();
        service.health_check_port = Some(10250);
        cluster.apply(Event::Upsert(Row::Service(service)));
        assert_eq!(fronts(&cluster, &settings, &name), BTreeSet::new(), "the kubelet's port");
        let plan = crate::service::plan::plan(&cluster, &settings, &name, Family::V4).unwrap();
        assert!(
            plan.diagnostics.iter().any(|d| d.field == "spec.healthCheckNodePort"),
            "{:?}",
            plan.diagnostics
        );
    }
}
