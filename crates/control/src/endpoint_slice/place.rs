//! Which endpoint goes into which slice, with as few writes as possible (ES-08).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Group, TRIGGER, labels, trigger};
use crate::kind::Kind;
use crate::view::{Endpoint, EndpointSlice, OwnerReference, Service, SlicePort};
use crate::write::Write;

/// A slice as it should be; `actual` is what it is made from, if it exists.
struct Slice<'a> {
    actual: Option<&'a EndpointSlice>,
    family: &'static str,
    ports: Vec<SlicePort>,
    endpoints: Vec<Endpoint>,
    /// The content differs from what is stored.
    changed: bool,
}

/// The slices of one family after the decision.
pub(super) struct Placed<'a> {
    keep: Vec<Slice<'a>>,
    delete: Vec<&'a EndpointSlice>,
}

/// Distributes `desired` over the slices that exist and as many more as it takes.
pub(super) fn place<'a>(
    mut desired: BTreeMap<Group, Vec<Endpoint>>,
    actual: &[&'a EndpointSlice],
    family: &'static str,
    limit: usize,
) -> Placed<'a> {
    let mut placed = Placed { keep: Vec::new(), delete: Vec::new() };
    let mut by_group: BTreeMap<Group, Vec<&'a EndpointSlice>> = BTreeMap::new();
    for slice in actual {
        let mut ports = slice.ports.clone();
        ports.sort();
        by_group.entry((family, ports)).or_default().push(slice);
    }
    // A slice without ports and endpoints is the placeholder; it belongs to no group of pods.
    if desired.is_empty() {
        desired.insert((family, Vec::new()), Vec::new());
    }
    let gone: Vec<Group> = by_group.keys().filter(|g| !desired.contains_key(*g)).cloned().collect();
    for group in gone {
        placed.delete.extend(by_group.remove(&group).unwrap_or_default());
    }
    for (group, endpoints) in desired {
        let slices = by_group.remove(&group).unwrap_or_default();
        placed.group(group, endpoints, slices, limit.max(1));
    }
    placed.reuse();
    placed
}

fn target(endpoint: &Endpoint) -> (String, Vec<String>) {
    let uid = endpoint.target_ref.as_ref().map(|t| t.uid.clone()).unwrap_or_default();
    (uid, endpoint.addresses.clone())
}

fn stored(endpoint: &Endpoint) -> Endpoint {
    Endpoint { turned: None, ..endpoint.clone() }
}

impl<'a> Placed<'a> {
    fn group(
        &mut self,
        group: Group,
        endpoints: Vec<Endpoint>,
        slices: Vec<&'a EndpointSlice>,
        limit: usize,
    ) {
        let (family, ports) = group;
        let placeholder = endpoints.is_empty();
        let mut waiting: BTreeMap<_, Endpoint> = endpoints.into_iter().map(|e| (target(&e), e)).collect();
        let mut kept: Vec<Slice<'a>> = Vec::new();
        let mut emptied: Vec<&'a EndpointSlice> = Vec::new();
        for actual in slices {
            // Endpoints stay where they are; what is not wanted goes, what differs is replaced.
            let stay: Vec<Endpoint> =
                actual.endpoints.iter().filter_map(|e| waiting.remove(&target(e))).collect();
            let same = stay.len() == actual.endpoints.len()
                && stay.iter().zip(&actual.endpoints).all(|(a, b)| stored(a) == *b);
            if stay.is_empty() && !(placeholder && kept.is_empty()) {
                emptied.push(actual);
                continue;
            }
            let ports = ports.clone();
            kept.push(Slice { actual: Some(actual), family, ports, endpoints: stay, changed: !same });
        }
        let mut waiting: Vec<Endpoint> = waiting.into_values().collect();
        // First those that are written anyway, the fullest first.
        kept.sort_by_key(|s| (!s.changed, std::cmp::Reverse(s.endpoints.len())));
        for slice in kept.iter_mut().filter(|s| s.changed) {
            let room = limit.saturating_sub(slice.endpoints.len()).min(waiting.len());
            slice.endpoints.extend(waiting.drain(..room));
        }
        while !waiting.is_empty() || (placeholder && kept.is_empty()) {
            let fits = |s: &&mut Slice<'_>| !s.changed && s.endpoints.len() + waiting.len() <= limit;
            let fullest = kept.iter_mut().filter(fits).max_by_key(|s| s.endpoints.len());
            if let Some(slice) = fullest.filter(|_| waiting.len() < limit) {
                slice.endpoints.append(&mut waiting);
                slice.changed = true;
                continue;
            }
            let endpoints = waiting.drain(..limit.min(waiting.len())).collect();
            let (actual, ports) = (emptied.pop(), ports.clone());
            kept.push(Slice { actual, family, ports, endpoints, changed: true });
        }
        self.keep.append(&mut kept);
        self.delete.append(&mut emptied);
    }

    /// A slice that would be deleted becomes one that would be created: one write instead of two, and no
    /// moment without.
    fn reuse(&mut self) {
        for slice in self.keep.iter_mut().filter(|s| s.actual.is_none()) {
            slice.actual = self.delete.pop();
        }
    }

    pub(super) fn writes(self, service: &Service) -> Vec<Write> {
        let mut writes: Vec<Write> = self.keep.into_iter().filter_map(|slice| slice.write(service)).collect();
        let deletions = self.delete.into_iter().map(|s| Write::delete(Kind::EndpointSlice, &s.metadata));
        writes.extend(deletions);
        writes
    }
}

impl Slice<'_> {
    fn write(self, service: &Service) -> Option<Write> {
        let labels = labels(service);
        let ports = if self.ports.is_empty() { Value::Null } else { json!(self.ports) };
        let trigger = self.trigger(service);
        let Some(actual) = self.actual else {
            let mut metadata = json!({
                "generateName": generate_name(&service.metadata.name),
                "namespace": service.metadata.namespace,
                "labels": labels,
                "ownerReferences": [OwnerReference::controller(Kind::Service, &service.metadata)],
            });
            if let Some(trigger) = trigger {
                metadata["annotations"] = json!({TRIGGER: trigger});
            }
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
                "addressType": self.family, "endpoints": self.endpoints, "ports": ports,
            });
            return Some(Write::Create { kind: Kind::EndpointSlice, object, done: None });
        };
        let mut actual_ports = actual.ports.clone();
        actual_ports.sort();
        let relabelled = actual.metadata.labels != labels;
        if !self.changed && !relabelled && actual_ports == self.ports {
            return None;
        }
        let mut patch = json!({"metadata": {"resourceVersion": actual.metadata.resource_version}});
        if relabelled {
            let dropped = actual.metadata.labels.keys().filter(|k| !labels.contains_key(*k));
            let mut change: serde_json::Map<String, Value> =
                dropped.map(|k| (k.clone(), Value::Null)).collect();
            change.extend(labels.into_iter().map(|(k, v)| (k, json!(v))));
            patch["metadata"]["labels"] = Value::Object(change);
        }
        if self.changed {
            patch["endpoints"] = json!(self.endpoints);
            patch["metadata"]["annotations"] = json!({TRIGGER: trigger});
        }
        if actual_ports != self.ports {
            patch["ports"] = ports;
        }
        Some(Write::patch(Kind::EndpointSlice, &actual.metadata, patch))
    }

    /// Dated by the endpoints that are new or differ; nothing when only something left (ES-11).
    fn trigger(&self, service: &Service) -> Option<String> {
        let before = self.actual.map(|a| a.endpoints.as_slice()).unwrap_or_default();
        let known: BTreeSet<_> = before.iter().map(target).collect();
        let differs = |e: &&Endpoint| !known.contains(&target(e)) || !before.contains(&stored(e));
        trigger(
            service,
            self.endpoints.iter().filter(differs).filter_map(|e| e.turned),
            self.actual.is_none(),
        )
    }
}

/// `<service>-`, cut so that the five letters the API adds still make a DNS label.
fn generate_name(service: &str) -> String {
    format!("{}-", service.get(..57).unwrap_or(service))
}
