//! Performs what [`Attachments`](node::Attachments) decide, and tells them what became of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use compile::Compiler;
use model::{Key, Kind};
use node::{Asked, Live, Network, Note, Output, Record, Reply, RequestId, Situation};
use tokio::sync::oneshot;
use types::ObjectName;

use super::Node;
use crate::clock;
use crate::datapath::Subsystem;
use crate::inbox::CniInput;
use crate::reaper::{Doomed, Reaped};
use crate::store::{namespace_id, namespace_lives};
use crate::tell::Saying;

/// Who waits for what attachments decide.
#[derive(Debug, Default)]
pub struct Requests {
    open: BTreeMap<RequestId, oneshot::Sender<Reply>>,
    last: RequestId,
}

impl Requests {
    fn begin(&mut self, reply: oneshot::Sender<Reply>) -> RequestId {
        self.last += 1;
        self.open.insert(self.last, reply);
        self.last
    }
}

impl Node {
    pub(super) fn facts(&self) -> Live<'_> {
        let hears_pods = self.cluster.synced().is_some()
            && !self.standing.broken_watches().any(|(kind, _)| kind == Kind::Pod);
        let settings = self.whole().map(Compiler::settings);
        let situation = Situation {
            network: settings.map(|settings| Network::new(&self.cluster, settings)),
            hears_pods,
            paused: self.paused,
            orphan_grace: Duration::from_secs(self.base.settings.args.orphan_grace),
        };
        let generation = self.base.datapath.backend.next();
        Live { cluster: &self.cluster, settings, situation, generation }
    }

    /// What follows from an input, and from that, until nothing does: what follows from an answer comes first, so that a pod is
    /// answered for when it is wired, and not after all the others. Whether anything followed.
    pub(super) fn hear(&mut self, input: node::Input) -> bool {
        let mut outputs = VecDeque::from(self.step(input));
        let follows = !outputs.is_empty();
        while let Some(output) = outputs.pop_front() {
            if let Some(answer) = self.perform(output) {
                self.step(answer).into_iter().rev().for_each(|output| outputs.push_front(output));
            }
        }
        follows
    }

    fn step(&mut self, input: node::Input) -> Vec<Output> {
        let mut attachments = std::mem::take(&mut self.attachments);
        let mut recording = std::mem::take(&mut self.recording);
        let outputs = recording.step(&mut attachments, input, &self.facts(), clock::since_boot());
        (self.attachments, self.recording) = (attachments, recording);
        outputs
    }

    fn perform(&mut self, output: Output) -> Option<node::Input> {
        match output {
            Output::Save(save) => {
                return Some(node::Input::Saved(save, self.save().map_err(|error| format!("{error:#}"))));
            }
            Output::Row(event) => self.apply(event),
            Output::Wire(wire) => self.base.wirer.make(*wire),
            Output::Unwire { handle, host_if } => self.base.reaper.delete(Doomed { handle, host_if }),
            Output::Confirm(doubt) => {
                if !self.base.confirm.ask(doubt.clone()) {
                    return Some(node::Input::Confirmed(doubt, node::Answer::Unasked));
                }
            }
            Output::Reply(id, reply) => self.reply(id, reply),
            Output::PoolsMoved => self.former.look_again(),
            Output::Granted(done) => self.sources.granted_now(done),
            Output::Note(note) => self.tell_of_attachment(note),
        }
        None
    }

    /// The last inputs of attachments, for `plumb replay`.
    pub fn recording(&self) -> String {
        self.recording.text()
    }

    /// Of what attachments are: before anybody is told.
    fn save(&mut self) -> anyhow::Result<()> {
        self.base.store.save(self.attachments.records())
    }

    fn reply(&mut self, id: RequestId, reply: Reply) {
        // Before the answer: whoever has it reads what it says.
        self.base.metrics.attachments(self.records().count());
        if let Some(waits) = self.requests.open.remove(&id) {
            // A runtime that hung up has nobody to tell; it will DEL or GC what it has.
            let _ = waits.send(reply);
        }
    }

    fn tell_of_attachment(&self, note: Note) {
        match note {
            Note::Wired { pod, ips, host_if } => tracing::info!(%pod, ip = ?ips, veth = %host_if, "wired"),
            Note::NotWired { pod, error } => tracing::warn!(%pod, %error, "not wired"),
            Note::Unwired { pod, ips } => tracing::info!(%pod, ip = ?ips, "unwired"),
            Note::NotUnwired { handle, error } => tracing::warn!(%handle, %error, "not unwired"),
            Note::Garbage { handle } => tracing::info!(%handle, "garbage: the runtime does not know it"),
            Note::Ended { handle, pod } => {
                tracing::info!(%handle, %pod, "its pod ended while no agent ran; address released");
            }
            Note::Kept { handle, pod, why } => {
                tracing::warn!(%handle, %pod, why, "kept, though its watch does not show the pod");
            }
            Note::NotSaved(error) => tracing::error!(error, "attachments cannot be saved"),
            Note::Released { message, .. } => {
                tracing::warn!("{message}");
                self.base.tell.say(Saying {
                    object: Key::new(Kind::Node, ObjectName::cluster(&self.base.settings.node)),
                    uid: String::new(),
                    normal: true,
                    reason: "AttachmentReleased",
                    message,
                });
            }
        }
    }

    /// ADD, DEL and GC.
    pub(super) fn asked(&mut self, input: CniInput) {
        let CniInput { request, pod, received, reply } = input;
        let netns = match &request {
            cni::Request::Add(attach) => attach.netns.as_deref(),
            _ => None,
        };
        let netns_id = netns.and_then(namespace_id);
        let id = self.requests.begin(reply);
        self.hear(node::Input::Asked(Box::new(Asked { id, request, pod, netns_id, received })));
    }

    /// Attachments of the process before.
    pub(super) fn reload(&mut self) {
        let (veths, namespaces) = self.seen();
        self.hear(node::Input::Started { veths, namespaces });
        self.base.metrics.attachments(self.records().count());
    }

    /// Attachments whose veth is there, and those of the others whose namespace is; cut off, a namespace may live without one.
    fn seen(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut veths, mut namespaces) = (BTreeSet::new(), BTreeSet::new());
        for (handle, record) in self.attachments.records().all() {
            let has_veth = self.base.datapath.links.rtnl.index(&record.host_if).is_some();
            if has_veth {
                veths.insert(handle.clone());
            }
            if (!has_veth || record.cut_off) && namespace_lives(record) {
                namespaces.insert(handle.clone());
            }
        }
        (veths, namespaces)
    }

    pub(super) fn retry_waiting(&mut self) {
        if self.attachments.is_waiting() {
            let trouble = self.trouble().map(|fault| fault.to_string());
            self.hear(node::Input::Round { trouble });
        }
    }

    /// Rows of so many generations are in the kernel now, as far as it takes them.
    pub(super) fn followed(&mut self) {
        let unforgotten = match self.attachments.is_wiring() {
            true => self.look_for_former().err().map(|error| error.to_string()),
            false => None,
        };
        let refused = self.stale.failed.get(&Subsystem::Nft).cloned();
        // Before anything is compiled there are no rows that a DEL could wait for, and the API may be away for long.
        let through = match self.has_begun() {
            true => self.base.datapath.backend.followed_through(),
            false => u64::MAX,
        };
        if self.hear(node::Input::Followed { through, refused, unforgotten }) {
            self.settle();
            self.send();
        }
    }

    pub(super) fn reaped(&mut self, Reaped { handles, deleted }: Reaped) {
        let records = self.attachments.records().all();
        let lives = |handle: &&String| records.get(*handle).is_some_and(namespace_lives);
        let namespaces = handles.iter().filter(lives).cloned().collect();
        let deleted = deleted.map_err(|error| error.to_string());
        self.hear(node::Input::Unwired { handles, deleted, namespaces });
        self.base.metrics.attachments(self.records().count());
    }

    /// Attachments that nobody will ever DEL.
    pub(super) fn look_for_orphans(&mut self) {
        if self.attachments.wants_to_look(&self.facts(), clock::since_boot()) {
            let (veths, namespaces) = self.seen();
            // A veth dies with the namespace of its other end. One that somebody deleted tells nothing.
            let lives = |(handle, record): &(&String, &Record)| {
                namespaces.contains(*handle) || !record.cut_off && veths.contains(*handle)
            };
            let records = self.attachments.records().all().iter();
            let ended = records.filter(|one| !lives(one)).map(|(handle, _)| handle.clone()).collect();
            self.hear(self.attachments.look(ended, &self.facts()));
        }
    }
}
