//! What the guards dropped, as Events: on the pod that sent it where that is known, else on the Node.
//!
//! ```text
//!   5 s: counters ─> by pod and cause ─┬─ a cause not told of in 10 min ─> an Event, 30 s after the last one at the soonest
//!                                      └─ the same again ────────────────> an Event of all that came, each 10 min
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use compile::guard::cause::{Cause, KnownBy};
use model::{Key, Kind};
use node::Record;
use types::ObjectName;

use super::Node;
use crate::drops::Who;
use crate::tell::Saying;

/// How often counters are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Between two Events of one object; while a cause is new to it, and when none is.
const NEW: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(600);
/// What happens where nobody forges is worth an Event when there is much of it, within [`AGAIN`].
const MUCH: u64 = 600;

/// Object, and whether what it sent is forged.
type Of = (Key, bool);

/// What is still to be told, by object.
#[derive(Debug, Default)]
pub struct Accounts {
    looked: Option<Instant>,
    open: BTreeMap<Of, Account>,
}

#[derive(Debug)]
struct Account {
    uid: String,
    /// When the first of what waits came.
    since: Option<Instant>,
    waiting: BTreeMap<Cause, u64>,
    said: Option<Instant>,
    /// Of the causes told of within [`AGAIN`]: when last.
    told: BTreeMap<Cause, Instant>,
}

/// What is to be told of an object.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    of: Of,
    uid: String,
    seconds: u64,
    packets: BTreeMap<Cause, u64>,
}

impl Account {
    fn add(&mut self, cause: Cause, packets: u64, now: Instant) {
        self.since.get_or_insert(now);
        *self.waiting.entry(cause).or_default() += packets;
    }

    fn is_due(&self, forged: bool, now: Instant) -> bool {
        let quiet = |long: Duration| self.said.is_none_or(|at| now.duration_since(at) >= long);
        let is_new = || self.waiting.keys().any(|cause| !self.told.contains_key(cause));
        let much = forged || self.waiting.values().sum::<u64>() >= MUCH;
        !self.waiting.is_empty() && much && (quiet(AGAIN) || quiet(NEW) && is_new())
    }
}

impl Accounts {
    fn add(&mut self, (object, uid): (Key, String), cause: Cause, packets: u64, now: Instant) {
        let account = self.open.entry((object, cause.is_forged())).or_insert_with(|| Account {
            uid,
            since: None,
            waiting: BTreeMap::new(),
            said: None,
            told: BTreeMap::new(),
        });
        account.add(cause, packets, now);
    }

    /// What is told now. An object of which nothing was dropped for long is forgotten.
    fn due(&mut self, now: Instant) -> Vec<Due> {
        let mut found = Vec::new();
        for (of, account) in &mut self.open {
            account.told.retain(|_, at| now.duration_since(*at) < AGAIN);
            if account.is_due(of.1, now) {
                let packets = std::mem::take(&mut account.waiting);
                account.told.extend(packets.keys().map(|cause| (*cause, now)));
                account.said = Some(now);
                let seconds = account.since.take().map_or(0, |since| now.duration_since(since).as_secs());
                found.push(Due { of: of.clone(), uid: account.uid.clone(), seconds, packets });
            }
        }
        self.open.retain(|_, account| {
            let last = account.since.max(account.said);
            last.is_some_and(|at| now.duration_since(at) < AGAIN) || !account.told.is_empty()
        });
        found
    }
}

impl Node {
    pub(super) fn look_for_drops(&mut self) {
        let now = Instant::now();
        if self.dropped.looked.is_some_and(|at| now.duration_since(at) < LOOK) || self.whole().is_none() {
            return;
        }
        self.dropped.looked = Some(now);
        let news = self.base.metrics.drops.news();
        for (cause, who, packets) in news.known {
            let sender = self.sent_by(&who);
            self.dropped.add(sender, cause, packets, now);
        }
        for (cause, packets) in news.unknown {
            let here = self.here();
            self.dropped.add(here, cause, packets, now);
        }
        for due in self.dropped.due(now) {
            self.say_dropped(due);
        }
    }

    fn here(&self) -> (Key, String) {
        (Key::new(Kind::Node, ObjectName::cluster(&self.base.settings.node)), String::new())
    }

    /// One that is gone meanwhile is the Node's.
    fn sent_by(&self, who: &Who) -> (Key, String) {
        let is = |record: &&Record| match who {
            Who::Port(port) => record.host_if == *port,
            Who::Pod(address) => record.ips.contains(address),
        };
        let record = self.records().find(is);
        record.map_or_else(
            || self.here(),
            |record| (Key::new(Kind::Pod, record.pod.clone()), record.uid.clone()),
        )
    }

    fn say_dropped(&self, due: Due) {
        let (object, forged) = due.of;
        let message = message(&self.base.settings.node, object.kind, due.seconds, &due.packets);
        tracing::warn!("{:?} {}: {message}", object.kind, object.name);
        self.base.tell.say(Saying {
            object,
            uid: due.uid,
            normal: !forged,
            reason: "PacketsDropped",
            message,
        });
    }
}

fn message(node: &str, kind: Kind, seconds: u64, packets: &BTreeMap<Cause, u64>) -> String {
    let of = if kind == Kind::Pod { " of this pod" } else { "" };
    let each = packets.iter().map(|(cause, packets)| format!("{packets} × {}", cause.comment()));
    let each = each.collect::<Vec<_>>().join("; ");
    let all: u64 = packets.values().sum();
    let next: BTreeSet<&str> = packets.keys().map(|cause| next_step(*cause, kind)).collect();
    let next = next.into_iter().collect::<Vec<_>>().join("; ");
    let within = if seconds == 0 { String::new() } else { format!(" within {seconds} s") };
    let noun = if all == 1 { "packet" } else { "packets" };
    format!("node {node} dropped {all} {noun}{of}{within}: {each}. Next: {next}")
}

/// What a person does about it, by whose the Event is.
fn next_step(cause: Cause, kind: Kind) -> &'static str {
    match (cause, cause.known_by()) {
        (_, KnownBy::Port | KnownBy::Pod) if kind == Kind::Node => {
            "the pod that sent it is gone: one of `plumb connectivity test`, or see which pods of this node ended"
        }
        (Cause::PodToTunnel, _) | (_, KnownBy::Pod) => "find out what the pod wants at UDP port 8472",
        (_, KnownBy::Port) => {
            "find out what the pod sends: under names of others, or under an address or MAC that it gave itself"
        }
        (Cause::TunnelToTunnel, _) => {
            "find the pod of another node that sends to UDP port 8472: tcpdump -ni plumb.1 udp port 8472"
        }
        (Cause::InnerSource, _) => {
            "see whether each node's pod CIDRs are known here; else a node may be broken into"
        }
        (Cause::StraySegment, _) => "look for a port scan, or a full conntrack table (conntrack -S)",
        (Cause::NoSuchPod, _) => "look for clients of pods that are gone, or a scan of the pods' range",
        _ => "find out who sends it: tcpdump on the node, and docs/runbooks/PlumbForgedPackets.md",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> (Key, String) {
        (Key::new(Kind::Pod, ObjectName::new("shop", name)), "uid".to_owned())
    }

    /// What is told at each of these seconds, when so many packets of a cause came just before.
    fn told(story: &[(u64, &str, Cause, u64)], ends: u64) -> Vec<(u64, u64)> {
        let (begin, mut accounts, mut found) = (Instant::now(), Accounts::default(), Vec::new());
        for second in (0..=ends).step_by(5) {
            let now = begin + Duration::from_secs(second);
            for (_, name, cause, packets) in story.iter().filter(|(at, ..)| *at == second) {
                accounts.add(pod(name), *cause, *packets, now);
            }
            for due in accounts.due(now) {
                found.push((second, due.packets.values().sum()));
            }
        }
        assert!(ends < 2000 || accounts.open.is_empty(), "{accounts:?}");
        found
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_together() {
        let flood: Vec<_> = (0..1000).step_by(5).map(|at| (at, "web", Cause::Ipv4Source, 50)).collect();
        assert_eq!(told(&flood, 3000), [(0, 50), (600, 6000), (1200, 3950)]);
    }

    #[test]
    fn another_cause_is_told_soon_and_another_pod_at_once() {
        let story = [
            (0, "web", Cause::Ipv4Source, 1),
            (5, "web", Cause::ArpSender, 2),
            (5, "api", Cause::ArpSender, 4),
            (40, "web", Cause::ArpSender, 8),
        ];
        assert_eq!(told(&story, 3000), [(0, 1), (5, 4), (30, 2), (630, 8)]);
    }

    #[test]
    fn what_happens_anyhow_is_told_when_there_is_much_of_it() {
        let few = [(0, "web", Cause::StraySegment, MUCH - 1), (610, "web", Cause::StraySegment, 1)];
        assert_eq!(told(&few, 3000), []);
        let many = [(0, "web", Cause::StraySegment, MUCH - 1), (10, "web", Cause::StraySegment, 1)];
        assert_eq!(told(&many, 3000), [(10, MUCH)]);
    }

    #[test]
    fn an_event_says_how_many_why_and_what_next() {
        let packets = BTreeMap::from([(Cause::Ipv4Source, 3), (Cause::PodToTunnel, 1)]);
        assert_eq!(
            message("node1", Kind::Pod, 5, &packets),
            "node node1 dropped 4 packets of this pod within 5 s: 3 × ipv4_source: an IPv4 source that is not the pod's; \
             1 × pod_to_tunnel: a pod, to a tunnel's port. Next: find out what the pod sends: under names of others, or \
             under an address or MAC that it gave itself; find out what the pod wants at UDP port 8472"
        );
        let packets = BTreeMap::from([(Cause::Ipv4Source, 1)]);
        assert_eq!(
            message("node1", Kind::Node, 0, &packets),
            "node node1 dropped 1 packet: 1 × ipv4_source: an IPv4 source that is not the pod's. Next: the pod that sent it \
             is gone: one of `plumb connectivity test`, or see which pods of this node ended"
        );
    }
}
