//! Whether this machine has the address at which other nodes reach it, ranges that fit it, and a way to each of theirs. A UDP socket that is
//! connected sends nothing: the kernel looks the route up as it does for the fabric's packets.
//!
//! ```text
//!   InternalIP on no interface, or in a range of pods or Services ─> nothing is made (or, later, changed less): 503
//!   pod CIDR outside of --cluster-cidr                            ─> the same
//!   no way to a peer           ─> all else works: told, and its state stays, for the way may come at any moment
//!   what else the machine lacks ─> the same (ground.rs)
//!   somebody's route or rule takes what is for pods ─> the same (detour.rs)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use compile::fabric;
use model::{Key, Kind};
use semantics::{Diagnostic, Severity};
use types::{Family, IpNet, ObjectName};

use super::Node;
use super::detour::Detours;
use super::diagnose::JOINING;
use super::ground::{Ground, too_large};

/// While nothing is wrong: the kernel tells of most that changes, but not of IPv4 routes that go with their link
/// (fib_flush). What is wrong is looked at with every tick.
const LOOK: Duration = Duration::from_secs(5);

/// Where nobody listens (RFC 863), for a fabric without a port.
const DISCARD: u16 = 9;

/// What is over sooner is no news.
const LASTING: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Underlay {
    looked: Option<Instant>,
    in_the_way: Option<Diagnostic>,
    /// That is what a kubelet is about to see to.
    joins: bool,
    /// By peer, and the family in which it is.
    out_of_reach: BTreeMap<(String, Family), Diagnostic>,
    ground: Ground,
    detours: Detours,
    lacks: Vec<Diagnostic>,
    detoured: Vec<Diagnostic>,
    too_large: Option<Diagnostic>,
    /// Since when each holds, and whether it was told.
    known: BTreeMap<Diagnostic, (Instant, bool)>,
}

impl Underlay {
    /// Why nothing can be made on this node.
    pub fn in_the_way(&self) -> Option<&Diagnostic> {
        self.in_the_way.as_ref()
    }

    pub fn out_of_reach(&self) -> impl Iterator<Item = &Diagnostic> {
        self.out_of_reach.values()
    }

    /// What the node needs of its machine and has not.
    pub fn lacks(&self) -> impl Iterator<Item = &Diagnostic> {
        self.lacks.iter()
    }

    /// Routes and rules of others that take what is for pods.
    pub fn detoured(&self) -> impl Iterator<Item = &Diagnostic> {
        self.detoured.iter()
    }

    /// Packets that its links are too small for.
    pub fn too_large(&self) -> impl Iterator<Item = &Diagnostic> {
        self.too_large.iter()
    }

    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Something may be different now.
    pub fn look_again(&mut self) {
        self.looked = None;
    }

    /// Somebody's route to pods' addresses, or a rule, came or went.
    pub fn look_for_detours(&mut self) {
        self.detours.forget();
        self.look_again();
    }

    /// What holds now, with what is remembered of it, and what of it no longer holds although it was told.
    fn remember(&mut self, mut before: BTreeMap<Diagnostic, (Instant, bool)>) -> Vec<Diagnostic> {
        let now = Instant::now();
        let wrong = self.lacks.iter().chain(&self.detoured).chain(&self.too_large).chain(&self.in_the_way);
        let holds = self.out_of_reach.values().chain(wrong).cloned();
        self.known = holds
            .map(|finding| {
                let seen = before.remove(&finding).unwrap_or((now, false));
                (finding, seen)
            })
            .collect();
        before.into_iter().filter(|(_, (_, told))| *told).map(|(finding, _)| finding).collect()
    }

    /// What has lasted and was not told yet; it counts as told from now on.
    fn news(&mut self) -> Vec<Diagnostic> {
        let mut news = Vec::new();
        let joins = self.in_the_way.as_ref().filter(|_| self.joins);
        for (finding, (since, told)) in &mut self.known {
            let patience = if joins == Some(finding) { JOINING } else { LASTING };
            if !*told && since.elapsed() >= patience {
                *told = true;
                news.push(finding.clone());
            }
        }
        news
    }
}

impl Node {
    /// Before anything is made, after Nodes have changed, and now and then.
    pub(super) fn look_for_ways(&mut self) {
        if self.cluster.placed().is_none() {
            return;
        }
        let rest = if self.underlay.known.is_empty() { LOOK } else { LASTING };
        let changed = if self.whole().is_some() { &self.changed } else { &self.placed };
        let turned = changed.iter().filter(|key| key.kind == Kind::Node);
        let turned: BTreeSet<String> = turned.map(|key| key.name.name.to_string()).collect();
        let due = self.underlay.looked.is_none_or(|at| at.elapsed() >= rest);
        if turned.is_empty() && !due {
            return;
        }
        // One that joins five thousand waits for no look at them all.
        let all = due || turned.contains(&self.base.settings.node);
        if all {
            self.look_at_ground();
        }
        let mut ways = self.ways((!all).then_some(&turned));
        let over = ways.remember(std::mem::take(&mut self.underlay.known));
        let news = ways.news();
        self.underlay = ways;
        self.base.metrics.diagnostics("Node", news.len() as i64 - over.len() as i64);
        news.iter().for_each(|finding| self.raise(finding));
        for finding in over {
            let message = format!("no longer: {}: {}", finding.field, finding.message);
            self.mended(&finding, message);
        }
        if all {
            self.follow_ground();
        }
    }

    fn look_at_ground(&mut self) {
        let addresses = self.cluster.nodes.get(&self.base.settings.node).map(|node| node.addresses.clone());
        let (addresses, rtnl) = (addresses.unwrap_or_default(), &mut self.base.datapath.links.rtnl);
        match Ground::look(rtnl, &addresses, &self.underlay.ground) {
            Ok(ground) => self.underlay.ground = ground,
            Err(error) => tracing::warn!(%error, "the machine's links are not known; looking again"),
        }
        if let Err(error) = self.underlay.detours.look(rtnl, &self.base.settings.args.cluster_cidrs) {
            tracing::warn!(%error, "others' routes to pods are not known; looking again");
        }
        if !self.paused {
            self.guard_uplinks();
        }
    }

    /// A link that is a veth or a network card of a virtual machine hands on what is to be filled in, as pods' do.
    fn guard_uplinks(&mut self) {
        for link in self.underlay.ground.uplinks() {
            match kernel::checksums::guard(&mut self.base.datapath.links.rtnl, &link) {
                Ok(false) => {}
                Ok(true) => tracing::info!(%link, "a program looks where checksums are to be filled in"),
                Err(error) => tracing::warn!(%error, "nobody looks where checksums are to be filled in"),
            }
        }
    }

    /// `only`: what is known of other peers holds until they are looked at again.
    fn ways(&mut self, only: Option<&BTreeSet<String>>) -> Underlay {
        let looked = if only.is_some() { self.underlay.looked } else { Some(Instant::now()) };
        let ground = std::mem::take(&mut self.underlay.ground);
        let detours = std::mem::take(&mut self.underlay.detours);
        let mut found = Underlay { looked, ground, detours, ..Underlay::default() };
        let args = &self.base.settings.args;
        let name = &self.base.settings.node;
        let Some(node) = self.cluster.nodes.get(name) else {
            found.in_the_way = Some(no_internal_ip(name, false));
            found.joins = true;
            return found;
        };
        let Some(own) = semantics::node::underlay_ip(node) else {
            found.in_the_way = Some(no_internal_ip(name, true));
            found.joins = true;
            return found;
        };
        let fabric = fabric::of(self.base.settings.fabric);
        let bind = |ip: IpAddr| UdpSocket::bind((ip, 0));
        let tunnel = match bind(own) {
            Ok(socket) => socket,
            Err(error) => {
                found.in_the_way = Some(not_here(name, own, (&error, &found.ground)));
                return found;
            }
        };
        found.in_the_way = misfit(node, &args.cluster_cidrs, &args.service_cidrs);
        found.lacks = found.ground.lacks(name, &node.addresses, Some(own));
        found.detoured = found.detours.taken(name, &self.cluster.nodes);
        found.too_large = too_large(node, args.mtu, (own, fabric.overhead(own)), &found.ground);
        // Nodes speak to each other, and to pods of the host's network, in every family that they have.
        let other = semantics::node::internal_ip(node, Family::of(own).pick([Family::V6, Family::V4]))
            .and_then(|ip| Some((ip, bind(ip).ok()?)));
        let sockets = [(own, tunnel)].into_iter().chain(other);
        let nodes = &self.cluster.nodes;
        let peers: Vec<&model::Node> = match only {
            Some(names) => {
                let others = self.underlay.out_of_reach.iter().filter(|((peer, _), _)| !names.contains(peer));
                found.out_of_reach.extend(others.map(|(peer, finding)| (peer.clone(), finding.clone())));
                names.iter().filter_map(|name| nodes.get(name)).collect()
            }
            None => nodes.values().filter(|peer| peer.name != *name).collect(),
        };
        let port = fabric.port().unwrap_or(DISCARD);
        for (from, socket) in sockets {
            let family = Family::of(from);
            for peer in &peers {
                let Some(address) = semantics::node::internal_ip(peer, family) else { continue };
                if let Err(error) = socket.connect((address, port)) {
                    let tunnel = from == own;
                    let finding = no_way((name, from), (&peer.name, address), &error, tunnel);
                    found.out_of_reach.insert((peer.name.clone(), family), finding);
                }
            }
        }
        found
    }
}

/// An address of the node that pods or Services would take, or a pod CIDR that is not of the cluster's: packets between
/// pods would be masqueraded, or the node cut off.
fn misfit(node: &model::Node, pods: &[IpNet], services: &[IpNet]) -> Option<Diagnostic> {
    let next = "give the ranges that the controller manager (--cluster-cidr) and the API server \
                (--service-cluster-ip-range) have: plumb install --cluster-cidr … --service-cidr …; the agent waits";
    for (flag, ranges) in [("--cluster-cidr", pods), ("--service-cidr", services)] {
        let hit = |address: &&IpAddr| ranges.iter().any(|range| range.contains(*address));
        if let Some(address) = node.addresses.iter().find(hit) {
            let message = format!("its address {address} lies in {flag} {}", joined(ranges));
            return Some(misfits(&node.name, message, next.to_owned()));
        }
    }
    let known = |cidr: &IpNet| pods.iter().any(|range| range.contains(cidr));
    let cidr = node.pod_cidrs.iter().find(|cidr| !known(cidr))?;
    let message = format!("its pod CIDR {cidr} is not in --cluster-cidr {}", joined(pods));
    let found = misfits(&node.name, message, next.to_owned());
    Some(Diagnostic { field: "spec.podCIDRs".to_owned(), ..found })
}

fn joined(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn misfits(node: &str, message: String, next_step: String) -> Diagnostic {
    Diagnostic { severity: Severity::Error, ..about(node, "status.addresses", message, next_step) }
}

/// What is wrong with this node and stops nothing else.
pub(super) fn about(
    node: &str,
    field: &str,
    message: impl Into<String>,
    next_step: impl Into<String>,
) -> Diagnostic {
    Diagnostic {
        object: Key::new(Kind::Node, ObjectName::cluster(node)),
        field: field.to_owned(),
        severity: Severity::Warning,
        message: message.into(),
        next_step: next_step.into(),
    }
}

fn no_internal_ip(node: &str, is_known: bool) -> Diagnostic {
    let message =
        if is_known { "the Node has no InternalIP" } else { "the API has no such Node, so no InternalIP" };
    let next = "start its kubelet, or give it --node-ip; the agent waits";
    misfits(node, format!("{message}: nothing is made here"), next.to_owned())
}

fn not_here(node: &str, own: IpAddr, (error, ground): (&io::Error, &Ground)) -> Diagnostic {
    let message = format!(
        "its InternalIP {own} is on no interface of this machine ({error}): no tunnel can begin there"
    );
    let next = format!(
        "give the address to an interface ({}), or the kubelet the right one (--node-ip); the agent waits",
        ground.give_back(own)
    );
    misfits(node, message, next)
}

/// `tunnel`: in the family that it goes by; else only the nodes themselves are concerned.
fn no_way(
    (node, own): (&str, IpAddr),
    (peer, address): (&str, IpAddr),
    error: &io::Error,
    tunnel: bool,
) -> Diagnostic {
    let what =
        if tunnel { "its pods are out of reach from here" } else { "nodes do not reach each other there" };
    let message = format!("no route from {own} to node {peer} at {address} ({error}): {what}");
    let next =
        format!("give this machine the route: `ip route get {address} from {own}` shows what is lacking");
    about(node, "status.addresses", message, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_do_not_fit_the_node_are_named() {
        let nets = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        let node = model::Node {
            name: "node1".into(),
            addresses: vec!["192.168.1.10".parse().unwrap()],
            pod_cidrs: nets("10.244.1.0/24"),
            ..model::Node::default()
        };
        let found =
            |pods, services| misfit(&node, &nets(pods), &nets(services)).map(|found| found.to_string());
        assert_eq!(found("10.244.0.0/16", "10.96.0.0/12"), None);
        for (pods, services, words) in [
            ("192.168.0.0/16", "10.96.0.0/12", "192.168.1.10 lies in --cluster-cidr 192.168.0.0/16"),
            ("10.244.0.0/16", "192.168.1.0/24", "192.168.1.10 lies in --service-cidr 192.168.1.0/24"),
            ("10.10.0.0/16", "10.96.0.0/12", "10.244.1.0/24 is not in --cluster-cidr 10.10.0.0/16"),
        ] {
            let said = found(pods, services).unwrap_or_default();
            assert!(said.contains(words) && said.contains("the agent waits"), "{said}");
        }
    }
}
