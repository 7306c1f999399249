//! What one node decides, piece by piece ([`Unit`]), as values that need no cluster any more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Attachment, Cluster, Key, Kind};
use types::{Family, IpNet, ObjectName};

use crate::diagnostic::Diagnostic;
use crate::further::{self, granted};
use crate::policy::notes;
use crate::policy::resolve::{self, AddressSet, Direction, Member};
use crate::policy::tier::{Tier, tiers};
use crate::service::host_port::{self, HostFront};
use crate::service::plan::{self, ServicePlan};
use crate::service::precedence::{self, Question};
use crate::topology::{Attached, Topology};
use crate::unit::{Unit, Units};
use crate::{Settings, dns};

/// A node at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub cluster: &'a Cluster,
    pub settings: &'a Settings,
    pub units: &'a Units,
}

/// What is there once, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// What a new connection is asked last, whoever begins it.
    pub questions: Vec<Question>,
    /// Who answers DNS while this node has no agent.
    pub stand_ins: Vec<IpAddr>,
    /// Further sources of pods, and what judges there: addresses say which pod it is, as no other has them.
    pub further: Vec<(Direction, Vec<IpNet>, Vec<Tier>)>,
}

/// What there is for a pod of this node in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wired {
    pub addresses: Vec<IpAddr>,
    pub tiers: [(Direction, Vec<Tier>); 2],
    /// Ports of the node that lead to it.
    pub fronts: Vec<HostFront>,
    pub diagnostics: Vec<Diagnostic>,
}

/// What a pod of this node may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender<'a> {
    pub pod: Attached<'a>,
    /// Of a family, beside its own addresses.
    pub further: Vec<(Family, Vec<IpNet>)>,
}

impl<'a> View<'a> {
    fn node(&self) -> (&'a Cluster, &'a Settings) {
        (self.cluster, self.settings)
    }

    pub fn topology(&self) -> Topology<'a> {
        Topology::new(self.cluster, self.settings)
    }

    pub fn base(&self, family: Family) -> Base {
        let questions = precedence::then(self.cluster, self.settings, family);
        let stand_ins = dns::stand_ins(self.cluster, self.settings, family);
        let mut further = Vec::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            for attachment in self.cluster.attachments.values() {
                let nets = granted(self.node(), attachment, family);
                if !nets.is_empty() {
                    further.push((direction, nets, tiers(self.cluster, attachment, direction, family)));
                }
            }
        }
        Base { questions, stand_ins, further }
    }

    pub fn service(&self, name: &ObjectName, family: Family) -> Option<ServicePlan> {
        plan::plan(self.cluster, self.settings, name, family)
    }

    pub fn attachment(&self, container: &str) -> Option<&'a Attachment> {
        self.cluster.attachments.get(container).map(Box::as_ref)
    }

    /// `None`: pods have no addresses of the family.
    pub fn wired(&self, attachment: &Attachment, family: Family) -> Option<Wired> {
        let node = self.node();
        let of_family = attachment.ips.iter().copied().filter(|ip| Family::of(*ip) == family);
        let judged_by = |direction| (direction, tiers(self.cluster, attachment, direction, family));
        self.settings.serves(family).then(|| {
            let mut diagnostics = notes::notes(self.cluster, &self.settings.service_cidrs, attachment);
            diagnostics.extend(host_port::findings(node, attachment));
            diagnostics.extend(further::findings(node, attachment));
            Wired {
                addresses: of_family.collect(),
                tiers: Direction::ALL.map(judged_by),
                fronts: host_port::fronts(node, attachment, family),
                diagnostics,
            }
        })
    }

    pub fn sender(&self, container: &str) -> Option<Sender<'a>> {
        let attachment = self.attachment(container)?;
        let further = Family::ALL.map(|family| (family, granted(self.node(), attachment, family)));
        Some(Sender {
            pod: Attached::of(attachment),
            further: further.into_iter().filter(|(_, nets)| !nets.is_empty()).collect(),
        })
    }

    /// What a pod has of these sets.
    pub fn members<'b, Name: 'b>(
        &self,
        pod: &ObjectName,
        family: Family,
        sets: impl Iterator<Item = (&'b AddressSet, &'b Name)>,
    ) -> Vec<(&'b Name, Vec<Member>)> {
        let Some(pod) = self.cluster.pods.get(pod) else { return Vec::new() };
        let containers = self.units.containers_of.get(&pod.key).into_iter().flatten();
        let addresses =
            resolve::addresses(pod, containers.filter_map(|container| self.attachment(container)));
        let member = sets.filter(|(set, _)| set.has(self.cluster, pod));
        member.map(|(set, name)| (name, resolve::entries(set, pod, &addresses, family).collect())).collect()
    }

    /// The pods that have something of a set.
    pub fn pods_of(&self, set: &AddressSet) -> BTreeSet<Unit> {
        let members = set.candidates(self.cluster).filter(|pod| set.has(self.cluster, pod));
        members.map(|pod| Unit::Pod(pod.key.clone())).collect()
    }

    pub fn pods(&self) -> impl Iterator<Item = Unit> + 'a {
        self.cluster.pods.keys().cloned().map(Unit::Pod)
    }

    /// All but pods and nodes.
    pub fn rest(&self) -> impl Iterator<Item = Unit> + 'a {
        let services = self.cluster.services.keys().cloned().map(Unit::Service);
        let attachments = self.cluster.attachments.keys().cloned().map(Unit::Attachment);
        [Unit::Base].into_iter().chain(services).chain(attachments)
    }

    /// Whose a piece is, for who reads about it.
    pub fn object(&self, unit: &Unit) -> Option<Key> {
        match unit {
            Unit::Base | Unit::Node(_) => None,
            Unit::Service(name) => Some(Key::new(Kind::Service, name.clone())),
            Unit::Pod(name) => Some(Key::new(Kind::Pod, name.clone())),
            Unit::Attachment(container) => {
                self.attachment(container).map(|wired| Key::new(Kind::Pod, wired.pod.clone()))
            }
        }
    }
}
