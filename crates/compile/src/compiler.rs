//! The pieces that a changed key concerns are compiled anew; what they come to is kept elsewhere (`backend.rs`), but for
//! links and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kstate::net::NetState;
use model::{Cluster, Key, Kind, Placed, Synced};
use semantics::due::{Due, Round};
use semantics::unit::{Unit, Units};
use semantics::{Settings, Topology, View};
use types::IfName;

use crate::backend::{self, Backend, Pieces};
use crate::net::{self, Net, NetChange};
use semantics::Diagnostic;

/// What one round of changes means.
#[derive(Debug, Default)]
pub struct Compiled {
    /// For the state of the same backend; `None`: it stays as it is.
    pub pieces: Option<Pieces>,
    /// Of [`Compiler::net`].
    pub net: NetChange,
    pub raised: Vec<Diagnostic>,
    pub cleared: Vec<Diagnostic>,
}

/// What a node means, kept up to date key by key. A cache and nothing more: whatever the order of events, all that it made
/// comes to what [`whole`](crate::whole) makes of the last cluster.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    /// Links and routes were compiled once; tables need more to be known.
    placed: bool,
    backend: Box<dyn Backend>,
    net: Net,
    diagnostics: BTreeMap<Diagnostic, usize>,
    units: Units,
    due: Due,
}

/// What a node that has nothing yet gets before anything can come by its tunnel: the guard, and no Service.
pub fn guard_alone(cluster: Placed<'_>, settings: &Settings) -> Pieces {
    let view = View { cluster: &cluster, settings, units: &Units::default() };
    backend::of(settings.backend).guard_alone(&view)
}

impl Compiler {
    pub fn new(settings: Settings) -> Self {
        Self {
            backend: backend::of(settings.backend),
            settings,
            placed: false,
            net: Net::default(),
            diagnostics: BTreeMap::new(),
            units: Units::default(),
            due: Due::default(),
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
        self.net.update(Topology::new(&cluster, &self.settings), &self.settings, &own).changed
            != NetChange::Nothing
    }

    /// Whether anything was compiled but links and routes.
    pub fn has_begun(&self) -> bool {
        self.units.begun()
    }

    /// Whether all was made once: before that, what is missing in the pieces so far may be there.
    pub fn is_whole(&self) -> bool {
        self.due.through() > 0
    }

    /// Whether [`Compiler::advance`] has something to make.
    pub fn is_behind(&self) -> bool {
        !self.due.is_empty()
    }

    /// The last round of changes that was taken.
    pub fn round(&self) -> Round {
        self.due.round()
    }

    /// The pieces of all changes up to this round have been made.
    pub fn made_through(&self) -> Round {
        self.due.through()
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

    /// Takes the keys that [`Cluster::apply`] named, and makes all that they mean. The first call compiles everything,
    /// whatever it is given: keys that changed before the cluster was in sync are lost on nobody.
    pub fn update(&mut self, cluster: Synced<'_>, changed: &[Key]) -> Compiled {
        let mut findings = Findings::default();
        let net = self.mark(&cluster, changed, &mut findings);
        let mut units = self.due.take_urgent();
        units.extend(self.due.take(usize::MAX));
        self.make(&cluster, &units, net, findings)
    }

    /// The same, but of what they mean for tables only what the wiring of pods waits for; the rest is for
    /// [`Compiler::advance`].
    pub fn take(&mut self, cluster: Synced<'_>, changed: &[Key]) -> Compiled {
        let mut findings = Findings::default();
        let net = self.mark(&cluster, changed, &mut findings);
        let units = self.due.take_urgent();
        self.make(&cluster, &units, net, findings)
    }

    /// Makes so many units of what is left.
    pub fn advance(&mut self, cluster: Synced<'_>, most: usize) -> Compiled {
        let units = self.due.take(most);
        self.make(&cluster, &units, NetChange::Nothing, Findings::default())
    }

    fn mark(&mut self, cluster: &Cluster, changed: &[Key], findings: &mut Findings) -> NetChange {
        let turned = self.turned(changed);
        let units = self.units.concerned(cluster, &self.settings.node, changed);
        self.due.add(units, &self.units);
        self.compile_net(cluster, &turned, findings)
    }

    fn make(
        &mut self,
        cluster: &Cluster,
        units: &BTreeSet<Unit>,
        net: NetChange,
        mut findings: Findings,
    ) -> Compiled {
        let view = View { cluster, settings: &self.settings, units: &self.units };
        let pieces = (!units.is_empty()).then(|| self.backend.make(&view, units, &mut findings));
        let (raised, cleared) = findings.settle(&mut self.diagnostics);
        Compiled { pieces, net, raised, cleared }
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
        let round = self.net.update(Topology::new(cluster, &self.settings), &self.settings, turned);
        findings.replace(&round.before, &round.now);
        round.changed
    }
}

/// Comings and goings of findings during one round.
#[derive(Default)]
pub struct Findings(BTreeMap<Diagnostic, isize>);

impl Findings {
    pub fn replace(&mut self, old: &[Diagnostic], new: &[Diagnostic]) {
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
