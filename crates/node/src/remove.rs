//! DEL and GC.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cni::{Code, Error, Gc, Id};
use ipam::Now;
use serde::{Deserialize, Serialize};
use types::IfName;

use crate::add::host_ifs;
use crate::attachments::{Attachments, Saving};
use crate::facts::Facts;
use crate::input::RequestId;
use crate::output::{Note, Output, Reply};

/// Garbage collection leaves alone what was made so short a time ago: the runtime's list may be older.
const FRESH: Duration = Duration::from_secs(10);

/// Who waits for which veth to be gone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Departures {
    /// By handle; nobody waits for what was taken away without a DEL.
    waiting: BTreeMap<String, Vec<RequestId>>,
    requests: BTreeMap<RequestId, Group>,
}

/// What one request waits for.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Group {
    left: usize,
    /// The generation without the last of its rows.
    rows: u64,
    failures: Vec<String>,
}

impl Departures {
    pub fn has(&self, handle: &str) -> bool {
        self.waiting.contains_key(handle)
    }

    /// Whether a runtime asked for it, too.
    fn is_asked(&self, handle: &str) -> bool {
        self.waiting.get(handle).is_some_and(|requests| !requests.is_empty())
    }

    /// `true`: nobody wanted it gone before.
    fn begin(&mut self, handle: &str, request: Option<RequestId>) -> bool {
        let is_first = !self.waiting.contains_key(handle);
        let waiting = self.waiting.entry(handle.to_owned()).or_default();
        if let Some(request) = request {
            waiting.push(request);
            self.requests.entry(request).or_default().left += 1;
        }
        is_first
    }

    /// It is gone, or cannot go, and its row with this generation; who waited for it.
    pub fn end(&mut self, handle: &str, generation: u64) -> Vec<RequestId> {
        let requests = self.waiting.remove(handle).unwrap_or_default();
        for request in &requests {
            if let Some(group) = self.requests.get_mut(request) {
                group.left = group.left.saturating_sub(1);
                group.rows = group.rows.max(generation);
            }
        }
        requests
    }

    pub fn fail(&mut self, requests: &[RequestId], why: &str) {
        for request in requests {
            if let Some(group) = self.requests.get_mut(request) {
                group.failures.push(why.to_owned());
            }
        }
    }

    /// The last generation that a request waits for all of whose attachments are gone.
    pub fn waits_for(&self) -> Option<u64> {
        self.requests.values().filter(|group| group.left == 0).map(|group| group.rows).max()
    }

    /// Requests all of whose attachments are gone: with success, or with what could not be removed.
    pub fn answer(&mut self, through: u64, out: &mut Vec<Output>) {
        let is_done = |group: &Group| group.left == 0 && group.rows <= through;
        let (done, left) =
            std::mem::take(&mut self.requests).into_iter().partition(|(_, group)| is_done(group));
        self.requests = left;
        let done: BTreeMap<_, _> = done;
        out.extend(done.into_iter().map(|(request, group)| {
            let answer = match group.failures.is_empty() {
                true => Ok(String::new()),
                false => {
                    Err(Error::new(Code::Kernel, group.failures.join("; "), "the runtime will try again"))
                }
            };
            Output::Reply(request, Reply::Done(answer))
        }));
    }
}

impl Attachments {
    /// Whatever is known of it, the veth of this name goes: a DEL after a lost record must not leave it.
    pub(crate) fn delete(&mut self, request: RequestId, id: &Id, out: &mut Vec<Output>) {
        self.leaving.requests.entry(request).or_default();
        self.depart(id.to_string(), Some(request), out);
    }

    pub(crate) fn depart(&mut self, handle: String, request: Option<RequestId>, out: &mut Vec<Output>) {
        if !self.leaving.begin(&handle, request) {
            return;
        }
        if let Some(add) = self.adds.iter_mut().find(|add| add.record.handle() == handle) {
            add.unwanted = true;
            return;
        }
        let records = self.records.all();
        let known = records.get(&handle).map(|record| record.host_if.clone());
        // Of a lost record: never the veth of another pod that came to have the name.
        let others = |name: &IfName| records.values().any(|record| record.host_if == *name);
        match known.or_else(|| host_ifs(&handle).find(|name| !others(name))) {
            Some(host_if) => out.push(Output::Unwire { handle, host_if }),
            // Of no record there is no row.
            None => drop(self.leaving.end(&handle, 0)),
        }
    }

    /// The veths are gone, so nothing can use the addresses any more. Nobody gets one before its flows are forgotten.
    pub(crate) fn unwired(
        &mut self,
        handles: Vec<String>,
        deleted: &Result<(), String>,
        namespaces: &BTreeSet<String>,
        (facts, now): (&dyn Facts, Now),
        out: &mut Vec<Output>,
    ) {
        let mut requests = Vec::new();
        for handle in handles {
            // A runtime that asked for it, too, has the last word.
            let was_asked = self.leaving.is_asked(&handle);
            let waited = self.leaving.end(&handle, facts.generation());
            match deleted {
                Ok(()) => {
                    self.doubt_flows(&handle);
                    let holds = self.orphans.was_taken(&handle) && !was_asked && namespaces.contains(&handle);
                    if holds && self.records.all().contains_key(&handle) {
                        self.records.cut_off(&handle);
                    } else if let Some(record) = self.records.release(&handle, now) {
                        out.push(Output::Note(Note::Unwired { pod: record.pod, ips: record.ips }));
                    }
                    self.withdraw_row(&handle, out);
                }
                Err(error) => {
                    let error = error.clone();
                    self.leaving.fail(&waited, &format!("{handle}: {error}"));
                    out.push(Output::Note(Note::NotUnwired { handle, error }));
                }
            }
            requests.extend(waited);
        }
        self.save(Saving::Gone(requests), out);
    }

    /// Removes what the runtime does not know of this network. Without a list nothing is removed.
    pub(crate) fn collect_garbage(&mut self, request: RequestId, gc: &Gc, now: Now, out: &mut Vec<Output>) {
        self.leaving.requests.entry(request).or_default();
        let Some(valid) = &gc.valid else { return };
        let valid: BTreeSet<String> = valid.iter().map(Id::to_string).collect();
        let fresh =
            |handle: &str| self.made.get(handle).is_some_and(|made| now.saturating_sub(*made) < FRESH);
        let adding: BTreeSet<String> = self.adds.iter().map(|add| add.record.handle()).collect();
        let records = self.records.all().iter();
        let of_network = records.filter(|(_, record)| record.network == gc.config.name);
        let doomed: Vec<String> = of_network
            .map(|(handle, _)| handle)
            .filter(|handle| !valid.contains(*handle) && !fresh(handle) && !adding.contains(*handle))
            .cloned()
            .collect();
        for handle in doomed {
            out.push(Output::Note(Note::Garbage { handle: handle.clone() }));
            self.depart(handle, Some(request), out);
        }
    }
}
