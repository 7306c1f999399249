//! The fabric of a node, node by node: one that joins thousands costs what it brings, and no look at the others.
//!
//! ```text
//!   own Node, attachments ──> links, addresses, sysctls
//!   peer ──> FDB entry, neighbours, routes        two that want the same: only the whole says who wins
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kstate::net::{NetState, Route, RouteKey, RouteKind};
use model::{Cluster, Node};
use types::wire::VXLAN_DEVICE;
use types::{Family, IfName, Mac};

use super::{
    MAIN_TABLE, PodSubnet, Wired, device, incomplete, internal_ip, own_state, pod_subnet, pod_subnets,
};
use crate::Settings;
use crate::diagnostic::Diagnostic;

/// Links, addresses, routes and tunnel entries as they should be.
#[derive(Debug, Default)]
pub struct Fabric {
    state: NetState,
    own: Option<Wired>,
    own_findings: Vec<Diagnostic>,
    peers: BTreeMap<String, Result<Peer, Box<Diagnostic>>>,
    /// Two peers want one key of the state.
    contested: bool,
}

/// What a peer has in the state.
#[derive(Debug, PartialEq, Eq)]
struct Peer {
    underlay: IpAddr,
    mac: Mac,
    /// Of the families that our devices have addresses of: the kernel takes no others.
    subnets: Vec<PodSubnet>,
}

/// What a round of changes concerns.
#[derive(Debug, Default)]
pub struct Turned {
    /// The node's own object, or what is attached to it.
    pub own: bool,
    pub peers: BTreeSet<String>,
}

impl Fabric {
    pub fn state(&self) -> &NetState {
        &self.state
    }

    pub fn into_state(self) -> NetState {
        self.state
    }

    /// What is wrong with the nodes it is made from.
    pub fn findings(&self) -> Vec<Diagnostic> {
        let of_peers = self.peers.values().filter_map(|peer| peer.as_ref().err().map(Box::as_ref));
        self.own_findings.iter().chain(of_peers).cloned().collect()
    }

    /// Whether the state is different now.
    pub fn update(&mut self, cluster: &Cluster, settings: &Settings, turned: &Turned) -> bool {
        let own = turned.own && self.turn_own(cluster, settings);
        let peers = turned.peers.iter().filter(|name| **name != settings.node);
        peers.fold(own, |changed, name| self.turn_peer(cluster, settings, name) || changed)
    }

    fn turn_own(&mut self, cluster: &Cluster, settings: &Settings) -> bool {
        let (mut state, own, findings) = own_state(cluster, settings);
        self.own_findings = findings;
        // A node whose own row went away (`kubectl delete node`) keeps what its pods run on until the row is back:
        // a missing object withdraws nothing.
        if own.is_none() && self.own.is_some() {
            return false;
        }
        if own != self.own {
            self.own = own;
            return self.rebuild(cluster, settings, state);
        }
        state.routes = std::mem::take(&mut self.state.routes);
        state.neighbours = std::mem::take(&mut self.state.neighbours);
        state.fdb = std::mem::take(&mut self.state.fdb);
        let before = std::mem::replace(&mut self.state, state);
        let now = &self.state;
        (&before.links, &before.addresses, &before.sysctls) != (&now.links, &now.addresses, &now.sysctls)
    }

    /// Every peer anew, on top of the node's own part.
    fn rebuild(&mut self, cluster: &Cluster, settings: &Settings, own: NetState) -> bool {
        let before = std::mem::replace(&mut self.state, own);
        self.peers.clear();
        self.contested = false;
        for peer in cluster.nodes.values().filter(|node| node.name != settings.node) {
            self.add(peer);
        }
        self.state != before
    }

    fn turn_peer(&mut self, cluster: &Cluster, settings: &Settings, name: &str) -> bool {
        let before = self.peers.remove(name);
        if !self.contested {
            if let Some(Ok(peer)) = &before {
                peer.entries().for_each(|entry| entry.remove(&mut self.state));
            }
            if let Some(row) = cluster.nodes.get(name) {
                self.add(row);
            }
        }
        if self.contested {
            let (state, ..) = own_state(cluster, settings);
            self.rebuild(cluster, settings, state);
            return true;
        }
        let now = self.peers.get(name).and_then(|peer| peer.as_ref().ok());
        before.as_ref().and_then(|peer| peer.as_ref().ok()) != now
    }

    fn add(&mut self, row: &Node) {
        let Some(own) = &self.own else { return };
        let peer = Peer::of(own, row);
        for entry in peer.iter().flat_map(Peer::entries) {
            self.contested |= entry.insert(&mut self.state);
        }
        self.peers.insert(row.name.clone(), peer);
    }
}

/// One piece of the state, in the order of FL-05.
enum Entry {
    Forward((IfName, Mac), IpAddr),
    Neighbour((IfName, IpAddr), Mac),
    Route(RouteKey, Route),
}

impl Entry {
    /// Whether somebody else's was there.
    fn insert(self, state: &mut NetState) -> bool {
        match self {
            Self::Forward(key, to) => state.fdb.insert(key, to).is_some(),
            Self::Neighbour(key, mac) => state.neighbours.insert(key, mac).is_some(),
            Self::Route(key, route) => state.routes.insert(key, route).is_some(),
        }
    }

    fn remove(self, state: &mut NetState) {
        match self {
            Self::Forward(key, _) => _ = state.fdb.remove(&key),
            Self::Neighbour(key, _) => _ = state.neighbours.remove(&key),
            Self::Route(key, _) => _ = state.routes.remove(&key),
        }
    }
}

impl Peer {
    fn of(own: &Wired, row: &Node) -> Result<Self, Box<Diagnostic>> {
        let underlay =
            internal_ip(row, Family::of(own.underlay)).filter(|_| pod_subnets(row).next().is_some());
        let lacks = "it has no pod CIDR or no InternalIP of our node's family yet; its pods are out of reach";
        let underlay = underlay.ok_or_else(|| Box::new(incomplete(&row.name, lacks)))?;
        let unpublished = "its agent has not published a VTEP address; its pods are out of reach";
        let mac = row.vtep_mac.ok_or_else(|| Box::new(incomplete(&row.name, unpublished)))?;
        let families = own.subnets.iter().map(|ours| Family::of_net(&ours.net));
        Ok(Self { underlay, mac, subnets: families.filter_map(|family| pod_subnet(row, family)).collect() })
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let vxlan = device(VXLAN_DEVICE);
        let forward = vxlan.clone().map(|dev| Entry::Forward((dev, self.mac), self.underlay));
        let of_subnets =
            vxlan.into_iter().flat_map(|dev| self.subnets.iter().map(move |subnet| (dev.clone(), subnet)));
        forward.into_iter().chain(of_subnets.flat_map(|(dev, subnet)| {
            let route = Route {
                dev: Some(dev.clone()),
                via: Some(subnet.vtep),
                onlink: true,
                src: None,
                kind: RouteKind::Unicast,
            };
            [
                Entry::Neighbour((dev, subnet.vtep), self.mac),
                Entry::Route(RouteKey { dst: subnet.net, table: MAIN_TABLE }, route),
            ]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Event, Row};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings {
            node: "node0".into(),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidrs: Vec::new(),
            dns_ips: Vec::new(),
            mtu: 1450,
        }
    }

    /// Few CIDRs and tunnel addresses, so that peers want the same.
    fn node(number: u8, cidr: u8, published: bool) -> Row {
        Row::Node(Node {
            name: format!("node{number}"),
            addresses: vec![[192, 168, 1, 10 + number].into()],
            pod_cidrs: vec![format!("10.244.{cidr}.0/24").parse().unwrap()],
            vtep_mac: published.then_some(Mac([0x0e, 0, 0, 0, 0, cidr % 3])),
            ..Node::default()
        })
    }

    proptest! {
        #[test]
        fn node_by_node_is_as_the_whole(
            steps in vec((0..5_u8, prop::option::of((1..6_u8, prop::bool::weighted(0.8)))), 1..24),
        ) {
            let mut cluster = Cluster::default();
            let all = || Turned { own: true, ..Turned::default() };
            let mut fabric = Fabric::default();
            fabric.update(&cluster, &settings(), &all());
            for (number, step) in steps {
                let name = format!("node{number}");
                let event = match step {
                    Some((cidr, published)) => Event::Upsert(node(number, cidr, published)),
                    // The agent never lets go of its own.
                    None if number == 0 => continue,
                    None => Event::Delete(model::Key::new(model::Kind::Node, types::ObjectName::cluster(&name))),
                };
                cluster.apply(event);
                let before = fabric.state.clone();
                let turned = match number {
                    0 => all(),
                    _ => Turned { peers: [name].into(), ..Turned::default() },
                };
                let changed = fabric.update(&cluster, &settings(), &turned);
                prop_assert!(changed || fabric.state == before);
                let mut whole = Fabric::default();
                whole.update(&cluster, &settings(), &all());
                prop_assert_eq!(&fabric.state, &whole.state);
                if fabric.own.is_some() {
                    prop_assert_eq!(fabric.findings(), whole.findings());
                }
            }
        }
    }
}
