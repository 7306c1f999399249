//! A family's table, unit by unit.

use std::collections::{BTreeMap, BTreeSet};

use model::{Attachment, Cluster, Key, Kind};
use semantics::Settings;
use semantics::policy::notes;
use semantics::service::{host_port, plan};
use types::wire::TABLE;
use types::{Family, ObjectName};

use crate::fragment::{Composer, Fragment, Meanings, Name, Unit};
use crate::guard::{links, ports};
use crate::{layout, policy, service};
use semantics::policy::resolve::{self, AddressSet};

/// What is kept for one family.
#[derive(Debug)]
pub struct FamilyTable {
    family: Family,
    pub composer: Composer,
    /// Sets of addresses that rules look at.
    wanted: BTreeMap<AddressSet, Wanted>,
    meanings: Meanings,
}

#[derive(Debug)]
struct Wanted {
    /// How many fragments want it.
    by: usize,
    name: Name,
}

/// What every family is compiled from.
pub struct NodeView<'a> {
    pub cluster: &'a Cluster,
    pub settings: &'a Settings,
    pub containers_of: &'a BTreeMap<ObjectName, BTreeSet<String>>,
}

impl FamilyTable {
    pub fn new(family: Family) -> Self {
        Self {
            family,
            composer: Composer::new(family, TABLE),
            wanted: BTreeMap::new(),
            meanings: Meanings::default(),
        }
    }

    /// The fragments of these units, and of the pods that must join them.
    pub fn compile(&mut self, node: &NodeView<'_>, units: &BTreeSet<Unit>) -> Vec<(Unit, Fragment)> {
        let concerned = units.iter().filter(|unit| self.concerns(node.settings, unit)).cloned();
        let (mut pods, rest): (BTreeSet<_>, BTreeSet<_>) =
            concerned.partition(|unit| matches!(unit, Unit::Pod(_)));
        let mut fragments = self.fragments(node, &rest);
        if self.learn(&fragments) {
            // Who else has the name, its pods included, is not worth an index: it never happens.
            let others = node.units().filter(|unit| !rest.contains(unit)).collect();
            let others = self.fragments(node, &others);
            self.learn(&others);
            fragments.extend(others);
            pods.extend(node.cluster.pods.keys().cloned().map(Unit::Pod));
        }
        let pods = self.pods_of_new_sets(node.cluster, &fragments, pods);
        fragments.extend(self.fragments(node, &pods));
        for (unit, fragment) in &mut fragments {
            self.meanings.withhold(fragment, || node.object(unit));
        }
        fragments
    }

    /// Of a family that pods have no addresses of there is the guard alone.
    fn concerns(&self, settings: &Settings, unit: &Unit) -> bool {
        settings.serves(self.family) || !matches!(unit, Unit::Service(_) | Unit::Pod(_))
    }

    fn fragments(&self, node: &NodeView<'_>, units: &BTreeSet<Unit>) -> Vec<(Unit, Fragment)> {
        units.iter().map(|unit| (unit.clone(), self.fragment(node, unit))).collect()
    }

    /// Whether a name has come to stand for two things, or no longer does.
    fn learn(&mut self, fragments: &[(Unit, Fragment)]) -> bool {
        let (composer, meanings) = (&self.composer, &mut self.meanings);
        fragments.iter().fold(false, |turned, (unit, new)| meanings.learn(composer.held(unit), new) || turned)
    }

    /// Keeps count of the sets that rules look at; pods that belong in a set that came or went join the round.
    fn pods_of_new_sets(
        &mut self,
        cluster: &Cluster,
        fragments: &[(Unit, Fragment)],
        mut pods: BTreeSet<Unit>,
    ) -> BTreeSet<Unit> {
        let mut delta: BTreeMap<&AddressSet, isize> = BTreeMap::new();
        for (unit, new) in fragments {
            for set in &new.address_sets {
                *delta.entry(set).or_default() += 1;
            }
            if let Some(old) = self.composer.held(unit) {
                for set in &old.address_sets {
                    *delta.entry(set).or_default() -= 1;
                }
            }
        }
        let mut turned = Vec::new();
        for (set, by) in delta {
            let before = self.wanted.get(set).map_or(0, |wanted| wanted.by);
            let after = before.saturating_add_signed(by);
            if after == 0 {
                self.wanted.remove(set);
            } else if let Some(wanted) = self.wanted.get_mut(set) {
                wanted.by = after;
            } else {
                self.wanted.insert(
                    set.clone(),
                    Wanted { by: after, name: policy::nftables::set_name(set).0.into() },
                );
            }
            if (before == 0) != (after == 0) {
                turned.push(set);
            }
        }
        for set in turned {
            let concerned = set.candidates(cluster).filter(|pod| set.has(cluster, pod));
            pods.extend(concerned.map(|pod| Unit::Pod(pod.key.clone())));
        }
        pods
    }

    fn fragment(&self, node: &NodeView<'_>, unit: &Unit) -> Fragment {
        let (cluster, settings, family) = (node.cluster, node.settings, self.family);
        let fragment = match unit {
            Unit::Base => {
                let mut fragment = layout::fragment(cluster, settings, family);
                policy::further::isolate(&mut fragment, (cluster, settings), family);
                Some(fragment)
            }
            Unit::Service(name) => plan::plan(cluster, settings, name, family)
                .map(|plan| service::nftables::fragment(&plan, settings, family)),
            Unit::Attachment(container) => {
                cluster.attachments.get(container).map(|attachment| self.attachment(node, attachment))
            }
            Unit::Node(name) if *name != settings.node => {
                cluster.nodes.get(name).map(|peer| links::peer(peer, node.settings, family))
            }
            Unit::Node(_) => None,
            Unit::Pod(name) => cluster.pods.get(name).map(|pod| {
                let addresses = resolve::addresses(pod, node.attachments_of(name));
                let wanted = self.wanted.iter().map(|(set, wanted)| (set, &wanted.name));
                policy::nftables::pod_fragment((cluster, family), pod, &addresses, wanted)
            }),
        };
        fragment.unwrap_or_default()
    }

    fn attachment(&self, node: &NodeView<'_>, attachment: &Attachment) -> Fragment {
        let (of_node, family) = ((node.cluster, node.settings), self.family);
        let mut fragment = Fragment::default();
        if node.settings.serves(family) {
            fragment = policy::nftables::attachment_fragment(node.cluster, attachment, family);
            let notes = notes::notes(node.cluster, &node.settings.service_cidrs, attachment);
            fragment.diagnostics = notes;
            let fronts = host_port::fronts(of_node, attachment, family);
            service::nftables::host_ports(&mut fragment, &fronts);
            fragment.diagnostics.extend(host_port::findings(of_node, attachment));
            fragment.diagnostics.extend(semantics::further::findings(of_node, attachment));
        }
        links::pod(&mut fragment, attachment, family);
        fragment
    }
}

impl NodeView<'_> {
    /// What the guard of the bridge has of a unit.
    pub fn on_bridge(&self, unit: &Unit) -> Fragment {
        match unit {
            Unit::Base => ports::base(),
            Unit::Attachment(container) => {
                let attachment = self.cluster.attachments.get(container);
                attachment
                    .map(|attachment| ports::pod((self.cluster, self.settings), attachment))
                    .unwrap_or_default()
            }
            Unit::Node(_) | Unit::Service(_) | Unit::Pod(_) => Fragment::default(),
        }
    }

    /// All but pods and nodes.
    fn units(&self) -> impl Iterator<Item = Unit> {
        let services = self.cluster.services.keys().cloned().map(Unit::Service);
        let attachments = self.cluster.attachments.keys().cloned().map(Unit::Attachment);
        [Unit::Base].into_iter().chain(services).chain(attachments)
    }

    /// Whose fragment it is, for who reads about it.
    fn object(&self, unit: &Unit) -> Option<Key> {
        match unit {
            Unit::Base | Unit::Node(_) => None,
            Unit::Service(name) => Some(Key::new(Kind::Service, name.clone())),
            Unit::Pod(name) => Some(Key::new(Kind::Pod, name.clone())),
            Unit::Attachment(container) => {
                let pod = self.cluster.attachments.get(container).map(|wired| wired.pod.clone());
                pod.map(|pod| Key::new(Kind::Pod, pod))
            }
        }
    }

    fn attachments_of(&self, pod: &ObjectName) -> impl Iterator<Item = &Attachment> {
        let containers = self.containers_of.get(pod).into_iter().flatten();
        containers.filter_map(|container| self.cluster.attachments.get(container).map(Box::as_ref))
    }
}
