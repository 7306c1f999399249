//! Attachments that nobody will ever DEL: killed runtimes and kubelets forget sandboxes, a node's agent must not.
//!
//! ```text
//!   namespace gone      its veth went with it: record, address and rules are given back
//!   pod gone (from a    the API is asked for it (confirm.rs); then its veth is deleted, its rules go; the address is held
//!   synced API)         while the namespace lives, in which it still is, and then rests
//!   neither is known    nothing happens
//! ```
//! Both have to be seen twice, a grace apart: a DEL may be on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::{Key, Kind};
use types::ObjectName;

use super::Node;
use crate::clock;
use crate::confirm::{Answer, Doubt};
use crate::report::Resting;
use crate::store::Record;
use crate::tell::Saying;

/// How often attachments are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A namespace does not come back; its DEL may be on its way.
const NAMESPACE_GRACE: Duration = Duration::from_secs(10);

/// What of an attachment is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Namespace,
    Pod,
}

/// What the API says of an attachment's pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InApi {
    There,
    /// Or another one of the same name is there.
    Gone,
    /// The API is not heard, or this is no pod of it.
    Unknown,
}

fn lost(namespace_lives: bool, pod: InApi) -> Option<Lost> {
    match (namespace_lives, pod) {
        (false, _) => Some(Lost::Namespace),
        (true, InApi::Gone) => Some(Lost::Pod),
        (true, InApi::There | InApi::Unknown) => None,
    }
}

/// Something was lost at that moment, as far as can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    lost: Lost,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Suspect(Suspicion),
    Release(Suspicion),
}

/// `grace`: how long this may last before it is believed.
fn judge(
    lost: Option<Lost>,
    before: Option<Suspicion>,
    now: Instant,
    grace: impl Fn(Lost) -> Duration,
) -> Verdict {
    let Some(lost) = lost else { return Verdict::Keep };
    match before.filter(|before| before.lost == lost) {
        None => Verdict::Suspect(Suspicion { lost, since: now }),
        Some(before) if now.saturating_duration_since(before.since) >= grace(lost) => {
            Verdict::Release(before)
        }
        Some(before) => Verdict::Suspect(before),
    }
}

/// A pod's containers may go on for its own grace period after somebody has deleted it by force.
fn grace(record: &Record, patience: Duration) -> impl Fn(Lost) -> Duration {
    let pod = Duration::from_secs(record.grace.into()).saturating_add(patience);
    move |lost| match lost {
        Lost::Namespace => patience.min(NAMESPACE_GRACE),
        Lost::Pod => pod,
    }
}

#[derive(Default)]
pub struct Orphans {
    suspects: BTreeMap<String, Suspicion>,
    /// The API is being asked for their pods.
    doubted: BTreeSet<String>,
    /// Their veths are being deleted without a DEL.
    taken: BTreeSet<String>,
    looked: Option<Instant>,
}

impl Orphans {
    /// Whether a departure was ours; asked once.
    pub(super) fn was_taken(&mut self, handle: &str) -> bool {
        self.taken.remove(handle)
    }
}

impl Node {
    /// Not while paused: whoever looks into a node wants it left as it is.
    pub(super) fn look_for_orphans(&mut self) {
        let now = Instant::now();
        let early = self.orphans.looked.is_some_and(|at| now.duration_since(at) < LOOK);
        if early || self.paused || self.whole().is_none() {
            return;
        }
        self.orphans.looked = Some(now);
        self.free_held();
        let before = std::mem::take(&mut self.orphans.suspects);
        let (mut doomed, mut doubts) = (Vec::new(), Vec::new());
        for record in self.base.store.wired() {
            let handle = record.handle();
            if self.leaving.has(&handle) || self.wiring.iter().any(|wiring| wiring.handle() == handle) {
                continue;
            }
            let lost = lost(self.namespace_lives(record), self.in_api(record));
            match judge(lost, before.get(&handle).copied(), now, grace(record, self.orphan_grace())) {
                Verdict::Keep => {}
                Verdict::Suspect(suspicion) => drop(self.orphans.suspects.insert(handle, suspicion)),
                Verdict::Release(suspicion) if suspicion.lost == Lost::Pod => {
                    self.orphans.suspects.insert(handle.clone(), suspicion);
                    let doubt = Doubt { handle, pod: record.pod.clone(), uid: record.uid.clone() };
                    doubts.push(doubt);
                }
                Verdict::Release(suspicion) => doomed.push((record.clone(), suspicion)),
            }
        }
        for (record, suspicion) in doomed {
            self.release_orphan(&record, suspicion);
        }
        for doubt in doubts {
            let handle = doubt.handle.clone();
            if !self.orphans.doubted.contains(&handle) && self.base.confirm.ask(doubt) {
                self.orphans.doubted.insert(handle);
            }
        }
    }

    /// What the watch does not show is believed to be gone only when the API itself says so. Else its time begins anew.
    pub(super) fn confirmed(&mut self, doubt: &Doubt, answer: Answer) {
        let Doubt { handle, pod, .. } = doubt;
        self.orphans.doubted.remove(handle);
        let suspicion = self.orphans.suspects.get(handle).filter(|suspicion| suspicion.lost == Lost::Pod);
        let Some(suspicion) = suspicion.copied() else { return };
        let record = self.base.store.wired().find(|record| record.handle() == *handle);
        let record = record.filter(|record| record.pod == doubt.pod && record.uid == doubt.uid).cloned();
        match (answer, record) {
            _ if self.paused || self.leaving.has(handle) => {}
            (Answer::Gone, Some(record)) if self.in_api(&record) == InApi::Gone => {
                self.orphans.suspects.remove(handle);
                self.release_orphan(&record, suspicion);
            }
            (Answer::Gone, _) => {}
            (Answer::There, _) => {
                self.orphans.suspects.remove(handle);
                tracing::warn!(%handle, %pod, "kept: the API has the pod, and its watch does not show it");
            }
            (Answer::Unheard(why), _) => {
                self.orphans.suspects.remove(handle);
                tracing::warn!(%handle, %pod, why, "kept: the API cannot be asked for the pod, which its watch does not show");
            }
        }
    }

    fn orphan_grace(&self) -> Duration {
        Duration::from_secs(self.base.settings.args.orphan_grace)
    }

    /// A veth dies with the namespace of its other end. One that somebody deleted tells nothing.
    fn namespace_lives(&self, record: &Record) -> bool {
        self.base.datapath.rtnl.index(&record.host_if).is_some() || record.namespace_lives()
    }

    /// Whether the API has the attachment's pod no longer, as far as is known.
    pub(super) fn is_gone(&self, record: &Record) -> bool {
        self.in_api(record) == InApi::Gone
    }

    fn in_api(&self, record: &Record) -> InApi {
        let deaf = self.cluster.synced().is_none()
            || self.standing.broken_watches().any(|(kind, _)| kind == Kind::Pod);
        if record.pod.namespace.is_empty() || deaf {
            return InApi::Unknown;
        }
        let known = self.cluster.pods.get(&record.pod);
        match known.is_some_and(|pod| record.uid.is_empty() || pod.uid == record.uid) {
            true => InApi::There,
            false => InApi::Gone,
        }
    }

    fn release_orphan(&mut self, record: &Record, suspicion: Suspicion) {
        let Record { pod, ips, host_if, netns, .. } = record;
        let (handle, ips) = (record.handle(), list(ips));
        let seconds = suspicion.since.elapsed().as_secs();
        let why = match suspicion.lost {
            Lost::Namespace => format!(
                "its network namespace {netns} has been gone for {seconds} s; {ips} may be given out again after \
                 its rest"
            ),
            Lost::Pod => format!(
                "its pod has not been in the API for {seconds} s; {host_if} was deleted, and {ips} is held while \
                 the network namespace {netns} lives"
            ),
        };
        let message =
            format!("attachment {handle} of pod {pod} was released though the runtime sent no DEL: {why}");
        tracing::warn!("{message}");
        self.base.tell.say(Saying {
            object: Key::new(Kind::Node, ObjectName::cluster(&self.base.settings.node)),
            uid: String::new(),
            normal: true,
            reason: "AttachmentReleased",
            message,
        });
        self.orphans.taken.insert(handle.clone());
        self.take_away(handle);
    }

    /// Once its veth is gone: whether its address is held on, because its namespace lives.
    pub(super) fn hold_address(&mut self, handle: &str) -> bool {
        let lives = self.base.store.records().get(handle).is_some_and(Record::namespace_lives);
        if lives {
            self.base.store.cut_off(handle);
        }
        lives
    }

    /// Addresses whose namespaces have ended meanwhile.
    fn free_held(&mut self) {
        let ended = |record: &&Record| record.cut_off && !record.namespace_lives();
        let ended: Vec<String> =
            self.base.store.records().values().filter(ended).map(Record::handle).collect();
        for handle in &ended {
            self.base.store.release(handle, clock::since_boot());
        }
        if !ended.is_empty()
            && let Err(error) = self.base.store.save()
        {
            tracing::error!(error = format!("{error:#}"), "attachments cannot be saved");
        }
    }

    /// Why each address is held that no pod has, each in a sentence.
    pub fn held(&self) -> Vec<String> {
        let mut held = Vec::new();
        for (handle, record) in self.base.store.records() {
            let Record { pod, ips, netns, .. } = record;
            let ips = list(ips);
            let left = |suspicion: &Suspicion| {
                let grace = grace(record, self.orphan_grace())(suspicion.lost);
                grace.saturating_sub(suspicion.since.elapsed()).as_secs() + LOOK.as_secs()
            };
            match self.orphans.suspects.get(handle) {
                _ if record.cut_off => held.push(format!(
                    "{ips} is held while the network namespace {netns} lives: its pod {pod} is gone; end what runs \
                     in it"
                )),
                Some(s) if s.lost == Lost::Namespace => held.push(format!(
                    "{ips} is held for pod {pod}, whose network namespace {netns} is gone, for {} s more",
                    left(s)
                )),
                Some(s) => held.push(format!(
                    "{ips} is held for pod {pod}, which the API does not have, for {} s more",
                    left(s)
                )),
                None => {}
            }
        }
        held
    }

    /// Addresses that were released and that nobody gets yet.
    pub fn resting(&self) -> Resting {
        let now = clock::since_boot();
        let resting = self.pools().iter().flat_map(|pool| pool.resting(now));
        let (addresses, rests): (Vec<_>, Vec<Duration>) = resting.unzip();
        Resting { addresses, last: rests.iter().max().map_or(0, |longest| longest.as_secs() + 1) }
    }
}

fn list(ips: &[std::net::IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn after(seconds: u64, start: Instant) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_dead_namespace_is_lost_whatever_the_api_says_and_an_unheard_api_says_nothing() {
        for pod in [InApi::There, InApi::Gone, InApi::Unknown] {
            assert_eq!(lost(false, pod), Some(Lost::Namespace));
        }
        assert_eq!(lost(true, InApi::Gone), Some(Lost::Pod));
        assert_eq!(lost(true, InApi::There), None);
        assert_eq!(lost(true, InApi::Unknown), None);
    }

    #[test]
    fn what_is_lost_is_released_when_it_is_seen_twice_a_grace_apart() {
        let start = Instant::now();
        for lost in [Lost::Namespace, Lost::Pod] {
            let first = Suspicion { lost, since: start };
            let grace = |_| GRACE;
            assert_eq!(judge(Some(lost), None, start, grace), Verdict::Suspect(first));
            let judged = |at| judge(Some(lost), Some(first), after(at, start), grace);
            assert_eq!(judged(29), Verdict::Suspect(first), "its time runs on from the first look");
            assert_eq!(judged(30), Verdict::Release(first));
            assert_eq!(judge(None, Some(first), after(30, start), grace), Verdict::Keep, "it is back");
        }
    }

    #[test]
    fn nothing_is_released_at_first_sight_however_long_nobody_looked() {
        let start = Instant::now();
        let no_grace = |_| Duration::ZERO;
        assert!(matches!(judge(Some(Lost::Pod), None, start, no_grace), Verdict::Suspect(_)));
        // What is suspected of another reason begins anew.
        let other = Suspicion { lost: Lost::Pod, since: start };
        let judged = judge(Some(Lost::Namespace), Some(other), after(600, start), |_| GRACE);
        assert_eq!(judged, Verdict::Suspect(Suspicion { lost: Lost::Namespace, since: after(600, start) }));
    }

    #[test]
    fn a_pod_that_may_take_long_to_end_keeps_its_network_so_long() {
        let json = r#"{"container":"c","ifname":"eth0","netns":"/n","pod":{"namespace":"a","name":"b"},"uid":"u","ips":[],"host_if":"veth1","mac":"00:00:00:00:00:00","grace":600}"#;
        let record: Record = serde_json::from_str(json).unwrap();
        assert_eq!(grace(&record, GRACE)(Lost::Pod), Duration::from_secs(630));
        assert_eq!(grace(&record, GRACE)(Lost::Namespace), NAMESPACE_GRACE);
        assert_eq!(grace(&record, Duration::from_secs(1))(Lost::Namespace), Duration::from_secs(1));
    }

    /// A watch may be behind. What it does not show is cut off only when the API itself says that it is gone.
    #[test]
    fn a_pod_that_only_the_watch_does_not_show_stays_wired() {
        crate::dns::tests::inside(async || {
            let directory = std::env::temp_dir().join(format!("plumb-doubt-{}", std::process::id()));
            let (mut node, _inbox) = crate::bench::held(&directory).unwrap();
            let json = r#"{"container":"c","ifname":"eth0","netns":"/proc/self/ns/net","pod":{"namespace":"a","name":"web"},"uid":"u","ips":[],"host_if":"veth-c","mac":"00:00:00:00:00:00"}"#;
            node.base.store.insert(serde_json::from_str(json).unwrap());
            for kind in Kind::ALL {
                node.cluster.apply(model::Event::Start(kind));
                node.cluster.apply(model::Event::Done(kind));
            }
            let doubt = Doubt { handle: "c/eth0".into(), pod: ObjectName::new("a", "web"), uid: "u".into() };
            let since = Instant::now();
            let mut after = |doubt: &Doubt, answer: Answer| {
                let suspicion = Suspicion { lost: Lost::Pod, since };
                node.orphans.suspects.insert("c/eth0".into(), suspicion);
                node.confirmed(doubt, answer);
                (node.leaving.has("c/eth0"), node.orphans.suspects.contains_key("c/eth0"))
            };
            assert_eq!(after(&doubt, Answer::There), (false, false), "its time begins anew");
            assert_eq!(
                after(&doubt, Answer::Unheard("no answer".into())),
                (false, false),
                "its time begins anew"
            );
            let former = Doubt { uid: "before".into(), ..doubt.clone() };
            assert_eq!(after(&former, Answer::Gone), (false, true), "that was another pod");
            assert_eq!(after(&doubt, Answer::Gone), (true, false));
            std::fs::remove_dir_all(&directory).unwrap();
        });
    }

    /// Veths are deleted many at once: what a runtime asks of one attachment says nothing about the others.
    #[test]
    fn an_address_is_held_whoever_else_leaves_at_the_same_time() {
        crate::dns::tests::inside(async || {
            let directory = std::env::temp_dir().join(format!("plumb-orphan-{}", std::process::id()));
            let (mut node, _inbox) = crate::bench::held(&directory).unwrap();
            for container in ["asked", "orphan"] {
                let json = format!(
                    r#"{{"container":"{container}","ifname":"eth0","netns":"/proc/self/ns/net","pod":{{"namespace":"a","name":"{container}"}},"uid":"u","ips":[],"host_if":"veth-{container}","mac":"00:00:00:00:00:00"}}"#
                );
                node.base.store.insert(serde_json::from_str(&json).unwrap());
            }
            let (reply, _answer) = tokio::sync::oneshot::channel();
            let asked = cni::Id { container: "asked".into(), ifname: types::IfName::new("eth0").unwrap() };
            node.begin_del(&asked, reply);
            node.orphans.taken.insert("orphan/eth0".into());
            node.take_away("orphan/eth0".into());
            node.reaped(crate::reaper::Reaped {
                handles: vec!["asked/eth0".into(), "orphan/eth0".into()],
                deleted: Ok(()),
            });
            let left: Vec<(&String, bool)> =
                node.base.store.records().iter().map(|(handle, record)| (handle, record.cut_off)).collect();
            assert_eq!(left, [(&"orphan/eth0".to_owned(), true)], "its namespace lives");
            std::fs::remove_dir_all(&directory).unwrap();
        });
    }
}
