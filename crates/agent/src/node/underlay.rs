//! Whether this machine has the address at which other nodes reach it, and a way to each of theirs. A UDP socket that is
//! connected sends nothing: the kernel looks the route up as it does for the tunnel's packets.
//!
//! ```text
//!   InternalIP on no interface ─> nothing is made (or, later, changed less): trouble, 503
//!   no way to a peer           ─> all else works: told, and its state stays, for the way may come at any moment
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use compile::{Diagnostic, Severity, fabric};
use model::{Key, Kind};
use types::wire::VXLAN_PORT;
use types::{Family, ObjectName};

use super::Node;

/// While nothing is wrong: nobody tells us of routes that are not ours. What is wrong is looked at with every tick.
const LOOK: Duration = Duration::from_secs(5);

/// What is over sooner is no news: a kubelet reports a Node's addresses after it has made the Node.
const LASTING: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Underlay {
    looked: Option<Instant>,
    no_address: Option<Diagnostic>,
    out_of_reach: BTreeSet<Diagnostic>,
    /// Since when each holds, and whether it was told.
    known: BTreeMap<Diagnostic, (Instant, bool)>,
}

impl Underlay {
    pub fn no_address(&self) -> Option<&Diagnostic> {
        self.no_address.as_ref()
    }

    pub fn out_of_reach(&self) -> impl Iterator<Item = &Diagnostic> {
        self.out_of_reach.iter()
    }

    /// What holds now, with what is remembered of it, and what of it no longer holds although it was told.
    fn remember(&mut self, mut before: BTreeMap<Diagnostic, (Instant, bool)>) -> Vec<Diagnostic> {
        let now = Instant::now();
        let holds = self.out_of_reach.iter().chain(&self.no_address).cloned();
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
        for (finding, (since, told)) in &mut self.known {
            if !*told && since.elapsed() >= LASTING {
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
        let rest = if self.underlay.known.is_empty() { LOOK } else { LASTING };
        let nodes_changed = self.changed.iter().any(|key| key.kind == Kind::Node);
        let due = self.underlay.looked.is_none_or(|at| at.elapsed() >= rest);
        if self.cluster.synced().is_none() || !(nodes_changed || due) {
            return;
        }
        let mut ways = self.ways();
        let over = ways.remember(std::mem::take(&mut self.underlay.known));
        let news = ways.news();
        self.underlay = ways;
        self.base.metrics.diagnostics("Node", news.len() as i64 - over.len() as i64);
        news.iter().for_each(|finding| self.raise(finding));
        over.iter().for_each(|finding| tracing::info!("no longer: {finding}"));
    }

    fn ways(&self) -> Underlay {
        let mut found = Underlay { looked: Some(Instant::now()), ..Underlay::default() };
        let name = &self.base.settings.node;
        let Some(own) = self.cluster.nodes.get(name).and_then(fabric::underlay_ip) else {
            found.no_address = Some(no_internal_ip(name, self.cluster.nodes.contains_key(name)));
            return found;
        };
        let socket = match UdpSocket::bind((own, 0)) {
            Ok(socket) => socket,
            Err(error) => {
                found.no_address = Some(not_here(name, own, &error));
                return found;
            }
        };
        for peer in self.cluster.nodes.values().filter(|peer| peer.name != *name) {
            let Some(address) = fabric::internal_ip(peer, Family::of(own)) else { continue };
            if let Err(error) = socket.connect((address, VXLAN_PORT)) {
                found.out_of_reach.insert(no_way(name, own, (&peer.name, address), &error));
            }
        }
        found
    }
}

fn about(node: &str, severity: Severity, message: String, next_step: String) -> Diagnostic {
    let object = Key::new(Kind::Node, ObjectName::cluster(node));
    Diagnostic { object, field: "status.addresses".to_owned(), severity, message, next_step }
}

fn no_internal_ip(node: &str, is_known: bool) -> Diagnostic {
    let message =
        if is_known { "the Node has no InternalIP" } else { "the API has no such Node, so no InternalIP" };
    let next = "start its kubelet, or give it --node-ip; the agent waits";
    about(node, Severity::Error, format!("{message}: nothing is made here"), next.to_owned())
}

fn not_here(node: &str, own: IpAddr, error: &io::Error) -> Diagnostic {
    let message = format!(
        "its InternalIP {own} is on no interface of this machine ({error}): no tunnel can begin there"
    );
    let next = format!(
        "give the address to an interface (ip address add {own}/PREFIX dev INTERFACE), or the kubelet the right one \
         (--node-ip); the agent waits"
    );
    about(node, Severity::Error, message, next)
}

fn no_way(node: &str, own: IpAddr, (peer, address): (&str, IpAddr), error: &io::Error) -> Diagnostic {
    let message = format!(
        "no route from {own} to node {peer} at {address} ({error}): its pods are out of reach from here"
    );
    let next =
        format!("give this machine the route (ip route get {address} from {own} shows what is lacking)");
    about(node, Severity::Warning, message, next)
}
