//! What leads to the node's own pods, pod by pod: one that comes or goes costs what it brings.

use std::collections::BTreeMap;

use kstate::net::{Link, NetState, Touched};
use semantics::node::Own;
use semantics::topology::{Attached, Topology};
use types::{IfName, Mac};

use super::entry::Entry;
use super::gateway_mac;
use crate::wiring;
use semantics::Settings;

/// By container. ADD gives no MAC twice: of two that have the same the first has it.
pub type Pods = BTreeMap<String, Pod>;

/// What one attachment has in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    host_if: IfName,
    mac: Mac,
    link: Link,
    entries: Vec<Entry>,
}

/// Those of the whole node.
pub fn pods(topology: Topology<'_>, settings: &Settings, own: &Own) -> Pods {
    let mut pods = Pods::new();
    for (container, attached) in topology.pods() {
        let pod = Pod::of((attached, settings), own, pods.values());
        pods.extend(pod.map(|pod| (container.to_owned(), pod)));
    }
    pods
}

impl Pod {
    /// `others`: those that may have its MAC before it.
    pub fn of<'a>(
        (attached, settings): (Attached<'_>, &Settings),
        own: &Own,
        mut others: impl Iterator<Item = &'a Self>,
    ) -> Option<Self> {
        let mac = Some(attached.mac);
        let taken = gateway_mac(own) == mac || others.any(|other| Some(other.mac) == mac);
        let wiring = wiring::of(settings.wiring);
        Some(Self {
            host_if: attached.host_if.clone(),
            mac: attached.mac,
            link: wiring.host_link(settings.mtu)?,
            entries: wiring.entries(attached, own, !taken),
        })
    }

    pub fn insert(&self, state: &mut NetState) {
        state.links.insert(self.host_if.clone(), self.link.clone());
        self.entries.iter().cloned().for_each(|entry| entry.insert(state));
    }

    pub fn remove(&self, state: &mut NetState) {
        state.links.remove(&self.host_if);
        self.entries.iter().for_each(|entry| entry.remove(state));
    }

    /// What of the state it may have changed, beside its link.
    pub fn touch(&self, touched: &mut Touched) {
        self.entries.iter().cloned().for_each(|entry| entry.touch(touched));
    }

    /// Whether the other wants what this one has.
    pub fn meets(&self, other: &Self) -> bool {
        (self.host_if == other.host_if || self.mac == other.mac)
            || self.entries.iter().any(|entry| other.entries.iter().any(|theirs| entry.meets(theirs)))
    }
}
