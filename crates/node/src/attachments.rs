//! The state, and what an input does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::Now;
use model::{Event, Key, Kind, Row};
use serde::{Deserialize, Serialize};
use types::{IpNet, ObjectName};

use crate::add::{Add, Waiting};
use crate::facts::Facts;
use crate::input::{Asked, Input, RequestId};
use crate::orphan::Orphans;
use crate::output::{Note, Output, Reply};
use crate::record::Record;
use crate::records::Records;
use crate::remove::Departures;

/// What is wired to this node, and what is on its way.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Attachments {
    #[serde(with = "crate::records::whole")]
    pub(crate) records: Records,
    /// ADDs that were begun.
    pub(crate) adds: Vec<Add>,
    /// ADDs that cannot be served before everything is listed.
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) leaving: Departures,
    pub(crate) orphans: Orphans,
    /// When each attachment of this process was made: garbage collection leaves fresh ones alone.
    pub(crate) made: BTreeMap<String, Now>,
    /// Addresses that nobody has, whose flows the kernel may know all the same.
    pub(crate) unsure: BTreeSet<IpAddr>,
    /// Whom an [`Input::Saved`] concerns.
    saving: BTreeMap<u64, Saving>,
    saves: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Saving {
    /// Of this handle.
    Add(String),
    /// Of these requests.
    Gone(Vec<RequestId>),
    /// What these may send from was to grow; what they had before.
    Grant(BTreeMap<String, Vec<IpNet>>),
    /// Nobody waits for it.
    Other,
}

impl Attachments {
    /// As the process before left it; [`Input::Started`] comes first.
    pub fn new(records: Records) -> Self {
        Self { records, ..Self::default() }
    }

    /// What follows from an input, in the order in which it is to be performed.
    pub fn step(&mut self, input: Input, facts: &dyn Facts, now: Now) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Started { veths, namespaces } => self.start(&veths, &namespaces, now, &mut out),
            Input::Asked(asked) => self.asked(*asked, facts, now, &mut out),
            Input::Round { trouble } => self.retry(trouble, facts, now, &mut out),
            Input::Saved(save, done) => self.saved(save, done, (facts, now), &mut out),
            Input::Followed { through, refused, unforgotten } => {
                let troubles = [refused.as_deref(), unforgotten.as_deref()];
                self.followed(through, troubles, facts, now, &mut out);
            }
            Input::Wired(handle, done) => self.wired(&handle, done, (facts, now), &mut out),
            Input::Unwired { handles, deleted, namespaces } => {
                self.unwired(handles, &deleted, &namespaces, (facts, now), &mut out);
            }
            Input::Looked { ended, unshown } => {
                self.look_for_orphans(&ended, &unshown, facts, now, &mut out);
            }
            Input::Confirmed(doubt, answer) => self.confirmed(&doubt, answer, facts, now, &mut out),
            Input::Forgotten(nets) => self.forgotten(&nets, &mut out),
            Input::ForgottenAll => {
                let pools = self.records.pools();
                self.unsure.retain(|ip| !pools.iter().any(|pool| pool.gives(*ip)));
            }
            Input::Subnets { nets, rest } => self.follow_subnets(&nets, rest, &mut out),
            Input::Grant(further) => self.grant(further, &mut out),
            Input::Narrow(further) => self.narrow(further, &mut out),
        }
        out
    }

    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Addresses whose flows the kernel is to forget before anybody has them.
    pub fn unsure(&self) -> &BTreeSet<IpAddr> {
        &self.unsure
    }

    /// Whether an ADD waits for the kernel to follow.
    pub fn is_wiring(&self) -> bool {
        !self.adds.is_empty()
    }

    /// Of ADDs that are not done: their veths are not there, or are being made.
    pub fn coming(&self) -> impl Iterator<Item = &Record> {
        self.adds.iter().map(|add| &add.record)
    }

    /// Whether a request came too early.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The last generation that somebody waits for.
    pub fn waits_for(&self) -> Option<u64> {
        self.adds.iter().filter_map(Add::waits_for).chain(self.leaving.waits_for()).max()
    }

    /// Its veth is not there yet.
    pub fn is_coming(&self, handle: &str) -> bool {
        self.adds.iter().any(|add| add.record.handle() == handle)
    }

    /// Its veth is being deleted.
    pub fn is_leaving(&self, handle: &str) -> bool {
        self.leaving.has(handle)
    }

    /// Attachments of the process before, as far as their veths are still there: a pod's end takes its veth along.
    fn start(
        &mut self,
        veths: &BTreeSet<String>,
        namespaces: &BTreeSet<String>,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        out.push(Output::Row(Event::Start(Kind::Attachment)));
        let mut ended = Vec::new();
        for (handle, record) in self.records.all() {
            if record.cut_off && namespaces.contains(handle) {
                continue;
            }
            if veths.contains(handle) {
                out.push(Output::Row(Event::Upsert(Row::Attachment(Box::new(record.row())))));
            } else {
                ended.push((handle.clone(), record.pod.clone()));
            }
        }
        out.push(Output::Row(Event::Done(Kind::Attachment)));
        for (handle, pod) in ended {
            self.records.release(&handle, now);
            out.push(Output::Note(Note::Ended { handle, pod }));
        }
        self.save(Saving::Other, out);
    }

    fn asked(&mut self, asked: Asked, facts: &dyn Facts, now: Now, out: &mut Vec<Output>) {
        match &asked.request {
            cni::Request::Add(attach) => {
                let attach = attach.clone();
                self.add(asked, attach, facts, now, out);
            }
            cni::Request::Del(attach) => self.delete(asked.id, &attach.id, out),
            cni::Request::Gc(gc) => self.collect_garbage(asked.id, gc, now, out),
            cni::Request::Check(_) | cni::Request::Status(_) | cni::Request::Version(_) => {
                // They change nothing; whoever looks into the kernel answers them.
                out.push(Output::Reply(asked.id, Reply::Done(Ok(String::new()))));
            }
        }
    }

    pub(crate) fn save(&mut self, saving: Saving, out: &mut Vec<Output>) {
        self.saves += 1;
        self.saving.insert(self.saves, saving);
        out.push(Output::Save(self.saves));
    }

    fn saved(&mut self, save: u64, done: Result<(), String>, when: (&dyn Facts, Now), out: &mut Vec<Output>) {
        match (self.saving.remove(&save), done) {
            (Some(Saving::Add(handle)), done) => self.recorded(&handle, done, when, out),
            (Some(Saving::Gone(requests)), Err(error)) => {
                out.push(Output::Note(Note::NotSaved(error.clone())));
                self.leaving.fail(&requests, &error);
            }
            (Some(Saving::Other), Err(error)) => out.push(Output::Note(Note::NotSaved(error))),
            (Some(Saving::Grant(had)), done) => {
                if done.is_err() {
                    had.into_iter().for_each(|(handle, had)| self.records.set_further(&handle, had));
                }
                out.push(Output::Granted(done));
            }
            (Some(Saving::Gone(_) | Saving::Other) | None, _) => {}
        }
    }

    /// Its pod may have been there, if only for a moment.
    pub(crate) fn doubt_flows(&mut self, handle: &str) {
        let record = self.records.all().get(handle);
        self.unsure.extend(record.into_iter().flat_map(|record| record.ips.iter().copied()));
    }

    pub(crate) fn withdraw_row(&mut self, handle: &str, out: &mut Vec<Output>) {
        self.made.remove(handle);
        let key = Key::new(Kind::Attachment, ObjectName::cluster(handle));
        out.push(Output::Row(Event::Delete(key)));
    }
}
