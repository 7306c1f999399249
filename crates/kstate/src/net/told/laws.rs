//! Whoever compares what is told with what is known misses nothing that others did, whenever that is, and is not disturbed by
//! what they themselves did.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::net::laws::{pair, state};
use crate::net::{Op, diff};

#[derive(Clone, Debug)]
enum Act {
    /// We make the kernel another one, and know it then.
    Ours(NetState),
    /// Somebody else goes so many steps towards it.
    Others(NetState, usize),
    /// Somebody else takes a link down and up again, or changes a port.
    Meddle(prop::sample::Index),
    /// What was told since is compared.
    Compare,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        state().prop_map(Act::Ours),
        (state(), 1..4_usize).prop_map(|(to, steps)| Act::Others(to, steps)),
        any::<prop::sample::Index>().prop_map(Act::Meddle),
        Just(Act::Compare),
    ]
}

/// What the kernel tells of a step: of entries that go with a link that is down or deleted, nothing.
fn told_of(before: &NetState, after: &NetState, op: &Op) -> Vec<Told> {
    let mut all = Vec::new();
    let links: BTreeSet<_> = before.links.keys().chain(after.links.keys()).collect();
    for name in links {
        let [was, is] = [before, after].map(|state| state.links.get(name));
        if was == is {
            continue;
        }
        all.push(Told::Link(name.clone(), is.map(|link| Link { port: None, ..link.clone() })));
        all.extend(is.map(|link| Told::Port(name.clone(), link.port.clone().map(of_bridge))));
        let program =
            |link: &Link| link.port.as_ref().is_some_and(|port| port.options.has(PortOptions::CHECKSUMS));
        all.extend(is.map(|link| Told::Program(name.clone(), program(link))));
    }
    match op {
        Op::AddAddress { link, address } => all.push(Told::Address(link.clone(), *address, true)),
        Op::DeleteAddress { link, address } => all.push(Told::Address(link.clone(), *address, false)),
        Op::SetRoute { key, route } => all.push(Told::Route(key.clone(), Some(route.clone()))),
        Op::DeleteRoute { key } => all.push(Told::Route(key.clone(), None)),
        Op::SetNeighbour { link, ip, mac } => all.push(Told::Neighbour(link.clone(), *ip, Some(*mac))),
        Op::DeleteNeighbour { link, ip } => all.push(Told::Neighbour(link.clone(), *ip, None)),
        Op::SetFdb { link, mac, to } => all.push(Told::Forward(link.clone(), *mac, Some(*to))),
        Op::DeleteFdb { link, mac, .. } => all.push(Told::Forward(link.clone(), *mac, None)),
        Op::SetSysctl { .. } => all.push(Told::Sysctl),
        _ => {}
    }
    // A port that leaves its bridge takes its entries along, each with a word.
    let left = before.fdb.iter().filter(|(key, to)| **to == Forward::Port && !after.fdb.contains_key(*key));
    let left = left.filter(|((link, _), _)| after.links.contains_key(link));
    all.extend(left.map(|((link, mac), _)| Told::Forward(link.clone(), *mac, None)));
    all
}

fn of_bridge(port: BridgePort) -> BridgePort {
    BridgePort { options: port.options.without(PortOptions::CHECKSUMS), ..port }
}

struct World {
    kernel: NetState,
    known: NetState,
    told: Vec<Told>,
}

impl World {
    fn perform(&mut self, op: &Op) {
        let before = self.kernel.clone();
        op.perform_on(&mut self.kernel);
        self.told.extend(told_of(&before, &self.kernel, op));
    }

    fn compare(&mut self) {
        if !contradicting(&std::mem::take(&mut self.told), &self.known).is_empty() {
            self.known = self.kernel.clone();
        }
    }

    /// Who is refused something looks at all.
    fn make(&mut self, to: &NetState) {
        let plan = diff(to, &self.known);
        for op in plan.ops() {
            if self.refuses(op) {
                self.known = self.kernel.clone();
                return;
            }
            self.perform(op);
        }
        self.known.edit(&plan);
    }

    fn refuses(&self, op: &Op) -> bool {
        let links = &self.kernel.links;
        let is_there = |link: &IfName| link.as_str() == "lo" || links.contains_key(link);
        let is_bridge = |link: &IfName| links.get(link).is_some_and(|link| link.kind == LinkKind::Bridge);
        match op {
            Op::AddLink { name, .. } if links.contains_key(name) => true,
            Op::AddLink { link, .. } => link.port.as_ref().is_some_and(|port| !is_bridge(&port.bridge)),
            Op::ChangeLink { name, link } => {
                !is_there(name) || link.port.as_ref().is_some_and(|port| !is_bridge(&port.bridge))
            }
            op => op.link().is_some_and(|link| !is_there(link)),
        }
    }

    fn meddle(&mut self, which: prop::sample::Index) {
        let links = Vec::from_iter(self.kernel.links.clone());
        if links.is_empty() {
            return;
        }
        let (name, link) = which.get(&links).clone();
        // Neither its address nor its size is set.
        let link = Link { mac: None, mtu: None, ..link };
        let steps = match (&link.port, &link.kind) {
            (Some(port), _) => {
                let options = PortOptions::ISOLATED.without(port.options);
                vec![Link { port: Some(BridgePort { options, ..port.clone() }), ..link }]
            }
            (None, LinkKind::Veth) => Vec::new(),
            (None, _) => [!link.up, link.up].map(|up| Link { up, ..link.clone() }).to_vec(),
        };
        steps.into_iter().for_each(|link| self.perform(&Op::ChangeLink { name: name.clone(), link }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_others_did_is_not_missed(begin in state(), acts in prop::collection::vec(act(), 0..12)) {
        let mut world = World { kernel: begin.clone(), known: begin, told: Vec::new() };
        for act in acts {
            match act {
                Act::Ours(to) => world.make(&to),
                Act::Others(to, steps) => {
                    let plan = diff(&to, &world.kernel);
                    plan.ops().take(steps).for_each(|op| world.perform(op));
                }
                Act::Meddle(which) => world.meddle(which),
                Act::Compare => world.compare(),
            }
        }
        world.compare();
        let (kernel, known) = (&world.kernel, &world.known);
        prop_assert!(diff(known, kernel).is_empty(), "known:\n{known}\nkernel:\n{kernel}");
    }

    #[test]
    fn what_we_do_to_entries_is_no_news((to, from) in pair()) {
        let to = NetState { links: from.links.clone(), sysctls: from.sysctls.clone(), ..to };
        let there = |link: &IfName| link.as_str() == "lo" || from.links.contains_key(link);
        let plan = diff(&to, &from);
        let mut world = World { kernel: from.clone(), known: from.clone(), told: Vec::new() };
        for op in plan.ops().filter(|op| op.link().is_none_or(there)) {
            world.perform(op);
            op.perform_on(&mut world.known);
        }
        prop_assert_eq!(contradicting(&world.told, &world.known), Vec::<&Told>::new());
    }
}
