//! The maps of rows, and the witness that they are whole.

mod claims;
mod vacated;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use types::{IpNet, Labels, ObjectName};

use crate::row::{Attachment, EndpointSlice, Namespace, Node, Pod, Policy, Service};

pub use vacated::Vacated;

/// The sources. [`Cluster::synced`] waits for each of them, the node's own attachments included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Namespace,
    Pod,
    Service,
    EndpointSlice,
    Policy,
    Attachment,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Node,
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Policy,
        Self::Attachment,
    ];
}

/// A row with its kind. Boxed where it is large, so that an event is a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    Node(Node),
    Namespace(Namespace),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    Policy(Box<Policy>),
    Attachment(Box<Attachment>),
}

impl Row {
    pub fn key(&self) -> Key {
        match self {
            Self::Node(r) => Key::new(Kind::Node, ObjectName::cluster(&r.name)),
            Self::Namespace(r) => Key::new(Kind::Namespace, ObjectName::cluster(&r.name)),
            Self::Pod(r) => Key::new(Kind::Pod, r.key.clone()),
            Self::Service(r) => Key::new(Kind::Service, r.key.clone()),
            Self::EndpointSlice(r) => Key::new(Kind::EndpointSlice, r.key.clone()),
            Self::Policy(r) => Key::new(Kind::Policy, r.key.clone()),
            Self::Attachment(r) => Key::new(Kind::Attachment, ObjectName::cluster(&r.container)),
        }
    }
}

/// Names one row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub name: ObjectName,
}

impl Key {
    pub fn new(kind: Kind, name: ObjectName) -> Self {
        Self { kind, name }
    }
}

/// What a watch says. A (re)list is `Start`, then `Upsert`s, then `Done`: rows that the list did not name are
/// deleted at `Done`, never before, so that a relist never empties the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Start(Kind),
    Upsert(Row),
    Delete(Key),
    Done(Kind),
}

/// The cluster. Fields are read by brains; only [`Cluster::apply`] writes. Large rows are behind a pointer, because the
/// nodes of a B-tree are half empty after a list in order.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub nodes: BTreeMap<String, Node>,
    pub namespaces: BTreeMap<String, Namespace>,
    pub pods: BTreeMap<ObjectName, Box<Pod>>,
    pub services: BTreeMap<ObjectName, Box<Service>>,
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
    pub policies: BTreeMap<ObjectName, Box<Policy>>,
    /// By container id.
    pub attachments: BTreeMap<String, Box<Attachment>>,
    /// Service → names of its slices, in order.
    slices_of: BTreeMap<ObjectName, Vec<ObjectName>>,
    claims: claims::Claims,
    /// Pods that ask for further sources.
    sourced: BTreeSet<ObjectName>,
    /// Those of pods: the pods of a Deployment share them.
    labels: BTreeSet<Arc<Labels>>,
    /// What pods have left behind, until somebody asks.
    vacated: Vacated,
    done: BTreeSet<Kind>,
    /// Keys that a running list has not named yet.
    unseen: BTreeMap<Kind, BTreeSet<Key>>,
}

/// Proof that every source has been listed once. Only [`Cluster::synced`] makes it, and compile asks for it:
/// nothing can touch the kernel from half a picture.
#[derive(Clone, Copy, Debug)]
pub struct Synced<'a>(&'a Cluster);

impl std::ops::Deref for Synced<'_> {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.0
    }
}

/// Proof that what links and routes are made of has been listed once: Nodes, and what is wired here. They wait for nothing
/// else, however long the list of Pods is.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a>(&'a Cluster);

impl std::ops::Deref for Placed<'_> {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.0
    }
}

impl<'a> From<Synced<'a>> for Placed<'a> {
    fn from(Synced(cluster): Synced<'a>) -> Self {
        Self(cluster)
    }
}

impl Placed<'_> {
    /// The kinds that it is about.
    pub const KINDS: [Kind; 2] = [Kind::Node, Kind::Attachment];
}

impl Cluster {
    pub fn placed(&self) -> Option<Placed<'_>> {
        Placed::KINDS.iter().all(|kind| self.done.contains(kind)).then_some(Placed(self))
    }

    pub fn synced(&self) -> Option<Synced<'_>> {
        (self.done.len() == Kind::ALL.len()).then_some(Synced(self))
    }

    /// Sources whose first list is not complete.
    pub fn missing(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| !self.done.contains(kind))
    }

    /// The slices of a service, in the order of their names (EP-07).
    pub fn slices_of<'a>(
        &'a self,
        service: &ObjectName,
    ) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// Those whose addresses the Service's own lead to.
    pub fn served_slices_of<'a>(
        &'a self,
        service: &ObjectName,
    ) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        self.slices_of(service).filter(|slice| !slice.headless)
    }

    /// Those that name an address in here.
    pub fn services_within(&self, net: &IpNet) -> impl Iterator<Item = &Service> {
        self.claims.within(net).filter_map(|name| self.services.get(name).map(Box::as_ref))
    }

    /// Pods that ask for further sources, few or none.
    pub fn pods_with_sources(&self) -> &BTreeSet<ObjectName> {
        &self.sourced
    }

    /// Services that name this address as ClusterIP, external or load balancer's, in the order of their names.
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        self.named(self.claims.at(address))
    }

    /// Those that name this port of nodes, for connections or for health checks.
    pub fn services_of_node_port(&self, port: u16) -> impl Iterator<Item = &Service> {
        self.named(self.claims.of_node_port(port))
    }

    /// Those with addresses or ports of nodes beside their ClusterIPs; one may come several times.
    pub fn outward_services(&self) -> impl Iterator<Item = &ObjectName> {
        self.claims.outward()
    }

    /// Those of a namespace.
    pub fn pods_of(&self, namespace: &str) -> impl Iterator<Item = &Pod> + use<'_> {
        let first = ObjectName::new(namespace, "");
        let namespace = first.namespace.clone();
        let from = self.pods.range(first..).map(|(_, pod)| &**pod);
        from.take_while(move |pod| pod.key.namespace == namespace)
    }

    /// Whether there is something to [`Self::take_vacated`].
    pub fn has_vacated(&self) -> bool {
        self.vacated != Vacated::default()
    }

    /// Addresses that pods had and no longer have, since this was asked last.
    pub fn take_vacated(&mut self) -> Vacated {
        std::mem::take(&mut self.vacated)
    }

    fn named<'a>(&'a self, names: &'a [ObjectName]) -> impl Iterator<Item = &'a Service> {
        names.iter().filter_map(|name| self.services.get(name).map(Box::as_ref))
    }

    /// Takes one event and says which keys really changed: an upsert of an equal row changes nothing. When a
    /// slice moves from one service to another, both services' keys are in the answer; so are those of Services that
    /// want an address or port of one that changed, those that name an address which a node got or lost, and attachments
    /// with a host port of a number that one of them wants.
    pub fn apply(&mut self, event: Event) -> Vec<Key> {
        match event {
            Event::Start(kind) => {
                let keys = self.keys(kind).collect();
                self.unseen.insert(kind, keys);
                Vec::new()
            }
            Event::Upsert(row) => {
                let key = row.key();
                if let Some(unseen) = self.unseen.get_mut(&key.kind) {
                    unseen.remove(&key);
                }
                self.upsert(row)
            }
            Event::Delete(key) => self.delete(&key),
            Event::Done(kind) => {
                let gone = self.unseen.remove(&kind).unwrap_or_default();
                let changed = gone.iter().flat_map(|key| self.delete(key)).collect();
                self.done.insert(kind);
                changed
            }
        }
    }

    fn keys(&self, kind: Kind) -> Box<dyn Iterator<Item = Key> + '_> {
        let named = |names: Vec<ObjectName>| Box::new(names.into_iter().map(move |n| Key::new(kind, n)));
        let cluster = |names: Vec<&String>| names.into_iter().map(ObjectName::cluster).collect();
        match kind {
            Kind::Node => named(cluster(self.nodes.keys().collect())),
            Kind::Namespace => named(cluster(self.namespaces.keys().collect())),
            Kind::Pod => named(self.pods.keys().cloned().collect()),
            Kind::Service => named(self.services.keys().cloned().collect()),
            Kind::EndpointSlice => named(self.slices.keys().cloned().collect()),
            Kind::Policy => named(self.policies.keys().cloned().collect()),
            Kind::Attachment => named(cluster(self.attachments.keys().collect())),
        }
    }

    fn upsert(&mut self, row: Row) -> Vec<Key> {
        let key = row.key();
        let changed = match row {
            Row::Node(r) => return self.upsert_node(key, r),
            Row::Namespace(r) => put(&mut self.namespaces, r.name.clone(), r),
            Row::Pod(r) => self.upsert_pod(r),
            Row::Service(r) => return self.upsert_service(key, r),
            Row::Policy(r) => put(&mut self.policies, r.key.clone(), r),
            Row::Attachment(r) => self.upsert_attachment(r),
            Row::EndpointSlice(r) => return self.upsert_slice(key, r),
        };
        if changed { vec![key] } else { Vec::new() }
    }

    fn upsert_node(&mut self, key: Key, node: Node) -> Vec<Key> {
        let of = |node: &Node| node.every_address().collect::<Vec<_>>();
        let (before, now) = (self.nodes.get(&node.name).map(of).unwrap_or_default(), of(&node));
        if !put(&mut self.nodes, node.name.clone(), node) {
            return Vec::new();
        }
        let turned =
            before.iter().filter(|ip| !now.contains(ip)).chain(now.iter().filter(|ip| !before.contains(ip)));
        [key].into_iter().chain(self.claimants(turned.copied())).collect()
    }

    /// Services that name any of these addresses.
    fn claimants(&self, addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<Key> {
        let names = addresses.flat_map(|address| self.claims.at(address));
        names.map(|name| Key::new(Kind::Service, name.clone())).collect()
    }

    fn upsert_service(&mut self, key: Key, service: Box<Service>) -> Vec<Key> {
        let known = self.services.get(&key.name);
        if known == Some(&service) {
            return Vec::new();
        }
        let mut rivals = self.rivals(&service);
        if let Some(known) = known {
            rivals.extend(self.rivals(known));
            self.claims.remove(known);
        }
        self.claims.insert(&service);
        self.services.insert(key.name.clone(), service);
        [key].into_iter().chain(rivals).collect()
    }

    /// Whoever may get what this Service wants, or lose it.
    fn rivals(&self, service: &Service) -> BTreeSet<Key> {
        let services = self.claims.rivals(service).into_iter().map(|name| Key::new(Kind::Service, name));
        let wired = self.claims.host_ports(service).map(|name| Key::new(Kind::Attachment, name.clone()));
        services.chain(wired).collect()
    }

    fn upsert_attachment(&mut self, wired: Box<Attachment>) -> bool {
        if let Some(known) = self.attachments.get(&wired.container) {
            self.claims.remove_wired(known);
        }
        self.claims.insert_wired(&wired);
        put(&mut self.attachments, wired.container.clone(), wired)
    }

    fn upsert_pod(&mut self, mut pod: Box<Pod>) -> bool {
        match self.labels.get(&pod.labels) {
            Some(known) => pod.labels = Arc::clone(known),
            None => _ = self.labels.insert(Arc::clone(&pod.labels)),
        }
        match pod.sources {
            Some(_) => _ = self.sourced.insert(pod.key.clone()),
            None => _ = self.sourced.remove(&pod.key),
        }
        let before = self.pods.get(&pod.key).map(|pod| Arc::clone(&pod.labels));
        if let Some(former) = self.pods.get(&pod.key) {
            self.vacated.add(former, Some(&*pod));
        }
        let changed = put(&mut self.pods, pod.key.clone(), pod);
        self.forget_labels(before);
        changed
    }

    /// Those that a pod had, if it was the last.
    fn forget_labels(&mut self, of_pod: Option<Arc<Labels>>) {
        // Ours in `labels`, and the one in hand.
        if let Some(labels) = of_pod.filter(|labels| Arc::strong_count(labels) <= 2) {
            self.labels.remove(&labels);
        }
    }

    fn upsert_slice(&mut self, key: Key, slice: EndpointSlice) -> Vec<Key> {
        let mut changed = self.unlink_slice(&key.name, Some(&slice.service));
        let service = slice.key.sibling(&slice.service);
        let names = self.slices_of.entry(service.clone()).or_default();
        if let Err(place) = names.binary_search(&key.name) {
            names.reserve_exact(1); // most have one
            names.insert(place, key.name.clone());
        }
        if put(&mut self.slices, key.name.clone(), slice) {
            changed.extend([key, Key::new(Kind::Service, service)]);
        }
        changed
    }

    /// Forgets which service a slice belonged to, unless that is still `keep`; names the service that lost it.
    fn unlink_slice(&mut self, name: &ObjectName, keep: Option<&str>) -> Vec<Key> {
        let Some(former) = self.slices.get(name).filter(|s| Some(s.service.as_str()) != keep) else {
            return Vec::new();
        };
        let service = name.sibling(&former.service);
        if let Some(names) = self.slices_of.get_mut(&service) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        vec![Key::new(Kind::Service, service)]
    }

    fn delete(&mut self, key: &Key) -> Vec<Key> {
        let name = &key.name;
        let mut changed = Vec::new();
        let gone = match key.kind {
            Kind::Node => {
                let gone = self.nodes.remove(&*name.name);
                changed.extend(self.claimants(gone.iter().flat_map(Node::every_address)));
                gone.is_some()
            }
            Kind::Namespace => self.namespaces.remove(&*name.name).is_some(),
            Kind::Pod => {
                let gone = self.pods.remove(name);
                gone.iter().for_each(|pod| self.vacated.add(pod, None));
                let gone = gone.map(|pod| pod.labels);
                let was = gone.is_some();
                self.sourced.remove(name);
                self.forget_labels(gone);
                was
            }
            Kind::Service => {
                let gone = self.services.remove(name);
                if let Some(service) = &gone {
                    self.claims.remove(service);
                    changed.extend(self.rivals(service));
                }
                gone.is_some()
            }
            Kind::Policy => self.policies.remove(name).is_some(),
            Kind::Attachment => {
                let gone = self.attachments.remove(&*name.name);
                gone.iter().for_each(|wired| self.claims.remove_wired(wired));
                gone.is_some()
            }
            Kind::EndpointSlice => {
                changed = self.unlink_slice(name, None);
                self.slices.remove(name).is_some()
            }
        };
        if gone {
            changed.push(key.clone());
        }
        changed
    }
}

/// Whether the map is different afterwards.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, service: &str) -> Row {
        Row::EndpointSlice(EndpointSlice {
            key: ObjectName::new("shop", name),
            service: service.into(),
            ..EndpointSlice::default()
        })
    }

    fn service_key(name: &str) -> Key {
        Key::new(Kind::Service, ObjectName::new("shop", name))
    }

    #[test]
    fn a_slice_that_moves_changes_both_services() {
        let mut cluster = Cluster::default();
        cluster.apply(Event::Upsert(slice("s1", "a")));
        let changed = cluster.apply(Event::Upsert(slice("s1", "b")));
        assert!(changed.contains(&service_key("a")) && changed.contains(&service_key("b")), "{changed:?}");
        assert_eq!(cluster.slices_of(&ObjectName::new("shop", "a")).count(), 0);
        assert_eq!(cluster.slices_of(&ObjectName::new("shop", "b")).count(), 1);
    }

    #[test]
    fn a_relist_deletes_only_at_its_end() {
        let mut cluster = Cluster::default();
        cluster.apply(Event::Upsert(slice("s1", "a")));
        cluster.apply(Event::Start(Kind::EndpointSlice));
        assert_eq!(cluster.slices.len(), 1);
        cluster.apply(Event::Upsert(slice("s2", "a")));
        assert_eq!(cluster.slices.len(), 2);
        let changed = cluster.apply(Event::Done(Kind::EndpointSlice));
        assert_eq!(cluster.slices.len(), 1);
        assert!(changed.contains(&service_key("a")));
    }

    #[test]
    fn an_equal_row_changes_nothing() {
        let mut cluster = Cluster::default();
        assert!(!cluster.apply(Event::Upsert(slice("s1", "a"))).is_empty());
        assert!(cluster.apply(Event::Upsert(slice("s1", "a"))).is_empty());
    }

    #[test]
    fn pods_of_one_template_share_their_labels_as_long_as_there_are_any() {
        let pod = |name: &str, app: &str| {
            let labels = Labels::from([("app".to_owned(), app.to_owned())]).into();
            Event::Upsert(Row::Pod(Box::new(Pod {
                key: ObjectName::new("shop", name),
                labels,
                ..Pod::default()
            })))
        };
        let mut cluster = Cluster::default();
        for (name, app) in [("a", "web"), ("b", "web"), ("c", "db"), ("c", "web")] {
            cluster.apply(pod(name, app));
        }
        assert_eq!(cluster.labels.len(), 1, "{:?}", cluster.labels);
        let of = |name| &cluster.pods[&ObjectName::new("shop", name)].labels;
        assert!(Arc::ptr_eq(of("a"), of("b")) && Arc::ptr_eq(of("a"), of("c")));
        for name in ["a", "b", "c"] {
            cluster.apply(Event::Delete(Key::new(Kind::Pod, ObjectName::new("shop", name))));
        }
        assert!(cluster.labels.is_empty());
    }

    #[test]
    fn services_that_want_the_same_are_changed_together() {
        let mut cluster = Cluster::default();
        let service = |name: &str, external: &str, port, node_port| {
            Event::Upsert(Row::Service(Box::new(Service {
                key: ObjectName::new("shop", name),
                external_ips: external.parse().into_iter().collect(),
                ports: vec![crate::row::ServicePort { port, node_port, ..Default::default() }],
                ..Service::default()
            })))
        };
        assert_eq!(cluster.apply(service("a", "192.168.1.10", 30080, None)), [service_key("a")]);
        assert_eq!(cluster.apply(service("b", "192.168.1.11", 30080, None)), [service_key("b")]);
        let both = |first: &str, second: &str| [service_key(first), service_key(second)];
        assert_eq!(cluster.apply(service("c", "192.168.1.10", 81, None)), both("c", "a"));
        let node_port = cluster.apply(service("d", "", 80, Some(30080)));
        assert_eq!(node_port, ["d", "a", "b"].map(service_key));
        assert!(cluster.apply(service("d", "", 80, Some(30080))).is_empty());
        // What one gives up concerns the others, too.
        assert_eq!(cluster.apply(service("c", "", 81, None)), both("c", "a"));
        assert_eq!(cluster.apply(Event::Delete(service_key("d"))), ["a", "b", "d"].map(service_key));
        let node = |address: &str| {
            Event::Upsert(Row::Node(Node {
                name: "n".into(),
                addresses: vec![address.parse().expect("an address")],
                ..Node::default()
            }))
        };
        let node_key = Key::new(Kind::Node, ObjectName::cluster("n"));
        assert_eq!(cluster.apply(node("192.168.1.10")), [node_key.clone(), service_key("a")]);
        assert_eq!(cluster.apply(node("192.168.1.11")).len(), 3);
        assert_eq!(cluster.apply(Event::Delete(node_key.clone())), [service_key("b"), node_key]);
    }

    #[test]
    fn synced_needs_every_source() {
        let mut cluster = Cluster::default();
        for kind in Kind::ALL {
            assert!(cluster.synced().is_none());
            cluster.apply(Event::Start(kind));
            cluster.apply(Event::Done(kind));
        }
        assert!(cluster.synced().is_some());
    }
}
