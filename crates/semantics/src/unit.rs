//! What is decided as one piece, and which pieces a changed key concerns.

use std::collections::{BTreeMap, BTreeSet};

use model::{Cluster, Key, Kind};
use types::ObjectName;

use crate::service::reserved;

/// One piece of what a node means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// What is there once: it depends on nodes, settings, and pods that ask for further sources.
    Base,
    Service(ObjectName),
    Attachment(String),
    /// A pod anywhere in the cluster, as somebody's peer.
    Pod(ObjectName),
    /// Another node: what its address and the fabric may bring.
    Node(String),
}

/// What the last round saw of attachments, to find both owners when one moves.
#[derive(Debug, Default)]
pub struct Units {
    begun: bool,
    pod_of: BTreeMap<String, ObjectName>,
    pub(crate) containers_of: BTreeMap<ObjectName, BTreeSet<String>>,
    /// Pods that an attachment left in the last round.
    left: BTreeSet<ObjectName>,
    /// Containers whose pods asked for further sources in the last round.
    speakers: BTreeSet<String>,
}

impl Units {
    /// Whether any round was.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Whether the wiring of pods may wait for it. A pod elsewhere is somebody's peer and no more.
    pub(crate) fn is_urgent(&self, unit: &Unit) -> bool {
        match unit {
            Unit::Base | Unit::Attachment(_) | Unit::Node(_) => true,
            Unit::Pod(pod) => self.containers_of.contains_key(pod) || self.left.contains(pod),
            Unit::Service(_) => false,
        }
    }

    /// The pieces that changed keys concern on this node. The first time all of them, whatever it is given: keys that changed
    /// before the cluster was in sync are lost on nobody.
    pub fn concerned(&mut self, cluster: &Cluster, node: &str, changed: &[Key]) -> BTreeSet<Unit> {
        let mut units = BTreeSet::new();
        self.left.clear();
        if std::mem::replace(&mut self.begun, true) {
            for key in changed {
                self.mark(cluster, node, key, &mut units);
            }
        } else {
            self.mark_all(cluster, &mut units);
        }
        self.mark_speakers(cluster, &mut units);
        units
    }

    fn mark_all(&mut self, cluster: &Cluster, units: &mut BTreeSet<Unit>) {
        units.insert(Unit::Base);
        units.extend(cluster.services.keys().cloned().map(Unit::Service));
        units.extend(cluster.nodes.keys().cloned().map(Unit::Node));
        for container in cluster.attachments.keys() {
            self.mark_attachment(cluster, container, units);
        }
    }

    /// Which pieces depend on a key.
    fn mark(&mut self, cluster: &Cluster, node: &str, key: &Key, units: &mut BTreeSet<Unit>) {
        let name = &key.name;
        match key.kind {
            Kind::Node => {
                units.extend([Unit::Base, Unit::Node(name.name.to_string())]);
                if *name.name == *node {
                    // Its zone chooses among endpoints (EP-05).
                    units.extend(cluster.services.keys().cloned().map(Unit::Service));
                    // Services have ports at its addresses, and so may the API: no pod may have these.
                    units.extend(cluster.attachments.keys().cloned().map(Unit::Attachment));
                }
            }
            Kind::Namespace => {
                let pods = cluster.pods_of(&name.name).map(|pod| pod.key.clone());
                units.extend(pods.map(Unit::Pod));
            }
            Kind::Pod => {
                units.insert(Unit::Pod(name.clone()));
                let containers = self.containers_of.get(name).into_iter().flatten();
                units.extend(containers.cloned().map(Unit::Attachment));
            }
            Kind::Service => {
                units.insert(Unit::Service(name.clone()));
                if *name == reserved::api_service() {
                    // Where the API is, nobody else may be.
                    units.extend(cluster.outward_services().cloned().map(Unit::Service));
                    units.extend(cluster.attachments.keys().cloned().map(Unit::Attachment));
                    units.insert(Unit::Base);
                }
            }
            // `Cluster::apply` names the service of a changed slice, too.
            Kind::EndpointSlice => {}
            Kind::Policy => {
                let first = ObjectName::new(&name.namespace, "");
                let here = self.containers_of.range(first..);
                let here = here.take_while(|(pod, _)| pod.namespace == name.namespace);
                units.extend(here.flat_map(|(_, c)| c.iter().cloned()).map(Unit::Attachment));
            }
            Kind::Attachment => self.mark_attachment(cluster, &name.name, units),
        }
    }

    fn mark_attachment(&mut self, cluster: &Cluster, container: &str, units: &mut BTreeSet<Unit>) {
        units.insert(Unit::Attachment(container.to_owned()));
        let now = cluster.attachments.get(container).map(|attachment| attachment.pod.clone());
        let before = self.pod_of.remove(container);
        if let Some(pod) = &before
            && let Some(containers) = self.containers_of.get_mut(pod)
        {
            containers.remove(container);
            if containers.is_empty() {
                self.containers_of.remove(pod);
            }
        }
        if let Some(pod) = &now {
            self.pod_of.insert(container.to_owned(), pod.clone());
            self.containers_of.entry(pod.clone()).or_default().insert(container.to_owned());
        }
        self.left.extend(before.clone());
        units.extend([before, now].into_iter().flatten().map(Unit::Pod));
    }

    /// Pods with further sources: what is granted to them depends on nodes, Services and each other, and most nodes have
    /// none of them.
    fn mark_speakers(&mut self, cluster: &Cluster, units: &mut BTreeSet<Unit>) {
        let asks = |pod: &ObjectName| cluster.pods_with_sources().contains(pod);
        let now: BTreeSet<String> = match cluster.pods_with_sources().is_empty() {
            true => BTreeSet::new(),
            false => {
                let here = self.containers_of.iter().filter(|(pod, _)| asks(pod));
                here.flat_map(|(_, containers)| containers.iter().cloned()).collect()
            }
        };
        let before = std::mem::replace(&mut self.speakers, now);
        let concerned: BTreeSet<_> = before.union(&self.speakers).cloned().collect();
        if !concerned.is_empty() {
            units.insert(Unit::Base);
            units.extend(concerned.into_iter().map(Unit::Attachment));
        }
    }
}
