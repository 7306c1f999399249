//! From what is and what should be to a plan, by doing the plan on a value while it is written: what the next
//! step needs is seen to be there, and what a step takes along (a link its addresses) is set again.

use std::collections::{BTreeMap, BTreeSet};

use types::{IfName, IpNet};

use super::{BridgePort, Forward, Link, LinkKind, NetState, Op, Plan, Route, Touched};

impl Link {
    /// Whether an actual link is as wanted; what the wish leaves open (`None`) may be anything.
    pub fn is_met_by(&self, actual: &Self) -> bool {
        self.kind == actual.kind && self.is_met_without_kind(actual)
    }

    fn is_met_without_kind(&self, actual: &Self) -> bool {
        let open_or_same = self.mac.is_none_or(|mac| actual.mac == Some(mac));
        open_or_same
            && self.mtu.is_none_or(|mtu| actual.mtu == Some(mtu))
            && self.up == actual.up
            && match (&self.port, &actual.port) {
                (Some(wanted), Some(actual)) => wanted.is_met_by(actual),
                (wanted, actual) => wanted.is_none() && actual.is_none(),
            }
    }

    fn bridge(&self) -> Option<&IfName> {
        self.port.as_ref().map(|port| &port.bridge)
    }

    /// This wish without the MAC and MTU that `actual` has already. A MAC that is set again costs the link its neighbours.
    fn beyond(&self, actual: &Self) -> Self {
        let mac = self.mac.filter(|mac| actual.mac != Some(*mac));
        Self { mac, mtu: self.mtu.filter(|mtu| actual.mtu != Some(*mtu)), ..self.clone() }
    }

    /// This link after a change to `wanted`, which leaves open what it leaves open.
    fn changed_to(&self, wanted: &Self) -> Self {
        let mut link = wanted.clone();
        link.mac = wanted.mac.or(self.mac);
        link.mtu = wanted.mtu.or(self.mtu);
        if let (Some(port), Some(BridgePort { unknown, .. })) = (&mut link.port, &self.port) {
            port.unknown = *unknown;
            port.options = port.options.without(*unknown);
        }
        link
    }
}

impl Route {
    /// Whether an actual route is as wanted; without `dev` any device that the gateway is behind will do.
    pub fn is_met_by(&self, actual: &Self) -> bool {
        let dev_is_open = self.dev.is_none() && self.via.is_some();
        (dev_is_open || self.dev == actual.dev)
            && (self.via, self.onlink, self.src, self.kind)
                == (actual.via, actual.onlink, actual.src, actual.kind)
    }
}

/// The link that a sysctl belongs to, and is born and gone with: `net/ipv4/conf/cni0/send_redirects` → `cni0`.
pub fn sysctl_link(path: &str) -> Option<&str> {
    let mut parts = path.split('/');
    let family = (parts.next()?, parts.next()?, parts.next()?);
    let per_link = family.0 == "net" && (family.2 == "conf" || family.2 == "neigh");
    parts.next().filter(|name| per_link && *name != "all" && *name != "default")
}

/// Whether the kernel makes a route with this address: to other hosts of its network.
pub fn has_subnet(address: IpNet) -> bool {
    address.prefix_len() < address.max_prefix_len()
}

/// Whether a sysctl is there only while a module is, which other programs load at any time (br_netfilter's): where
/// the kernel has none, nothing is missing.
pub fn is_of_module(path: &str) -> bool {
    path.starts_with("net/bridge/")
}

/// Pods' links that should be there and are not: a diff never makes them (ADD does), nor anything on them.
pub fn lost_veths<'a>(desired: &'a NetState, actual: &'a NetState) -> impl Iterator<Item = &'a IfName> {
    let lost = |(name, link): &(&IfName, &Link)| {
        link.kind == LinkKind::Veth && actual.links.get(*name).is_none_or(|link| link.kind != LinkKind::Veth)
    };
    desired.links.iter().filter(lost).map(|(name, _)| name)
}

/// What to do so that `actual` becomes `desired`. Growth first (sysctls, links, addresses, neighbours,
/// forwarding entries, routes), then removal in reverse. Entries of a port come before its lock where it can have them:
/// a pod whose port is locked meanwhile loses no frame. A link whose kind or tunnel differs is deleted and
/// made again with everything on it. Sysctls that are no longer desired stay as they are.
pub fn diff(desired: &NetState, actual: &NetState) -> Plan {
    let mut planner = Planner { desired, now: actual.clone(), ops: Vec::new() };
    planner.grow_sysctls(|path| sysctl_link(path).is_none());
    planner.delete_others();
    planner.grow_links(|link| link.port.is_none());
    planner.grow_ports_entries();
    planner.grow_links(|link| link.port.is_some());
    planner.grow_sysctls(|path| sysctl_link(path).is_some());
    planner.grow_entries();
    let grow = std::mem::take(&mut planner.ops);
    planner.shrink();
    Plan { grow, shrink: planner.ops }
}

/// As [`diff`] where nothing but these entries differs: among thousands it costs what they and the links cost.
pub fn diff_of(touched: &Touched, desired: &NetState, actual: &NetState) -> Plan {
    diff(&desired.part(touched), &actual.part(touched))
}

struct Planner<'a> {
    desired: &'a NetState,
    /// The actual state after the operations so far.
    now: NetState,
    ops: Vec<Op>,
}

impl Planner<'_> {
    fn push(&mut self, op: Op) {
        op.perform_on(&mut self.now);
        self.ops.push(op);
    }

    fn push_all(&mut self, ops: Vec<Op>) {
        ops.into_iter().for_each(|op| self.push(op));
    }

    /// Not on a lost veth: foreign links (`lo`, `eth0`) are no concern of ours and count as there.
    fn is_there(&self, link: &IfName) -> bool {
        self.now.links.contains_key(link) || !self.desired.links.contains_key(link)
    }

    fn grow_sysctls(&mut self, which: impl Fn(&str) -> bool) {
        let wanted = self.desired.sysctls.iter().filter(|(path, value)| {
            let link = sysctl_link(path).and_then(|link| IfName::new(link).ok());
            let actual = self.now.sysctls.get(*path);
            which(path)
                && actual != Some(value)
                && (actual.is_some() || !is_of_module(path))
                // Nor of a foreign link that is away.
                && link.is_none_or(|link| actual.is_some() || self.now.links.contains_key(&link))
        });
        let ops = wanted.map(|(path, value)| Op::SetSysctl { path: path.clone(), value: value.clone() });
        let ops = ops.collect();
        self.push_all(ops);
    }

    /// Links of another kind under our names.
    fn delete_others(&mut self) {
        let desired = self.desired;
        for (name, link) in &desired.links {
            if self.now.links.get(name).is_some_and(|actual| actual.kind != link.kind) {
                self.push(Op::DeleteLink { name: name.clone() });
            }
        }
    }

    fn grow_links(&mut self, which: impl Fn(&Link) -> bool) {
        let desired = self.desired;
        for (name, link) in desired.links.iter().filter(|(_, link)| which(link)) {
            let (name, link) = (name.clone(), link.clone());
            match self.now.links.get(&name) {
                None if link.kind == LinkKind::Veth => {}
                None => self.push(Op::AddLink { name, link }),
                Some(actual) if link.is_met_by(actual) => {}
                Some(actual) => {
                    let link = link.beyond(actual);
                    self.push(Op::ChangeLink { name, link });
                }
            }
        }
    }

    /// Of ports that are ports of their bridge already.
    fn grow_ports_entries(&mut self) {
        let in_place = |name: &IfName| {
            let [wanted, actual] = [self.desired, &self.now].map(|state| state.links.get(name)?.bridge());
            wanted.is_some() && wanted == actual
        };
        let ops = self.missing_fdb(|name, to| to == Forward::Port && in_place(name));
        self.push_all(ops);
    }

    fn missing_fdb(&self, which: impl Fn(&IfName, Forward) -> bool) -> Vec<Op> {
        let missing = missing(&self.desired.fdb, &self.now.fdb).into_iter();
        let missing = missing.filter(|((link, _), to)| which(link, **to));
        missing.map(|((link, mac), to)| Op::SetFdb { link: link.clone(), mac: *mac, to: *to }).collect()
    }

    fn grow_entries(&mut self) {
        let (desired, mut ops) = (self.desired, Vec::new());
        for (link, address) in desired.addresses.difference(&self.now.addresses) {
            ops.push(Op::AddAddress { link: link.clone(), address: *address });
        }
        // An address that is added brings its own.
        let lost = desired.subnets.difference(&self.now.subnets);
        for (link, address) in lost.filter(|subnet| self.now.addresses.contains(*subnet)) {
            ops.push(Op::SetSubnet { link: link.clone(), address: *address });
        }
        for ((link, ip), mac) in missing(&desired.neighbours, &self.now.neighbours) {
            ops.push(Op::SetNeighbour { link: link.clone(), ip: *ip, mac: *mac });
        }
        ops.extend(self.missing_fdb(|_, _| true));
        for (key, route) in &desired.routes {
            if !self.now.routes.get(key).is_some_and(|actual| route.is_met_by(actual)) {
                ops.push(Op::SetRoute { key: key.clone(), route: route.clone() });
            }
        }
        ops.retain(|op| op.link().is_none_or(|link| self.is_there(link)));
        self.push_all(ops);
    }

    fn shrink(&mut self) {
        let desired = self.desired;
        let now = self.now.clone();
        for key in now.routes.keys().filter(|key| !desired.routes.contains_key(*key)) {
            self.push(Op::DeleteRoute { key: key.clone() });
        }
        // A port takes its entries along.
        let stays = |link: &IfName, to| to != Forward::Port || desired.links.contains_key(link);
        let fdb = now.fdb.iter().filter(|(key, _)| !desired.fdb.contains_key(*key));
        for ((link, mac), to) in fdb.filter(|((link, _), to)| stays(link, **to)) {
            self.push(Op::DeleteFdb { link: link.clone(), mac: *mac, to: *to });
        }
        for (link, ip) in now.neighbours.keys().filter(|key| !desired.neighbours.contains_key(*key)) {
            self.push(Op::DeleteNeighbour { link: link.clone(), ip: *ip });
        }
        for (link, address) in now.addresses.difference(&desired.addresses) {
            self.push(Op::DeleteAddress { link: link.clone(), address: *address });
        }
        // Ports before bridges, the reverse of growth.
        for ports in [true, false] {
            let gone = now.links.iter().filter(|(name, _)| !desired.links.contains_key(*name));
            for (name, _) in gone.filter(|(_, link)| link.port.is_some() == ports) {
                self.push(Op::DeleteLink { name: name.clone() });
            }
        }
    }
}

fn missing<'a, K: Ord, V: PartialEq>(
    desired: &'a BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
) -> Vec<(&'a K, &'a V)> {
    desired.iter().filter(|(key, value)| now.get(*key) != Some(value)).collect()
}

fn pick<K: Ord + Clone, V: Clone>(from: &BTreeMap<K, V>, keys: &BTreeSet<K>) -> BTreeMap<K, V> {
    keys.iter().filter_map(|key| from.get_key_value(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl NetState {
    /// These entries, and the links that they may lie on.
    fn part(&self, touched: &Touched) -> Self {
        Self {
            links: self.links.clone(),
            routes: pick(&self.routes, &touched.routes),
            neighbours: pick(&self.neighbours, &touched.neighbours),
            fdb: pick(&self.fdb, &touched.fdb),
            ..Self::default()
        }
    }

    /// Makes this the state after a whole plan.
    pub fn edit(&mut self, plan: &Plan) {
        plan.ops().for_each(|op| op.perform_on(self));
    }
}

impl Plan {
    /// All operations in the order in which they are to be done.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.grow.iter().chain(&self.shrink)
    }
}

impl Op {
    /// The link that must be there for this.
    pub fn link(&self) -> Option<&IfName> {
        match self {
            Self::AddLink { link, .. } => link.port.as_ref().map(|port| &port.bridge),
            Self::ChangeLink { name, .. } | Self::DeleteLink { name } => Some(name),
            Self::AddAddress { link, .. }
            | Self::SetSubnet { link, .. }
            | Self::DeleteAddress { link, .. }
            | Self::SetNeighbour { link, .. }
            | Self::DeleteNeighbour { link, .. }
            | Self::SetFdb { link, .. }
            | Self::DeleteFdb { link, .. } => Some(link),
            Self::SetRoute { route, .. } => route.dev.as_ref(),
            Self::DeleteRoute { .. } | Self::SetSysctl { .. } => None,
        }
    }

    /// What the kernel's state is after this operation, side effects included.
    pub fn perform_on(&self, state: &mut NetState) {
        match self {
            Self::AddLink { name, link } => drop(state.links.insert(name.clone(), link.clone())),
            Self::ChangeLink { name, link } => change_link(state, name, link),
            Self::DeleteLink { name } => delete_link(state, name),
            Self::AddAddress { link, address } => {
                state.addresses.insert((link.clone(), *address));
                state.subnets.extend(has_subnet(*address).then(|| (link.clone(), *address)));
            }
            Self::SetSubnet { link, address } => drop(state.subnets.insert((link.clone(), *address))),
            Self::DeleteAddress { link, address } => {
                let key = (link.clone(), *address);
                state.addresses.remove(&key);
                state.subnets.remove(&key);
            }
            Self::SetRoute { key, route } => drop(state.routes.insert(key.clone(), route.clone())),
            Self::DeleteRoute { key } => drop(state.routes.remove(key)),
            Self::SetNeighbour { link, ip, mac } => drop(state.neighbours.insert((link.clone(), *ip), *mac)),
            Self::DeleteNeighbour { link, ip } => drop(state.neighbours.remove(&(link.clone(), *ip))),
            Self::SetFdb { link, mac, to } => drop(state.fdb.insert((link.clone(), *mac), *to)),
            Self::DeleteFdb { link, mac, .. } => drop(state.fdb.remove(&(link.clone(), *mac))),
            Self::SetSysctl { path, value } => drop(state.sysctls.insert(path.clone(), value.clone())),
        }
    }
}

fn change_link(state: &mut NetState, name: &IfName, wanted: &Link) {
    let Some(link) = state.links.get_mut(name) else { return };
    let changed = link.changed_to(wanted);
    if wanted.mac.is_some() {
        // The kernel flushes the neighbours of a link whose own address is set, permanent ones too, also where it is the same
        // as before (dev_set_mac_address, neigh_changeaddr).
        state.neighbours.retain(|(link, _), _| link != name);
    }
    if link.up && !changed.up {
        // neigh_ifdown, fib_disable_ip.
        state.neighbours.retain(|(link, _), _| link != name);
        state.routes.retain(|_, route| route.dev.as_ref() != Some(name));
        state.subnets.retain(|(link, _)| link != name);
    }
    if link.bridge() != changed.bridge() {
        state.fdb.retain(|(link, _), to| link != name || *to != Forward::Port);
    }
    *link = changed;
}

fn delete_link(state: &mut NetState, name: &IfName) {
    state.links.remove(name);
    state.addresses.retain(|(link, _)| link != name);
    state.subnets.retain(|(link, _)| link != name);
    state.neighbours.retain(|(link, _), _| link != name);
    state.fdb.retain(|(link, _), _| link != name);
    state.routes.retain(|_, route| route.dev.as_ref() != Some(name));
    state.sysctls.retain(|path, _| sysctl_link(path) != Some(name.as_str()));
    for (port, link) in &mut state.links {
        if link.bridge() == Some(name) {
            link.port = None;
            state.fdb.retain(|(link, _), to| link != port || *to != Forward::Port);
        }
    }
}
