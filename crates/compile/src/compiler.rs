//! The pieces that a changed key concerns are compiled anew; and the sum of all pieces.

mod family;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kstate::net::NetState;
use kstate::nft::{Plan, Ruleset};
use model::{Cluster, Key, Kind, Placed, Synced};
use semantics::unit::{Unit, Units};
use semantics::{Settings, View};
use types::wire::TABLE;
use types::{Family, IfName};

use crate::compiler::family::FamilyTable;
use crate::fragment::Composer;
use crate::guard::{Guard, links, ports};
use crate::layout;
use crate::net::{self, Net, NetChange};
use semantics::Diagnostic;

/// The whole desired state of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub nft: Ruleset,
    pub net: NetState,
    pub diagnostics: BTreeSet<Diagnostic>,
}

/// What one round of changes means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// From the ruleset before to the ruleset now; a change of one endpoint is a few elements.
    pub nft: Plan,
    /// Of [`Compiler::net`].
    pub net: NetChange,
    pub raised: Vec<Diagnostic>,
    pub cleared: Vec<Diagnostic>,
}

/// Desired state, kept up to date key by key. A cache and nothing more: whatever the order of events, it ends as
/// [`whole`] does on the last cluster.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    /// Links and routes were compiled once; tables need more to be known.
    placed: bool,
    /// One for each family.
    tables: [FamilyTable; 2],
    /// The guard's, on the bridge.
    bridges: Vec<Composer>,
    nft: Ruleset,
    net: Net,
    diagnostics: BTreeMap<Diagnostic, usize>,
    units: Units,
}

/// Compiles everything at once.
pub fn whole(cluster: Synced<'_>, settings: Settings) -> Desired {
    let mut compiler = Compiler::new(settings);
    compiler.update(cluster, &[]);
    Desired {
        diagnostics: compiler.diagnostics.into_keys().collect(),
        nft: compiler.nft,
        net: compiler.net.into_state(),
    }
}

/// What a node that has nothing yet gets before anything can come by its tunnel: the guard, and no Service.
pub fn guard_alone(cluster: Placed<'_>, settings: &Settings) -> Ruleset {
    let mut nft = Ruleset::default();
    for family in Family::ALL {
        let peer = |node: &model::Node| (Unit::Node(node.name.clone()), links::peer(node, settings, family));
        let others = cluster.nodes.values().filter(|node| node.name != settings.node).map(peer);
        let base = (Unit::Base, layout::guard(links::base(&cluster, settings, family), settings, family));
        Composer::new(family, TABLE).replace(&mut nft, others.chain([base]).collect());
    }
    for bridge in Guard::Ports.tables() {
        Composer::of(bridge).replace(&mut nft, vec![(Unit::Base, ports::base())]);
    }
    nft
}

impl Compiler {
    pub fn new(settings: Settings) -> Self {
        Self {
            tables: Family::ALL.map(FamilyTable::new),
            bridges: Guard::Ports.tables().into_iter().map(Composer::of).collect(),
            nft: Ruleset::default(),
            settings,
            placed: false,
            net: Net::default(),
            diagnostics: BTreeMap::new(),
            units: Units::default(),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The machine has other links to the outside, or an MTU of its own that is another one. Whether that makes a
    /// difference to [`Compiler::net`].
    pub fn stand_on(&mut self, cluster: Placed<'_>, mtu: u32, uplinks: &BTreeSet<IfName>) -> bool {
        if (self.settings.mtu, &self.settings.uplinks) == (mtu, uplinks) {
            return false;
        }
        (self.settings.mtu, self.settings.uplinks) = (mtu, uplinks.clone());
        let own = net::Turned { own: true, ..net::Turned::default() };
        // What is wrong with the Node has nothing to do with it.
        self.net.update(&cluster, &self.settings, &own).changed != NetChange::Nothing
    }

    /// Whether [`Compiler::update`] was called: before that there are no tables.
    pub fn is_whole(&self) -> bool {
        self.units.begun()
    }

    /// The tables as they should be, one for each family.
    pub fn nft(&self) -> &Ruleset {
        &self.nft
    }

    /// Links, addresses, routes and tunnel entries as they should be.
    pub fn net(&self) -> &NetState {
        self.net.state()
    }

    /// The same for whoever looks at it beside the loop: nothing of it is copied unless it changes meanwhile.
    pub fn shared_net(&self) -> Arc<NetState> {
        self.net.shared()
    }

    /// All findings that hold now.
    pub fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.keys()
    }

    /// Takes the keys that [`Cluster::apply`] named. The first call compiles everything, whatever it is given:
    /// keys that changed before the cluster was in sync are lost on nobody.
    pub fn update(&mut self, cluster: Synced<'_>, changed: &[Key]) -> Compiled {
        let turned = self.turned(changed);
        let cluster: &Cluster = &cluster;
        let units = self.units.concerned(cluster, &self.settings.node, changed);
        let mut findings = Findings::default();
        let net = self.compile_net(cluster, &turned, &mut findings);
        let nft = self.compile_units(cluster, &units, &mut findings);
        let (raised, cleared) = findings.settle(&mut self.diagnostics);
        Compiled { nft, net, raised, cleared }
    }

    /// The same of links and routes alone, which need not wait for the rest.
    pub fn update_net(&mut self, cluster: Placed<'_>, changed: &[Key]) -> Compiled {
        let turned = self.turned(changed);
        let mut findings = Findings::default();
        let net = self.compile_net(&cluster, &turned, &mut findings);
        let (raised, cleared) = findings.settle(&mut self.diagnostics);
        Compiled { net, raised, cleared, ..Compiled::default() }
    }

    /// What of links and routes depends on these keys; the first time all of it.
    fn turned(&mut self, changed: &[Key]) -> net::Turned {
        let mut turned =
            net::Turned { own: !std::mem::replace(&mut self.placed, true), ..net::Turned::default() };
        for key in changed {
            let name = &*key.name.name;
            match key.kind {
                Kind::Node if *name == *self.settings.node => turned.own = true,
                Kind::Node => _ = turned.peers.insert(name.to_owned()),
                Kind::Attachment => _ = turned.pods.insert(name.to_owned()),
                _ => {}
            }
        }
        turned
    }

    fn compile_net(&mut self, cluster: &Cluster, turned: &net::Turned, findings: &mut Findings) -> NetChange {
        let round = self.net.update(cluster, &self.settings, turned);
        findings.replace(&round.before, &round.now);
        round.changed
    }

    fn compile_units(&mut self, cluster: &Cluster, units: &BTreeSet<Unit>, findings: &mut Findings) -> Plan {
        let node = View { cluster, settings: &self.settings, units: &self.units };
        let mut plan = Plan::default();
        for table in &mut self.tables {
            let fragments = table.compile(&node, units);
            for (unit, new) in &fragments {
                let old = table.composer.held(unit).map_or(&[][..], |held| &held.diagnostics);
                findings.replace(old, &new.diagnostics);
            }
            plan.ops.extend(table.composer.replace(&mut self.nft, fragments).ops);
        }
        for composer in &mut self.bridges {
            let units = units.iter().filter(|unit| matches!(unit, Unit::Base | Unit::Attachment(_)));
            let fragments = units.map(|unit| (unit.clone(), family::on_bridge(&node, unit)));
            plan.ops.extend(composer.replace(&mut self.nft, fragments.collect()).ops);
        }
        plan
    }
}

/// Comings and goings of findings during one round.
#[derive(Default)]
struct Findings(BTreeMap<Diagnostic, isize>);

impl Findings {
    fn replace(&mut self, old: &[Diagnostic], new: &[Diagnostic]) {
        for diagnostic in new {
            *self.0.entry(diagnostic.clone()).or_default() += 1;
        }
        for diagnostic in old {
            *self.0.entry(diagnostic.clone()).or_default() -= 1;
        }
    }

    /// Applies the round to the count of what holds; yields what is new and what is over.
    fn settle(self, held: &mut BTreeMap<Diagnostic, usize>) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let (mut raised, mut cleared) = (Vec::new(), Vec::new());
        for (diagnostic, by) in self.0 {
            let before = held.get(&diagnostic).copied().unwrap_or(0);
            let after = before.saturating_add_signed(by);
            match (before, after) {
                (0, 0) => continue,
                (0, _) => raised.push(diagnostic.clone()),
                (_, 0) => cleared.push(diagnostic.clone()),
                _ => {}
            }
            if after == 0 {
                held.remove(&diagnostic);
            } else {
                held.insert(diagnostic, after);
            }
        }
        (raised, cleared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Event, Node, Row};
    use types::ObjectName;

    #[test]
    fn a_deleted_node_object_withdraws_nothing() {
        let mut cluster = Cluster::default();
        for kind in Kind::ALL {
            cluster.apply(Event::Start(kind));
            cluster.apply(Event::Done(kind));
        }
        let node = Node {
            name: "node1".into(),
            addresses: vec![[192, 168, 1, 10].into()],
            pod_cidrs: vec!["10.244.1.0/24".parse().expect("a prefix")],
            ..Node::default()
        };
        let keys = cluster.apply(Event::Upsert(Row::Node(node)));
        let mut compiler =
            Compiler::new(Settings::new("node1", vec!["10.244.0.0/16".parse().expect("a prefix")], 1450));
        assert_ne!(compiler.update(cluster.synced().expect("synced"), &keys).net, NetChange::Nothing);
        let wired = compiler.net().clone();
        assert_eq!(wired.links.len(), 2);
        let gone = cluster.apply(Event::Delete(Key::new(Kind::Node, ObjectName::cluster("node1"))));
        let round = compiler.update(cluster.synced().expect("synced"), &gone);
        assert_eq!(round.net, NetChange::Nothing);
        assert_eq!(*compiler.net(), wired);
        assert!(round.raised.iter().any(|d| &*d.object.name.name == "node1"), "{:?}", round.raised);
    }
}
