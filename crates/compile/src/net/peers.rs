//! Links and routes of a node, node by node: one that joins thousands costs what it brings, and no look at the others.
//!
//! ```text
//!   own Node, attachments ──> links, addresses, sysctls
//!   peer ──> entries of the fabric                two that want the same: only the whole says who wins
//! ```
//!
//! Of two nodes that want the same (what they announce, such as a VTEP's hardware address, or a pod CIDR) this node has it,
//! then one that says of itself what its name does, then the first by name. The other is refused by its name: its packets
//! would go to the wrong node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kstate::net::{NetState, Touched};
use semantics::node::{Announced, Own, Peer, PodSubnet, incomplete, refused};
use semantics::{Diagnostic, Settings, Topology};

use super::devices;
use super::entry::Entry;
use super::pods::{self, Pod, Pods};
use crate::fabric;

/// Links, addresses, routes and the fabric's entries as they should be.
#[derive(Debug, Default)]
pub struct Net {
    /// Shared with whoever looks at it.
    state: Arc<NetState>,
    own: Option<Own>,
    own_findings: Vec<Diagnostic>,
    /// What of the state is neither a pod's nor a peer's.
    devices: NetState,
    /// A pod wants a port of the node.
    host_ports: bool,
    pods: Pods,
    peers: BTreeMap<String, Result<Peer, Box<Diagnostic>>>,
    /// Two peers want one key of the state.
    contested: bool,
}

/// What a round of changes concerns.
#[derive(Debug, Default)]
pub struct Turned {
    /// The node's own object or settings.
    pub own: bool,
    /// Containers of the node's own pods.
    pub pods: BTreeSet<String>,
    /// Other nodes.
    pub peers: BTreeSet<String>,
}

/// What of the state may be different after a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetChange {
    #[default]
    Nothing,
    Entries(Touched),
    Anything,
}

impl NetChange {
    /// `None`: more than entries may be different.
    fn touched(&mut self) -> Option<&mut Touched> {
        if *self == Self::Nothing {
            *self = Self::Entries(Touched::default());
        }
        match self {
            Self::Entries(touched) => Some(touched),
            Self::Nothing | Self::Anything => None,
        }
    }

    fn touch_pod(&mut self, pod: &Pod) {
        if let Some(touched) = self.touched() {
            pod.touch(touched);
        }
    }

    fn touch(&mut self, entry: Entry) {
        if let Some(touched) = self.touched() {
            entry.touch(touched);
        }
    }
}

/// What came of it. Findings of what the round did not concern are in neither.
#[derive(Debug, Default)]
pub struct Round {
    pub changed: NetChange,
    pub before: Vec<Diagnostic>,
    pub now: Vec<Diagnostic>,
}

impl Net {
    pub fn state(&self) -> &NetState {
        &self.state
    }

    pub fn shared(&self) -> Arc<NetState> {
        Arc::clone(&self.state)
    }

    pub fn update(&mut self, topology: Topology<'_>, settings: &Settings, turned: &Turned) -> Round {
        let mut round = Round::default();
        if turned.own || !turned.pods.is_empty() && self.host_ports != topology.has_host_ports() {
            self.turn_own(topology, settings, &mut round);
        } else {
            turned.pods.iter().for_each(|container| self.turn_pod(topology, settings, container, &mut round));
        }
        for name in &turned.peers {
            self.turn_peer(topology, settings, name, &mut round);
        }
        round
    }

    fn turn_own(&mut self, topology: Topology<'_>, settings: &Settings, round: &mut Round) {
        let (own, findings) = topology.own();
        round.now.extend(findings.iter().cloned());
        round.before.extend(std::mem::replace(&mut self.own_findings, findings));
        // A node whose own row went away (`kubectl delete node`) keeps what its pods run on until the row is back:
        // a missing object withdraws nothing.
        if own.is_none() && self.own.is_some() {
            return;
        }
        self.host_ports = topology.has_host_ports();
        let devices = devices(own.as_ref(), settings, self.host_ports);
        let pods = own.as_ref().map(|own| pods::pods(topology, settings, own)).unwrap_or_default();
        let stays = (&own, &devices) == (&self.own, &self.devices);
        if stays && pods == self.pods {
            return;
        }
        round.changed = NetChange::Anything;
        self.pods.values().for_each(|pod| pod.remove(Arc::make_mut(&mut self.state)));
        (self.own, self.devices, self.pods) = (own, devices, pods);
        if stays {
            self.pods.values().for_each(|pod| pod.insert(Arc::make_mut(&mut self.state)));
        } else {
            self.rebuild(topology, settings, round);
        }
    }

    /// All of the node's own pods.
    fn turn_pods(&mut self, topology: Topology<'_>, settings: &Settings, round: &mut Round) {
        let Some(own) = &self.own else { return };
        round.changed = NetChange::Anything;
        self.pods.values().for_each(|pod| pod.remove(Arc::make_mut(&mut self.state)));
        self.pods = pods::pods(topology, settings, own);
        self.pods.values().for_each(|pod| pod.insert(Arc::make_mut(&mut self.state)));
    }

    /// One of the node's own pods. Where two want the same, the whole says who has it.
    fn turn_pod(&mut self, topology: Topology<'_>, settings: &Settings, container: &str, round: &mut Round) {
        let Some(own) = &self.own else { return };
        let before = self.pods.get(container);
        let attached = topology.pod(container);
        let mut others = self.pods.iter().filter(|(other, _)| *other != container);
        let now = attached.and_then(|pod| Pod::of((pod, settings), own, others.clone().map(|(_, pod)| pod)));
        let both = || [before, now.as_ref()].into_iter().flatten();
        if others.any(|(_, other)| both().any(|pod| pod.meets(other))) {
            return self.turn_pods(topology, settings, round);
        }
        if before == now.as_ref() {
            return;
        }
        both().for_each(|pod| round.changed.touch_pod(pod));
        if let Some(before) = before {
            before.remove(Arc::make_mut(&mut self.state));
        }
        if let Some(now) = &now {
            now.insert(Arc::make_mut(&mut self.state));
        }
        match now {
            Some(now) => _ = self.pods.insert(container.to_owned(), now),
            None => _ = self.pods.remove(container),
        }
    }

    /// Every peer anew, beside the node's own part as it is.
    fn rebuild(&mut self, topology: Topology<'_>, settings: &Settings, round: &mut Round) {
        round.changed = NetChange::Anything;
        self.state = Arc::new(self.devices.clone());
        self.pods.values().for_each(|pod| pod.insert(Arc::make_mut(&mut self.state)));
        self.contested = false;
        round.before.extend(std::mem::take(&mut self.peers).into_values().filter_map(finding));
        // Whoever says that another's address is his does not take it from him.
        let fabric = fabric::of(settings.fabric);
        let is_rightful = |(name, peer): &(&str, Peer)| peer.announced == fabric.announces(name);
        let (rightful, others): (Vec<_>, Vec<_>) = topology.peers().partition(is_rightful);
        for peer in rightful.into_iter().chain(others) {
            round.now.extend(self.add(settings, peer).cloned());
        }
    }

    fn turn_peer(&mut self, topology: Topology<'_>, settings: &Settings, name: &str, round: &mut Round) {
        let before = self.peers.remove(name);
        if !self.contested {
            if let Some(Ok(peer)) = &before {
                self.entries(settings, peer)
                    .iter()
                    .for_each(|entry| entry.remove(Arc::make_mut(&mut self.state)));
            }
            if let Some(peer) = topology.peer(name) {
                let found = self.add(settings, (name, peer)).cloned();
                round.now.extend(found.filter(|_| !self.contested));
            }
            let [was, is] =
                [before.as_ref(), self.peers.get(name)].map(|peer| peer.and_then(|peer| peer.as_ref().ok()));
            if was != is {
                let both = [was, is].into_iter().flatten().flat_map(|peer| self.entries(settings, peer));
                both.for_each(|entry| round.changed.touch(entry));
            }
        }
        round.before.extend(before.and_then(finding));
        if self.contested {
            self.peers.remove(name);
            self.rebuild(topology, settings, round);
        }
    }

    /// What leads to a peer.
    fn entries(&self, settings: &Settings, peer: &Peer) -> Vec<Entry> {
        let own = self.own.as_ref();
        own.map(|own| fabric::of(settings.fabric).entries(own, peer)).unwrap_or_default()
    }

    /// What the peer lacks, or what another has of it, if so.
    fn add(&mut self, settings: &Settings, (name, peer): (&str, Peer)) -> Option<&Diagnostic> {
        let own = self.own.as_ref()?;
        let mut reached = reached(own, settings, (name, peer));
        if let Ok(wanted) = &reached
            && let Some(found) =
                own_rival(own, settings, (name, wanted)).or_else(|| self.rival(settings, (name, wanted)))
        {
            reached = Err(Box::new(found));
        }
        let entries = reached.as_ref().map(|peer| self.entries(settings, peer)).unwrap_or_default();
        entries.into_iter().for_each(|entry| entry.insert(Arc::make_mut(&mut self.state)));
        self.peers.insert(name.to_owned(), reached);
        self.peers.get(name)?.as_ref().err().map(Box::as_ref)
    }

    /// Which other peer has what this one wants.
    fn rival(&mut self, settings: &Settings, peer: (&str, &Peer)) -> Option<Diagnostic> {
        if !self.entries(settings, peer.1).iter().any(|entry| entry.is_taken(&self.state)) {
            return None;
        }
        self.contested = true;
        let of_peer = |(name, other): (&String, &Result<Peer, _>)| {
            let other = other.as_ref().ok()?;
            let subnets: Vec<_> = other.subnets().collect();
            refusal(settings, peer, (name, &other.announced, &subnets))
        };
        self.peers.iter().find_map(of_peer)
    }
}

/// What this node itself has and the peer wants.
fn own_rival(own: &Own, settings: &Settings, peer: (&str, &Peer)) -> Option<Diagnostic> {
    let announced = fabric::of(settings.fabric).announces(&settings.node);
    refusal(settings, peer, (&settings.node, &announced, &own.subnets))
}

/// What of the peer's is the other node's.
fn refusal(
    settings: &Settings,
    (name, peer): (&str, &Peer),
    (rival, announced, subnets): (&str, &Announced, &[PodSubnet]),
) -> Option<Diagnostic> {
    let fabric = fabric::of(settings.fabric);
    if let Some(clash) = fabric.clash((name, &peer.announced), (rival, announced)) {
        return Some(refused(name, "metadata.annotations", &clash.message, clash.next_step));
    }
    let shared = peer.subnets().find(|subnet| subnets.contains(subnet))?;
    let message = format!("its pod CIDR {} is node {rival}'s", shared.net);
    let next = format!("see who assigns pod CIDRs; delete Node {name} and let it join again");
    Some(refused(name, "spec.podCIDRs", &message, next))
}

fn finding(peer: Result<Peer, Box<Diagnostic>>) -> Option<Diagnostic> {
    peer.err().map(|finding| *finding)
}

/// How this node reaches that one, or what it lacks.
fn reached(own: &Own, settings: &Settings, (name, peer): (&str, Peer)) -> Result<Peer, Box<Diagnostic>> {
    let lacks = |what: &str| Box::new(incomplete(name, &format!("{what}; its pods are out of reach")));
    let peer = peer.reached(own).map_err(lacks)?;
    fabric::of(settings.fabric).lacks(own, &peer).map_or(Ok(peer), |what| Err(lacks(what)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::vxlan::vtep_mac;
    use kstate::net::{Forward, diff, diff_of};
    use model::{Attachment, Cluster, Event, Node, Row};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use types::wire::VXLAN_DEVICE;
    use types::{IfName, Mac};

    fn settings() -> Settings {
        Settings::new("node0", vec!["10.244.0.0/16".parse().unwrap()], 1450)
    }

    /// Few CIDRs and tunnel addresses, so that peers want the same.
    fn node(number: u8, cidr: u8, published: bool) -> Row {
        Row::Node(Node {
            name: format!("node{number}"),
            addresses: vec![[192, 168, 1, 10 + number].into()],
            pod_cidrs: vec![format!("10.244.{cidr}.0/24").parse().unwrap()],
            announced: model::Announced { vtep_mac: published.then_some(Mac([0x0e, 0, 0, 0, 0, cidr % 3])) },
            ..Node::default()
        })
    }

    fn pod(number: u8, last: u8) -> Row {
        Row::Attachment(Box::new(Attachment {
            wiring: types::Wiring::default(),
            container: format!("pod{number}"),
            pod: types::ObjectName::cluster("pod"),
            uid: String::new(),
            ips: vec![[10, 244, 1, last].into()],
            host_if: IfName::new(&format!("veth{number}")).unwrap(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            host_ports: Vec::new(),
            withheld: Vec::new(),
        }))
    }

    /// Everything at once, and what is wrong with it.
    fn whole(cluster: &Cluster) -> (NetState, Vec<Diagnostic>) {
        let mut net = Net::default();
        let all = Turned { own: true, ..Turned::default() };
        let mut found = net.update(Topology::new(cluster, &settings()), &settings(), &all).now;
        found.sort();
        (net.shared().as_ref().clone(), found)
    }

    fn cluster(nodes: impl IntoIterator<Item = Row>) -> Cluster {
        let mut cluster = Cluster::default();
        nodes.into_iter().for_each(|node| _ = cluster.apply(Event::Upsert(node)));
        cluster
    }

    fn said(found: &[Diagnostic]) -> Vec<String> {
        found.iter().map(Diagnostic::what).collect()
    }

    /// One 32-bit hash of both (FNV-1a, folded): the first such pair of a hundred thousand names.
    const COLLIDING: (&str, &str) = ("worker-39797.example", "worker-77538.example");

    #[test]
    fn two_nodes_whose_names_give_one_hardware_address_are_told_apart_by_name() {
        let (one, other) = COLLIDING;
        assert_ne!(one, other);
        let mac = vtep_mac(one);
        assert_eq!(mac, vtep_mac(other));
        let named = |name: &str, number| {
            let Row::Node(row) = node(number, number, true) else { unreachable!() };
            Row::Node(Node {
                name: name.to_owned(),
                announced: Announced { vtep_mac: Some(vtep_mac(name)) },
                ..row
            })
        };
        // For a third node: the first by name is reached, the other refused.
        let third = cluster([node(0, 0, true), named(one, 1), named(other, 2), node(3, 3, true)]);
        let (state, found) = whole(&third);
        let loser = format!(
            "node {other}: metadata.annotations: its VTEP has the hardware address of node {one}'s, {mac}; \
             its pods are out of reach"
        );
        assert_eq!(said(&found), [loser]);
        assert_eq!(
            state.fdb.get(&(IfName::new(VXLAN_DEVICE).unwrap(), mac)),
            Some(&Forward::Node([192, 168, 1, 11].into()))
        );
        assert_eq!(
            (state.routes.len(), state.neighbours.len()),
            (2, 2),
            "the refused one has none of either"
        );
        // For both of them the other is the refused one, whoever is first.
        for (here, there) in [(one, other), (other, one)] {
            let cluster = cluster([named(here, 1), named(there, 2)]);
            let settings = Settings { node: here.to_owned(), ..settings() };
            let mut net = Net::default();
            let all = Turned { own: true, ..Turned::default() };
            let found = net.update(Topology::new(&cluster, &settings), &settings, &all).now;
            assert!(
                matches!(&said(&found)[..], [one] if one.starts_with(&format!("node {there}: metadata"))),
                "{found:?}"
            );
            assert!(net.state.fdb.is_empty() && net.state.routes.is_empty());
        }
    }

    #[test]
    fn nobody_takes_a_hardware_address_from_the_node_whose_it_is() {
        let named = |name: &str, number| {
            let Row::Node(row) = node(number, number, true) else { unreachable!() };
            Row::Node(Node {
                name: name.to_owned(),
                announced: Announced { vtep_mac: Some(vtep_mac("node5")) },
                ..row
            })
        };
        // The thief is the first by name.
        let (state, found) = whole(&cluster([node(0, 0, true), named("a-thief", 1), named("node5", 5)]));
        assert!(matches!(&said(&found)[..], [one] if one.starts_with("node a-thief: metadata")), "{found:?}");
        assert_eq!(state.fdb.values().collect::<Vec<_>>(), [&Forward::Node([192, 168, 1, 15].into())]);
    }

    #[test]
    fn a_pod_cidr_that_two_nodes_have_is_the_firsts() {
        let (state, found) = whole(&cluster([node(0, 1, true), node(1, 2, true), node(2, 2, true)]));
        assert_eq!(state.fdb.len(), 1);
        let said = said(&found);
        assert!(said.len() == 1 && said[0].starts_with("node node2: "), "{said:?}");
        let (state, found) = whole(&cluster([node(0, 1, true), node(1, 1, true)]));
        assert!(state.fdb.is_empty() && state.routes.is_empty());
        let text = found[0].what();
        assert!(text.contains("its pod CIDR 10.244.1.0/24 is node node0's"), "{text}");
    }

    proptest! {
        /// A step is a Node, or its end: of our own object, too, which withdraws nothing. Or one of three pods of ours, which may want the same.
        #[test]
        fn node_by_node_is_as_the_whole(
            steps in vec((0..8_u8, prop::option::of((1..6_u8, prop::bool::weighted(0.8)))), 1..24),
        ) {
            let (mut cluster, mut own) = (Cluster::default(), None);
            let all = || Turned { own: true, ..Turned::default() };
            let mut net = Net::default();
            let mut found = net.update(Topology::new(&cluster, &settings()), &settings(), &all()).now;
            for (number, step) in steps {
                let name = format!("node{number}");
                let row = step.map(|(cidr, published)| match number {
                    5.. => pod(number, cidr),
                    _ => node(number, cidr, published),
                });
                if number == 0 {
                    own = row.clone().or(own);
                }
                let gone = || match number {
                    5.. => {
                        let name = types::ObjectName::cluster(format!("pod{number}"));
                        model::Key::new(model::Kind::Attachment, name)
                    }
                    _ => model::Key::new(model::Kind::Node, types::ObjectName::cluster(&name)),
                };
                cluster.apply(row.map_or_else(|| Event::Delete(gone()), Event::Upsert));
                let before = net.state.clone();
                let turned = match number {
                    0 => all(),
                    5.. => Turned { pods: [format!("pod{number}")].into(), ..Turned::default() },
                    _ => Turned { peers: [name].into(), ..Turned::default() },
                };
                let round = net.update(Topology::new(&cluster, &settings()), &settings(), &turned);
                match &round.changed {
                    NetChange::Nothing => prop_assert_eq!(&net.state, &before),
                    NetChange::Entries(touched) => {
                        let whole = diff(&net.state, &before);
                        prop_assert_eq!(diff_of(touched, &net.state, &before), whole);
                    }
                    NetChange::Anything => {}
                }
                for over in &round.before {
                    let place = found.iter().position(|held| held == over);
                    found.remove(place.expect("what is over was there"));
                }
                found.extend(round.now);
                found.sort();

                let mut known = cluster.clone();
                if let Some(row) = own.clone() {
                    known.apply(Event::Upsert(row));
                }
                prop_assert_eq!(net.state(), &whole(&known).0);
                if cluster.nodes.contains_key("node0") || own.is_none() {
                    prop_assert_eq!(&found, &whole(&cluster).1);
                }
            }
        }
    }
}
