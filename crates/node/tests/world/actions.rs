//! What runtimes, the API and other threads do.

use std::net::IpAddr;
use std::time::Duration;

use cni::Request;
use model::{Event, Kind, Row};
use node::{Answer, Asked, Input, Record};
use serde_json::json;
use types::{IfName, IpNet};

use super::{CONTAINERS, World, handle, pod, request, row};

impl World {
    fn ask(&mut self, request: Request, n: usize) {
        let id = self.count();
        self.process.open.insert(id, request.clone());
        let shown = self.api.contains(&pod(n)).then(|| row(n));
        let netns_id = self.sandboxes.get(&n).map(|id| (4, *id));
        self.hear(Input::Asked(Box::new(Asked { id, request, pod: shown, netns_id, received: self.now })));
    }

    pub fn begin(&mut self, n: usize) {
        if self.sandboxes.contains_key(&n) {
            return;
        }
        let id = self.count();
        self.sandboxes.insert(n, id);
        if self.api.insert(pod(n)) && !self.faults.deaf {
            self.cluster.apply(Event::Upsert(Row::Pod(Box::new(row(n)))));
        }
        self.add(n);
    }

    pub fn add(&mut self, n: usize) {
        self.ask(self.requests[n][0].clone(), n);
    }

    pub fn del(&mut self, n: usize) {
        self.wanted.remove(&n);
        self.ask(self.requests[n][1].clone(), n);
    }

    pub fn gc(&mut self, forgotten: &[usize]) {
        let valid: Vec<_> = (0..CONTAINERS)
            .filter(|n| self.sandboxes.contains_key(n) && !forgotten.contains(n))
            .map(|n| json!({ "containerID": format!("c{n}"), "ifname": "eth0" }))
            .collect();
        self.wanted.retain(|n| !forgotten.contains(n));
        self.ask(request("GC", 0, &json!(valid)), 0);
    }

    pub fn end(&mut self, n: usize) {
        self.sandboxes.remove(&n);
        self.wanted.remove(&n);
        let gone: Vec<IfName> = self
            .veths
            .iter()
            .filter(|(_, veth)| veth.handle == handle(n))
            .map(|(name, _)| name.clone())
            .collect();
        gone.iter().for_each(|name| self.delete_veth(name));
    }

    pub fn pod_gone(&mut self, n: usize) {
        self.wanted.remove(&n);
        self.api.remove(&pod(n));
        if !self.faults.deaf {
            self.cluster.apply(Event::Delete(model::Key::new(Kind::Pod, pod(n))));
        }
    }

    /// The watch is behind: it does not show a pod that the API has.
    pub fn unseen(&mut self, n: usize) {
        self.cluster.apply(Event::Delete(model::Key::new(Kind::Pod, pod(n))));
    }

    /// Other threads do what they have to.
    pub fn work(&mut self, can_delete: bool) {
        let process = self.starts;
        for record in std::mem::take(&mut self.process.wires) {
            let done = self.wire(&record);
            self.hear(Input::Wired(record.handle(), done));
            if self.starts > process {
                return;
            }
        }
        let all = std::mem::take(&mut self.process.unwires);
        if !all.is_empty() {
            if can_delete {
                all.iter().for_each(|(_, host_if)| self.delete_veth(host_if));
            }
            let deleted = if can_delete { Ok(()) } else { Err("busy".to_owned()) };
            let handles = all.into_iter().map(|(handle, _)| handle).collect();
            let namespaces = self.seen().1;
            self.hear(Input::Unwired { handles, deleted, namespaces });
        }
        if self.starts > process {
            return;
        }
        for doubt in std::mem::take(&mut self.process.doubts) {
            let answer = match (self.faults.deaf, self.api.contains(&doubt.pod)) {
                (true, _) => Answer::Unheard("no answer".into()),
                (false, true) => Answer::There,
                (false, false) => Answer::Gone,
            };
            self.hear(Input::Confirmed(doubt, answer));
            if self.starts > process {
                return;
            }
        }
    }

    pub fn forget(&mut self) {
        let unsure: Vec<IpAddr> = self.process.attachments.unsure().iter().copied().collect();
        if !self.faults.forget_fails && !unsure.is_empty() {
            self.flows.retain(|ip| !unsure.contains(ip));
            self.hear(Input::Forgotten(unsure.into_iter().map(IpNet::from).collect()));
        }
    }

    pub fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        let (veths, namespaces) = self.seen();
        let records = self.process.attachments.records().all().iter();
        // A veth dies with the namespace of its other end. One that somebody deleted tells nothing.
        let lives = |(handle, record): &(&String, &Record)| {
            namespaces.contains(*handle) || !record.cut_off && veths.contains(*handle)
        };
        let ended = records.filter(|one| !lives(one)).map(|(handle, _)| handle.clone()).collect();
        let looked = self.process.attachments.look(ended, &self.facts());
        self.hear(looked);
    }

    pub fn kill_after(&mut self, outputs: usize, done: bool) {
        self.kill = Some((outputs, done));
    }
}
