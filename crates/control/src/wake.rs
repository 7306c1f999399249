//! Which decisions a change touches. Waking too many costs microseconds; waking too few is a bug.

use std::collections::BTreeSet;

use types::{ObjectName, Selector};

use crate::brain::{Brain, Key};
use crate::kind::Kind;
use crate::view::{Deployment, Meta, Node, Pod, ReplicaSet, Service};
use crate::world::{Change, Row, View, World};

type Woken = BTreeSet<(Brain, Key)>;

/// The brains to ask, and about what, after `change` has been taken into `world`.
pub fn wake(world: &World, change: &Change) -> BTreeSet<(Brain, Key)> {
    let mut woken = Woken::new();
    let name = &change.name;
    match change.kind {
        Kind::Namespace => add(&mut woken, Brain::Namespace, change.kind, name),
        Kind::Node => node(world, change, &mut woken),
        Kind::Lease => {
            if &*name.namespace == "kube-node-lease" {
                add(&mut woken, Brain::NodeLife, Kind::Node, &ObjectName::cluster(&name.name));
            }
        }
        Kind::Pod => pod(world, change, &mut woken),
        Kind::Service => add(&mut woken, Brain::EndpointSlice, change.kind, name),
        Kind::EndpointSlice => {
            for row in rows(change) {
                if let Some(service) = row.meta().labels.get(types::wire::SERVICE_NAME) {
                    let service = name.sibling(service);
                    add(&mut woken, Brain::EndpointSlice, Kind::Service, &service);
                }
            }
        }
        Kind::Deployment => add(&mut woken, Brain::Deployment, change.kind, name),
        Kind::ReplicaSet => {
            add(&mut woken, Brain::ReplicaSet, change.kind, name);
            replica_set(world, change, &mut woken);
        }
        Kind::ConfigMap | Kind::ServiceAccount | Kind::NetworkPolicy => {}
    }
    ownership(world, change, &mut woken);
    woken
}

/// Everything, for the start: the world is whole, and nothing has been asked yet.
pub fn wake_all(world: &World) -> BTreeSet<(Brain, Key)> {
    let mut woken = Woken::new();
    for kind in Kind::ALL {
        for name in world.names(kind) {
            if let Some(row) = world.row(kind, &name) {
                let change = Change { kind, name, before: None, after: Some(row.clone()) };
                woken.extend(wake(world, &change));
            }
        }
    }
    woken
}

fn add(woken: &mut Woken, brain: Brain, kind: Kind, name: &ObjectName) {
    woken.insert((brain, Key::Object(kind, name.clone())));
}

fn rows(change: &Change) -> impl Iterator<Item = &Row> {
    change.before.iter().chain(change.after.iter())
}

fn views<T: View>(change: &Change) -> impl Iterator<Item = &T> {
    rows(change).filter_map(T::of)
}

fn node(world: &World, change: &Change, woken: &mut Woken) {
    add(woken, Brain::NodeLife, Kind::Node, &change.name);
    woken.insert((Brain::NodeCidr, Key::Everything));
    woken.insert((Brain::Scheduler, Key::Everything));
    // Endpoints carry the zone of their node, and need it to exist (ES-06, ES-07).
    let seen =
        |row: &Option<Row>| row.as_ref().and_then(Node::of).map(|n| crate::endpoint_slice::zone(n).cloned());
    if seen(&change.before) != seen(&change.after) {
        for service in world.all::<Service>() {
            add(woken, Brain::EndpointSlice, Kind::Service, &service.metadata.key());
        }
    }
}

fn pod(world: &World, change: &Change, woken: &mut Woken) {
    let namespace = &*change.name.namespace;
    for pod in views::<Pod>(change) {
        match pod.metadata.controller() {
            Some(owner) if owner.kind == "ReplicaSet" => {
                let set = ObjectName::new(namespace, &owner.name);
                add(woken, Brain::ReplicaSet, Kind::ReplicaSet, &set);
                // A Deployment counts its pods itself rather than waiting for a status that counts them.
                if let Some(owner) = world.get::<ReplicaSet>(&set).and_then(|set| set.metadata.controller()) {
                    let deployment = ObjectName::new(namespace, &owner.name);
                    add(woken, Brain::Deployment, Kind::Deployment, &deployment);
                }
            }
            Some(_) => {}
            None => {
                for set in selecting(world.within::<ReplicaSet>(namespace), &pod.metadata) {
                    add(woken, Brain::ReplicaSet, Kind::ReplicaSet, &set);
                }
            }
        }
        for service in world.within::<Service>(namespace) {
            if Selector::from_labels(&service.spec.selector).matches(&pod.metadata.labels) {
                add(woken, Brain::EndpointSlice, Kind::Service, &service.metadata.key());
            }
        }
    }
    // Readiness does not move pods; a pod that came, was bound, ended or went may.
    let place = |row: &Option<Row>| {
        row.as_ref().and_then(Pod::of).map(|p| (p.spec.clone(), p.finished(), p.metadata.terminating()))
    };
    if place(&change.before) != place(&change.after) {
        woken.insert((Brain::Scheduler, Key::Everything));
    }
}

fn selecting<'a>(sets: impl Iterator<Item = &'a ReplicaSet>, meta: &Meta) -> Vec<ObjectName> {
    let selects = |set: &&ReplicaSet| set.spec.selector.selector().is_some_and(|s| s.matches(&meta.labels));
    sets.filter(selects).map(|set| set.metadata.key()).collect()
}

fn replica_set(world: &World, change: &Change, woken: &mut Woken) {
    for set in views::<ReplicaSet>(change) {
        let namespace = set.metadata.namespace.as_str();
        if let Some(owner) = set.metadata.controller() {
            add(woken, Brain::Deployment, Kind::Deployment, &ObjectName::new(namespace, &owner.name));
            continue;
        }
        for deployment in world.within::<Deployment>(namespace) {
            if deployment.spec.selector.selector().is_some_and(|s| s.matches(&set.metadata.labels)) {
                add(woken, Brain::Deployment, Kind::Deployment, &deployment.metadata.key());
            }
        }
    }
}

/// Ownership and namespaces concern every kind.
fn ownership(world: &World, change: &Change, woken: &mut Woken) {
    let namespace = ObjectName::cluster(&change.name.namespace);
    if world.meta(Kind::Namespace, &namespace).is_some_and(Meta::terminating) {
        add(woken, Brain::Namespace, Kind::Namespace, &namespace);
    }
    if let Some(row) = &change.after {
        let meta = row.meta();
        if !meta.owner_references.is_empty() || meta.terminating() {
            add(woken, Brain::Garbage, change.kind, &change.name);
        }
    }
    let Some(before) = &change.before else { return };
    // A dependent that goes may be the last one its owner waits for.
    for owner in &before.meta().owner_references {
        if let Some((kind, meta)) = world.by_uid(&owner.uid)
            && meta.terminating()
        {
            add(woken, Brain::Garbage, kind, &meta.key());
        }
    }
    if change.after.as_ref().is_none_or(|after| after.meta().uid != before.meta().uid) {
        for (kind, meta) in world.dependents(&before.meta().uid) {
            add(woken, Brain::Garbage, kind, &meta.key());
        }
    }
}
