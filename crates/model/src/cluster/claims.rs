//! Which Services name an address or a port of nodes: those are rivals where only one can have it. Pods with host ports
//! come after all of them, and have to know of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::{IpNet, ObjectName};

use crate::row::{Attachment, Service};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// Of a pod of this node; by its container.
    HostPort(u16),
    /// As ClusterIP, external or load balancer's.
    Address(IpAddr),
    /// For health checks, too.
    NodePort(u16),
    /// At external and load balancer's addresses, which may be a node's.
    ExternalPort(u16),
}

/// Claim → names of Services, or of containers, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(BTreeMap<Claim, Vec<ObjectName>>);

impl Claims {
    pub(super) fn insert(&mut self, service: &Service) {
        of(service).for_each(|claim| self.add(claim, &service.key));
    }

    pub(super) fn remove(&mut self, service: &Service) {
        of(service).for_each(|claim| self.take(claim, &service.key));
    }

    pub(super) fn insert_wired(&mut self, wired: &Attachment) {
        let container = ObjectName::cluster(&wired.container);
        wired.host_ports.iter().for_each(|port| self.add(Claim::HostPort(port.port), &container));
    }

    pub(super) fn remove_wired(&mut self, wired: &Attachment) {
        let container = ObjectName::cluster(&wired.container);
        wired.host_ports.iter().for_each(|port| self.take(Claim::HostPort(port.port), &container));
    }

    fn add(&mut self, claim: Claim, name: &ObjectName) {
        let names = self.0.entry(claim).or_default();
        if let Err(place) = names.binary_search(name) {
            names.reserve_exact(1); // most have one
            names.insert(place, name.clone());
        }
    }

    fn take(&mut self, claim: Claim, name: &ObjectName) {
        if let Some(names) = self.0.get_mut(&claim) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.0.remove(&claim);
            }
        }
    }

    pub(super) fn at(&self, address: IpAddr) -> &[ObjectName] {
        self.names(Claim::Address(address))
    }

    /// Of all addresses of a prefix.
    pub(super) fn within(&self, net: &IpNet) -> impl Iterator<Item = &ObjectName> {
        let ends = Claim::Address(net.network())..=Claim::Address(net.broadcast());
        self.0.range(ends).flat_map(|(_, names)| names)
    }

    pub(super) fn of_node_port(&self, port: u16) -> &[ObjectName] {
        self.names(Claim::NodePort(port))
    }

    /// Services that have addresses or ports of nodes beside their ClusterIPs.
    pub(super) fn outward(&self) -> impl Iterator<Item = &ObjectName> {
        self.0.range(Claim::NodePort(0)..).flat_map(|(_, names)| names)
    }

    /// Other Services that may want what this one does.
    pub(super) fn rivals(&self, service: &Service) -> BTreeSet<ObjectName> {
        let mut found = BTreeSet::new();
        for claim in of(service) {
            // A node's address may be an external one, so its ports may be wanted as node ports, too.
            let across: &[ObjectName] = match claim {
                Claim::Address(_) | Claim::HostPort(_) => &[],
                Claim::NodePort(port) => self.names(Claim::ExternalPort(port)),
                Claim::ExternalPort(port) => self.names(Claim::NodePort(port)),
            };
            // The same port at other external addresses is no claim of the same thing.
            let same = if matches!(claim, Claim::ExternalPort(_)) { &[] } else { self.names(claim) };
            found.extend(same.iter().chain(across).filter(|name| **name != service.key).cloned());
        }
        found
    }

    /// Containers with a host port of a number that the Service wants at an address of this node, or may.
    pub(super) fn host_ports(&self, service: &Service) -> impl Iterator<Item = &ObjectName> {
        of(service).flat_map(|claim| match claim {
            Claim::NodePort(port) | Claim::ExternalPort(port) => self.names(Claim::HostPort(port)),
            Claim::Address(_) | Claim::HostPort(_) => &[],
        })
    }

    fn names(&self, claim: Claim) -> &[ObjectName] {
        self.0.get(&claim).map_or(&[], Vec::as_slice)
    }
}

fn of(service: &Service) -> impl Iterator<Item = Claim> + '_ {
    let external = || service.external_ips.iter().chain(&service.load_balancer_ips);
    let addresses = service.cluster_ips.iter().chain(external()).copied().map(Claim::Address);
    let node_ports = service.ports.iter().filter_map(|port| port.node_port);
    let node_ports = node_ports.chain(service.health_check_port).map(Claim::NodePort);
    let known = external().next().is_some();
    let ports = service.ports.iter().filter(move |_| known).map(|port| Claim::ExternalPort(port.port));
    addresses.chain(node_ports).chain(ports)
}
