//! A family's table, unit by unit.

use std::collections::{BTreeMap, BTreeSet};

use semantics::policy::resolve::AddressSet;
use semantics::topology::Attached;
use semantics::unit::Unit;
use semantics::view::Wired;
use semantics::{Settings, View};
use types::Family;

use crate::compiler::Findings;
use crate::fragment::{Fragment, Known, Meanings, Name};
use crate::guard::links;
use crate::{layout, policy, service, wiring};

/// What is kept for one family.
#[derive(Debug)]
pub struct FamilyTable {
    family: Family,
    /// Of fragments that say something beside what is in the table.
    known: BTreeMap<Unit, Known>,
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

impl FamilyTable {
    pub fn new(family: Family) -> Self {
        Self { family, known: BTreeMap::new(), wanted: BTreeMap::new(), meanings: Meanings::default() }
    }

    /// The fragments of these units, and of others that must join them.
    pub fn make(
        &mut self,
        view: &View<'_>,
        units: &BTreeSet<Unit>,
        findings: &mut Findings,
    ) -> Vec<(Unit, Fragment)> {
        let concerned = units.iter().filter(|unit| self.concerns(view.settings, unit)).cloned();
        let (mut pods, rest): (BTreeSet<_>, BTreeSet<_>) =
            concerned.partition(|unit| matches!(unit, Unit::Pod(_)));
        let mut fragments = self.fragments(view, &rest);
        if self.learn(&fragments) {
            // Who else has the name, its pods included, is not worth an index: it never happens.
            let others = view.rest().filter(|unit| !rest.contains(unit)).collect();
            let others = self.fragments(view, &others);
            self.learn(&others);
            fragments.extend(others);
            pods.extend(view.pods());
        }
        let pods = self.pods_of_new_sets(view, &fragments, pods);
        fragments.extend(self.fragments(view, &pods));
        for (unit, fragment) in &mut fragments {
            self.meanings.withhold(fragment, || view.object(unit));
            self.know(unit, fragment.known(), findings);
        }
        fragments
    }

    fn know(&mut self, unit: &Unit, new: Known, findings: &mut Findings) {
        let old = self.known.get(unit).map_or(&[][..], |old| &old.diagnostics);
        findings.replace(old, &new.diagnostics);
        match new == Known::default() {
            true => drop(self.known.remove(unit)),
            false => drop(self.known.insert(unit.clone(), new)),
        }
    }

    /// Of a family that pods have no addresses of there is the guard alone.
    fn concerns(&self, settings: &Settings, unit: &Unit) -> bool {
        settings.serves(self.family) || !matches!(unit, Unit::Service(_) | Unit::Pod(_))
    }

    fn fragments(&self, view: &View<'_>, units: &BTreeSet<Unit>) -> Vec<(Unit, Fragment)> {
        units.iter().map(|unit| (unit.clone(), self.fragment(view, unit))).collect()
    }

    /// Whether a name has come to stand for two things, or no longer does.
    fn learn(&mut self, fragments: &[(Unit, Fragment)]) -> bool {
        let (known, meanings) = (&self.known, &mut self.meanings);
        fragments.iter().fold(false, |turned, (unit, new)| meanings.learn(known.get(unit), new) || turned)
    }

    /// Keeps count of the sets that rules look at; pods that belong in a set that came or went join the round.
    fn pods_of_new_sets(
        &mut self,
        view: &View<'_>,
        fragments: &[(Unit, Fragment)],
        mut pods: BTreeSet<Unit>,
    ) -> BTreeSet<Unit> {
        let mut delta: BTreeMap<&AddressSet, isize> = BTreeMap::new();
        for (unit, new) in fragments {
            for set in &new.address_sets {
                *delta.entry(set).or_default() += 1;
            }
            if let Some(old) = self.known.get(unit) {
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
            pods.extend(view.pods_of(set));
        }
        pods
    }

    fn fragment(&self, view: &View<'_>, unit: &Unit) -> Fragment {
        let (settings, family) = (view.settings, self.family);
        match unit {
            Unit::Base => {
                let links = links::base(&view.topology().sources(family), settings, family);
                layout::fragment(links, &view.base(family), settings, family)
            }
            Unit::Service(name) => {
                view.service(name, family).map(|plan| service::nftables::fragment(&plan)).unwrap_or_default()
            }
            Unit::Attachment(container) => {
                let Some(attachment) = view.attachment(container) else { return Fragment::default() };
                let wired = view.wired(attachment, family);
                let mut fragment = wired.map(|wired| pod(wired, family)).unwrap_or_default();
                links::pod(&mut fragment, Attached::of(attachment), settings, family);
                fragment
            }
            Unit::Node(name) => view
                .topology()
                .peer(name)
                .map(|peer| links::peer(&peer, settings, family))
                .unwrap_or_default(),
            Unit::Pod(name) => {
                let wanted = self.wanted.iter().map(|(set, wanted)| (set, &wanted.name));
                policy::nftables::members(view.members(name, family, wanted))
            }
        }
    }
}

/// What a pod of this node has beside its link.
fn pod(wired: Wired, family: Family) -> Fragment {
    let mut fragment = policy::nftables::attachment_fragment(&wired.addresses, &wired.tiers, family);
    service::nftables::host_ports(&mut fragment, &wired.fronts);
    fragment.diagnostics = wired.diagnostics;
    fragment
}

/// What the guard of the bridge has of a unit.
pub fn on_bridge(view: &View<'_>, unit: &Unit) -> Fragment {
    let wiring = wiring::of(view.settings.wiring);
    match unit {
        Unit::Base => wiring.guard(),
        Unit::Attachment(container) => {
            view.sender(container).map(|sender| wiring.guard_pod(&sender)).unwrap_or_default()
        }
        Unit::Node(_) | Unit::Service(_) | Unit::Pod(_) => Fragment::default(),
    }
}
