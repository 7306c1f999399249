//! ADD.

use std::time::Duration;

use cni::{Attach, Code, Error, Interface, Ip, Route, Success};
use compile::wiring;
use ipam::Now;
use model::{Event, Row};
use serde::{Deserialize, Serialize};
use types::{IfName, ObjectName, hash8};

use crate::attachments::{Attachments, Saving};
use crate::facts::{Facts, Network};
use crate::input::{Asked, RequestId};
use crate::output::{Note, Output, Reply, Wire};
use crate::record::Record;

/// So long a request waits for the first lists and the first rules, before the runtime is told to try again.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many names or addresses are tried before it is said that all are taken.
pub(crate) const TRIES: u32 = 16;

/// An ADD that has its record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Add {
    pub id: RequestId,
    pub record: Record,
    version: cni::Version,
    pub stage: Stage,
    /// Somebody wants it gone by now.
    pub unwanted: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Stage {
    /// Its record is being written.
    Recording,
    /// Its row is there, its policies come to the kernel with this generation.
    Recorded(u64),
    /// Its veth is being made; what the runtime is told then.
    Wiring(Success),
}

impl Add {
    pub fn waits_for(&self) -> Option<u64> {
        match self.stage {
            Stage::Recorded(generation) => Some(generation),
            Stage::Recording | Stage::Wiring(_) => None,
        }
    }
}

/// Too early.
#[derive(Debug, Serialize, Deserialize)]
pub struct Waiting {
    pub asked: Asked,
    pub attach: Attach,
}

/// Names of the host side: the same for the same attachment, whoever asks and when, the first of which nobody else has.
/// They are short hashes, for an interface has 15 characters.
pub fn host_ifs(handle: &str) -> impl Iterator<Item = IfName> + '_ {
    let name = move |attempt| match attempt {
        0 => format!("veth{}", hash8(handle)),
        again => format!("veth{}", hash8(&format!("{handle} {again}"))),
    };
    (0..TRIES).filter_map(move |attempt| IfName::new(&name(attempt)).ok())
}

pub(crate) fn again(msg: String) -> Error {
    Error::new(Code::TryAgainLater, msg, "the runtime will try again")
}

impl Attachments {
    pub(crate) fn add(
        &mut self,
        asked: Asked,
        attach: Attach,
        facts: &dyn Facts,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        if facts.situation().network.is_none() || self.records.pools().is_empty() {
            self.waiting.push(Waiting { asked, attach });
            return;
        }
        let reply = match self.begin(&asked, &attach, facts, now, out) {
            Ok(None) => return,
            Ok(Some(unknown)) => Reply::NeedPod(unknown),
            Err(error) => Reply::Done(Err(error)),
        };
        out.push(Output::Reply(asked.id, reply));
    }

    /// Requests that came too early: again, or over.
    pub(crate) fn retry(
        &mut self,
        trouble: Option<String>,
        facts: &dyn Facts,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let why = trouble.unwrap_or_else(|| "it is starting".to_owned());
        for Waiting { asked, attach } in std::mem::take(&mut self.waiting) {
            if now.saturating_sub(asked.received) < PATIENCE {
                self.add(asked, attach, facts, now, out);
                continue;
            }
            let details = "the runtime will try again; kubectl describe node shows what is missing";
            let error =
                Error::new(Code::TryAgainLater, format!("this node cannot wire pods yet: {why}"), details);
            out.push(Output::Reply(asked.id, Reply::Done(Err(error))));
        }
    }

    /// The name of its pod if that is not known: its labels decide its policies.
    fn begin(
        &mut self,
        asked: &Asked,
        attach: &Attach,
        facts: &dyn Facts,
        now: Now,
        out: &mut Vec<Output>,
    ) -> Result<Option<ObjectName>, Error> {
        let handle = attach.id.to_string();
        if self.leaving.has(&handle) {
            return Err(again(format!("attachment {handle} is being removed")));
        }
        if let Some(record) = self.records.all().get(&handle) {
            let msg = format!("attachment {handle} exists, with address {:?}", record.ips);
            return Err(Error::new(Code::InterfaceExists, msg, "DEL comes before another ADD"));
        }
        if let Some(wanted) = &attach.pod {
            let known = facts.pod(&wanted.name);
            let is_known = known.is_some_and(|pod| wanted.uid.is_empty() || pod.uid == wanted.uid);
            match &asked.pod {
                Some(pod) if !is_known => {
                    out.push(Output::Row(Event::Upsert(Row::Pod(Box::new(pod.clone())))));
                }
                None if !is_known => return Ok(Some(wanted.name.clone())),
                _ => {}
            }
        }
        let record = self.reserve(asked, attach, facts, now)?;
        self.records.insert(record.clone());
        let version = attach.config.version;
        self.adds.push(Add { id: asked.id, record, version, stage: Stage::Recording, unwanted: false });
        self.save(Saving::Add(handle), out);
        Ok(None)
    }

    /// Its record is on disk, or cannot be.
    pub(crate) fn recorded(
        &mut self,
        handle: &str,
        done: Result<(), String>,
        (facts, now): (&dyn Facts, Now),
        out: &mut Vec<Output>,
    ) {
        let Some(at) = self.adds.iter().position(|add| add.record.handle() == handle) else { return };
        let Err(error) = done else {
            let add = &mut self.adds[at];
            add.stage = Stage::Recorded(facts.generation());
            out.push(Output::Row(Event::Upsert(Row::Attachment(Box::new(add.record.row())))));
            return;
        };
        let add = self.adds.remove(at);
        self.records.release(handle, now);
        let details = "see that the agent's data directory is writable and has room";
        let error = Error::new(Code::Io, format!("the address cannot be recorded: {error}"), details);
        out.push(Output::Reply(add.id, Reply::Done(Err(error))));
    }

    /// The policies of these pods are in the kernel now, or the kernel refused them: then the pods are not wired, since they
    /// would be open.
    pub(crate) fn followed(
        &mut self,
        through: u64,
        [refused, unforgotten]: [Option<&str>; 2],
        facts: &dyn Facts,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        self.leaving.answer(through, out);
        let is_there = |add: &Add| add.waits_for().is_some_and(|generation| generation <= through);
        let (recorded, others) = std::mem::take(&mut self.adds).into_iter().partition(is_there);
        self.adds = others;
        for mut add in recorded {
            let ready = match add.unwanted {
                true => Err(again(format!("attachment {} is being removed", add.record.handle()))),
                false => self.may_be_wired(&add.record, refused, unforgotten),
            };
            match ready.and_then(|()| wire(&add.record, facts.situation().network.as_ref())) {
                Ok(wire) => {
                    add.stage = Stage::Wiring(success(&wire));
                    self.adds.push(add);
                    out.push(Output::Wire(Box::new(wire)));
                }
                Err(error) => self.fail(add, error, (facts, now), out),
            }
        }
    }

    fn may_be_wired(
        &self,
        record: &Record,
        refused: Option<&str>,
        unforgotten: Option<&str>,
    ) -> Result<(), Error> {
        let pod = &record.pod;
        if let Some(error) = refused {
            let msg = format!("the kernel did not take the policies of pod {pod}: {error}");
            return Err(Error::new(Code::PolicyNotApplied, msg, "the runtime will try again"));
        }
        let former = format!("flows of who had the addresses of pod {pod} before are not forgotten");
        if let Some(error) = unforgotten {
            let msg = format!("{former}: {error}");
            return Err(Error::new(Code::Kernel, msg, "the runtime will try again"));
        }
        match record.ips.iter().any(|ip| self.unsure.contains(ip)) {
            true => Err(again(format!("{former} yet"))),
            false => Ok(()),
        }
    }

    pub(crate) fn wired(
        &mut self,
        handle: &str,
        done: Result<(), Error>,
        (facts, now): (&dyn Facts, Now),
        out: &mut Vec<Output>,
    ) {
        let is_it = |add: &Add| add.record.handle() == handle && matches!(add.stage, Stage::Wiring(_));
        let Some(at) = self.adds.iter().position(is_it) else { return };
        let add = self.adds.remove(at);
        match (done, &add.stage) {
            (Ok(()), _) if add.unwanted => {
                // Its veth is there now, and goes again.
                let error = again(format!("attachment {handle} is being removed"));
                out.push(Output::Reply(add.id, Reply::Done(Err(error))));
                out.push(Output::Unwire { handle: handle.to_owned(), host_if: add.record.host_if });
            }
            (Ok(()), Stage::Wiring(success)) => {
                let Record { pod, ips, host_if, .. } = add.record.clone();
                out.push(Output::Note(Note::Wired { pod, ips, host_if }));
                self.made.insert(handle.to_owned(), now);
                out.push(Output::Reply(add.id, Reply::Done(Ok(success.render(add.version)))));
            }
            (Ok(()), _) => {}
            (Err(error), _) => self.fail(add, error, (facts, now), out),
        }
    }

    /// Gives everything of an attachment back: record, address, row. Who wants it gone hears that it is.
    fn fail(&mut self, add: Add, error: Error, (facts, now): (&dyn Facts, Now), out: &mut Vec<Output>) {
        let handle = add.record.handle();
        out.push(Output::Note(Note::NotWired { pod: add.record.pod, error: error.clone() }));
        self.doubt_flows(&handle);
        self.records.release(&handle, now);
        let requests = self.leaving.end(&handle, facts.generation());
        let saving = if requests.is_empty() { Saving::Other } else { Saving::Gone(requests) };
        self.save(saving, out);
        self.withdraw_row(&handle, out);
        out.push(Output::Reply(add.id, Reply::Done(Err(error))));
    }
}

fn wire(record: &Record, network: Option<&Network>) -> Result<Wire, Error> {
    let Some(network) = network else {
        return Err(Error::new(Code::TryAgainLater, "the node's network is not known yet", ""));
    };
    let side = wiring::of(record.wiring).pod_side(&record.ips, &network.subnets);
    let side = side.map_err(|family| again(format!("this node has no {family} pod CIDR")))?;
    Ok(Wire { record: record.clone(), side, mtu: network.mtu })
}

impl Wire {
    /// Of an attachment that is there already, whose veth somebody has deleted.
    pub fn again(record: &Record, network: Option<&Network>) -> Result<Self, Error> {
        wire(record, network)
    }
}

fn success(Wire { record, side, mtu }: &Wire) -> Success {
    let mtu = Some(*mtu);
    let host = Interface { name: record.host_if.to_string(), mac: None, mtu, sandbox: None };
    let pod = Interface {
        name: record.ifname.to_string(),
        mac: Some(record.mac),
        mtu,
        sandbox: Some(record.netns.clone()),
    };
    let ips = side.addresses.iter().zip(&side.gateways).map(|(address, gateway)| Ip {
        address: *address,
        gateway: Some(*gateway),
        interface: Some(1),
    });
    // What is on the link goes without saying.
    let through = side.routes.iter().filter(|(_, via)| via.is_some());
    let routes = through.map(|(dst, gw)| Route { dst: *dst, gw: *gw, mtu: None });
    Success {
        interfaces: vec![host, pod],
        ips: ips.collect(),
        routes: routes.collect(),
        dns: cni::Dns::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface of a version before must be found by the same name.
    #[test]
    fn an_attachment_has_other_names_for_when_one_is_taken() {
        let names: Vec<String> = host_ifs("c1/eth0").map(|name| name.to_string()).collect();
        assert_eq!(names[0], format!("veth{}", hash8("c1/eth0")));
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), TRIES as usize);
        let again: Vec<String> = host_ifs("c1/eth0").map(|name| name.to_string()).collect();
        assert_eq!(names, again);
    }
}
